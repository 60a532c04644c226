"""Minari data sets by name, folder or download, as plain episodes."""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import minari
import torch
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from minari.dataset.minari_dataset import DATASET_ID_RE
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded

from rambo_trl.data.bundled import bundled_path, ensure_bundled
from rambo_trl.data.environment import (
    is_scored_by_success,
    keep_specification,
    of_registered_class,
)
from rambo_trl.data.names import (
    BUNDLED_PREFIX,
    bundled_names,
    nearest,
    nearest_files,
)
from rambo_trl.data.spaces import ObservationLayout, check_action_space
from rambo_trl.data.storage import minari_root, move_into_place, why_unreadable
from rambo_trl.runtime.places import expand_home
from rambo_trl.runtime.progress import Bar

__all__ = ["describe", "open_minari"]

#: the first part of all names on Minari's server, in lower case
_REMOTE_NAMESPACES = ("atari", "d4rl", "metaworld", "minigrid", "mujoco")
#: how long the remote may take to tell what it has
_SECONDS = 10


Source: TypeAlias = tuple[Iterator[dict[str, Any]], dict[str, Any]]


def open_minari(
    name_or_path: str | os.PathLike[str],
    *,
    env_id: str | None = None,
    observation_keys: Sequence[str] | None = None,
    progress: bool = True,
) -> Source:
    """Open a Minari data set, building or downloading it where it is not local.

    Args:
        name_or_path: a bundled name, a Minari id, or the folder of a Minari data set.
        env_id: Gymnasium id of the environment, instead of the data set's.
        observation_keys: entries of Dict observations to join; see
            :meth:`~rambo_trl.data.ObservationLayout.of`.
        progress: whether a build and the reading show their progress.

    Returns:
        As :func:`describe`.

    Raises:
        ValueError: if there is no such data set or its spaces are not supported.
    """
    name = os.fspath(name_or_path)
    path = expand_home(name)
    folder = _data_folder(path)
    if folder is not None:
        dataset = _read(name, folder)
    elif path.is_dir():
        raise ValueError(f"{name} is a folder without a Minari set: it has no metadata.json")
    else:
        if name.startswith(BUNDLED_PREFIX):
            ensure_bundled(name, progress=progress)
        dataset = _local_or_download(name)
    return describe(
        name, dataset, env_id=env_id, observation_keys=observation_keys, progress=progress
    )


def describe(
    name: str,
    dataset: minari.MinariDataset,
    *,
    env_id: str | None = None,
    observation_keys: Sequence[str] | None = None,
    progress: bool = False,
) -> Source:
    """Check an open set's spaces and gather its metadata; see :func:`open_minari`.

    Returns:
        Its episodes, not read yet, and keyword arguments of ``OfflineDataset.from_episodes``.

    Raises:
        ValueError: if its spaces are not supported.
    """
    # The environment to evaluate in may differ from the recorded one, as by a fixed goal.
    specs = [spec for spec in (getattr(dataset, "_eval_env_spec", None), dataset.env_spec) if spec]
    named = [spec for spec in specs if keep_specification(env_id, spec)[0] is not None]
    env_spec = (named or specs or [None])[0]
    if env_id is None and env_spec is not None:
        env_id = env_spec.id
    layout = ObservationLayout.of(
        dataset.observation_space, name=name, env_id=env_id, keys=observation_keys
    )
    action_space = dataset.action_space
    check_action_space(action_space, name)
    metadata = dataset.storage.metadata
    scores = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if is_scored_by_success(keep_specification(env_id, env_spec)[0] or env_id):
        scores = None, None  # a Minari set's own count the steps at the goal
    low, high = (torch.as_tensor(bound) for bound in (action_space.low, action_space.high))
    described: dict[str, Any] = {
        "name": name,
        "env_spec": env_spec,
        "action_spec": Bounded(low, high, shape=low.shape, dtype=low.dtype),
        "reference_scores": None if None in scores else (float(scores[0]), float(scores[1])),
        "observation_layout": layout,
    }
    for key in ("observation_names", "action_names"):
        # metadata name no entries of a joined dictionary
        if key in metadata and (key == "action_names" or layout.keys is None):
            described[key] = tuple(map(str, metadata[key]))
    if intervals := metadata.get("step_intervals"):
        described["step_intervals"] = intervals
    if remarks := metadata.get("remarks"):
        described["remarks"] = tuple(remarks)
    return _episodes(name, dataset, layout, progress), described


