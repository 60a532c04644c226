"""Minari data sets by name, folder or download, as plain episodes."""

from __future__ import annotations

import difflib
import json
import os
import re
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
from torchrl.data import Bounded

from rambo_trl.data import bundled
from rambo_trl.data.bundled import (
    BUNDLED_PREFIX,
    bundled_names,
    bundled_path,
    ensure_bundled,
)
from rambo_trl.data.d4rl_names import beside, needs_policies
from rambo_trl.data.environment import (
    is_maze,
    is_scored_by_success,
    of_registered_class,
    register_mazes,
)
from rambo_trl.data.minari_metadata import read_metadata, utf8_metadata
from rambo_trl.data.minari_remote import REMOTE_NAMES, download, may_be_remote
from rambo_trl.data.spaces import ObservationLayout, check_action_space
from rambo_trl.data.specification import keep_specification
from rambo_trl.data.unreadable import why_unreadable
from rambo_trl.runtime.places import expand_home
from rambo_trl.runtime.progress import Bar

__all__ = ["MinariSource", "describe", "open_minari"]


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
    path = expand_home(name)
    folder = _data_folder(path)
    if folder is not None:
        dataset = _read(name, folder)
    elif path.is_dir():
        raise ValueError(f"{name} is a folder without a Minari set: it has no metadata.json")
    else:
        if name.startswith(BUNDLED_PREFIX):
            _ensure_bundled(name, progress)
        dataset = _local_or_download(name)
    return describe(
        name, dataset, env_id=env_id, observation_keys=observation_keys, progress=progress
    )


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
    metadata = _read_metadata(name, folder)
    try:
        if foreign := _foreign_class(metadata):
            raise ValueError(f"{name}: {foreign}")
    except gymnasium.error.Error as error:
        raise ValueError(_lacks_package(name, error)) from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{name} cannot be read: {folder / 'metadata.json'} {_why(error)}"
        ) from error
    try:
        with utf8_metadata():
            return minari.MinariDataset(folder)
    except (ImportError, gymnasium.error.Error) as error:
        # Of a storage format's package, or of the environment, which Minari asks for its spaces
        # where the set does not hold them.
        raise ValueError(_lacks_package(name, error)) from error
    except Exception as error:
        raise ValueError(f"{name} cannot be read: {folder} {_why(error)}") from error


def _lacks_package(name: str, error: Exception) -> str:
    return f"{name} needs a package that is not installed: {_first_line(error)}"


def _read_metadata(name: str, folder: Path) -> dict[str, Any]:
    """Read a set's description and refuse one that the installed Minari would not take."""
    try:
        metadata = read_metadata(folder)
    except Exception as error:
        raise ValueError(
            f"{name} cannot be read: {folder / 'metadata.json'} {_why(error)}"
        ) from error
    version = metadata.get("minari_version")
    if isinstance(version, str) and version not in minari.supported_dataset_versions:
        newest = max(map(_numbers, minari.supported_dataset_versions))
        newer = _numbers(version) > newest
        raise ValueError(
            f"{name} was made by Minari {version}, which the installed Minari "
            f"{minari.__version__} does not read: "
            + ("pip install -U minari" if newer else "store it anew with a version that does")
        )
    return metadata


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _why(error: BaseException) -> str:
    return why_unreadable(
        error,
        damaged="is damaged, or not whole yet",
        remedy="if it is still being recorded, wait for that; else copy it again from where it "
        "came from",
    )


def _foreign_class(metadata: Mapping[str, Any]) -> str | None:
    """Look for another class than the registered one in the environment of a set without spaces.

    Minari asks the environment for the spaces, and would import whatever class the file names.

    Returns:
        What is wrong; None where nothing is.
    """
    recorded = metadata.get("env_spec")
    if recorded is None or {"observation_space", "action_space"} <= metadata.keys():
        return None
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
    store = "store it anew with its observation_space and action_space, which it does not hold"
    try:
        registered = of_registered_class(spec)
    except ValueError as error:
        return f"{error}; or {store}"
    if registered.entry_point != spec.entry_point:
        return (
            f"it names {spec.entry_point} as the class of {spec.id}, which is "
            f"{registered.entry_point} here; no other class is imported: {store}"
        )
    return None


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
                f"{root / name} is no whole Minari set, it has no metadata.json: if it is being "
                "recorded or copied, wait for that; else move it elsewhere and get the set again"
            )
        if not may_be_remote(name) and _nearest(name):
            reason = "Minari's server, which has no such names, is not asked"
        else:
            try:
                download(name, root)
            except Exception as error:
                # The downloader's errors range from a missing package to a broken connection.
                reason = f"downloading it failed ({_first_line(error)})"
            else:
                return _read(name, root / name / "data")
        help_ = (
            f"; or fetch it where there is a network with `minari download {name}` and copy it "
            f"to {root / name}"
        )
    else:
        reason = "it is no valid Minari id, whose form is namespace/name-v0, nor a file or folder"
        help_ = ""
    raise ValueError(
        f"no data set {name!r}: it is not in Minari's root {root} and {reason}. "
        f"{_suggestion(name)}{help_}"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _suggestion(name: str) -> str:
    near = _nearest(name)
    if near:
        return f"Nearest known names: {', '.join(near)}"
    some = dict.fromkeys(["bundled/hopper/medium-replay-v0", *_local_names()[:3]])
    return f"Known names are {', '.join(some)} and others"


def _nearest(name: str) -> list[str]:
    """Names of local, bundled and remote sets, and of files, that a misspelt one may mean."""
    # where the name is right it is the network that fails
    remote = () if name in REMOTE_NAMES else REMOTE_NAMES
    known = {*bundled_names(), *_local_names(), *remote} - {name}
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return [*near, *beside(expand_home(name))]


def _local_names() -> list[str]:
    with warnings.catch_warnings(), utf8_metadata():
        warnings.simplefilter("ignore")  # of other sets that are damaged
        try:
            return list(minari.list_local_datasets())
        except OSError:  # a folder in the root that may not be read
            return []


def describe(
    name: str,
    dataset: minari.MinariDataset,
    *,
    env_id: str | None = None,
    observation_keys: Sequence[str] | None = None,
    progress: bool = False,
) -> MinariSource:
    """Check an open set's spaces and gather its metadata.

    Args:
        name: how messages call it.
        dataset: the set.
        env_id: see :func:`open_minari`.
        observation_keys: see :func:`open_minari`.
        progress: whether reading its episodes shows a bar.

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
    with utf8_metadata():
        metadata = dataset.storage.metadata
    reference = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if is_scored_by_success(keep_specification(env_id, env_spec)[0] or env_id):
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
        yield episode | {"observations": observations}
