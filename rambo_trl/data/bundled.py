"""Default data that needs no network: Minari sets built from bundled or scripted policies."""

from __future__ import annotations

import importlib.metadata
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import gymnasium
import minari
import numpy as np
import torch
from minari.data_collector import EpisodeBuffer
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage.datasets_root_dir import get_dataset_path
from torchrl._utils import logger as torchrl_logger

from rambo_trl.data import names
from rambo_trl.data.behaviour import (
    Act,
    PointMazeWaypoints,
    PolicyBundle,
    collect_episodes,
    uniform_random_actions,
)
from rambo_trl.data.environment import (
    environment_spaces,
    make_environment,
    mujoco_messages_logged,
)
from rambo_trl.data.names import (
    BUNDLED_ENVIRONMENTS,
    SCRIPTED,
    bundled_names,
    needs_policies,
    parse_bundled,
    policy_files,
)
from rambo_trl.data.scores import reference_scores_for
from rambo_trl.data.storage import check_space, minari_root, move_into_place, staging
from rambo_trl.runtime.progress import Bar

__all__ = [
    "BundledPlan",
    "build_bundled",
    "bundled_path",
    "bundled_plan",
    "ensure_bundled",
]

# Episode seeds: one block for every kind. From 800,000 on recipes/behaviour.py evaluates its
# snapshots, from 1,000,000 on the recipes evaluate their policies.
_SEED_BLOCK = 100_000
_REFERENCE_SEED = 900_000
_REFERENCE_STEPS = 2_000
#: share of a build's time that is spent on playing; the rest goes into writing the files
_PLAYING = 0.96
_RECORDED_PACKAGES = ("gymnasium", "mujoco", "torch", "torchrl")


class _Part(NamedTuple):
    """A share of a set's steps, played by one policy."""

    label: str
    act: Act
    num_steps: int


class BundledPlan(NamedTuple):
    """What is known of a bundled data set without its data.

    Attributes:
        env_id: the environment that it is played in.
        most_steps: more steps than a build plays; the last episodes are played to their ends.
        built: whether it is in Minari's root.
    """

    env_id: str
    most_steps: int
    built: bool


def bundled_plan(name: str) -> BundledPlan | None:
    """Look up what a build would give; None for names that are no bundled data set's."""
    if name not in bundled_names():
        return None
    env_id, steps, _, _ = BUNDLED_ENVIRONMENTS[parse_bundled(name).env]
    return BundledPlan(env_id, 2 * steps, (bundled_path(name) / "data").is_dir())


def bundled_path(name: str) -> Path:
    """Return the folder under Minari's root where a bundled data set is or will be."""
    try:
        return get_dataset_path(name)
    except OSError as error:
        raise OSError(
            f"Minari's root cannot be made ({error}): point MINARI_DATASETS_PATH to a folder that "
            "can be written"
        ) from error


def ensure_bundled(name: str, *, progress: bool = True, policies_dir: Path | None = None) -> None:
    """Build a bundled data set unless Minari's root has it already; see :func:`build_bundled`.

    Raises:
        ValueError: if there is no bundled data set of that name, or its policies are missing.
    """
    parse_bundled(name)
    if not (bundled_path(name) / "data").is_dir():
        torchrl_logger.info(f"building {name} in {bundled_path(name)}, once")
        build_bundled(name, progress=progress, policies_dir=policies_dir)