def _episodes(
    name: str, dataset: minari.MinariDataset, layout: ObservationLayout, progress: bool
) -> Iterator[dict[str, Any]]:
    """Read the episodes one by one, their observations flattened."""
    pieces = dataset.storage.metadata.get("cut_pieces")
    cut = frozenset(pieces or ())
    stored = iter(dataset.storage.get_episodes(dataset.episode_indices))
    indices = range(len(dataset.episode_indices))
    label = f"reading {name}"
    for index in Bar(indices, label, unit="episode", leave=False, delay=1, disable=not progress):
        try:
            episode = next(stored)
        except Exception as error:
            raise ValueError(
                f"{name}: episode {index} cannot be read: {dataset.storage.data_path} {_why(error)}"
            ) from error
        try:
            observations = layout.flatten(episode["observations"])
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{name}: episode {index} is not of the set's observation space: {error}"
            ) from error
        episode |= {"observations": observations}
        if pieces is not None:
            episode["is_piece"] = episode["id"] in cut
        yield episode


def _data_folder(path: Path) -> Path | None:
    """Return the folder with a Minari set's files, given it or its parent; else None."""
    folders = (folder for folder in (path / "data", path) if (folder / "metadata.json").is_file())
    return next(folders, None)


def _read(name: str, folder: Path) -> minari.MinariDataset:
    """Open a local set; whatever is wrong with its files is said in one line."""
    path = folder / "metadata.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        version = metadata.get("minari_version")
    except Exception as error:
        raise ValueError(f"{name} cannot be read: {path} {_why(error)}") from error
    if isinstance(version, str) and version not in minari.supported_dataset_versions:
        newest = max(map(_numbers, minari.supported_dataset_versions))
        older = "store it anew with a version that does"
        raise ValueError(
            f"{name} was made by Minari {version}, which the installed Minari "
            f"{minari.__version__} does not read: "
            + ("pip install -U minari" if _numbers(version) > newest else older)
        )
    try:
        if metadata.get("env_spec") and not {"observation_space", "action_space"} <= set(metadata):
            # Minari asks the environment, and would import whatever class the file names.
            _check_class(name, json.loads(metadata["env_spec"]))
        return minari.MinariDataset(folder)
    except (ImportError, gymnasium.error.Error) as error:
        # Of a storage format's package, or of the environment that is asked for its spaces.
        raise ValueError(
            f"{name} needs a package that is not installed: {_first_line(error)}"
        ) from error
    except _ForeignClassError as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        raise ValueError(f"{name} cannot be read: {folder} {_why(error)}") from error


class _ForeignClassError(Exception):
    """A file asks for a class that is not imported because a file says so."""


