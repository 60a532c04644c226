"""Checkpoints: everything that decides a run's future, written in one step.

TorchRL's ``Checkpoint`` (0.14) is not used here. It replaces an earlier checkpoint by moving that
one away before the new one is moved in, and flushes nothing to the disk: a kill between the two
moves, or a power cut, leaves no checkpoint under its name. Its directories of tensors are read by
tensordict, which unpickles what is not a tensor. It knows no random states.
"""

from __future__ import annotations

import copy
import io
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torchrl.data import ReplayBuffer

from rambo_trl.data import RealModelReplayBuffer
from rambo_trl.data.storage import why_unreadable
from rambo_trl.experiment.folder import write_atomically
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

#: read back as they are, unlike values of classes derived from them
_PLAIN = (type(None), bool, int, float, complex, str)
_BUFFERS = (ReplayBuffer, RealModelReplayBuffer)


class Stateful(Protocol):
    """Anything with torch's pair of methods."""

    def state_dict(self) -> Any:
        """The state."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Restore it."""
        ...


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

    A run's own randomness is drawn from torch; the others are kept for the environments and
    policies that a user brings along.
    """
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    version, numbers, gauss = random.getstate()
    state["python"] = {"version": version, "numbers": torch.tensor(numbers), "gauss": gauss}
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    state["numpy"] = {
        "key": key,
        "pos": int(numpy["state"]["pos"]),
        "has_gauss": int(numpy["has_gauss"]),
        "gauss": float(numpy["gauss"]),
    }
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`random_state` returned; generators that it lacks stay as they are."""
    torch.set_rng_state(state["cpu"].cpu())
    if torch.cuda.is_available():  # perhaps fewer GPUs than where it was saved
        for i, own in enumerate(state.get("cuda", ())[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(own.cpu(), i)
    if "python" in state:
        python = state["python"]
        random.setstate((python["version"], tuple(python["numbers"].tolist()), python["gauss"]))
    if "numpy" in state:
        numpy = state["numpy"]
        key = numpy["key"].cpu().numpy().astype(np.uint32)
        np.random.set_state(("MT19937", key, numpy["pos"], numpy["has_gauss"], numpy["gauss"]))


def save_checkpoint(
    path: str | os.PathLike[str], parts: Mapping[str, Stateful], progress: Mapping[str, Any]
) -> int:
    """Write the parts' states, the run's progress and the random state to one file.

    The file is written beside and moved into place, so an earlier one is kept until the new
    one is whole. NumPy scalars become Python's: a checkpoint is read without NumPy's.

    Args:
        path: the file to write or replace.
        parts: networks, optimisers and buffers by name.
        progress: numbers, strings, bools, None, tensors, and lists, tuples and dicts of them.

    Returns:
        The file's size in bytes.

    Raises:
        TypeError: if the progress holds anything else; the message names it, and nothing is
            written.
        OSError: if it cannot be written, on a full disk for instance; the message names the
            file and says whether an earlier one is kept.
    """
    path = expand_home(path)
    state = {
        "progress": _plain(dict(progress), "progress"),
        "parts": {name: _own_numbers(part.state_dict()) for name, part in parts.items()},
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


def _plain(value: Any, name: str) -> Any:
    """The value in Python's own types and tensors.

    Raises:
        TypeError: if it has no such form; the message names it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {
            _plain(key, f"a key of {name}"): _plain(item, f"{name}.{key}")
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if type(value) in _PLAIN or isinstance(value, torch.Tensor):
        return value
    raise TypeError(f"{name} cannot be kept in a checkpoint: {type(value).__name__}")


def _own_numbers(value: Any) -> Any:
    """A part's state with Python's numbers for NumPy's, which a schedule's learning rate may be."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:  # a network's state is of another class, and has attributes
        return {_own_numbers(key): _own_numbers(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_own_numbers, value))
    return value


def load_checkpoint(
    path: str | os.PathLike[str],
    parts: Mapping[str, Stateful],
    *,
    device: torch.device | str = "cpu",
    restore_random: bool = True,
) -> dict[str, Any]:
    """Restore the parts and the random state; nothing is unpickled but tensors and numbers.

    Where one of the parts does not fit, they are left as they were, and so is the random state.
    Only a replay buffer that itself refuses its rows may have lost its own: buffers are too large
    to be copied first, and are loaded last.

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
    state = read_checkpoint(path, parts, device=device)
    restore_parts(path, parts, state["parts"])
    if restore_random:
        set_random_state(state["random"])
    return state["progress"]


def read_checkpoint(
    path: str | os.PathLike[str], parts: Mapping[str, Stateful], *, device: torch.device | str
) -> dict[str, Any]:
    """What :func:`save_checkpoint` wrote, with nothing restored from it yet.

    Args:
        path: the file.
        parts: the same names as were saved.
        device: where tensors are put.

    Returns:
        The states of the ``"parts"``, the ``"progress"`` and the ``"random"`` state.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, or holds other parts.
    """
    path = expand_home(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: the run ended before its first one")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        why = why_unreadable(
            error,
            damaged="is not a readable checkpoint",
            remedy="copy it again from where it came from, or start a new run",
        )
        raise ValueError(f"{path} {why}") from error
    if not isinstance(state, dict) or set(state.get("parts", ())) != set(parts):
        found = sorted(state.get("parts", ())) if isinstance(state, dict) else "none"
        raise ValueError(f"{path} holds the parts {found}, this run has {sorted(parts)}")
    return state


def restore_parts(
    path: str | os.PathLike[str], parts: Mapping[str, Stateful], states: Mapping[str, Any]
) -> None:
    """Restore the parts of a checkpoint that was read, as :func:`load_checkpoint` does.

    Args:
        path: where it was read, for messages.
        parts: networks, optimisers and buffers by name.
        states: theirs, by the same names.

    Raises:
        ValueError: if one of them does not fit.
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
    """A block that restores the parts to what they were before it if it raises.

    Args:
        parts: networks, optimisers and the like; replay buffers among them are left alone.
    """
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


def load_optimizer(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Restore an optimiser's state, but not in what way the device it was saved on computes.

    Args:
        optimizer: on any device.
        state_dict: one of the same parameters, from any device.

    Raises:
        ValueError: if its parameter groups are others.
    """
    ways, own = ("fused", "foreach", "capturable"), optimizer.param_groups
    groups = list(state_dict["param_groups"])
    if len(groups) == len(own):  # torch refuses others
        groups = [
            {**saved, **{way: group[way] for way in ways if way in group}}
            for saved, group in zip(groups, own, strict=True)
        ]
    optimizer.load_state_dict({**state_dict, "param_groups": groups})


class Checkpoints:
    """The checkpoints of one run: when they are due, how many are kept.

    The newest is ``last.pt``. With ``keep`` above 1 the ones before it stay as
    ``epoch-NNNNNN.pt``; the one kept by :meth:`keep_last_good` is ``last_good.pt``. No two of
    them share their bytes: what damages one leaves the others whole.

    One process writes, any number may read. What a killed writer left half written is never read;
    :func:`~rambo_trl.experiment.folder.remove_unfinished` removes it, once no other is writing.

    Args:
        folder: where they lie.
        parts: networks, optimisers and buffers by name.

    Keyword Args:
        every: epochs between two.
        minutes: also due when the last one is that old, however few epochs ago; None for
            epochs only.
        keep: how many are kept, the newest among them.
        device: where tensors are put when one is read.
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
        self.size = 0
        self._epoch: int | None = None  # of last.pt
        self._saved_at = time.monotonic()

    @property
    def last(self) -> Path:
        """The newest checkpoint's file."""
        return self.folder / "last.pt"

    @property
    def last_good(self) -> Path:
        """The file of the checkpoint kept from before a divergence."""
        return self.folder / "last_good.pt"

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
            # this name keeps its content when last.pt gets another one
            _link(self.last, self.folder / f"epoch-{self._epoch:06d}.pt")
        self.size = save_checkpoint(self.last, self.parts, progress)
        self._epoch, self._saved_at = epoch, time.monotonic()
        if self.keep > 1:
            earlier = []
            for path in sorted(self.folder.glob("epoch-*.pt")):
                number = path.stem.removeprefix("epoch-")
                if number.isdigit() and int(number) >= epoch:  # of a future that was given up
                    path.unlink()
                else:
                    earlier.append(path)
            for path in earlier[: len(earlier) - (self.keep - 1)]:
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
        """Keep the newest checkpoint as ``last_good.pt`` whatever follows."""
        _copy(self.last, self.last_good)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name in one step; a copy where the file system has no links."""
    _copy(source, target, how=_link_or_copy)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _copy(
    source: Path, target: Path, how: Callable[[Path, Path], object] = shutil.copyfile
) -> None:
    """Copy a file so that the target is there as a whole or not at all."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        how(source, beside)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
