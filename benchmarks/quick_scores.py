"""The quick schedule's published scores as one table: python benchmarks/quick_scores.py.

A row for each data set of ``docs/results``, a column for each method: mean and standard deviation
of the seeds' scores, beside the data's best episode and the clone of the best tenth of the
episodes (``bundled_sets.py``).
"""

from __future__ import annotations

import argparse
import csv
import statistics
from typing import Any

from measuring import add_out, markdown_table, save
from score_by_minute import RESULTS, add_folders

from rambo_trl.reporting.paper import ABLATION, RAMBO
from rambo_trl.reporting.runs import Record, find_runs

CAPTION = ""  # the page has the table alone
#: the columns' order; other methods follow
FIRST = (RAMBO, ABLATION)


def column(run: Record) -> str:
    """The method; without an adversary the ablation, on data whose published lambda is 0 too."""
    without = run.method == RAMBO and run.settings.get("adversarial_weight") == 0
    return ABLATION if without else run.method


def scores_of(runs: list[Record], clones: dict[str, str]) -> dict[str, Any]:
    """The scores by method and seed of one data set's runs, and what the data have."""
    scores: dict[str, dict[int, float]] = {}
    for run in runs:
        if run.score is not None:
            scores.setdefault(column(run), {})[run.results["seed"]] = run.score
    cloned = clones.get(runs[0].results["dataset"])
    return {
        "best_episode": runs[0].results["behaviour_score_best"],
        "best_tenth_cloned": None if cloned is None else float(cloned),
        "scores": {method: dict(sorted(of.items())) for method, of in scores.items()},
    }


def main() -> None:
    """Read the runs, write the JSON file, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    add_folders(parser, "with finished runs in them")
    add_out(parser)
    args = parser.parse_args()
    with (RESULTS / "bundled_sets.csv").open(encoding="utf-8", newline="") as file:
        clones = {row["set"]: row["best tenth cloned"] for row in csv.DictReader(file)}
    by_set: dict[str, list[Record]] = {}
    for run in find_runs(args.folders)[0]:
        by_set.setdefault(run.results["dataset"], []).append(run)
    if not by_set:
        parser.error(f"no finished run in {', '.join(map(str, args.folders))}")
    content = {name: scores_of(runs, clones) for name, runs in by_set.items()}
    save(args.out, "quick_scores", {"results": content}, report)


def report(content: dict[str, Any]) -> str:
    """Mean and standard deviation, the number of seeds in brackets."""
    results: dict[str, Any] = content["results"]
    found = {method for of_set in results.values() for method in of_set["scores"]}
    methods = [m for m in FIRST if m in found] + sorted(found.difference(FIRST))
    rows = []
    for name, of_set in results.items():
        cells = [number(of_set["best_episode"]), number(of_set["best_tenth_cloned"])]
        cells += [summary(list(of_set["scores"].get(m, {}).values())) for m in methods]
        rows.append([f"`{name}`", *cells])
    return markdown_table(["data", "best episode", "best tenth cloned", *methods], rows)


def number(value: float | None) -> str:
    """One decimal, or a dash."""
    return "-" if value is None else f"{value:.1f}"


def summary(scores: list[float]) -> str:
    """Mean +- population standard deviation (number of seeds)."""
    if not scores:
        return "-"
    spread = f" +- {statistics.pstdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.1f}{spread} ({len(scores)})"


if __name__ == "__main__":
    main()
