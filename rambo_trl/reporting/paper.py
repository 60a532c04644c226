"""The paper's Tables 1 and 2, and which of their data sets ours correspond to.

For eight of the eighteen data sets the paper's lambda is 0: RAMBO without an adversary is then
RAMBO as published.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("paper_table1.csv")
ABLATION_TABLE = Path(__file__).with_name("paper_table2.csv")
SOURCE = "Table 1 of the paper's submission (arXiv 2204.12581; 5 seeds, D4RL's data)"
ABLATION_SOURCE = "Table 2 of the submission"

RAMBO = "RAMBO"
#: lambda = 0 where the paper's is not
ABLATION = "RAMBO, lambda = 0"

#: label of a method here -> its column there
_COLUMNS = {
    RAMBO: "rambo", "COMBO": "combo", "MOPO": "mopo", "MOReL (SAC)": "morel", "CQL": "cql",
    "IQL": "iql", "TD3+BC": "td3_bc", "BC": "bc",
}  # fmt: skip
_MUJOCO = re.compile(
    r"(halfcheetah|hopper|walker2d)[-_/](random|medium[-_]replay|medium[-_]expert|medium)"
    r"(?:[-_](v\d+))?"
)
_ANTMAZE = re.compile(
    r"ant[-_]?maze[-_/](umaze|medium|large)(?:[-_](play|diverse))?(?:[-_](v\d+))?"
)


@dataclass(frozen=True)
class Published:
    """A number of the paper's table.

    Attributes:
        score: D4RL's normalised score.
        std: over seeds; None where the table has none.
        same_data: whether it was measured on the same data set, not on one of the same kind.
    """

    score: float
    std: float | None
    same_data: bool


@dataclass(frozen=True)
class PublishedAblation:
    """The paper's Table 2: totals over all of a benchmark's data sets in Table 1.

    Attributes:
        benchmark: its name.
        data_sets: how many they are.
        rambo: sum of RAMBO's scores.
        rambo_std: over seeds.
        ablation: the same with lambda = 0.
        ablation_std: over seeds.
    """

    benchmark: str
    data_sets: int
    rambo: float
    rambo_std: float
    ablation: float
    ablation_std: float


def _read(path: Path) -> list[dict[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


@cache
def _table() -> dict[str, dict[str, str]]:
    return {row["dataset"]: row for row in _read(TABLE)}


@cache
def _ablations() -> dict[str, PublishedAblation]:
    return {
        row["benchmark"]: PublishedAblation(
            row["benchmark"],
            int(row["data_sets"]),
            *(float(row[key]) for key in ("rambo", "rambo_std", "ablation", "ablation_std")),
        )
        for row in _read(ABLATION_TABLE)
    }


def table_dataset(name: str) -> tuple[str, bool] | None:
    """The data set of the table that is a data set here, or is of its kind.

    Args:
        name: as in ``results.json``: a Minari id, or the path of D4RL's file.

    Returns:
        Its name there, and whether the data are the same; None where there is none of its kind.
    """
    text = name.lower().removesuffix(".hdf5")
    for pattern, version in ((_MUJOCO, "v2"), (_ANTMAZE, "v0")):
        match = re.search(rf"(?:^|/){pattern.pattern}$", text)
        if match:
            environment, kind, ours = match.groups()
            kind = (kind or "").replace("_", "-")
            family = environment if pattern is _MUJOCO else f"antmaze-{environment}"
            key = "-".join(part for part in (family, kind, version) if part)
            if key not in _table():
                return None
            # D4RL's files have environment and kind in one name; in ids a folder parts them
            return key, ours == version and "/" not in match[0].lstrip("/")
    return None


def published_weight(dataset: str) -> float | None:
    """The paper's lambda for a data set or for its counterpart.

    Args:
        dataset: name of the data set here.

    Returns:
        None where the table has none of its kind.
    """
    entry = table_dataset(dataset)
    return None if entry is None else float(_table()[entry[0]]["lambda"])


def rambo_label(adversarial_weight: float, dataset: str) -> str:
    """What a run of RAMBO is called: the ablation only where the paper's lambda is not 0.

    Args:
        adversarial_weight: its lambda.
        dataset: name of the data set here.
    """
    return RAMBO if adversarial_weight > 0 or published_weight(dataset) == 0 else ABLATION


def published(method: str, dataset: str) -> Published | None:
    """The paper's number for a method on a data set or on its counterpart.

    Args:
        method: label of the method here.
        dataset: name of the data set here.
    """
    entry, column = table_dataset(dataset), _COLUMNS.get(method)
    if entry is None or column is None:
        return None
    key, same = entry
    row = _table()[key]
    if not row[column]:
        return None
    std = row.get(f"{column}_std")
    return Published(float(row[column]), float(std) if std else None, same)


def published_ablation(dataset: str) -> PublishedAblation | None:
    """The paper's Table 2 for the benchmark that a data set or its counterpart belongs to.

    Args:
        dataset: name of the data set here.

    Returns:
        None where Table 1 has none of its kind.
    """
    entry = table_dataset(dataset)
    if entry is None:
        return None
    return _ablations()["AntMaze" if entry[0].startswith("antmaze") else "MuJoCo"]
