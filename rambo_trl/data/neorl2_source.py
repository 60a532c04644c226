"""NeoRL-2's data sets: found on this machine or downloaded, training and validation rows apart.

The sets are those of Gao et al. 2025, "NeoRL-2: Near Real-World Benchmarks for Offline
Reinforcement Learning with Extended Realistic Scenarios" (https://arxiv.org/abs/2503.19267),
licensed CC BY 4.0.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from torchrl._utils import logger as torchrl_logger

from rambo_trl.data.names import nearest
from rambo_trl.data.storage import why_unreadable
from rambo_trl.runtime.places import expand_home
from rambo_trl.runtime.progress import busy

__all__ = ["NEORL2_PREFIX", "NEORL2_TASKS", "NeoRL2Files", "find_neorl2", "neorl2_names"]

NEORL2_PREFIX = "neorl2/"
FOLDER_VARIABLE = "NEORL2_DATASETS_PATH"
#: where the sets are published, and the folder of NeoRL-2's own package
ADDRESS = "http://datasets.polixir.site/neorl2"
OWN_FOLDER = "~/.neorl2/datasets"
#: seconds without an answer after which a download is given up
_SECONDS = 20

Split: TypeAlias = Literal["train", "val"]
_FILE = re.compile(r"(?P<task>\w+)(-high-\d+)?-(?P<split>train|val)\.npz")
#: NeoRL-2's names of the columns, by D4RL's
_COLUMNS = {
    "observations": "obs",
    "actions": "action",
    "next_observations": "next_obs",
    "rewards": "reward",
    "terminals": "done",
    "timeouts": "truncated",
}


class NeoRL2Task(NamedTuple):
    """What is published of a task.

    Attributes:
        scores: the returns of the scores 0 and 100.
        train, val: MD5 of the two files.
        episodes: how many of the first episodes are used, for training and validation, where the
            task is one of few data; None for all.
    """

    scores: tuple[float, float]
    train: str
    val: str
    episodes: tuple[int, int] | None = None


NEORL2_TASKS = {
    "DMSD": NeoRL2Task(
        (30.60, 849.51), "88dfa39aa18904e809056b51c2e6319b", "be6c39c0e73c17029206e714068f26b7"
    ),
    "Fusion": NeoRL2Task(
        (-107.601, 98.05),
        "98979f97e0b59dd46bbb9237176a68ab",
        "9baa5556fac98b86ab9b58040da17d86",
        (20, 5),
    ),
    "Pipeline": NeoRL2Task(
        (-296.0, 751.0), "59902b333be6edb9252acfc2302cc1ed", "c502f529db1de55ebf37d63e1defca56"
    ),
    "RandomFrictionHopper": NeoRL2Task(
        (-3.0, 503.0), "3ef2c41483689729d3b5a3aef3b7b8f7", "2628f354222de37803451c63e84a1269"
    ),
    "RocketRecovery": NeoRL2Task(
        (-176.0, 208.0),
        "b1a7bf1ec16cfef390b6b1cec2b13ddc",
        "0b25bd998e92b4f808f8ee5207ce06dd",
        (100, 25),
    ),
    "SafetyHalfCheetah": NeoRL2Task(
        (-283.0, 2507.0), "c35efec4a25fb45837487ba00f74e1ed", "da65ba51a4cc17370572da3c801d228b"
    ),
    "Salespromotion": NeoRL2Task(
        (357.62, 602.21), "7e84d0a142f53512dab082115c9ee498", "9337d7b68078725708f2e9b04cb4a1f8"
    ),
    "Simglucose": NeoRL2Task(
        (9.75, 475.0), "6195a3634379f576958440b7e0c8fc53", "6df907556cbc96002757f6d652be9d92"
    ),
}


def neorl2_names() -> list[str]:
    """Return the names of all NeoRL-2 data sets."""
    return [NEORL2_PREFIX + task for task in NEORL2_TASKS]


class NeoRL2Files(NamedTuple):
    """A NeoRL-2 data set on this machine.

    Attributes:
        task: its name, such as ``"DMSD"``.
        train: the file of the training rows.
        val: that of the validation rows, if there is one.
    """

    task: str
    train: Path
    val: Path | None

    @property
    def env_id(self) -> str | None:
        """The environment's Gymnasium id; None where what it needs is not installed.

        That is NeoRL-2's package, or the package simglucose's file of patients for Simglucose.
        """
        if self.task == "DMSD" or (self.task == "Simglucose" and _installed("simglucose")):
            return f"rambo_trl/{self.task}-v0"
        known = self.task in NEORL2_TASKS and _installed("neorl2")
        return f"neorl2:{self.task}" if known else None

    @property
    def scores(self) -> tuple[float, float] | None:
        """The returns of the scores 0 and 100, if the task is one of NeoRL-2's."""
        return NEORL2_TASKS[self.task].scores if self.task in NEORL2_TASKS else None

    def read(self, split: Split) -> dict[str, np.ndarray]:
        """Read a file's rows, in D4RL's layout.

        Raises:
            ValueError: if it cannot be read or lacks arrays.
        """
        path = self.train if split == "train" else self.val
        assert path is not None
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                missing = [key for key in _COLUMNS.values() if key not in file]
                arrays = {k: file[key] for k, key in _COLUMNS.items() if key in file}
        except Exception as error:  # of many types: zipfile's, zlib's, NumPy's
            raise ValueError(f"{path} {why_unreadable(error)}") from error
        if missing:
            raise ValueError(
                f"{path} lacks {', '.join(missing)}: a NeoRL-2 file has "
                + ", ".join(_COLUMNS.values())
            )
        used = NEORL2_TASKS[self.task].episodes if self.task in NEORL2_TASKS else None
        if used is not None:
            ends = np.flatnonzero((arrays["terminals"] + arrays["timeouts"]).reshape(-1) > 0)
            most = used[0 if split == "train" else 1]
            rows = int(ends[min(most, len(ends)) - 1]) + 1
            arrays = {key: value[:rows] for key, value in arrays.items()}
        return arrays

    def warn(self) -> None:
        """Log what of the files is not as published."""
        if self.val is None:
            torchrl_logger.warning(
                f"there is no file of validation rows beside {self.train}: some are drawn from it"
            )
        if (published := NEORL2_TASKS.get(self.task)) is not None:
            for path, md5 in ((self.train, published.train), (self.val, published.val)):
                if path is not None and _md5(path) != md5:
                    torchrl_logger.warning(
                        f"{path} is not the published file of neorl2/{self.task}, by its MD5: "
                        "scores are not comparable with published ones"
                    )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def find_neorl2(name: str, *, progress: bool = True) -> NeoRL2Files | None:
    """Find a NeoRL-2 data set by its name or path; None where neither is one's.

    Args:
        name: ``"neorl2/DMSD"``; or a file ``DMSD-train.npz``, or ``DMSD-high-100000-train.npz``,
            with the validation rows beside it; or the folder of one set. A name is looked for in
            the folder that the environment variable ``NEORL2_DATASETS_PATH`` names, NeoRL-2's own
            ``~/.neorl2/datasets``, and ``neorl2`` in the working folder, in each of them in a
            folder of its own too; else it is downloaded into the first of them that is set.
        progress: whether a download shows.

    Raises:
        ValueError: if there is no such set, or it can be had from nowhere; the message says where
            to put the files.
    """
    path = expand_home(name)
    if path.suffix == ".npz":
        return _of_file(name, path)
    task = name.removeprefix(NEORL2_PREFIX)
    if name.startswith(NEORL2_PREFIX) and (task in NEORL2_TASKS or not path.exists()):
        if task not in NEORL2_TASKS:
            same = [known for known in NEORL2_TASKS if known.lower() == task.lower()]
            near = same or nearest(task, NEORL2_TASKS) or list(NEORL2_TASKS)
            raise ValueError(
                f"no NeoRL-2 data set {name!r}; nearest: "
                + ", ".join(NEORL2_PREFIX + other for other in near)
            )
        return _local(task) or _download(task, progress)
    files = [p for p in path.glob("*-train.npz") if _FILE.fullmatch(p.name)]
    if len(files) > 1:
        raise ValueError(f"{name} holds several sets: give one of its files, such as {min(files)}")
    return _of_file(name, files[0]) if files else None


