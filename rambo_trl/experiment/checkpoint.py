"""Checkpoints: everything that decides a run's future, written in one step.

Of TorchRL's ``Checkpoint`` only ``GlobalRNGState`` is used. The rest, as of 0.14.1, flushes nothing
to the disk and prunes or moves away the earlier checkpoint all the same, so that a power cut leaves
none; and it restores part by part, so that one that does not fit leaves the others changed.
"""

from __future__ import annotations

import copy
import io
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torchrl.checkpoint import GlobalRNGState
from torchrl.data import ReplayBuffer

from rambo_trl.data import RealModelReplayBuffer
from rambo_trl.data.storage import why_unreadable
from rambo_trl.experiment.folder import write_atomically
from rambo_trl.runtime.optimizers import load_optimizer
from rambo_trl.runtime.places import expand_home

__all__ = [
    "Checkpoints",
    "Stateful",
    "load_checkpoint",
    "load_optimizer",
    "make_deterministic",
    "random_state",
    "save_checkpoint",
    "seed_everything",
    "set_random_state",
]

#: types that are read back as they are, unlike classes derived from them
_PLAIN = (type(None), bool, int, float, complex, str)
_BUFFERS = (ReplayBuffer, RealModelReplayBuffer)


class Stateful(Protocol):
    """Anything with ``state_dict`` and ``load_state_dict``."""

    def state_dict(self) -> Any: ...  # noqa: D102

    def load_state_dict(self, state_dict: Any) -> Any: ...  # noqa: D102


def stateful(parts: Mapping[str, Any]) -> dict[str, Stateful]:
    """What checkpoints hold of parts, by name; those that are made of several, one by one."""
    states: dict[str, Stateful] = {}
    for name, part in parts.items():
        if hasattr(part, "stateful_parts"):
            states |= {f"{name}_{key}": state for key, state in part.stateful_parts.items()}
        elif part is not None:
            states[name] = part
    return states


def seed_everything(seed: int) -> None:
    """Seed torch, from which a run's own randomness is drawn, and Python's and NumPy's."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def make_deterministic() -> None:
    """Keep torch to algorithms that repeat bit for bit on a GPU too; what has none raises.

    Compiled kernels are then not chosen by timing them, which would decide the order of sums.
    To be called before the GPU is used: cuBLAS reads its setting once. A CPU computes what it
    does anyway.

    Raises:
        RuntimeError: if the GPU is in use and cuBLAS was not told before.
    """
    if "CUBLAS_WORKSPACE_CONFIG" not in os.environ and torch.cuda.is_initialized():
        raise RuntimeError(
            "make_deterministic comes too late: the GPU is in use already. Call it first, or set "
            "the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8"
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def random_state() -> dict[str, Any]:
    """The states of torch's, NumPy's and Python's global generators, as tensors and numbers.

    A run draws from torch's; the others are kept for environments and policies of the user's.
    """
    return GlobalRNGState().state_dict()


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`random_state` returned.

    Generators that it lacks, or that this machine lacks, are left alone.
    """
    names = {"cpu": "torch_cpu", "cuda": "torch_cuda"}  # as older checkpoints have them
    saved = {names.get(key, key): value for key, value in state.items()}
    if isinstance(python := saved.get("python"), Mapping):
        numbers = tuple(python["numbers"].tolist())
        saved["python"] = (python["version"], numbers, python["gauss"])
    if isinstance(numpy := saved.get("numpy"), Mapping):
        saved["numpy"] = ("MT19937", *(numpy[k] for k in ("key", "pos", "has_gauss", "gauss")))
    state = {key: saved.get(key, now) for key, now in random_state().items()}
    if "torch_cuda" in state:  # perhaps of a machine with more GPUs
        state["torch_cuda"] = state["torch_cuda"][: torch.cuda.device_count()]
    GlobalRNGState().load_state_dict(state)


