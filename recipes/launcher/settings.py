"""What every setting of the recipes may be, checked before any work starts."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from rambo_trl.experiment.folder import LATER_SETTINGS

#: how long pretraining takes, in updates or in the place of them in passes over the data
BUDGETS = (("model.max_updates", "model.max_passes"), ("cloning.updates", "cloning.passes"))


@dataclass(frozen=True)
class Whole:
    """A whole number from ``low`` to ``high``; ``optional`` allows null."""

    low: int = 1
    high: int | None = None
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether the value is one."""
        if value is None:
            return self.optional
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and self.low <= value and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        bound = f"of at least {self.low}" if self.high is None else f"in [{self.low}, {self.high}]"
        return f"a whole number {bound}" + (" or null" if self.optional else "")


@dataclass(frozen=True)
class Number:
    """A finite number from ``low`` to ``high``; ``above`` leaves ``low`` itself out."""

    low: float = 0.0
    high: float = math.inf
    above: bool = False
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether the value is one."""
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (
            math.isfinite(value)
            and self.low <= value <= self.high
            and not (self.above and value == self.low)
        )

    def __str__(self) -> str:
        if math.isfinite(self.high):
            bound = f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"
        else:
            bound = f"above {self.low:g}" if self.above else f"of at least {self.low:g}"
        return f"a finite number {bound}" + (" or null" if self.optional else "")


@dataclass(frozen=True)
class AutoOr:
    """The word ``auto``, or what another rule accepts."""

    rule: Number

    def accepts(self, value: Any) -> bool:
        """Whether the value is one."""
        return value == "auto" or self.rule.accepts(value)

    def __str__(self) -> str:
        return f"auto or {self.rule}"


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    def accepts(self, value: Any) -> bool:
        """Whether the value is one."""
        return value in self.words

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"


@dataclass(frozen=True)
class Flag:
    """True or false; ``optional`` allows null."""

    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether the value is one."""
        return isinstance(value, bool) or (value is None and self.optional)

    def __str__(self) -> str:
        return "true, false or null" if self.optional else "true or false"