def _of_file(name: str, path: Path) -> NeoRL2Files:
    match = _FILE.fullmatch(path.name)
    if not path.is_file() or match is None or match["split"] != "train":
        what = (
            "is a file of validation rows"
            if match and match["split"] == "val"
            else ("is not there" if not path.is_file() else "is not named like a NeoRL-2 file")
        )
        raise ValueError(f"{name} {what}: give the training rows', such as PATH/DMSD-train.npz")
    return NeoRL2Files(match["task"], path, _in_folder(path.parent, match["task"], "val"))


def _in_folder(folder: Path, task: str, split: Split) -> Path | None:
    files = sorted(folder.glob(f"{task}-*{split}.npz"))
    return next((path for path in files if _FILE.fullmatch(path.name)), None)


def _folders() -> list[Path]:
    """Where the sets are looked for; the first is the one to download to."""
    named = os.environ.get(FOLDER_VARIABLE)
    return [expand_home(p) for p in ([named] if named else []) + [OWN_FOLDER, "neorl2"]]


def _local(task: str) -> NeoRL2Files | None:
    for folder in _folders():
        for place in (folder, folder / task):
            train = _in_folder(place, task, "train")
            if train is not None:
                return NeoRL2Files(task, train, _in_folder(place, task, "val"))
    return None


def _download(task: str, progress: bool) -> NeoRL2Files:
    """Fetch both files of a set; neither is there before it is whole and its MD5 is right."""
    folder, published = _folders()[0], NEORL2_TASKS[task]
    names = [f"{task}-{split}.npz" for split in ("val", "train")]
    wanted = dict(zip(names, (published.val, published.train), strict=True))
    try:
        with busy(f"downloading {NEORL2_PREFIX}{task}", disable=not progress):
            for name, md5 in wanted.items():
                if not (folder / name).is_file():
                    _fetch(f"{ADDRESS}/{task}/{name}", folder / name, md5)
    except (OSError, HTTPException, ValueError) as error:  # urllib's are OSErrors
        places = ", ".join(map(str, _folders()))
        by_hand = ", ".join(f"{ADDRESS}/{task}/{name} (MD5 {md5})" for name, md5 in wanted.items())
        raise ValueError(
            f"no data set '{NEORL2_PREFIX}{task}': it is not in {places}, and downloading it "
            f"failed ({' '.join(str(error).split())}): fetch {by_hand} where there is a network, "
            f"and put them into {folder}, or give their place with {FOLDER_VARIABLE}"
        ) from error
    return NeoRL2Files(task, folder / names[1], folder / names[0])


def _fetch(address: str, target: Path, md5: str) -> None:
    """Download a file.

    Raises:
        OSError, HTTPException: if the connection or the disk fails.
        ValueError: if what comes is not the published file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=target.parent) as scratch:
        part = Path(scratch) / target.name
        try:
            answer = urllib.request.urlopen(address, timeout=_SECONDS)
            with answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except urllib.error.HTTPError as error:
            error.close()  # it is the server's answer too
            raise
        if (got := _md5(part)) != md5:
            raise ValueError(f"{address} gave a file with the MD5 {got}, not {md5}")
        part.replace(target)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
