"""The run folder: configuration, metrics and results of one run, readable after any kill."""

from __future__ import annotations

import csv
import json
import os
import platform
import secrets
from collections.abc import Mapping
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from rambo_trl.data.storage import why_unreadable
from rambo_trl.runtime.places import expand_home

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "GIVEN_PARTS", "LATER_SETTINGS", "RunFolder", "new_folder", "package_versions",
    "remove_unfinished", "write_atomically",
]  # fmt: skip

#: settings that name where one part that pretraining would make is taken from, and that part
GIVEN_PARTS = {"fitted_model": "world_model", "cloned_policy": "actor"}
#: settings that older runs do not name, and the values that those runs had
LATER_SETTINGS = {
    **dict.fromkeys(GIVEN_PARTS),
    "rollout_direction": "forward",
    "model_matmul_dtype": "float32",
    "reward_scale": 1.0,
    "adversary_density": "mixture",
    **dict.fromkeys(("model.adversarial_batch_size", "model.likelihood_batch_size")),
    "episode_share": 1.0,
    "num_actions": 10,
    "cloning.episode_share": 1.0,
    **dict.fromkeys(("agent.lr_decay", "model.lr_decay", "model.adversarial_lr_decay"), "none"),
    **dict.fromkeys(("refit", "agent.layer_norm", "agent.deterministic_backup"), False),
    "agent.anchor_yields": False,
    **dict.fromkeys(("agent.critic_warmup", "agent.regression_updates", "imagined_episodes"), 0),
    **dict.fromkeys(
        ("early_share", "agent.actor_average", "agent.anchor_weight", "model.beta"), 0.0
    ),
    **dict.fromkeys(("model.max_updates", "model.holdout_every", "cloning.updates")),
    "value_budget": None,
    "agent.target_entropy": -1.0,
}

_CONFIG = "config.yaml"
_METRICS = "metrics.csv"
_RESULTS = "results.json"
_VERSIONED_PACKAGES = (
    "torch", "torchrl", "tensordict", "gymnasium", "mujoco", "minari", "numpy", "rambo_trl",
)  # fmt: skip

Number = float | int


