"""Gather runs into tables and figures: ``python recipes/report.py RUN... --out FOLDER``.

Reads nothing but run folders, of any method. ``table.md`` and ``table.csv`` have one row a method,
data set and setting: mean and population standard deviation over seeds (divided by n), the
interquartile mean with its 95 % interval, the paper's number; where there are several data sets,
``table.md`` totals them. A run that diverged scores 0; where the data have no reference scores it
is left out of the mean return, and the row says so.
``results.csv`` has one row a run. ``learning_curves.png`` draws the evaluations beside the data,
``q_and_return.png`` what the critics believe against what is achieved. With ``--readme FILE`` the
table is put between the file's ``<!-- results:NAME -->`` markers, where NAME is the folder's name.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from paper_results import ABLATION, RAMBO, SOURCE, published
from report_figures import draw_learning_curves, draw_q_and_return
from run_reading import Configuration, Record, configurations, find_runs
from run_statistics import interquartile_mean, iqm_interval

from rambo_trl.training.run_folder import write_atomically

COLUMNS = (
    "method", "dataset", "schedule", "settings", "seed", "epochs", "agent_updates",
    "model_updates", "behaviour_score", "behaviour_score_best", "cloned_score", "score",
    "return_mean", "diverged", "minutes",
)  # fmt: skip


def minutes(run: Record) -> float:
    """What a run took."""
    return round(sum(run.results.get("seconds", {}).values()) / 60, 1)


def scores_of(configuration: Configuration) -> list[float]:
    """The runs' scores, without runs that have none."""
    return [run.score for run in configuration.runs if run.score is not None]


def spread(values: Iterable[float | None]) -> str:
    """Mean and standard deviation (divided by n, not n - 1), as text."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not known.size:
        return "-"
    return f"{known.mean():.1f}" + (f" +- {known.std():.1f}" if known.size > 1 else "")


def iqm_text(scores: Sequence[Sequence[float]]) -> str:
    """Interquartile mean and interval of some tasks' scores, as text."""
    if not any(scores):
        return "-"
    interval = iqm_interval(scores)
    ends = "one seed" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"
    return f"{interquartile_mean(np.concatenate(scores)):.1f} ({ends})"


def score_text(configuration: Configuration) -> str:
    """The score, or the return where the data have no reference scores."""
    if scores_of(configuration):
        return f"**{spread(scores_of(configuration))}**"
    returns = [run.mean_return for run in configuration.runs]
    parts = [f"return {spread(returns)}"] if any(r is not None for r in returns) else []
    diverged = sum(bool(run.results["diverged"]) for run in configuration.runs)
    if diverged:
        parts.append(f"{diverged} of {len(returns)} diverged")
    return ", ".join(parts) or "-"


def paper_text(configuration: Configuration) -> str:
    """The paper's number, marked where the data are others."""
    number = published(configuration.method, configuration.dataset)
    if number is None:
        return "-"
    std = "" if number.std is None else f" +- {number.std:.1f}"
    return f"{number.score:.1f}{std}" + ("" if number.same_data else " (other data)")


def markdown_table(found: Sequence[Configuration]) -> str:
    """One row a configuration, and what must be known to read it."""
    lines = [
        "| data set | method | seeds | epochs | data's mean | data's best | cloned | score | "
        "IQM (95 % interval) | paper | score by seed | minutes a run |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for configuration in found:
        runs = configuration.runs
        first = runs[0].results
        epochs = sorted({run.results["epochs"] for run in runs})
        cells = [
            f"`{configuration.dataset}`",
            f"{configuration.label}, `{configuration.schedule}`",
            str(len(runs)),
            str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}",
            spread([first.get("behaviour_score")]),
            spread([first.get("behaviour_score_best")]),
            spread(run.results.get("cloned_score") for run in runs),
            score_text(configuration),
            iqm_text([scores_of(configuration)]),
            paper_text(configuration),
            ", ".join("-" if run.score is None else f"{run.score:.1f}" for run in runs),
            spread(minutes(run) for run in runs),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *totals(found), *notes(found)]) + "\n"


