"""Whether settings and data fit each other: what is told before there are data, and after."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import gymnasium
from launcher.command_line import CONFIG_DIR, keys_set
from launcher.settings import leaf_keys, shown
from omegaconf import DictConfig, OmegaConf

from rambo_trl.data import ObservationLayout, OfflineDataset, check_environment, make_environment
from rambo_trl.data.bundled import bundled_plan
from rambo_trl.data.environment import environment_spaces, is_maze, known_family, registered_spec
from rambo_trl.data.names import parse_d4rl_name
from rambo_trl.data.playing import try_environment
from rambo_trl.envs.termination import TerminationRule, check_rule, choose_rule, import_rule, never
from rambo_trl.modules.statistics import largest_magnitude

#: the environments of the tasks, by the first word of their names after the collection's
TASK_ENVIRONMENTS = {
    "antmaze": "AntMaze_UMaze-v4",
    "dmsd": "rambo_trl/DMSD-v0",
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "inverteddoublependulum": "InvertedDoublePendulum-v5",
    "pointmaze": "PointMaze_UMaze-v3",
    "simglucose": "rambo_trl/Simglucose-v0",
    "walker2d": "Walker2d-v5",
}
#: share of the data's rows that a rule known by name may judge otherwise than they do
MISFIT = 0.03


def check_before_data(cfg: DictConfig, task: str | None = None) -> None:
    """Refuse what needs no data to be refused, before they are built, downloaded or read.

    That is a termination rule or an environment that cannot be imported, a batch larger than the
    set that would be built, and a set of another environment than the task that the user chose.
    """
    # only methods with a model have a termination rule
    if cfg.get("termination", "none") not in ("auto", "none", "learned"):
        import_rule(cfg.termination)
    plan, known = bundled_plan(cfg.dataset), parse_d4rl_name(Path(cfg.dataset))
    env_id = plan.env_id if plan else known.env_id if known else None
    maze = re.match("D4RL/((?:ant|point)maze)/", cfg.dataset)  # Minari's, large to download
    env_id = TASK_ENVIRONMENTS[maze[1]] if maze else env_id
    if cfg.env_id not in (None, "none", env_id):
        try:  # its arguments may be the data's, yet to be read
            registered_spec(cfg.env_id)
        except gymnasium.error.Error:
            environment_spaces(cfg.env_id)  # which says what to install
    elif env_id is not None and cfg.env_id != "none":
        environment_spaces(env_id)
    if plan is not None and not plan.built:
        if cfg.env_id not in (None, "none", plan.env_id):
            env = make_environment(cfg.env_id)
            try_environment(env)
            env.close()
        _check_batches(cfg, plan.most_steps, f"{cfg.dataset} will have at most")
        if task is not None:
            _check_sizes(cfg.dataset, plan.env_id, _sizes(plan.env_id), task)


def check_task(
    cfg: DictConfig,
    dataset: OfflineDataset,
    task: str,
    words: Sequence[str],
    *,
    schedule: str,
    filled_in: Iterable[str] = (),
) -> None:
    """Refuse a task of another environment than the data, or tell which of its settings are used.

    One's own data come with the default task. Settings ``filled_in`` have the method's published
    values for it.

    Raises:
        ValueError: if the user gave the task and its environment has other sizes than the data.
    """

    def keys_in(file: str) -> list[str]:
        loaded = OmegaConf.load(CONFIG_DIR / f"{file}.yaml")
        assert isinstance(loaded, DictConfig)
        return [key for key in leaf_keys(loaded) if key in leaf_keys(cfg)]

    given = keys_set(words)
    if "task" in given:
        sizes = (dataset.observation_size, dataset.action_size)
        _check_sizes(dataset.name, dataset.env_id, sizes, task)
    if "dataset" not in given and dataset.name == cfg.dataset:  # the task's own
        return
    if dataset.env_id and _same_family(dataset.env_id, task):
        return
    elsewhere = {"dataset", *given, *keys_in(f"schedule/{schedule}"), *keys_in(cfg.method)}
    settings = [key for key in keys_in(f"task/{task}") if key not in elsewhere]
    if settings := [*settings, *filled_in]:
        used = ", ".join(f"{key}={shown(OmegaConf.select(cfg, key))}" for key in settings)
        source = f"is from {dataset.env_id}" if dataset.env_id else "names no environment"
        print(
            f"note: {dataset.name} {source}; these settings still come from task={task}: {used}",
            file=sys.stderr,
        )


def _check_sizes(name: str, env_id: str | None, sizes: tuple[int, int] | None, task: str) -> None:
    """Refuse a set of other sizes than the task's environment; its own fits in any version."""
    if sizes is None or (env_id is not None and _same_family(env_id, task)):
        return
    other = TASK_ENVIRONMENTS[task_environment_word(task)]
    wanted = _sizes(other)
    if wanted is not None and sizes != wanted:
        raise ValueError(
            f"{name} does not fit task={task}: its observations and actions have {sizes[0]} and "
            f"{sizes[1]} entries, those of {other} {wanted[0]} and {wanted[1]}; choose the task of "
            "its environment, or leave task= out and set rollout_length= and the like for it"
        )


def task_environment_word(task: str) -> str:
    """The word of a task's name that says its environment, a key of :data:`TASK_ENVIRONMENTS`."""
    return task.removeprefix("d4rl-").removeprefix("neorl2-").split("-")[0]