def write_atomically(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write a file so that a reader finds the old content or the new, never a part of it.

    Raises:
        OSError: if it cannot be written, naming the file; an earlier one is then as it was.
    """
    path = Path(path)
    # two machines, or containers, may have processes of the same number
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:  # a write on a full disk does not say where
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike[str], name: str = "*") -> None:
    """Remove what a killed :func:`write_atomically` left of files, which nobody else may write."""
    for path in Path(folder).glob(f".{name}.*.tmp"):
        path.unlink(missing_ok=True)


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that a result depends on.

    None is for what is not installed, such as ``rambo_trl`` when it runs from a source tree.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _VERSIONED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def new_folder(path: str | os.PathLike[str]) -> Path:
    """Make a new folder: the path, or the first free one of path-2, path-3, ...

    Folders above it are made too. Of processes that ask at once each gets a different one.
    """
    path = expand_home(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path
    for number in count(2):
        try:
            made.mkdir()
            break
        except FileExistsError:
            made = path.with_name(f"{path.name}-{number}")
    return made


class RunFolder:
    """The files of one run: ``config.yaml``, ``metrics.csv``, ``results.json``, ``checkpoint/``.

    Use :meth:`create` for a new run and :meth:`open` to resume one. Every file is either replaced
    as a whole or, like ``metrics.csv``, extended by one whole line at a time, so a run that is
    killed leaves a folder that can be read and resumed.

    Attributes:
        path: the folder.
        checkpoint_dir: where checkpoints go; not created here.

    Examples:
        >>> import tempfile
        >>> folder = RunFolder.create(tempfile.mkdtemp())
        >>> folder.append_metrics({"epoch": 1, "score": None, "mean_q": 12.5})
        >>> folder.read_metrics()
        [{'epoch': 1, 'score': None, 'mean_q': 12.5}]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = expand_home(path)
        self.checkpoint_dir = self.path / "checkpoint"
        self._lock: int | None = None

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Make the folder of a new run; it may exist as long as it holds no run.

        Raises:
            FileExistsError: if the folder already holds a run, or the path is a file.
        """
        folder = cls(path)
        files = [name for name in (_CONFIG, _METRICS, _RESULTS) if (folder.path / name).exists()]
        if files:
            raise FileExistsError(
                f"run folder {folder.path} already holds a run ({', '.join(files)}): "
                "resume it or choose another folder"
            )
        folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open the folder of an earlier run.

        Raises:
            FileNotFoundError: if there is no such folder or no run in it.
        """
        folder = cls(path)
        if not folder.path.is_dir():
            raise FileNotFoundError(f"run folder {folder.path} does not exist")
        if not (folder.path / _CONFIG).is_file():
            raise FileNotFoundError(f"run folder {folder.path} holds no run: {_CONFIG} is missing")
        return folder

    def lock(self) -> None:
        """Keep the folder for this process until it ends, however it ends.

        The folder itself is locked, so that no lock file lies in it. Nothing happens where the
        file system has no locks.

        Raises:
            BlockingIOError: if another process is at work in the folder.
        """
        if fcntl is None or self._lock is not None:
            return
        lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                raise BlockingIOError(
                    f"run folder {self.path} is in use by another process: wait for it or end it"
                ) from None
        else:
            self._lock = lock

    def unlock(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_config(self, text: str) -> None:
        """Write ``config.yaml``."""
        write_atomically(self.path / _CONFIG, text.encode())

    def append_metrics(self, row: Mapping[str, Number | None]) -> None:
        """Add one epoch to ``metrics.csv``; on return the line is in the file.

        Args:
            row: column to number, ``"epoch"`` among them. The first row ever sets the columns;
                a later row may leave some out. None and columns left out become empty cells.

        Raises:
            ValueError: for a key that the first row did not have.
            OSError: if it cannot be written.
        """
        columns = next(csv.reader(self._read_lines()), None)
        with (self.path / _METRICS).open("a", newline="") as file:
            writer = csv.DictWriter(file, columns or list(row), lineterminator="\n")
            if columns is None:
                writer.writeheader()
            writer.writerow(row)

    def read_metrics(self) -> list[dict[str, Number | None]]:
        """All rows of ``metrics.csv``, empty cells as None; an empty list before the first.

        A last line that was never finished is left out.
        """
        rows = csv.DictReader(self._read_lines())
        return [{key: _from_cell(cell) for key, cell in row.items()} for row in rows]

    def truncate_metrics(self, epoch: int) -> None:
        """Drop the rows after an epoch, and half a line that a kill has left.

        Args:
            epoch: the last epoch to keep. The kept lines stay as they are, byte for byte.
        """
        header, *lines = self._read_lines() or [""]
        rows = zip(lines, self.read_metrics(), strict=True)
        kept = [line for line, row in rows if (row["epoch"] or 0) <= epoch]
        if kept:
            write_atomically(self.path / _METRICS, "".join([header, *kept]).encode())
        else:
            (self.path / _METRICS).unlink(missing_ok=True)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json`` in one step; floats that are not finite become null.

        Args:
            results: JSON-like values and NumPy scalars.

        Raises:
            TypeError: if a value has no JSON form.
        """
        text = json.dumps(results, default=_to_json)
        finite = json.loads(text, parse_constant=lambda _: None)
        write_atomically(self.path / _RESULTS, (json.dumps(finite, indent=2) + "\n").encode())

    def read_results(self) -> dict[str, Any]:
        """Read ``results.json``.

        Raises:
            FileNotFoundError: if the run has not ended yet.
            ValueError: if it cannot be read.
        """
        path = self.path / _RESULTS
        if not path.is_file():
            raise FileNotFoundError(
                f"run folder {self.path} has no {_RESULTS}: the run has not ended"
            )
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} {why_unreadable(error)}") from error

    def _read_lines(self) -> list[str]:
        """The finished lines of ``metrics.csv``, header and line ends included."""
        path = self.path / _METRICS
        lines = path.read_bytes().decode().splitlines(keepends=True) if path.is_file() else []
        return [line for line in lines if line.endswith("\n")]


def _from_cell(cell: str) -> Number | None:
    if not cell:
        return None
    try:
        return int(cell)
    except ValueError:
        return float(cell)


def _to_json(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"results have no JSON form of a {type(value).__name__}")
