"""Minari data sets by name, folder or download, as plain episodes."""

from __future__ import annotations

import difflib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import minari
import torch
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from minari.dataset.minari_dataset import DATASET_ID_RE
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded

from rambo_trl.data import bundled
from rambo_trl.data.bundled import (
    BUNDLED_PREFIX,
    bundled_names,
    bundled_path,
    ensure_bundled,
)
from rambo_trl.data.d4rl_names import needs_policies
from rambo_trl.data.environment import (
    is_maze,
    is_scored_by_success,
    of_registered_class,
    register_mazes,
)
from rambo_trl.data.minari_root import minari_root
from rambo_trl.data.spaces import ObservationLayout, check_action_space
from rambo_trl.progress import Bar

__all__ = ["MinariSource", "open_minari"]

# Ids on Minari's server that a misspelt name may mean.
_REMOTE = (
    *(
        f"mujoco/{env}/{kind}-v0"
        for env in ("ant", "halfcheetah", "hopper", "walker2d")
        for kind in ("simple", "medium", "expert")
    ),
    *(
        f"D4RL/antmaze/{maze}-v1"
        for maze in (
            "umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play",
            "large-diverse",
        )
    ),
    *(f"D4RL/pointmaze/{maze}-v2" for maze in ("open", "umaze", "medium", "large")),
)  # fmt: skip


@dataclass(frozen=True)
class MinariSource:
    """What :class:`~rambo_trl.data.OfflineDataset` needs of a Minari data set."""

    name: str
    env_id: str | None
    env_spec: EnvSpec | None
    action_spec: Bounded
    reference_scores: tuple[float, float] | None
    observation_layout: ObservationLayout
    observation_names: tuple[str, ...] | None
    action_names: tuple[str, ...] | None
    episodes: Iterable[Mapping[str, Any]]


def open_minari(
    name_or_path: str | os.PathLike[str],
    *,
    env_id: str | None = None,
    observation_keys: Sequence[str] | None = None,
    progress: bool = True,
) -> MinariSource:
    """Open a Minari data set, building or downloading it where it is not local.

    Args:
        name_or_path: a bundled name, a Minari id, or the folder of a Minari data set.
        env_id: Gymnasium id of the environment, instead of the data set's.
        observation_keys: entries of Dict observations to join; see
            :meth:`~rambo_trl.data.ObservationLayout.of`.
        progress: whether a build and the reading show their progress.

    Returns:
        The data set's description and its episodes, not read yet.

    Raises:
        ValueError: if there is no such data set or its spaces are not supported.
    """
    name = os.fspath(name_or_path)
    folder = _data_folder(Path(name))
    if folder is not None:
        dataset = _read(name, folder)
    elif Path(name).is_dir():
        raise ValueError(f"{name} is a folder without a Minari set: it has no metadata.json")
    else:
        if name.startswith(BUNDLED_PREFIX):
            _ensure_bundled(name, progress)
        dataset = _local_or_download(name)
    return _describe(name, dataset, env_id, observation_keys, progress)


def _ensure_bundled(name: str, progress: bool) -> None:
    """Build a bundled set; where the package lacks its policies, say what there is instead."""
    try:
        ensure_bundled(name, progress=progress)
    except ValueError as error:
        there = sorted(
            path.stem.rsplit("-v", 1)[0].lower() for path in bundled.POLICIES.glob("*-v*")
        )
        env = name.removeprefix(BUNDLED_PREFIX).split("/")[0]
        if name not in bundled_names() or not needs_policies(name) or env in there:
            raise
        raise ValueError(
            f"{name} cannot be built, because the package has no policies for {env} yet: take "
            f"{BUNDLED_PREFIX}{env}/random-v0, which needs none, or the sets of "
            f"{', '.join(there)}; or train some ({error})"
        ) from None


def _data_folder(path: Path) -> Path | None:
    """Return the folder with a Minari set's files, given it or its parent; else None."""
    for folder in (path / "data", path):
        if (folder / "metadata.json").is_file():
            return folder
    return None


def _read(name: str, folder: Path) -> minari.MinariDataset:
    """Open a local set; whatever is wrong with its files is said in one line."""
    try:
        _refuse_foreign_class(json.loads((folder / "metadata.json").read_text()))
        return minari.MinariDataset(folder)
    except (ImportError, gymnasium.error.Error) as error:
        # Of a storage format's package, or of the environment, which Minari asks for its spaces
        # where the set does not hold them.
        raise ValueError(
            f"{name} needs a package that is not installed: {_first_line(error)}"
        ) from error
    except Exception as error:
        raise ValueError(
            f"{name}: the Minari files in {folder} cannot be read "
            f"({_first_line(error)}); delete the folder and get the data set again"
        ) from error


def _refuse_foreign_class(metadata: Mapping[str, Any]) -> None:
    """Refuse a set without spaces whose environment is of another class than the registered one.

    Minari asks the environment for the spaces, and would import whatever class the file names.
    """
    recorded = metadata.get("env_spec")
    if recorded is None or {"observation_space", "action_space"} <= metadata.keys():
        return
    fields = json.loads(recorded)  # older versions of Gymnasium recorded more of them
    wrappers = (
        WrapperSpec(wrapper["name"], wrapper["entry_point"], wrapper.get("kwargs"))
        for wrapper in fields.get("additional_wrappers") or ()
    )
    spec = EnvSpec(
        fields["id"],
        entry_point=fields.get("entry_point"),
        additional_wrappers=tuple(wrappers),
    )
    if is_maze(spec.id):
        register_mazes()
    registered = of_registered_class(spec)
    if registered.entry_point != spec.entry_point:
        raise ValueError(
            f"it names {spec.entry_point} as the class of {spec.id}, which is "
            f"{registered.entry_point} here; no other class is imported"
        )