def save_checkpoint(
    path: str | os.PathLike[str], parts: Mapping[str, Stateful], progress: Mapping[str, Any]
) -> int:
    """Write the parts' states, the run's progress and the random state to one file.

    An earlier file is kept until the new one is whole. NumPy scalars become Python's.

    Args:
        path: the file to write or replace.
        parts: networks, optimisers and buffers by name.
        progress: numbers, strings, bools, None, tensors, and lists, tuples and dicts of them.

    Returns:
        The file's size in bytes.

    Raises:
        TypeError: if the progress holds anything else; nothing is written then.
        OSError: if it cannot be written, saying whether an earlier file is kept.
    """
    path = expand_home(path)
    state = {
        "progress": _plain(dict(progress), "progress"),
        "parts": {name: _plain(part.state_dict(), None) for name, part in parts.items()},
        "random": random_state(),
    }
    data = io.BytesIO()
    torch.save(state, data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data.getbuffer())
    except OSError as error:
        kept = "the one before it is kept" if path.is_file() else "there is none before it"
        reason = f"checkpoint {path} could not be written ({error.strerror or error}): {kept}"
        raise OSError(error.errno, reason) from error
    return data.tell()


def _plain(value: Any, name: str | None) -> Any:
    """The value with Python's numbers in place of NumPy's, in dicts, lists and tuples too.

    What would not come back is refused, with its name, in the progress. In a part's state, which
    has no ``name``, it stays as it is (a module's has a class and attributes of its own).
    """
    if isinstance(value, np.generic):
        value = value.item()
    inner = "" if name is None else name
    if type(value) is dict or (name is not None and isinstance(value, dict)):
        return {
            _plain(key, name and f"a key of {inner}"): _plain(item, name and f"{inner}.{key}")
            for key, item in value.items()
        }
    if type(value) in (list, tuple) or (name is not None and isinstance(value, (list, tuple))):
        items = [_plain(item, name and f"{inner}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if name is None or type(value) in _PLAIN or isinstance(value, torch.Tensor):
        return value
    raise TypeError(f"{name} cannot be kept in a checkpoint: {type(value).__name__}")


def load_checkpoint(
    path: str | os.PathLike[str],
    parts: Mapping[str, Stateful],
    *,
    device: torch.device | str = "cpu",
    restore_random: bool = True,
) -> dict[str, Any]:
    """Restore the parts and the random state; nothing is unpickled but tensors and numbers.

    If one of the parts does not fit, all are left as they were, and so is the random state. Only a
    replay buffer that itself refuses its rows may have lost its own: buffers are too large to be
    copied first, and are loaded last.

    Args:
        path: what :func:`save_checkpoint` wrote.
        parts: the same names as were saved.
        device: where tensors are put.
        restore_random: False leaves the random state as it is.

    Returns:
        The run's progress.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, or holds other parts.
    """
    state = read_checkpoint(path, device=device)
    if set(state["parts"]) != set(parts):
        raise ValueError(
            f"{path} holds the parts {sorted(state['parts'])}, this run has {sorted(parts)}"
        )
    restore_parts(path, parts, state["parts"])
    if restore_random:
        set_random_state(state["random"])
    return state["progress"]


def read_checkpoint(
    path: str | os.PathLike[str], *, device: torch.device | str
) -> dict[str, dict[str, Any]]:
    """Read the ``"parts"``, ``"progress"`` and ``"random"`` of a checkpoint and restore nothing."""
    path = expand_home(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: the run ended before its first one")
    damaged = "is not a readable checkpoint"
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        remedy = "copy it again from where it came from, or start a new run"
        why = why_unreadable(error, damaged=damaged, remedy=remedy)
        raise ValueError(f"{path} {why}") from error
    if not isinstance(state, dict) or not {"parts", "progress", "random"} <= state.keys():
        raise ValueError(f"{path} {damaged}: it holds something else")
    return state


def restore_parts(
    path: str | os.PathLike[str], parts: Mapping[str, Stateful], states: Mapping[str, Any]
) -> None:
    """Restore parts from their states, read from ``path``: all of them or, on an error, none.

    Raises:
        ValueError: naming the path and the part that does not fit.
    """
    with unchanged_on_failure(parts.values()):
        for name in sorted(parts, key=lambda name: isinstance(parts[name], _BUFFERS)):
            try:
                _load(parts[name], states[name])
            except (RuntimeError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"{path} was saved with other settings: its {name} does not fit ({reason})"
                ) from error


@contextmanager
def unchanged_on_failure(parts: Iterable[Stateful]) -> Iterator[None]:
    """On an error inside, restore the parts to what they were; replay buffers are left alone."""
    kept = [part for part in parts if not isinstance(part, _BUFFERS)]
    states = [copy.deepcopy(part.state_dict()) for part in kept]
    try:
        yield
    except BaseException:
        for part, state in zip(kept, states, strict=True):
            _load(part, state)
        raise


def _load(part: Stateful, state: Any) -> None:
    if isinstance(part, torch.optim.Optimizer):
        load_optimizer(part, state)
    else:
        part.load_state_dict(state)


class Checkpoints:
    """The checkpoints of one run: when they are due, how many are kept.

    The newest is ``last.pt``. With ``keep`` above 1 the ones before it stay as
    ``epoch-NNNNNN.pt``; the one kept by :meth:`keep_last_good` is ``last_good.pt``. No two of
    them share their bytes: what damages one leaves the others whole.

    One process writes, any number may read. What a killed writer left half written is never read.

    Args:
        folder: where they lie.
        parts: networks, optimisers and buffers by name.

    Keyword Args:
        every: epochs between two.
        minutes: also due when the last one is that old, however few epochs ago; None for
            epochs only.
        keep: how many are kept, the newest among them.
        device: where tensors are put when one is read.

    Attributes:
        last: the newest checkpoint's file.
        last_good: the file of the checkpoint kept from before a divergence.
        size: bytes of the checkpoint written or read last.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        parts: Mapping[str, Stateful],
        *,
        every: int = 1,
        minutes: float | None = None,
        keep: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder, self.parts, self.device = expand_home(folder), parts, device
        self.every, self.minutes, self.keep = every, minutes, keep
        self.last, self.last_good = self.folder / "last.pt", self.folder / "last_good.pt"
        self.size = 0
        self._epoch: int | None = None  # of last.pt
        self._saved_at = time.monotonic()

    def due(self, epoch: int) -> bool:
        """Whether one is to be written after this epoch."""
        age = time.monotonic() - self._saved_at
        return epoch % self.every == 0 or (self.minutes is not None and age > 60 * self.minutes)

    def save(self, progress: Mapping[str, Any]) -> None:
        """Write ``last.pt``; ``progress["epoch"]`` names the epoch that it follows.

        Raises:
            OSError, TypeError: as :func:`save_checkpoint`.
        """
        epoch = progress["epoch"]
        if self.keep > 1 and self.last.is_file() and self._epoch not in (None, epoch):
            earlier = self.folder / f"epoch-{self._epoch:06d}.pt"
            earlier.unlink(missing_ok=True)
            try:  # a second name, which keeps the content when last.pt is replaced
                os.link(self.last, earlier)
            except OSError:  # a file system without links
                write_atomically(earlier, self.last.read_bytes())
        self.size = save_checkpoint(self.last, self.parts, progress)
        self._epoch, self._saved_at = epoch, time.monotonic()
        if self.keep > 1:
            files = {p: p.stem.removeprefix("epoch-") for p in self.folder.glob("epoch-*.pt")}
            epochs = {p: int(number) for p, number in files.items() if number.isdigit()}
            # later ones are of a future that was given up
            before = sorted(p for p in epochs if epochs[p] < epoch)
            for path in epochs.keys() - set(before[-(self.keep - 1) :]):
                path.unlink()

    def load(self, path: Path | None = None) -> dict[str, Any] | None:
        """Restore the newest checkpoint, or another one of the folder; changes no file.

        Returns:
            The progress saved with it; None if there is no checkpoint yet.

        Raises:
            ValueError: if it cannot be read, or belongs to other settings.
        """
        path = path or self.last
        if not path.is_file():
            return None
        self.size = path.stat().st_size
        progress = load_checkpoint(path, self.parts, device=self.device)
        if path == self.last:
            self._epoch = progress["epoch"]
        return progress

    def keep_last_good(self) -> None:
        """Keep a copy of the newest checkpoint as ``last_good.pt`` whatever follows."""
        write_atomically(self.last_good, self.last.read_bytes())