def _same_family(env_id: str, task: str) -> bool:
    """Whether an environment is a task's, in any version: Hopper-v2 is hopper's."""
    if env_id == TASK_ENVIRONMENTS[task_environment_word(task)]:
        return True
    family = known_family(env_id)
    return family is not None and family.split("_")[0].lower() in task.split("-")


def _sizes(env_id: str) -> tuple[int, int] | None:
    """How many entries observations and actions have; None where it is not installed."""
    try:
        observations, actions = environment_spaces(env_id)
    except ValueError:
        return None
    layout = ObservationLayout.of(observations, name=env_id, env_id=env_id)
    return layout.size, math.prod(actions.shape or ())


def _check_batches(cfg: DictConfig, rows: int, whose: str) -> None:
    for key in leaf_keys(cfg):
        if key.endswith(".batch_size") and (size := OmegaConf.select(cfg, key)) > rows:
            raise ValueError(f"{key}={size} is too large: {whose} {rows} transitions")


def check_data(cfg: DictConfig, dataset: OfflineDataset) -> None:
    """Refuse data that the configuration cannot train on, before any long work."""
    if dataset.environment is None and "online_steps" in cfg:
        raise ValueError(
            f"{dataset.name} without an environment: there is none to go on in, give its env_id"
        )
    if dataset.environment is None:
        print(
            f"note: {dataset.name} without an environment: the policy is not evaluated"
            + (f", and there is no video={cfg.video}" if cfg.video != "none" else ""),
            file=sys.stderr,
        )
    else:
        check_environment(dataset)
    if "termination" in cfg:
        check_termination(cfg, dataset)
        _check_rewards(cfg, dataset)
    _check_batches(cfg, len(dataset), f"{dataset.name} has")
    if dataset.data_warnings and cfg.odd_data == "refuse":
        raise ValueError(
            f"{dataset.name}: {'; '.join(dataset.data_warnings)}. odd_data=accept trains on it as "
            "it is"
        )


def _check_rewards(cfg: DictConfig, dataset: OfflineDataset) -> None:
    """Tell of rewards, taken as they are, that a model of observations of size 1 hardly learns."""
    largest = largest_magnitude(dataset.transitions["next", "reward"])
    if cfg.reward_scale != 1 or largest == 0 or 1e-3 <= largest <= 1e3:
        return
    size = f"the largest reward of {dataset.name} is {largest:.3g}, and reward_scale=1 keeps it"
    if largest > 1e15:
        raise ValueError(f"{size}, which float32 cannot square: use reward_scale=auto")
    print(f"note: {size}: reward_scale=auto suits the model and critics", file=sys.stderr)


def check_termination(cfg: DictConfig, dataset: OfflineDataset) -> None:
    """Refuse a termination rule that is not there, cannot be used or does not fit the data.

    One that is known by the environment's name must agree with the data's ends. One that the user
    names may know more than they do, such as a limit that is not to be passed again: where it
    disagrees that is told, and refused only where it ends most rows that went on, as one does that
    is the wrong way round or in other units.

    Raises:
        ValueError: saying what to choose instead.
    """
    rule = termination_rule(cfg, dataset)
    if isinstance(rule, str):
        terminated = dataset.transitions["next", "terminated"]
        ends = int(terminated.count_nonzero())
        if ends < 2:
            raise ValueError("termination=learned, but hardly any transition is terminal: use none")
        if len(terminated) - ends < 2:
            raise ValueError(
                "termination=learned, but nearly every transition is terminal: give a rule as "
                "MODULE:FUNCTION"
            )
        return
    by_name = cfg.termination == "auto"
    if rule is never and (not by_name or is_maze(dataset.env_id)):  # as in the paper: no maze ends
        return
    ended, others = check_rule(rule, dataset.transitions, **dataset.statistics, device=cfg.device)
    false = others or 0.0
    misfit = max(0.0 if ended is None else 1 - ended, false)
    if misfit <= 0.01:
        return
    shares = {"the data's ends": ended, "the other transitions": others}
    parts = [f"{100 * share:.1f} % of {of}" for of, share in shares.items() if share is not None]
    whose = f" of {dataset.env_id}" if by_name else ""
    judged = f"the termination rule{whose} ends {' and '.join(parts)}"
    if by_name and misfit > MISFIT:
        raise ValueError(
            f"{judged} of {dataset.name}: choose termination=none, termination=learned or "
            "termination=MODULE:FUNCTION"
        )
    if false > 0.5 and cfg.odd_data == "refuse":
        raise ValueError(
            f"{judged} of {dataset.name}, so hardly any would go on in the model: check its sign "
            "and units, or train with it as it is by odd_data=accept"
        )
    print(f"note: {judged}", file=sys.stderr)


def termination_rule(
    cfg: DictConfig, dataset: OfflineDataset
) -> TerminationRule | Literal["learned"]:
    """The rule that the configuration chooses for the data, or the word ``"learned"``."""
    return choose_rule(
        cfg.termination,
        env_id=dataset.env_spec or dataset.env_id,
        terminated=dataset.transitions["next", "terminated"],
        observation_size=dataset.observation_size,
    )


def load_data(cfg: DictConfig) -> OfflineDataset:
    """Load the data; with ``env_id=none`` no environment is looked for."""
    dataset = OfflineDataset.load(
        cfg.dataset,
        env_id=None if cfg.env_id == "none" else cfg.env_id,
        reward_shift=cfg.reward_shift,
        reward_scale=cfg.reward_scale,
    )
    if cfg.env_id == "none":
        dataset.has_simulator = False
    return dataset
