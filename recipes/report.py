"""Gather runs into a table and a figure: ``python recipes/report.py RUN... --out FOLDER``.

Reads nothing but run folders. ``results.csv`` has one row a run; ``table.md`` one row a method
and data set, with the mean and the standard deviation over seeds; ``learning_curves.png`` draws
the evaluations beside the data's mean and best episode. With ``--readme FILE`` the table is
put between the file's ``<!-- results:NAME -->`` markers, where NAME is the folder's name.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rambo_trl.training.run_folder import RunFolder, write_atomically

COLUMNS = (
    "method", "dataset", "schedule", "seed", "epochs", "agent_updates", "model_updates",
    "behaviour_score", "behaviour_score_best", "cloned_score", "score", "return_mean",
    "diverged", "minutes",
)  # fmt: skip
BLUES = ("#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#e69f00")


def read_runs(paths: Sequence[str]) -> list[dict[str, Any]]:
    """The results and metrics of every run folder.

    Raises:
        FileNotFoundError: for a folder that holds no finished run.
    """
    runs = []
    for path in paths:
        folder = RunFolder.open(path)
        results = folder.read_results()
        results["minutes"] = round(sum(results["seconds"].values()) / 60, 1)
        runs.append({**results, "metrics": folder.read_metrics()})
    return runs


def group(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Runs by data set, method and schedule, each group ordered by seed."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        groups.setdefault((run["dataset"], run["method"], run["schedule"]), []).append(run)
    return groups


def markdown_table(runs: Sequence[dict[str, Any]]) -> str:
    """One row a method and data set: mean and standard deviation over the seeds."""

    def spread(values: list[float | None]) -> str:
        known = np.array([value for value in values if value is not None], dtype=float)
        if not known.size:
            return "-"
        return f"{known.mean():.1f}" + (f" +- {known.std():.1f}" if known.size > 1 else "")

    lines = [
        "| data set | method | seeds | epochs | data's mean | data's best | cloned | score | "
        "score by seed | minutes a run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (dataset, method, schedule), members in group(runs).items():
        scores = [run["score"] for run in members]
        cells = [
            f"`{dataset}`",
            f"{method}, `{schedule}`",
            str(len(members)),
            str(members[0]["epochs"]),
            spread([run["behaviour_score"] for run in members[:1]]),
            spread([run["behaviour_score_best"] for run in members[:1]]),
            spread([run["cloned_score"] for run in members]),
            f"**{spread(scores)}**",
            ", ".join("-" if score is None else f"{score:.1f}" for score in scores),
            spread([run["minutes"] for run in members]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    diverged = sum(bool(run["diverged"]) for run in runs)
    if diverged:
        lines += ["", f"{diverged} of {len(runs)} runs diverged and count as 0."]
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Learning curves, one panel a data set: thin lines seeds, thick lines their mean."""
    datasets = sorted({run["dataset"] for run in runs})
    figure = Figure(figsize=(6.4 * len(datasets), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, dataset in zip(
        figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True
    ):
        groups = {key: value for key, value in group(runs).items() if key[0] == dataset}
        for color, ((_, method, _), members) in zip(BLUES, groups.items(), strict=False):
            curves = {}
            for run in members:
                points = [
                    (row["epoch"], row["score"])
                    for row in run["metrics"]
                    if row["score"] is not None
                ]
                axes.plot(*zip(*points, strict=True), color=color, alpha=0.35, linewidth=1)
                for epoch, score in points:
                    curves.setdefault(epoch, []).append(score)
            shared = sorted(e for e, scores in curves.items() if len(scores) == len(members))
            means = [np.mean(curves[epoch]) for epoch in shared]
            label = (
                f"{method}, mean of {len(members)} seeds (thin: each)"
                if len(members) > 1
                else method
            )
            axes.plot(shared, means, color=color, linewidth=2.4, label=label)
        first = next(iter(groups.values()))
        for value, style, label in (
            (first[0]["behaviour_score_best"], ":", "data's best episode"),
            (first[0]["behaviour_score"], "--", "data's mean episode"),
            (
                np.mean([run["cloned_score"] or 0 for run in first]),
                "-.",
                "behaviour cloning",
            ),
        ):
            axes.axhline(value, color="#444444", linestyle=style, linewidth=1.2, label=label)
        axes.set_title(dataset, loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.set_ylabel("normalised score")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def put_between_markers(text: str, name: str, table: str) -> str:
    """Replace what stands between a pair of markers.

    Raises:
        ValueError: if the text has no such pair.
    """
    start, end = f"<!-- results:{name} -->", f"<!-- end of results:{name} -->"
    if start not in text or end not in text:
        raise ValueError(f"the file needs the markers '{start}' and '{end}'")
    head, rest = text.split(start, 1)
    return f"{head}{start}\n{table}{end}{rest.split(end, 1)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", required=True, type=Path, help="folder of the report")
    parser.add_argument("--readme", type=Path, help="file with markers to put the table into")
    options = parser.parse_args(arguments)
    try:
        runs = read_runs(options.runs)
        table = markdown_table(runs)
        readme = options.readme and put_between_markers(
            options.readme.read_text(), options.out.name, table
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(runs)
    (options.out / "table.md").write_text(table)
    draw(runs, options.out / "learning_curves.png")
    if readme:
        write_atomically(options.readme, readme.encode())
    print(table, end="")
    print(f"report: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
