"""Data sets in memory-mapped files, for more transitions than fit into memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDict
from torchrl.data import Bounded

from rambo_trl.data.environment import registered_id, specification_text
from rambo_trl.data.scaling import flat_bounds
from rambo_trl.data.spaces import ObservationLayout
from rambo_trl.data.storage import check_space, staging, why_unreadable
from rambo_trl.data.transition_data import Statistics

__all__ = ["check_options", "is_memmap_folder", "read_memmap", "write_memmap"]

_FORMAT = 4
_DESCRIPTION = "rambo_trl_dataset.json"
_MARGIN = 1 << 20  # bytes for descriptions and the file system's own records
# A data set's attributes in the description, with their names there, and in arrays.npz.
_PLAIN = {
    key: {"data_warnings": "oddities"}.get(key, key)
    for key in (
        "name", "env_id", "reference_scores", "remarks", "data_warnings", "reward_shift",
        "normalized", "observation_names", "action_names", "num_cut_episodes", "step_intervals",
    )
}  # fmt: skip
_TENSORS = tuple(Statistics.__annotations__)
_ARRAYS = ("behaviour_returns", "whole_episodes")


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
    rows = {"transitions": transitions, "holdout": attributes["holdout"]}
    rows = {key: value for key, value in rows.items() if value is not None}
    if scale != 1:  # chosen anew by whoever opens the folder
        for key, value in rows.items():
            rows[key] = value = value.copy()
            value["next", "reward"] = value["next", "reward"] * scale
    description: dict[str, Any] = {
        "format": _FORMAT,
        "transitions": len(transitions),
        **{written: attributes[key] for key, written in _PLAIN.items()},
        "env_spec": None if spec is None else specification_text(spec),
        "observation_layout": None if layout is None else vars(layout),
    }
    arrays = {key: np.asarray(attributes[key]) for key in (*_TENSORS, *_ARRAYS)}
    failure = f"{folder} cannot be written ({{}}): free some space, or choose another place"
    with staging(folder.parent, failure) as scratch:
        size = sum(value.bytes() for value in rows.values())
        size += sum(array.nbytes for array in arrays.values())
        check_space(scratch, size + _MARGIN)
        built = scratch / folder.name
        built.mkdir()
        for key, value in rows.items():
            value.memmap(built / key, copy_existing=True)
        np.savez(built / "arrays.npz", **arrays)  # type: ignore[arg-type]
        description["files"] = _file_sizes(built)
        (built / _DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")
        built.rename(folder)


def _file_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def read_memmap(folder: Path) -> dict[str, Any]:
    """Read what :func:`write_memmap` wrote, by attribute; the transitions stay on the disk.

    Raises:
        ValueError: if the folder is incomplete or of another version.
    """
    try:
        stored = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        current = stored["format"] == _FORMAT
        attributes = _read_current(folder, stored) if current else {}
    except Exception as error:  # of many types: JSON, NumPy's, tensordict's
        why = why_unreadable(
            error, damaged="is incomplete or damaged", remedy="make it anew in another place"
        )
        raise ValueError(f"{folder} {why}") from error
    if not current:
        raise ValueError(
            f"{folder} was written by another version of rambo_trl: make it anew in another place"
        )
    return attributes


def _read_current(folder: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    for name, size in stored["files"].items():
        actual = os.stat(folder / name).st_size
        if actual != size:  # mapping a short one would fill it with zeros
            raise ValueError(f"{name} has {actual} bytes, not {size}")
    with np.load(folder / "arrays.npz") as file:
        arrays = {key: file[key] for key in (*_TENSORS, *_ARRAYS)}
    transitions = TensorDict.load_memmap(folder / "transitions", allow_pickle=False)
    if transitions.batch_size != (stored["transitions"],):
        raise ValueError(f"it has {tuple(transitions.batch_size)} transitions")
    holdout = None
    if (folder / "holdout").is_dir():
        holdout = TensorDict.load_memmap(folder / "holdout", allow_pickle=False)
    plain = {key: stored[written] for key, written in _PLAIN.items()}
    layout, spec = stored["observation_layout"], stored["env_spec"]
    if layout is not None:
        keys = layout["keys"]
        shapes = tuple(map(tuple, layout["shapes"]))
        layout = ObservationLayout(shapes, None if keys is None else tuple(keys))
    return {
        # JSON has lists for tuples
        **{key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()},
        **{key: torch.from_numpy(arrays[key]) for key in _TENSORS},
        **{key: arrays[key] for key in _ARRAYS},
        "transitions": transitions,
        "holdout": holdout,
        "action_spec": Bounded(-1.0, 1.0, arrays["action_low"].shape, dtype=torch.float32),
        "env_spec": None if spec is None else EnvSpec.from_json(spec),
        "observation_layout": layout,
    }


def check_options(folder: Path, attributes: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse options for reading that a folder was not made with; None where there is no wish.

    Raises:
        ValueError: naming the first that differs.
    """
    layout, spec = attributes["observation_layout"], attributes["env_spec"]
    stored = {
        **attributes,
        "observation_keys": None if layout is None else layout.keys,
        "max_episode_steps": None if spec is None else spec.max_episode_steps,
        "action_spec": _bounds(attributes["action_low"], attributes["action_high"]),
    }
    for key, wanted in options.items():
        if wanted is None or (key == "reward_shift" and not wanted):
            continue
        if key == "action_spec":
            wanted = _bounds(*flat_bounds(wanted.space.low, wanted.space.high))
        elif key == "observation_keys":
            wanted = tuple(wanted)
        same = wanted == stored[key]
        if key == "env_id":
            same = registered_id(wanted) == registered_id(stored[key] or "")
        if not same:
            option = key.replace("normalized", "normalize")
            raise ValueError(
                f"{folder} was made with {option}={stored[key]}: leave out {option}={wanted}, or "
                "make another folder with it"
            )


def _bounds(low: torch.Tensor, high: torch.Tensor) -> str:
    return f"{low.tolist()} to {high.tolist()}"
