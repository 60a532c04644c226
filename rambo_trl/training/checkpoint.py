"""Checkpoints: everything that decides a run's future, written in one step."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from rambo_trl.training.run_folder import write_atomically

__all__ = ["Stateful", "load_checkpoint", "random_state", "save_checkpoint", "set_random_state"]


class Stateful(Protocol):
    """Anything with torch's pair of methods."""

    def state_dict(self) -> Any:
        """The state."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Restore it."""
        ...


def random_state() -> dict[str, Any]:
    """The state of torch's generators; all of a run's own randomness is drawn from them."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(
    path: str | os.PathLike[str], parts: Mapping[str, Stateful], progress: Mapping[str, Any]
) -> None:
    """Write the parts' states, the run's progress and the random state to one file.

    The file is written beside and moved into place, so an earlier one is kept until the new
    one is whole.

    Args:
        path: the file to write or replace.
        parts: networks, optimisers and buffers by name.
        progress: plain numbers, strings, lists and dicts of them.
    """
    state = {
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "progress": dict(progress),
        "random": random_state(),
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    torch.save(state, data)
    write_atomically(path, data.getvalue())


def load_checkpoint(
    path: str | os.PathLike[str],
    parts: Mapping[str, Stateful],
    *,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Restore the parts and the random state; nothing is unpickled but tensors and numbers.

    Args:
        path: what :func:`save_checkpoint` wrote.
        parts: the same names as were saved.
        device: where tensors are put.

    Returns:
        The run's progress.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, or holds other parts.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: the run ended before its first one")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(state, dict) or set(state.get("parts", ())) != set(parts):
        found = sorted(state.get("parts", ())) if isinstance(state, dict) else "none"
        raise ValueError(f"{path} holds the parts {found}, this run has {sorted(parts)}")
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    set_random_state({k: _to_cpu(v) for k, v in state["random"].items()})
    return state["progress"]


def _to_cpu(value: Any) -> Any:
    return [v.cpu() for v in value] if isinstance(value, list) else value.cpu()
