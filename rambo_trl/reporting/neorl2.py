"""NeoRL-2's published scores beside those of runs on its data sets."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rambo_trl.reporting.paper import RAMBO
from rambo_trl.reporting.runs import Configuration
from rambo_trl.reporting.tables import markdown, value_text

__all__ = ["neorl2_table", "neorl2_task"]

TABLE = Path(__file__).with_name("neorl2_scores.csv")
#: label of a method -> its column there
_COLUMNS = {
    RAMBO: "rambo", "MOBILE": "mobile", "COMBO": "combo", "MOPO": "mopo", "CQL": "cql",
    "EDAC": "edac", "MCQ": "mcq", "TD3+BC": "td3bc", "BC": "bc",
}  # fmt: skip
_NAME = re.compile(r"(?:^|/)(?:neorl2/(\w+)|(\w+?)(?:-high-\d+)?-train\.npz)$")


@cache
def _table() -> dict[str, dict[str, str]]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return {row["task"]: row for row in rows}


def neorl2_task(dataset: str) -> str | None:
    """The task of NeoRL-2's table that a data set is of, by its name or file; None if of none."""
    match = _NAME.search(dataset)
    task = match and (match[1] or match[2])
    return task if task in _table() else None


def neorl2_table(configurations: Sequence[Configuration]) -> list[str]:
    """A row for each method that was run on a NeoRL-2 data set, or published for it.

    Args:
        configurations: those of the report.

    Returns:
        Lines of Markdown; none without runs on NeoRL-2's data.
    """
    rows = []
    of_task: dict[str, list[Configuration]] = {}
    for c in configurations:
        if (task := neorl2_task(c.dataset)) is not None and c.scored:
            of_task.setdefault(task, []).append(c)
    for task, ours in of_task.items():
        published, name = _table()[task], f"`neorl2/{task}`"
        rows.append([name, "the data's mean", "-", published["data"]])
        done = {c.method for c in ours}
        rows += [
            [name, f"{c.label}, `{c.schedule}`", value_text(c), _text(published, c.method)]
            for c in ours
        ]
        rows += [
            [name, method, "-", _text(published, method)]
            for method in _COLUMNS
            if method not in done
        ]
    intro = (
        "NeoRL-2's published scores (arXiv 2503.19267, main table) beside these on the same data: "
        "theirs are the best of a few settings, chosen for each task and method by these very "
        "scores, of the last evaluations over three seeds (deviation divided by n - 1; RAMBO's "
        "after 2,000 epochs), while a row here is one setting, all of whose seeds count."
    )
    return markdown(["data set", "method", "score here", "published"], rows, intro)


def _text(published: dict[str, str], method: str) -> str:
    column = _COLUMNS.get(method)
    return "-" if column is None else f"{published[column]} +- {published[f'{column}_std']}"