@dataclass(frozen=True)
class Text:
    """Some text; ``optional`` allows null."""

    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether the value is one."""
        return (value is None and self.optional) or (isinstance(value, str) and bool(value))

    def __str__(self) -> str:
        return "a text" + (" or null" if self.optional else "")


@dataclass(frozen=True)
class Sizes:
    """A list of layer sizes."""

    def accepts(self, value: Any) -> bool:
        """Whether the value is one."""
        values = OmegaConf.to_container(value) if OmegaConf.is_list(value) else value
        return isinstance(values, list) and bool(values) and all(map(Whole().accepts, values))

    def __str__(self) -> str:
        return "a list of whole numbers of at least 1, such as [256,256]"


Rule = Whole | Number | AutoOr | Choice | Flag | Text | Sizes

#: what every key of RAMBO's recipe may be
RULES: Mapping[str, Rule] = {
    "method": Text(),
    "seed": Whole(0, 2**31 - 1),
    "device": Text(),
    "compile": Flag(),
    "deterministic": Flag(),
    "float32_matmul_precision": Choice(("highest", "high", "medium")),
    "model_matmul_dtype": Choice(("float32", "bfloat16")),
    "evaluate_beside": Flag(optional=True),
    "threads": Whole(optional=True),
    "resume": Text(optional=True),
    "run_dir": Text(optional=True),
    "schedule_name": Text(),
    "dataset": Text(),
    "env_id": Text(optional=True),
    "termination": Text(),
    "odd_data": Choice(("refuse", "accept")),
    "reward_shift": Number(-1e30, 1e30),
    "reward_scale": AutoOr(Number(above=True)),
    "pretrained": Text(optional=True),
    "cache_dir": Text(),
    "fitted_model": Text(optional=True),
    "cloned_policy": Text(optional=True),
    "on_divergence": Choice(("stop", "continue")),
    "checkpoint_every": Whole(),
    "checkpoint_minutes": Number(above=True, optional=True),
    "checkpoints_kept": Whole(),
    "logger": Choice(("csv", "tensorboard", "wandb", "mlflow", "trackio")),
    "video": Choice(("none", "gif", "mp4")),
    "retries": Whole(0),
    "epochs": Whole(),
    "agent_updates": Whole(),
    "model_updates": Whole(0),
    "rollout_starts": Whole(),
    "rollout_length": Whole(),
    "rollout_policy": Choice(("current", "random")),
    "rollout_direction": Choice(("forward", "reverse", "both")),
    "retained_epochs": Whole(),
    "adversarial_weight": Number(),
    "num_critics": Whole(),
    "advantage_clip": Number(above=True, optional=True),
    "model_updates_every": Whole(),
    "model_term": Choice(("likelihood", "kl", "total_variation")),
    "likelihood_budget": Number(above=True, optional=True),
    "budget_lr": Number(above=True),
    "clone_behaviour": Flag(),
    "agent.hidden_sizes": Sizes(),
    "agent.batch_size": Whole(),
    "agent.real_fraction": Number(0, 1),
    "agent.gamma": Number(0, 0.99999),
    "agent.tau": Number(0, 1, above=True),
    "agent.critic_lr": Number(above=True),
    "agent.actor_lr": Number(above=True),
    "agent.alpha_lr": Number(above=True),
    "agent.alpha_init": Number(above=True),
    "model.num_members": Whole(),
    "model.num_elites": Whole(),
    "model.hidden_sizes": Sizes(),
    "model.batch_size": Whole(),
    "model.lr": Number(above=True),
    "model.adversarial_lr": Number(above=True),
    "model.patience": Whole(),
    "model.min_improvement": Number(0, 1),
    "model.max_updates": Whole(optional=True),
    "model.holdout_every": Whole(optional=True),
    "model.max_passes": Whole(optional=True),
    "cloning.updates": Whole(0, optional=True),
    "cloning.passes": Whole(0, optional=True),
    "cloning.batch_size": Whole(),
    "cloning.lr": Number(above=True),
    "evaluation.episodes": Whole(),
    "evaluation.every": Whole(),
    "evaluation.last": Whole(),
}

#: and what further ones of the other methods may be
ALL_RULES: Mapping[str, Rule] = {
    **RULES,
    "penalty_coefficient": Number(),
    "halting.num_stds": Number(optional=True),
    "halting.penalty": Number(),
    "conservative_weight": Number(),
    "penalized_actions": Choice(("rollout", "policy", "logsumexp")),
    "agent.conservative_weight": Number(),
    "agent.num_actions": Whole(),
    "agent.expectile": Number(0.5, 0.99999),
    "agent.temperature": Number(above=True),
    "agent.scale_rewards": Flag(),
    "agent.value_lr": Number(above=True),
    "agent.bc_alpha": Number(above=True),
    "agent.policy_noise": Number(),
    "agent.noise_clip": Number(),
    "agent.actor_every": Whole(),
}


def rules_for(name: str, optional: Iterable[str] = ()) -> Mapping[str, Rule]:
    """The rules of one method's command line.

    Args:
        name: the method's, which its key ``method`` keeps.
        optional: numbers that may be null there, and are filled in with published values.
    """
    filled_in = {
        key: replace(rule, optional=True)
        for key in optional
        if isinstance(rule := ALL_RULES[key], Whole | Number)
    }
    return {**ALL_RULES, "method": Choice((name,)), **filled_in}


def without(cfg: DictConfig, unused: Sequence[str]) -> DictConfig:
    """A configuration without some keys, or groups of keys, that it need not have."""
    kept = cfg.copy()
    for key in unused:
        group, _, name = key.rpartition(".")
        node = OmegaConf.select(kept, group) if group else kept
        if node is not None:
            with open_dict(node):
                node.pop(name, None)
    return kept


def check_config(cfg: DictConfig, rules: Mapping[str, Rule] = ALL_RULES) -> None:
    """Refuse values of a wrong type or out of their range before any work starts.

    Args:
        cfg: the configuration.
        rules: key to what it may be; keys that the configuration lacks are passed over.

    Raises:
        ValueError: naming the key, what was expected and what came.
    """
    present = set(leaf_keys(cfg))
    for key, rule in rules.items():
        if key in present and not rule.accepts(value := OmegaConf.select(cfg, key)):
            raise ValueError(f"{key} must be {rule}, got {shown(value)}")
    members, elites = (OmegaConf.select(cfg, f"model.num_{k}") for k in ("members", "elites"))
    if members is not None and elites is not None and elites > members:
        raise ValueError(
            f"model.num_elites ({elites}) must not exceed model.num_members ({members})"
        )
    if OmegaConf.select(cfg, "likelihood_budget") and not cfg.adversarial_weight:
        raise ValueError(
            "likelihood_budget needs an adversarial_weight above 0 to start from, got 0: give one, "
            "or leave the budget out"
        )
    if OmegaConf.select(cfg, "pretrained") not in (None, "auto"):
        for key in ("fitted_model", "cloned_policy"):
            if OmegaConf.select(cfg, key) is not None:
                raise ValueError(
                    f"pretrained={cfg.pretrained} holds a model and a policy: leave {key} out, or "
                    "use pretrained=auto"
                )
    if "cloning" in cfg and all(cfg.cloning.get(key) is None for key in ("updates", "passes")):
        raise ValueError("cloning.updates or cloning.passes must be a number, both are null")
    if "rollout_direction" in present:
        check_direction(cfg)
    if "device" in present:
        check_device(cfg.device)


def with_later_settings(saved: DictConfig, keys: Collection[str]) -> DictConfig:
    """An older run's configuration, with what it had of these settings where it names none."""
    filled = saved.copy()
    for key in LATER_SETTINGS.keys() & set(keys).difference(leaf_keys(saved)):
        group = key.rpartition(".")[0]
        if not group or group in saved:  # else the method has none of them
            OmegaConf.update(filled, key, LATER_SETTINGS[key], force_add=True)
    return filled