def build_bundled(
    name: str,
    *,
    num_steps: int | None = None,
    weights: Sequence[float] | None = None,
    policies_dir: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Roll out the behaviour policies of a bundled data set and store it as a Minari set.

    Actions are sampled from the stochastic policies. The set is written to a hidden folder and
    moved to its place when it is complete, so that an interrupted build leaves nothing behind.

    Args:
        name: one of :func:`~rambo_trl.data.bundled_names`.
        num_steps: least number of steps; the set's own size where None.
        weights: share of the steps for each policy of the set (one for each snapshot in
            medium-replay); equal where None.
        policies_dir: folder of the policy bundles; those of the package where None.
        overwrite: whether a set that exists is replaced.
        progress: whether a progress bar is shown.

    Raises:
        ValueError: if the name is unknown, the set exists and ``overwrite`` is False, the
            weights do not fit, or the environment's policies are missing.
        OSError: if the disk is full or Minari's root cannot be written.
    """
    env_name, kind, _ = parse_bundled(name)
    env_id, default_steps, _, _ = BUNDLED_ENVIRONMENTS[env_name]
    if bundled_path(name).exists() and not overwrite:
        raise ValueError(f"{name} exists at {bundled_path(name)}: set overwrite to build it anew")
    reference = reference_scores_for(env_id)
    files = policy_files(name) or ([f"{env_id}.safetensors"] if reference is None else [])
    bundles = [_policies(name, (policies_dir or names.POLICIES) / file) for file in files]
    seed = _SEED_BLOCK * (1 + names.KINDS.index(kind))
    num_steps = num_steps or default_steps
    root = bundled_path("")
    with (
        staging(
            root,
            f"{name} cannot be built in {root} ({{}}): free some space, or point "
            "MINARI_DATASETS_PATH to a folder that can be written",
        ) as scratch,
        torch.random.fork_rng(devices=[]),
        _one_thread(),
        mujoco_messages_logged(),
        Bar(
            desc=f"building {name}",
            total=num_steps,
            unit="step",
            unit_scale=True,
            disable=not progress,
        ) as bar,
    ):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
        parts = _parts(kind, bundles, env_id, num_steps, weights)
        check_space(scratch, _stored_bytes(env_id, num_steps))
        played = sum(part.num_steps for part in parts)
        share = num_steps / played  # what was rounded up is no more progress
        episodes: list[EpisodeBuffer] = []
        for part in parts:  # one after another, with consecutive episode seeds
            episodes += collect_episodes(
                part.act,
                env_id,
                num_steps=part.num_steps,
                seed=seed + len(episodes),
                on_steps=lambda n: bar.update(_PLAYING * share * n),
            )
        if len(episodes) > _SEED_BLOCK:
            raise ValueError(f"{len(episodes)} episodes exceed the {_SEED_BLOCK} seeds of a set")
        if reference is None:
            reference = _measured_reference(env_id, bundles[-1])
        steps = sum(len(episode.rewards) for episode in episodes)
        check_space(scratch, _stored_bytes(env_id, steps, len(episodes)))
        with minari_root(scratch), warnings.catch_warnings():
            # Minari asks for an e-mail address and a link to code, which there are not.
            warnings.simplefilter("ignore", UserWarning)
            env = make_environment(env_id)
            env.close()
            dataset = minari.create_dataset_from_buffers(
                dataset_id=name,
                buffer=episodes,
                env=env.spec,
                eval_env=env.spec,
                algorithm_name=SCRIPTED.get(kind, "SAC"),
                author="rambo-trl",
                description=f"{env_id}, {kind}: " + ", ".join(part.label for part in parts),
                ref_min_score=reference[0],
                ref_max_score=reference[1],
            )
            dataset.storage.update_metadata(
                {
                    "seed": seed,
                    "composition": [[part.label, part.num_steps] for part in parts],
                    "policies_sha256": " ".join(dict.fromkeys(b.sha256 for b in bundles)) or None,
                    "versions": {p: importlib.metadata.version(p) for p in _RECORDED_PACKAGES},
                }
            )
        _move_into_place(name, scratch / name, overwrite)
        bar.update(num_steps - bar.n)  # what rounding has left


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: faster for layers this small, and the same numbers everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _policies(name: str, path: Path) -> PolicyBundle:
    """Read a set's policies; where the package lacks them, say which sets can be built instead."""
    if path.is_file() or not needs_policies(name):
        return PolicyBundle(path)
    env = parse_bundled(name).env
    env_id = BUNDLED_ENVIRONMENTS[env][0]
    present = sorted({p.stem.rsplit("-v", 1)[0].lower() for p in path.parent.glob("*-v*")})
    until = "" if path.stem == env_id else " bundle_until=medium"
    raise ValueError(
        f"{name} cannot be built, because the package has no policies for {env} yet: take "
        f"bundled/{env}/random-v0, which needs none, or the sets of {', '.join(present)}; or train "
        f"some with `python recipes/behaviour.py env={env_id}{until}` and put the bundle at {path}"
    )


def _parts(
    kind: str,
    bundles: Sequence[PolicyBundle],
    env_id: str,
    num_steps: int,
    weights: Sequence[float] | None,
) -> list[_Part]:
    """Divide a set's steps among its policies; the bundles are the medium's and the expert's."""
    policies: list[tuple[str, Act]]
    if kind == "waypoint":
        policies = [(SCRIPTED[kind], PointMazeWaypoints(env_id))]
    elif kind == "random":
        policies = [(SCRIPTED["random"], uniform_random_actions(_actions(env_id)))]
    else:
        size = math.prod(environment_spaces(env_id)[0].shape or ())
        players = [(bundles[0], bundles[0].medium)] if kind.startswith("medium") else []
        players += [(bundles[-1], bundles[-1].expert)] if kind.endswith("expert") else []
        if kind == "medium-replay":
            players = [(bundles[0], i) for i in range(len(bundles[0]))]
        policies = [
            (
                f"snapshot at step {bundle.snapshots[i]['step']:.0f}",
                bundle.act(i, size, _actions(env_id)),
            )
            for bundle, i in players
        ]
    share = np.ones(len(policies)) if weights is None else np.asarray(weights, dtype=float)
    if share.shape != (len(policies),) or (share <= 0).any():
        raise ValueError(f"weights must be {len(policies)} positive numbers, got {weights}")
    steps = np.ceil(num_steps * share / share.sum()).astype(int)
    return [_Part(*policy, int(n)) for policy, n in zip(policies, steps, strict=True)]


def _measured_reference(env_id: str, bundle: PolicyBundle) -> tuple[float, float]:
    """Return the uniform random policy's mean return and the expert snapshot's."""
    torch.default_generator.manual_seed(_REFERENCE_SEED)  # the CPU's alone, as above
    episodes = collect_episodes(
        uniform_random_actions(_actions(env_id)),
        env_id,
        num_steps=_REFERENCE_STEPS,
        seed=_REFERENCE_SEED,
    )
    random_return = float(np.mean([np.sum(episode.rewards) for episode in episodes]))
    return random_return, float(bundle.snapshots[bundle.expert]["return_mean"])


def _actions(env_id: str) -> gymnasium.spaces.Box:
    """Return an environment's action space."""
    space = environment_spaces(env_id)[1]
    assert isinstance(space, gymnasium.spaces.Box)
    return space


def _stored_bytes(env_id: str, steps: int, episodes: int = 1) -> int:
    """Return the most that a set's files take."""
    observation_space, action_space = environment_spaces(env_id)
    spaces = [observation_space, action_space]
    if isinstance(observation_space, gymnasium.spaces.Dict):
        spaces = [*observation_space.values(), action_space]
    numbers = sum(math.prod(space.shape or ()) for space in spaces)
    # 8 bytes a number, reward and flags; HDF5 fills up its last chunks and describes each array
    return 2 * (8 * numbers + 10) * (steps + episodes) + 20_000 * episodes + 1_000_000


def _move_into_place(name: str, built: Path, overwrite: bool) -> None:
    """Rename a complete set to its place; of two builds at once the first to finish stays."""
    target = bundled_path(name)
    namespace = name.rsplit("/", 1)[0]
    if namespace not in list_local_namespaces():
        with suppress(ValueError):  # another process was faster
            create_namespace(namespace)
    if overwrite and target.exists():
        target.rename(built.with_name("replaced"))  # goes with the scratch folder
    if not move_into_place(built, target):
        torchrl_logger.info(f"{name} was built by another process meanwhile: using that one")
