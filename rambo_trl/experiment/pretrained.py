"""Pretrained parts, from the store that runs share or from another run's folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn
from torchrl._utils import logger as torchrl_logger

from rambo_trl.data import OfflineDataset
from rambo_trl.data.environment import particulars
from rambo_trl.experiment.checkpoint import (
    Stateful,
    read_checkpoint,
    restore_parts,
    save_checkpoint,
    set_random_state,
    unchanged_on_failure,
)
from rambo_trl.experiment.folder import remove_unfinished
from rambo_trl.experiment.policy import POLICY_FILE, load_into_actor
from rambo_trl.experiment.tensor_files import read_safetensors, write_safetensors
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.runtime.places import expand_home

__all__ = [
    "PART_FILES",
    "Pretrained",
    "dataset_digest",
    "file_digest",
    "load_parts",
    "part_file",
    "save_fitted_model",
]

#: what each part's file is called in a run folder
PART_FILES = {"world_model": "pretrained_model.safetensors", "actor": POLICY_FILE}
#: raised when pretraining computes something else than before from the same settings
_FORMAT = 2
_MODEL_KEY, _MODEL_FORMAT = "rambo_trl_fitted_model", 1


def dataset_digest(dataset: OfflineDataset) -> str:
    """SHA-256 over a data set's transitions, action bounds and environment, as hex digits."""
    digest = hashlib.sha256()
    parts = (
        [dataset.transitions] if dataset.holdout is None else [dataset.transitions, dataset.holdout]
    )
    for rows in parts:
        for key in sorted(rows.keys(True, True), key=str):
            value = rows.get(key)
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(_buffer(value))
    bounds = dataset.action_low, dataset.action_high
    for tensor in (*bounds, dataset.observation_mean, dataset.observation_std):
        digest.update(_buffer(tensor))
    digest.update(str(dataset.env_id).encode())
    if dataset.has_simulator and (details := particulars(dataset.env_spec)):
        digest.update(json.dumps(details, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _buffer(tensor: torch.Tensor) -> memoryview:
    """The tensor's own memory where it lies on the CPU in one piece, mapped files too."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).data


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, as hex digits."""
    return hashlib.sha256(expand_home(path).read_bytes()).hexdigest()


def part_file(path: str | os.PathLike[str], part: str) -> Path:
    """The file that holds a part: the path itself, or the part's file in a run folder."""
    path = expand_home(path)
    return path / PART_FILES[part] if path.is_dir() else path


def load_parts(
    path: str | os.PathLike[str],
    parts: Mapping[str, nn.Module],
    data: OfflineDataset,
    *,
    digest: str,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Take parts from whatever holds them. Nothing is unpickled, no random number is drawn.

    Args:
        path: a file of the store (:class:`Pretrained`); a run's ``pretrained_model.safetensors``
            (its ``world_model`` as it was fitted) or ``policy.safetensors`` (its ``actor``); or a
            run folder with these.
        parts: ``world_model``, ``actor`` or both, as they are to be used; changed in place, or,
            where one is refused, none of them.
        data: what they are to be used with. It must be what they were pretrained on.

    Keyword Args:
        digest: the data's, of :func:`dataset_digest`.
        device: where the tensors of a file of the store are read to.

    Returns:
        What pretraining measured, such as ``holdout_mse``; of a policy's file nothing.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, lacks a part, or its part is of other data or sizes.
    """
    measured: dict[str, Any] = {}
    with unchanged_on_failure(parts.values()):
        for name, part in parts.items():
            file = part_file(path, name)
            if file.suffix == ".pt":
                entry = _read_entry(file, [name], digest, device)
                restore_parts(file, {name: part}, entry["parts"])
                measured |= entry["progress"]["measured"]
            elif isinstance(part, EnsembleWorldModel):
                measured |= _load_fitted_model(file, part, digest)
            else:
                load_into_actor(file, part, data)
    return measured


def _read_entry(
    path: Path, names: Iterable[str], digest: str, device: torch.device | str
) -> dict[str, dict[str, Any]]:
    """Read a file of the store, checking that it is one, of which data, and for lacking parts."""
    state = read_checkpoint(path, device=device)
    if not isinstance(settings := state["progress"].get("settings"), dict):
        raise ValueError(f"{path} is a run's checkpoint, not a file of pretrained parts")
    if settings.get("dataset_digest") != digest:
        raise ValueError(f"{path} was pretrained on other data")
    for name in names:
        if name not in state["parts"]:
            raise ValueError(f"{path} holds the parts {sorted(state['parts'])}, not {name}")
    return state


def save_fitted_model(
    path: str | os.PathLike[str],
    world_model: EnsembleWorldModel,
    *,
    digest: str,
    measured: Mapping[str, Any],
) -> None:
    """Write a model as it was fitted to one safetensors file, which :func:`load_parts` reads.

    Args:
        path: the file to write or replace.
        world_model: the model.

    Keyword Args:
        digest: the data's, of :func:`dataset_digest`.
        measured: JSON-like results of the fit, such as its holdout errors.
    """
    header = {"format": _MODEL_FORMAT, "dataset_digest": digest, "measured": dict(measured)}
    write_safetensors(path, world_model.state_dict(), _MODEL_KEY, header)


def _load_fitted_model(path: Path, world_model: nn.Module, digest: str) -> dict[str, Any]:
    """Load what :func:`save_fitted_model` wrote; returns what was measured."""
    if not path.is_file():
        raise FileNotFoundError(f"no fitted model at {path}")
    header, state = read_safetensors(path, _MODEL_KEY, "readable model file")
    if header is None or header.get("format") != _MODEL_FORMAT:
        raise ValueError(
            f"{path} does not say, as this version reads it, what its model was fitted to: it "
            "must be a pretrained_model.safetensors of a run of this version"
        )
    if header["dataset_digest"] != digest:
        raise ValueError(f"{path} was fitted to other data")
    try:
        world_model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} holds a model of other sizes ({reason})") from error
    return header["measured"]


class Pretrained:
    """A file of the store: pretrained parts that runs with the same data and settings share.

    It holds the parts as pretraining left them, what it measured and the random state after it,
    so that a run continues from the file as if it had pretrained itself. Of several runs that need
    the same file the first makes it while the others wait; on a file system without locks each
    makes it for itself, with one warning, and the last one's stays. What a killed run left of a
    file is removed by the next run that looks for any.

    Args:
        choice: ``None`` (pretrain always), ``"auto"`` (a file under ``folder`` named after the
            settings) or the path of such a file. That may come from other settings (another seed,
            say) if its parts fit and the data is the same; the random state is then left alone.
        parts: what pretraining changes, by name.

    Keyword Args:
        settings: all that decides pretraining's outcome, as JSON-like values, with
            ``"dataset_digest"`` among them.
        folder: of the files found by ``"auto"``.
        device: where tensors are put.

    Attributes:
        path: the file; None without a store.
    """

    def __init__(
        self,
        choice: str | None,
        parts: Mapping[str, Stateful],
        *,
        settings: Mapping[str, Any],
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
    ) -> None:
        self.parts, self.settings, self.device = parts, dict(settings), device
        self.path: Path | None = None
        self._shared = choice == "auto"
        if self._shared:
            self.path = expand_home(folder) / f"{self.key}.pt"
        elif choice is not None:
            self.path = expand_home(choice)

    @property
    def key(self) -> str:
        """The settings as 32 hex digits."""
        text = json.dumps({"format": _FORMAT, **self.settings}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """A block in which no other run makes the same file; waits for one that does."""
        if self.path is None or not self._shared:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_suffix(".lock"))
        try:
            lock.acquire()
        except OSError as error:  # a file system without locks
            torchrl_logger.warning(
                f"the file system of {self.path.parent} has no locks ({error.strerror}): runs "
                "that begin at once pretrain each for itself"
            )
        else:
            self._remove_unfinished(Path(lock.lock_file))
        try:
            yield
        finally:
            lock.release()

    def _remove_unfinished(self, own: Path) -> None:
        """Remove the remains of killed runs, of files that nobody is making now."""
        for path in own.parent.glob("*.lock"):
            with (
                suppress(OSError),  # another run holds it, or its remains cannot be removed
                nullcontext() if path == own else FileLock(path, timeout=0),
            ):
                remove_unfinished(own.parent, path.with_suffix(".pt").name)

    def load(self) -> dict[str, Any] | None:
        """Restore the parts and, where the settings are the file's, the random state.

        A file that is refused changes neither.

        Returns:
            What pretraining measured; None where there is no file yet.

        Raises:
            FileNotFoundError: if a file named by its path is not there.
            ValueError: if it cannot be read, does not fit, or is of other data.
        """
        if self.path is None or (self._shared and not self.path.is_file()):
            return None
        if not self.path.is_file():
            raise FileNotFoundError(f"pretrained={self.path}: there is no such file")
        state = _read_entry(self.path, self.parts, self.settings["dataset_digest"], self.device)
        restore_parts(self.path, self.parts, state["parts"])
        if state["progress"]["key"] == self.key:  # else the random state is not this run's
            set_random_state(state["random"])
        return state["progress"]["measured"]

    def save(self, measured: Mapping[str, Any]) -> None:
        """Write the file of these settings, where one is asked for by ``"auto"``."""
        if self.path is not None and self._shared:
            progress = {"key": self.key, "settings": self.settings, "measured": dict(measured)}
            save_checkpoint(self.path, self.parts, progress)