def _check_class(name: str, recorded: Mapping[str, Any]) -> None:
    """Refuse another class than the one that is registered under an environment's id."""
    wrappers = (
        WrapperSpec(wrapper["name"], wrapper["entry_point"], wrapper.get("kwargs"))
        for wrapper in recorded.get("additional_wrappers") or ()
    )
    # older versions of Gymnasium stored more of it
    spec = EnvSpec(recorded["id"], recorded.get("entry_point"), additional_wrappers=tuple(wrappers))
    store = "store it anew with its observation_space and action_space, which it does not hold"
    try:
        registered = of_registered_class(spec)
    except ValueError as error:
        raise _ForeignClassError(f"{name}: {error}; or {store}") from None
    if registered.entry_point != spec.entry_point:
        raise _ForeignClassError(
            f"{name}: it names {spec.entry_point} as the class of {spec.id}, which is "
            f"{registered.entry_point} here; no other class is imported: {store}"
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _why(error: BaseException) -> str:
    return why_unreadable(
        error,
        damaged="is damaged, or not whole yet",
        remedy="if it is still being recorded, wait for that; else copy it again from where it "
        "came from",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _local_or_download(name: str) -> minari.MinariDataset:
    """Open a set in Minari's root, else download it; a failure is one line saying what to do."""
    root = bundled_path("")
    valid = DATASET_ID_RE.fullmatch(name) and re.search(r"-v\d+$", name)
    folder = _data_folder(root / name) if valid else None
    if folder is not None:
        return _read(name, folder)
    # asked again: another job may have moved the whole set there in between
    if valid and (root / name).exists() and _data_folder(root / name) is None:
        raise ValueError(
            f"{root / name} is no whole Minari set, it has no metadata.json: if it is being "
            "recorded or copied, wait for that; else move it elsewhere and get the set again"
        )
    near = [*nearest(name, [*bundled_names(), *_local_names()]), *nearest_files(expand_home(name))]
    if not valid:
        reason = "it is no valid Minari id, whose form is namespace/name-v0, nor a file or folder"
    elif near and not _may_be_remote(name):
        reason = "Minari's server, which has no such names, is not asked"
    else:
        try:
            _download(name, root)
        except Exception as error:  # from a missing package to a broken connection
            reason = f"downloading it failed ({_first_line(error)})"
        else:
            return _read(name, root / name / "data")
    near = near or ["bundled/hopper/medium-replay-v1"]
    by_hand = ""
    if valid:
        by_hand = (
            f"; or fetch it where there is a network with `minari download {name}` and copy it "
            f"to {root / name}"
        )
    raise ValueError(
        f"no data set {name!r}: it is not in Minari's root {root} and {reason}. Nearest known "
        f"names: {', '.join(near)}{by_hand}"
    )


def _local_names() -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other sets that are damaged
        try:
            return list(minari.list_local_datasets())
        except OSError:  # a folder in the root that may not be read
            return []


def _may_be_remote(name: str) -> bool:
    """Whether a set may well be on Minari's server, or on another remote that is set."""
    return "MINARI_REMOTE" in os.environ or name.split("/")[0].lower() in _REMOTE_NAMESPACES


def _ask_remote(name: str) -> None:
    """Ask the remote for a name, with a time limit: its own tries take over half a minute.

    They cannot be ended, but write nothing to Minari's root.
    """
    torchrl_logger.warning(
        f"{name} is not on this machine: asking Minari's remote for it, {_SECONDS} s at most"
    )
    answer: Future[object] = Future()

    def ask() -> None:
        try:
            answer.set_result(minari.list_remote_datasets(prefix=re.sub(r"-v\d+$", "", name)))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True, name="minari-remote").start()
    try:
        answer.result(_SECONDS)
    except FutureTimeoutError as error:
        if answer.done():  # a time-out of the remote's own
            raise
        raise TimeoutError(f"no answer from the remote within {_SECONDS} s") from error


def _download(name: str, root: Path) -> None:
    """Download a set to a hidden folder, and move it into place when it is complete.

    A broken download leaves nothing that passes for the set, and jobs that download the same set at
    once do not touch each other's.
    """
    _ask_remote(name)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=root) as scratch:
        with minari_root(scratch):
            minari.download_dataset(name)
        # namespaces, then the sets that it was combined from, then itself
        sets = {path.parents[1] for path in Path(scratch).rglob("data/metadata.json")}
        spaces = sorted(Path(scratch).rglob("namespace_metadata.json"))
        own = Path(scratch) / name
        for source in (*spaces, *sorted(sets - {own}), own):
            move_into_place(source, root / source.relative_to(scratch))
    torchrl_logger.info(f"{name} is in {root / name}")
