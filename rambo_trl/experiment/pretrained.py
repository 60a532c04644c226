"""A cache of pretrained models and cloned policies, keyed by data and settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tensordict import TensorDictBase
from torchrl._utils import logger as torchrl_logger

from rambo_trl.data import OfflineDataset
from rambo_trl.data.environment import particulars
from rambo_trl.data.storage import why_unreadable
from rambo_trl.experiment.checkpoint import (
    Stateful,
    read_checkpoint,
    restore_parts,
    save_checkpoint,
    set_random_state,
    unchanged_on_failure,
)
from rambo_trl.experiment.folder import remove_unfinished, write_atomically
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.runtime.places import expand_home

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Pretrained",
    "dataset_digest",
    "file_digest",
    "load_fitted_model",
    "save_fitted_model",
]

#: raised when pretraining computes something else than before from the same settings
_FORMAT = 2
_MODEL_KEY, _MODEL_FORMAT = "rambo_trl_fitted_model", 1


def dataset_digest(dataset: OfflineDataset) -> str:
    """SHA-256 over a data set's transitions, action bounds and environment, as hex digits."""
    digest = hashlib.sha256()
    rows: TensorDictBase = dataset.transitions
    for key in sorted(rows.keys(True, True), key=str):
        value = rows.get(key)
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(_buffer(value))
    bounds = dataset.action_low, dataset.action_high
    for tensor in (*bounds, dataset.observation_mean, dataset.observation_std):
        digest.update(_buffer(tensor))
    digest.update(str(dataset.env_id).encode())
    if dataset.has_simulator and (own := particulars(dataset.env_spec)):
        digest.update(json.dumps(own, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _buffer(tensor: torch.Tensor) -> memoryview:
    """The tensor's own memory where it lies on the CPU in one piece, mapped files too."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).data


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, as hex digits."""
    return hashlib.sha256(expand_home(path).read_bytes()).hexdigest()


def save_fitted_model(
    path: str | os.PathLike[str],
    world_model: EnsembleWorldModel,
    *,
    digest: str,
    measured: Mapping[str, Any],
) -> None:
    """Write a model as it was fitted to one safetensors file, in one step.

    Args:
        path: the file to write or replace.
        world_model: the model.

    Keyword Args:
        digest: the data's, of :func:`dataset_digest`.
        measured: JSON-like values that the fit has given, such as its holdout errors.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in world_model.state_dict().items()}
    header = {"format": _MODEL_FORMAT, "dataset_digest": digest, "measured": dict(measured)}
    write_atomically(expand_home(path), save(state, metadata={_MODEL_KEY: json.dumps(header)}))


def load_fitted_model(
    path: str | os.PathLike[str], world_model: EnsembleWorldModel, *, digest: str
) -> dict[str, Any]:
    """Restore a model from a file of :func:`save_fitted_model`. Nothing is unpickled.

    Args:
        path: the file.
        world_model: of the same sizes as the one saved; changed in place, or, where the file is
            refused, not at all.

    Keyword Args:
        digest: of the data that the model is to be used with.

    Returns:
        What the fit has measured.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or its model is of other data or sizes.
    """
    path = expand_home(path)
    if not path.is_file():
        raise FileNotFoundError(f"no fitted model at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_MODEL_KEY)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = None if text is None else json.loads(text)
    except (SafetensorError, OSError, ValueError) as error:
        why = why_unreadable(error, damaged="is not a readable model file")
        raise ValueError(f"{path} {why}") from error
    wanted = {"format", "dataset_digest", "measured"}
    if (
        not isinstance(header, dict)
        or header.get("format") != _MODEL_FORMAT
        or not wanted <= header.keys()
    ):
        raise ValueError(
            f"{path} does not say, as this version reads it, what its model was fitted to: it "
            "must be a pretrained_model.safetensors of a run of this version"
        )
    if header["dataset_digest"] != digest:
        raise ValueError(f"{path} was fitted to other data")
    try:
        with unchanged_on_failure([world_model]):
            world_model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} holds a model of other sizes ({reason})") from error
    return header["measured"]


class Pretrained:
    """Pretrained parts that runs with the same data and settings share.

    A file holds the parts as pretraining left them, what it measured and the random state
    after it, so that a run goes on from the file as if it had pretrained itself. Files are
    moved into place whole, and of several runs that need the same one the first makes it
    while the others wait; on a file system without locks each makes it for itself, with one
    warning, and the last one's stays. What a killed run left of a file is removed by the next run
    that looks for any.

    Args:
        where: ``None`` (pretrain always), ``"auto"`` (a file under ``folder`` named after the
            settings) or the path of such a file. A file named by its path may come from other
            settings (another seed, say) as long as its parts fit and the data is the same; the
            run then keeps its own random state.
        parts: what pretraining changes, by name.

    Keyword Args:
        settings: all that decides pretraining's outcome, as JSON-like values, with
            ``"dataset_digest"`` among them.
        folder: of the files found by ``"auto"``.
        device: where tensors are put.
    """

    def __init__(
        self,
        where: str | None,
        parts: Mapping[str, Stateful],
        *,
        settings: Mapping[str, Any],
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
    ) -> None:
        self.parts, self.settings, self.device = parts, dict(settings), device
        self.named = where not in (None, "auto")
        self.path: Path | None = None
        if where == "auto":
            self.path = expand_home(folder) / f"{self.key}.pt"
        elif where is not None:
            self.path = expand_home(where)

    @property
    def key(self) -> str:
        """The settings as 32 hex digits."""
        text = json.dumps({"format": _FORMAT, **self.settings}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """A block in which no other run makes the same file; waits for one that does."""
        if self.path is None or self.named or fcntl is None:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # the lock dies with its process, and its file stays: removing it would open a race
        with self.path.with_suffix(".lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:  # a file system without locks
                torchrl_logger.warning(
                    f"the file system of {self.path.parent} has no locks ({error.strerror}): runs "
                    "that begin at once pretrain each for itself"
                )
            else:
                self._remove_unfinished()
            yield

    def _remove_unfinished(self) -> None:
        """Remove what killed runs left half written, of files that nobody else is making."""
        assert self.path is not None and fcntl is not None
        folder, own = self.path.parent, self.path.with_suffix(".lock")
        for lock_file in folder.glob("*.lock"):
            # refused where a writer lives; and nobody's run ends for another one's remains
            with suppress(OSError), lock_file.open("ab") as lock:
                if lock_file != own:  # which is held
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_unfinished(folder, lock_file.with_suffix(".pt").name)

    def load(self) -> dict[str, Any] | None:
        """Restore the parts and, where the settings are the file's, the random state.

        A file that is refused changes neither.

        Returns:
            What pretraining measured; None where there is no file yet.

        Raises:
            FileNotFoundError: if a file named by its path is not there.
            ValueError: if the file cannot be read, its parts do not fit, or it was made from
                other data.
        """
        if self.path is None or not (self.named or self.path.is_file()):
            return None
        if not self.path.is_file():
            raise FileNotFoundError(f"pretrained={self.path}: there is no such file")
        state = read_checkpoint(self.path, self.parts, device=self.device)
        saved = state["progress"]
        if saved.get("settings", {}).get("dataset_digest") != self.settings["dataset_digest"]:
            raise ValueError(f"{self.path} was pretrained on other data")
        restore_parts(self.path, self.parts, state["parts"])
        if saved["key"] == self.key:  # else the random state is not this run's
            set_random_state(state["random"])
        return saved["measured"]

    def save(self, measured: Mapping[str, Any]) -> None:
        """Write the file of these settings, where one is asked for by ``"auto"``."""
        if self.path is not None and not self.named:
            progress = {"key": self.key, "settings": self.settings, "measured": dict(measured)}
            save_checkpoint(self.path, self.parts, progress)
