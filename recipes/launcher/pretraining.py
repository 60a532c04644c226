"""Line 1 of Algorithm 1: the maximum-likelihood model and the cloned policy, or files of them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Protocol

import torch
from launcher.parts import Actor
from launcher.program import refusing_bad_input
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torchrl.objectives import SACLoss
from tqdm import tqdm

from rambo_trl.data import OfflineDataset
from rambo_trl.data.returns import best_episode_rows
from rambo_trl.experiment.checkpoint import Stateful
from rambo_trl.experiment.evaluation import score_text, write_policy
from rambo_trl.experiment.folder import GIVEN_PARTS, package_versions
from rambo_trl.experiment.learning_curve import format_value
from rambo_trl.experiment.pretrained import (
    PART_FILES,
    Pretrained,
    file_digest,
    load_parts,
    part_file,
    save_fitted_model,
)
from rambo_trl.experiment.run import Run
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.runtime.progress import Bar, busy
from rambo_trl.training.critic_regression import regress_critics
from rambo_trl.training.pretraining import ModelFit, clone_behaviour, fit_world_model

#: the model as it was fitted, in the run folder
FITTED_MODEL = PART_FILES["world_model"]
#: the policy as it was cloned, there too
CLONED_POLICY = "cloned_policy.safetensors"
#: what pretraining adds to a run's progress
PRETRAINING = ("holdout_mse", "model_passes", "cloned", "reverse_holdout_mse")


class Pretrainable(Protocol):
    """A further part that is pretrained along with the model and the actor."""

    @property
    def pretrained_parts(self) -> dict[str, Any]: ...  # noqa: D102

    def pretrain(self, run: Run) -> None: ...  # noqa: D102


def pretrain(
    run: Run,
    cfg: DictConfig,
    data: OfflineDataset,
    world_model: EnsembleWorldModel,
    actor: Actor,
    further: Pretrainable | None = None,
) -> None:
    """Fit the model by maximum likelihood, choose its elites, and clone the behaviour.

    Nothing is done where the run resumes after it. What settings name files of is taken from
    there, and with ``pretrained=auto`` all of it is shared by runs on the same data and settings.
    """
    progress = run.progress
    if "cloned" not in progress:
        with refusing_bad_input():
            _load_given_parts(run, cfg, data, world_model, actor)
            parts = {"world_model": world_model, "actor": actor}
            if further is not None:
                parts |= further.pretrained_parts
            pretrained = find_pretrained(cfg, progress, **parts)
        with ExitStack() as stack:
            with busy("waiting for a run that pretrains the same"):
                stack.enter_context(pretrained.claimed())
            with refusing_bad_input():
                result = pretrained.load()
            if result is None:
                _pretrain(run, cfg, data, world_model, actor)
                if further is not None:
                    further.pretrain(run)
                pretrained.save({k: progress[k] for k in PRETRAINING if k in progress})
            else:
                tqdm.write(f"pretrained: {pretrained.path}")
                progress.update(result)
        run.checkpoint()
    if not progress["epoch"]:  # for other runs, and for what is compared with it
        save_fitted_model(
            run.folder.path / FITTED_MODEL,
            world_model,
            digest=progress["dataset_digest"],
            measured={key: progress[key] for key in ("holdout_mse", "model_passes")},
        )
        if progress["cloned"]:
            write_policy(run.folder.path / CLONED_POLICY, actor, data, cfg.seed)


def _load_given_parts(
    run: Run, cfg: DictConfig, data: OfflineDataset, world_model: EnsembleWorldModel, actor: Actor
) -> None:
    """Take the model, the policy or both from where the settings name them."""
    parts = {"world_model": world_model, "actor": actor}
    for key, name in GIVEN_PARTS.items():
        if (path := cfg[key]) is None:
            continue
        digest = run.progress["dataset_digest"]
        measured = load_parts(path, {name: parts[name]}, data, digest=digest, device=cfg.device)
        if name == "world_model":
            run.progress.update({k: measured[k] for k in ("holdout_mse", "model_passes")})
        tqdm.write(f"{key.replace('_', ' ')}: {path}")


def _pretrain(
    run: Run, cfg: DictConfig, data: OfflineDataset, world_model: EnsembleWorldModel, actor: Actor
) -> None:
    if "holdout_mse" not in run.progress:
        fit = fit_with_bar(run, cfg, world_model, data.transitions, "model", data.holdout)
        run.progress.update(holdout_mse=fit.holdout_mse, model_passes=fit.passes)
        run.checkpoint()
    cloned: dict[str, float | None] = {}
    clone = (
        cfg.cloned_policy is None and cfg.clone_behaviour and cloning_updates(cfg, len(data)) > 0
    )
    if clone:
        rows = data.transitions
        if cfg.cloning.episode_share < 1:
            rows = rows[best_episode_rows(data, cfg.cloning.episode_share)]
        clone_with_bar(run, cfg, actor, rows, "clone the behaviour")
    if clone or cfg.cloned_policy is not None:
        with run.watch("evaluation"), busy("evaluating the cloned policy"):
            cloned = run.evaluation(0, actor)
        if cloned["return_mean"] is not None:
            tqdm.write(
                f"behaviour cloning: return {format_value(cloned['return_mean'])}"
                f"{score_text(cloned)}"
            )
    run.progress["cloned"] = cloned


def fit_with_bar(
    run: Run,
    cfg: DictConfig,
    world_model: EnsembleWorldModel,
    transitions: TensorDictBase,
    name: str,
    holdout: TensorDictBase | None = None,
) -> ModelFit:
    """Fit an ensemble by maximum likelihood, with a bar and a line on the outcome.

    The holdout error is that on rows drawn from the transitions unless others are given.
    """
    passes, updates = cfg.model.max_passes, cfg.model.max_updates
    if passes is not None:  # in the place of updates
        updates = None
    total = updates if passes is None else passes * (len(transitions) // cfg.model.batch_size)
    with run.watch("model_fit"), Bar(desc=f"fit the {name}", total=total) as bar:
        fit = fit_world_model(
            world_model,
            transitions,
            holdout=holdout,
            batch_size=cfg.model.batch_size,
            lr=cfg.model.lr,
            patience=cfg.model.patience,
            min_improvement=cfg.model.min_improvement,
            max_passes=passes,
            max_updates=updates,
            holdout_every=cfg.model.holdout_every if passes is None else None,
            lr_decay=cfg.model.lr_decay if passes is None else "none",
            beta=cfg.model.beta,
            standardize_reward=cfg.reward_scale != 1,
            compile=cfg.compile,
            on_pass=lambda n, error: bar.set_postfix(holdout_mse=f"{error.mean():.4f}"),
            bar=bar,
        )
        bar.total = bar.n  # it may have stopped early
    tqdm.write(
        f"{name}: {fit.updates} updates ({fit.passes:.3g} passes), holdout mse "
        f"{min(fit.holdout_mse):.4f} to {max(fit.holdout_mse):.4f}, elites {fit.elites}"
    )
    return fit


def cloning_updates(cfg: DictConfig, num_rows: int) -> int:
    """How many updates behaviour cloning takes."""
    passes = cfg.cloning.passes
    return cfg.cloning.updates if passes is None else passes * (num_rows // cfg.cloning.batch_size)


def clone_with_bar(
    run: Run, cfg: DictConfig, actor: Actor, transitions: TensorDictBase, description: str
) -> None:
    """Behaviour-clone an actor, with a bar."""
    updates = cloning_updates(cfg, len(transitions))
    with run.watch("cloning"), Bar(desc=description, total=updates) as bar:
        clone_behaviour(
            actor,
            transitions,
            run.dataset.action_spec,
            updates=updates,
            batch_size=cfg.cloning.batch_size,
            lr=cfg.cloning.lr,
            compile=cfg.compile,
            bar=bar,
        )


def start_critics(run: Run, cfg: DictConfig, data: OfflineDataset, sac: SACLoss) -> None:
    """Regress the critics on the logged returns, where that is wanted; once a run."""
    updates, progress = cfg.agent.regression_updates, run.progress
    if not updates or progress["epoch"] or "critics" in progress:
        return
    with run.watch("critics"), Bar(desc="fit the critics to logged returns", total=updates) as bar:
        metrics = regress_critics(
            sac,
            data.transitions,
            gamma=cfg.agent.gamma,
            updates=updates,
            batch_size=cfg.agent.batch_size,
            lr=cfg.agent.critic_lr,
            compile=cfg.compile,
            bar=bar,
        )
    progress["critics"] = metrics["loss_returns"]
    run.checkpoint()


def find_pretrained(cfg: DictConfig, progress: dict[str, Any], **parts: Stateful) -> Pretrained:
    """The run's place in the cache of pretrained parts, which are what pretraining changes."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    # which older files do not name
    later = {
        "max_updates": None, "holdout_every": None, "updates": None, "episode_share": 1.0,
        "lr_decay": "none", "beta": 0.0,
    }  # fmt: skip
    adversarial = (
        "adversarial_lr",
        "adversarial_lr_decay",
        "adversarial_batch_size",
        "likelihood_batch_size",
    )
    model, cloning = (
        {
            key: value
            for key, value in plain[group].items()
            if key not in adversarial and not (key in later and value == later[key])
        }
        for group in ("model", "cloning")
    )
    # all that decides what pretraining leaves behind, the random state included: the agent's
    # networks are drawn before it, and threads decide in which order sums are taken
    settings = {
        **{key: cfg[key] for key in ("seed", "device", "compile", "clone_behaviour")},
        "threads": torch.get_num_threads(),
        "dataset_digest": progress.get("dataset_digest"),
        "agent.hidden_sizes": list(cfg.agent.hidden_sizes),
        "model": model,
        "cloning": cloning,
        "evaluation.episodes": cfg.evaluation.episodes,
        "versions": package_versions(),
    }
    # named only where they differ from the usual, so that older files are still found
    usual = {
        "deterministic": False,
        "float32_matmul_precision": "highest",
        "model_matmul_dtype": "float32",
        "num_critics": 2,  # drawn before the fit
        "reward_scale": 1.0,
    }
    for key, value in usual.items():
        if (chosen := cfg.get(key, value)) != value:
            settings[key] = chosen
    if cfg.get("rollout_direction", "forward") != "forward":
        settings["reverse_rollouts"] = cfg.rollout_policy
    if torch.device(cfg.device).type == "cuda":
        settings["card"] = torch.cuda.get_device_name(cfg.device)
    for key, part in GIVEN_PARTS.items():
        if (path := cfg.get(key)) is not None:
            settings[key] = file_digest(part_file(path, part))
    return Pretrained(
        cfg.pretrained, parts, settings=settings, folder=cfg.cache_dir, device=cfg.device
    )