def settle_budgets(cfg: DictConfig, given: Collection[str]) -> None:
    """Leave of each budget in updates and in passes the one that was asked for.

    Args:
        cfg: the configuration; changed.
        given: keys of the command line.

    Raises:
        ValueError: if both were.
    """
    for pair in BUDGETS:
        asked = [k for k in pair if k in given and OmegaConf.select(cfg, k) is not None]
        if len(asked) == 2:
            raise ValueError(
                f"{pair[0]} and {pair[1]} both say how long it takes: leave one of them out"
            )
        for key in pair:
            if asked and key not in asked and key in leaf_keys(cfg):
                OmegaConf.update(cfg, key, None)


def check_direction(cfg: DictConfig) -> None:
    """Refuse reverse rollouts beside settings that take their sense away.

    Raises:
        ValueError: saying what to choose instead.
    """
    direction = cfg.rollout_direction
    if direction == "forward":
        return
    if direction == "reverse" and cfg.adversarial_weight:
        raise ValueError(
            "rollout_direction=reverse leaves the agent nothing that the adversary touches: use "
            "both, or adversarial_weight=0"
        )
    if direction == "both" and cfg.rollout_starts < 2:
        raise ValueError(f"rollout_direction=both needs 2 rollout_starts, got {cfg.rollout_starts}")
    if cfg.termination == "learned":
        raise ValueError(
            f"rollout_direction={direction} needs a termination rule that judges by the next "
            "observation, and termination=learned looks at the whole step: use none or "
            "MODULE:FUNCTION"
        )


def check_device(name: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: saying which there are.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {name}")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or count == 0:
            raise ValueError(f"device={name}, but no CUDA device is available: use device=cpu")
        if device.index is not None and device.index >= count:
            raise ValueError(
                f"device={name}, but there are only {count}: cuda:0 to cuda:{count - 1}"
            )


def shown(value: Any) -> str:
    """A value as the command line has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "an empty text" if value == "" else str(value)


def leaf_keys(cfg: DictConfig) -> list[str]:
    """All keys of a configuration, dotted, without those that only group others."""

    def walk(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [key for k, v in node.items() for key in walk(v, f"{prefix}.{k}" if prefix else k)]

    return walk(OmegaConf.to_container(cfg, resolve=False), "")
