"""Data sets in memory-mapped files, for more transitions than fit into memory."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDict
from torchrl.data import Bounded

from rambo_trl.data.disk import check_space
from rambo_trl.data.scaling import flat_bounds
from rambo_trl.data.spaces import ObservationLayout
from rambo_trl.data.specification import registered_id, specification_text
from rambo_trl.data.unreadable import why_unreadable

__all__ = ["check_options", "is_memmap_folder", "read_memmap", "write_memmap"]

_FORMAT = 4
_DESCRIPTION = "rambo_trl_dataset.json"
_MARGIN = 1 << 20  # bytes for descriptions and the file system's own records
_PLAIN = (
    "name", "env_id", "reference_scores", "remarks", "oddities", "reward_shift", "normalized",
    "observation_names", "action_names", "num_cut_episodes", "step_intervals",
)  # fmt: skip


def is_memmap_folder(path: Path) -> bool:
    """Whether a folder was written by :func:`write_memmap`."""
    return (path / _DESCRIPTION).is_file()


def write_memmap(folder: Path, attributes: Mapping[str, Any]) -> None:
    """Write a data set, checked and normalised, to a new folder of memory-mapped files.

    The folder appears when it is complete; a write that fails leaves nothing behind.

    Args:
        folder: a place where there is nothing yet.
        attributes: a data set's, by name.

    Raises:
        ValueError: if there is something already.
        OSError: if it cannot be written, naming the folder.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already: choose another place")
    transitions, layout = attributes["transitions"], attributes["observation_layout"]
    spec, scale = attributes["env_spec"], attributes["reward_scale"]
    if scale != 1:  # chosen anew by whoever opens the folder
        transitions = transitions.copy()
        transitions["next", "reward"] = transitions["next", "reward"] * scale
    description: dict[str, Any] = {
        "format": _FORMAT,
        "transitions": len(transitions),
        **{key: attributes[key] for key in _PLAIN},
        "env_spec": None if spec is None else specification_text(spec),
        "observation_layout": None
        if layout is None
        else {"shapes": layout.shapes, "keys": layout.keys},
    }
    arrays = {
        "observation_mean": attributes["observation_mean"].numpy(),
        "observation_std": attributes["observation_std"].numpy(),
        "action_low": attributes["action_low"].numpy(),
        "action_high": attributes["action_high"].numpy(),
        "behaviour_returns": attributes["behaviour_returns"],
        "whole_episodes": attributes["whole_episodes"],
    }
    scratch = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
        size = transitions.bytes() + sum(np.asarray(array).nbytes for array in arrays.values())
        check_space(scratch, size + _MARGIN)
        transitions.memmap(scratch / "transitions", copy_existing=True)
        np.savez(scratch / "arrays.npz", **arrays)
        description["files"] = _file_sizes(scratch)
        (scratch / _DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")
        scratch.chmod(0o755)
        scratch.rename(folder)
    except BaseException as error:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(
                f"{folder} cannot be written ({error}): free some space, or choose another place"
            ) from error
        raise


def _file_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _check_files(folder: Path, sizes: Mapping[str, int]) -> None:
    """Compare the files with what was written; mapping a short one would fill it with zeros."""
    for name, size in sizes.items():
        found = os.stat(folder / name).st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes, not {size}")


def read_memmap(folder: Path) -> dict[str, Any]:
    """Open what :func:`write_memmap` wrote; the transitions stay on the disk.

    Returns:
        A data set's attributes by name.

    Raises:
        ValueError: if the folder is incomplete or of another version.
    """
    try:
        found = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        version = found.pop("format")
        if version == _FORMAT:
            _check_files(folder, found.pop("files"))
            with np.load(folder / "arrays.npz") as file:
                arrays = {key: torch.from_numpy(file[key]) for key in file.files}
            transitions = TensorDict.load_memmap(folder / "transitions", allow_pickle=False)
            if transitions.batch_size != (found.pop("transitions"),):
                raise ValueError(f"it has {tuple(transitions.batch_size)} transitions")
    except Exception as error:  # of many types: JSON, NumPy's, tensordict's
        why = why_unreadable(
            error, damaged="is incomplete or damaged", remedy="make it anew in another place"
        )
        raise ValueError(f"{folder} {why}") from error
    if version != _FORMAT:
        raise ValueError(
            f"{folder} was written by another version of rambo_trl: make it anew in another place"
        )
    layout, spec, scores = (
        found[key] for key in ("observation_layout", "env_spec", "reference_scores")
    )
    return {
        **found,
        **arrays,
        "transitions": transitions,
        **{key: arrays[key].numpy() for key in ("behaviour_returns", "whole_episodes")},
        **{key: tuple(found[key]) for key in ("observation_names", "action_names")},
        "action_spec": Bounded(-1.0, 1.0, arrays["action_low"].shape, dtype=torch.float32),
        "env_spec": None if spec is None else EnvSpec.from_json(spec),
        "reference_scores": None if scores is None else tuple(scores),
        "remarks": tuple(found["remarks"]),
        "oddities": tuple(found["oddities"]),
        "observation_layout": None
        if layout is None
        else ObservationLayout(
            tuple(tuple(shape) for shape in layout["shapes"]),
            None if layout["keys"] is None else tuple(layout["keys"]),
        ),
    }


def check_options(folder: Path, attributes: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse options for reading that a folder was not made with.

    Args:
        folder: what messages name.
        attributes: of the data set in it.
        options: by name; None where there is no wish.

    Raises:
        ValueError: naming the first that differs.
    """
    layout = attributes["observation_layout"]
    keys = None if layout is None else layout.keys
    bounds = [attributes[f"action_{end}"].tolist() for end in ("low", "high")]
    spec = attributes["env_spec"]
    limit = None if spec is None else spec.max_episode_steps
    own = {
        **attributes,
        "observation_keys": keys,
        "max_episode_steps": limit,
        "action_spec": bounds,
    }
    for key, wanted in options.items():
        if wanted is None or (key == "reward_shift" and not wanted):
            continue
        if key == "observation_keys":
            wanted = tuple(wanted)
        if key == "action_spec":
            wanted = [bound.tolist() for bound in flat_bounds(wanted.space.low, wanted.space.high)]
        if key == "env_id" and registered_id(wanted) == registered_id(own[key] or ""):
            continue
        if wanted != own[key]:
            raise ValueError(
                f"{folder} was made with {_shown(key, own[key])}: leave out "
                f"{_shown(key, wanted)}, or make another folder with it"
            )


def _shown(key: str, value: Any) -> str:
    """Write an option as it was given."""
    if key == "action_spec":
        value = f"{value[0]} to {value[1]}"
    return f"{key.replace('normalized', 'normalize')}={value}"
