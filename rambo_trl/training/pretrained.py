"""A cache of pretrained models and cloned policies, keyed by data and settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase

from rambo_trl.data import OfflineDataset
from rambo_trl.training.checkpoint import Stateful, load_checkpoint, save_checkpoint

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

__all__ = ["Pretrained", "dataset_digest"]

#: raised when pretraining computes something else than before from the same settings
_FORMAT = 1


def dataset_digest(dataset: OfflineDataset) -> str:
    """SHA-256 over a data set's transitions, action bounds and environment, as hex digits."""
    digest = hashlib.sha256()
    rows: TensorDictBase = dataset.transitions
    for key in sorted(rows.keys(True, True), key=str):
        value = rows.get(key)
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(_bytes(value))
    space = dataset.action_spec.space
    for tensor in (space.low, space.high, dataset.observation_mean, dataset.observation_std):
        digest.update(_bytes(tensor))
    digest.update(str(dataset.env_id).encode())
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().numpy().tobytes()


class Pretrained:
    """Pretrained parts that runs with the same data and settings share.

    A file holds the parts as pretraining left them, what it measured and the random state
    after it, so that a run goes on from the file as if it had pretrained itself. Files are
    moved into place whole, and of several runs that need the same one the first makes it
    while the others wait.

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
            self.path = Path(folder) / f"{self.key}.pt"
        elif where is not None:
            self.path = Path(where)

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
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def load(self) -> dict[str, Any] | None:
        """Restore the parts and, where the settings are the file's, the random state.

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
        # the random state comes last, and only where it is known to belong to this run
        saved = load_checkpoint(self.path, self.parts, device=self.device, restore_random=False)
        if saved.get("settings", {}).get("dataset_digest") != self.settings["dataset_digest"]:
            raise ValueError(f"{self.path} was pretrained on other data")
        if saved["key"] == self.key:
            load_checkpoint(self.path, self.parts, device=self.device)
        return saved["measured"]

    def save(self, measured: Mapping[str, Any]) -> None:
        """Write the file of these settings, where one is asked for by ``"auto"``."""
        if self.path is not None and not self.named:
            progress = {"key": self.key, "settings": self.settings, "measured": dict(measured)}
            save_checkpoint(self.path, self.parts, progress)