def totals(found: Sequence[Configuration]) -> list[str]:
    """Each method over the data sets that all methods have; nothing where there is one only.

    Where the paper's lambda is 0, RAMBO's runs are the ablation's as well.
    """
    rows: dict[tuple[str, str], dict[str, Configuration]] = {}
    for configuration in found:
        if scores_of(configuration):
            by_dataset = rows.setdefault((configuration.label, configuration.schedule), {})
            by_dataset[configuration.dataset] = configuration
    shared: set[str] = set()
    for configuration in [c for c in found if c.method == RAMBO and scores_of(c)]:
        ablation = replace(configuration, method=ABLATION)
        without = rows.get((ablation.label, ablation.schedule))
        if without and configuration.runs[0].results.get("adversarial_weight") == 0:
            without.setdefault(configuration.dataset, ablation)
            shared.add(configuration.dataset)
    common = set.intersection(*map(set, rows.values())) if rows else set()
    if len(common) < 2:
        return []
    intro = f"Over the {len(common)} data sets that all of them have: {', '.join(sorted(common))}."
    if both := len(shared & common):
        intro += f" On {both} of them the paper's lambda is 0: RAMBO is its own ablation there."
    lines = [
        "",
        intro,
        "",
        "| method | runs | total | IQM (95 % interval) | paper's total |",
        "|---|---|---|---|---|",
    ]
    for (label, schedule), by_dataset in rows.items():
        chosen = [by_dataset[dataset] for dataset in sorted(common)]
        scores = [scores_of(configuration) for configuration in chosen]
        total = sum(np.mean(s) for s in scores)
        # the tasks' seeds are independent of each other: their variances add up
        deviation = np.sqrt(sum(np.var(s) for s in scores))
        known = [published(c.method, c.dataset) for c in chosen]
        paper = "-"
        if all(number is not None for number in known):
            same = all(number.same_data for number in known if number)
            paper = f"{sum(number.score for number in known if number):.1f}"
            paper += "" if same else " (other data)"
        count = sum(map(len, scores))
        lines.append(
            f"| {label}, `{schedule}` | {count} | **{total:.1f}"
            + (f" +- {deviation:.1f}" if min(map(len, scores)) > 1 else "")
            + f"** | {iqm_text(scores)} | {paper} |"
        )
    return lines


def notes(found: Sequence[Configuration]) -> list[str]:
    """What a reader of the table must know about its rows."""
    runs = [run for configuration in found for run in configuration.runs]
    lines = []
    if any(len(configuration.runs) > 1 for configuration in found):
        lines.append(
            "+-: population standard deviation of a row's n runs (divided by n, not by n - 1); "
            "the paper's as published."
        )
    diverged = [run for run in runs if run.results["diverged"]]
    if scored := sum(run.scored for run in diverged):
        lines.append(f"{scored} of {len(runs)} runs diverged and count as 0.")
    if unscored := len(diverged) - scored:
        lines.append(
            f"{unscored} of {len(runs)} runs diverged on data without reference scores, where a "
            "return of 0 may be a high one: the mean returns leave them out."
        )
    twice = [
        f"{c.label} on {c.dataset}"
        for c in found
        if len({run.results["seed"] for run in c.runs}) < len(c.runs)
    ]
    if twice:
        lines.append(f"A seed occurs more than once: {'; '.join(twice)}.")
    numbers = [published(c.method, c.dataset) for c in found]
    if any(numbers):
        text = f"paper: {SOURCE}."
        if any(number is not None and not number.same_data for number in numbers):
            text += (
                " Where it says other data, the data set here is of the same kind but not the "
                "same, and so is the simulator: the two numbers do not compare."
            )
        lines.append(text)
    return [part for line in lines for part in ("", line)]


def table_rows(found: Sequence[Configuration]) -> list[dict[str, Any]]:
    """The table as numbers, for ``table.csv``."""
    rows = []
    for c in found:
        scores = scores_of(c)
        interval = iqm_interval([scores]) or (None, None)
        paper = published(c.method, c.dataset)
        rows.append(
            {
                "dataset": c.dataset,
                "method": c.method,
                "schedule": c.schedule,
                "settings": settings_text(c.differs),
                "seeds": len(c.runs),
                "diverged": sum(bool(run.results["diverged"]) for run in c.runs),
                "score_mean": np.mean(scores) if scores else None,
                "score_std": np.std(scores) if len(scores) > 1 else None,
                "score_iqm": interquartile_mean(np.array(scores)) if scores else None,
                "score_iqm_low": interval[0],
                "score_iqm_high": interval[1],
                "paper_score": paper and paper.score,
                "paper_std": paper and paper.std,
                "paper_same_data": paper and paper.same_data,
            }
        )
    return rows


def settings_text(differs: Mapping[str, Any]) -> str:
    """What a configuration differs in, as one cell."""
    return " ".join(f"{key}={value}" for key, value in differs.items())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows; keys that are no columns are left out."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


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
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs or sweeps")
    parser.add_argument("--out", required=True, type=Path, help="folder of the report")
    parser.add_argument("--readme", type=Path, help="file with markers to put the table into")
    options = parser.parse_args(arguments)
    out: Path = options.out
    try:
        runs, unfinished = find_runs(options.runs)
        found = configurations(runs)
        table = markdown_table(found)
        readme = options.readme and put_between_markers(options.readme.read_text(), out.name, table)
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in unfinished:
        print(f"left out, not ended: {path}", file=sys.stderr)
    rows = [
        {
            **run.results,
            "method": run.method,
            "settings": settings_text(configuration.differs),
            "score": run.score,
            "return_mean": run.mean_return,
            "minutes": minutes(run),
        }
        for configuration in found
        for run in configuration.runs
    ]
    write_csv(out / "results.csv", COLUMNS, rows)
    summary = table_rows(found)
    write_csv(out / "table.csv", list(summary[0]), summary)
    (out / "table.md").write_text(table)
    draw_learning_curves(found, out / "learning_curves.png")
    draw_q_and_return(found, out / "q_and_return.png")
    if readme:
        write_atomically(options.readme, readme.encode())
    print(table, end="")
    print(f"report: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