def _local_or_download(name: str) -> minari.MinariDataset:
    """Open a set in Minari's root, else download it; a failure is one line saying what to do."""
    root = bundled_path("")
    if DATASET_ID_RE.fullmatch(name) and re.search(r"-v\d+$", name):
        folder = _data_folder(root / name)
        if folder is not None:
            return _read(name, folder)
        # asked again: another job may have moved the whole set there in between
        if (root / name).exists() and _data_folder(root / name) is None:
            raise ValueError(
                f"{root / name} is no whole Minari set, it has no metadata.json: delete the "
                "folder and get the data set again"
            )
        try:
            _download(name, root)
        except Exception as error:
            # The downloader's errors range from a missing package to a broken connection.
            reason = f"downloading it failed ({_first_line(error)})"
        else:
            return _read(name, root / name / "data")
        help_ = (
            f", or fetch it where there is a network with `minari download {name}` and copy it "
            f"to {root / name}"
        )
    else:
        reason = "it is no valid Minari id, whose form is namespace/name-v0, nor a file or folder"
        help_ = ""
    raise ValueError(
        f"no data set {name!r}: it is not in Minari's root {root} and {reason}. "
        f"{_suggestion(name)}{help_}"
    )


def _download(name: str, root: Path) -> None:
    """Download a set to a folder of its own, and move it into place when it is complete.

    Half a set would be found later and taken for all of it, and of two jobs that download the same
    one neither must touch what the other has.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=root) as scratch:
        with minari_root(scratch):
            minari.download_dataset(name)
        for found in sorted(Path(scratch).rglob("namespace_metadata.json")):
            _move_unless_there(found, root / found.relative_to(scratch))
        sets = {path.parents[1] for path in Path(scratch).rglob("data/metadata.json")}
        own = Path(scratch) / name
        for found in [*sorted(sets - {own}), own]:  # the sets that it was combined from come first
            _move_unless_there(found, root / found.relative_to(scratch))
    torchrl_logger.info(f"{name} is in {root / name}")


def _move_unless_there(source: Path, target: Path) -> None:
    """Rename a file or folder to its place, unless another process has put it there already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not target.exists():
            source.rename(target)
    except OSError:  # a folder that is not empty
        if _data_folder(target) is None:
            raise


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _suggestion(name: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other sets that are damaged
        local = list(minari.list_local_datasets())
    remote = () if name in _REMOTE else _REMOTE  # the right name: it is the network that fails
    known = sorted({*bundled_names(), *local, *remote})
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"Nearest known names: {', '.join(near)}"
    some = dict.fromkeys(["bundled/hopper/medium-replay-v0", *local[:3]])
    return f"Known names are {', '.join(some)} and others"


def _describe(
    name: str,
    dataset: minari.MinariDataset,
    env_id: str | None,
    observation_keys: Sequence[str] | None,
    progress: bool,
) -> MinariSource:
    """Check the spaces and gather the metadata."""
    env_spec = None
    if env_id is None and dataset.env_spec is not None:
        # The environment to evaluate in may differ from the recorded one, as by a fixed goal.
        env_spec = getattr(dataset, "_eval_env_spec", None) or dataset.env_spec
        env_id = env_spec.id
    layout = ObservationLayout.of(
        dataset.observation_space, name=name, env_id=env_id, keys=observation_keys
    )
    action_space = dataset.action_space
    check_action_space(action_space, name)
    metadata = dataset.storage.metadata
    reference = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if is_scored_by_success(env_id):
        reference = None, None  # a Minari set's own count the steps at the goal
    return MinariSource(
        name=name,
        env_id=env_id,
        env_spec=env_spec,
        action_spec=Bounded(
            low=torch.as_tensor(action_space.low),
            high=torch.as_tensor(action_space.high),
            shape=torch.Size(action_space.shape),
            dtype=torch.as_tensor(action_space.low).dtype,
        ),
        reference_scores=None if None in reference else (float(reference[0]), float(reference[1])),
        observation_layout=layout,
        # of a dictionary's entries joined, nothing has the names
        observation_names=_names(metadata, "observation") if layout.keys is None else None,
        action_names=_names(metadata, "action"),
        episodes=_episodes(name, dataset, layout, progress),
    )


def _names(metadata: Mapping[str, Any], kind: str) -> tuple[str, ...] | None:
    """What the set's metadata call the entries; None where they do not."""
    names = metadata.get(f"{kind}_names")
    return None if names is None else tuple(map(str, names))


def _episodes(
    name: str, dataset: minari.MinariDataset, layout: ObservationLayout, progress: bool
) -> Iterator[dict[str, Any]]:
    """Read the episodes one by one, their observations flattened."""
    stored = iter(dataset.storage.get_episodes(dataset.episode_indices))
    indices = range(len(dataset.episode_indices))
    label = f"reading {name}"
    for index in Bar(indices, label, unit="episode", leave=False, delay=1, disable=not progress):
        try:
            episode = next(stored)
            observations = layout.flatten(episode["observations"])
        except Exception as error:
            raise ValueError(
                f"{name}: episode {index} cannot be read ({_first_line(error)}); delete "
                f"{dataset.storage.data_path} and get the data set again"
            ) from error
        yield episode | {"observations": observations}
