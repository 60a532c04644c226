"""Gather runs into tables and figures: ``python recipes/report.py RUN... --out FOLDER``.

Reads nothing but run folders, of any method. ``table.md`` and ``table.csv`` have one row a method,
data set and setting: mean and population standard deviation over seeds (divided by n), the
interquartile mean with its 95 % interval, the paper's number; where there are several data sets,
``table.md`` totals them. A run that diverged scores 0; where the data have no reference scores it
is left out of the mean return, and the row says so. Data without reference scores have a table of
returns. A figure that would be empty is not drawn.
``results.csv`` has one row a run. ``scores.png`` ranks the configurations, seed by seed;
``learning_curves.png`` draws the evaluations beside the data,
``q_and_return.png`` what the critics believe against what is achieved. Where RAMBO and its ablation
have the same data, ``table.md`` sets them side by side with the paper's Table 2; where run folders
hold what ``adversary_effect.py`` writes, it tells and ``adversary_effect.png`` draws what the
adversary did to their models. With ``--readme FILE`` the tables are put between the file's
``<!-- results:NAME -->`` markers, where NAME is the folder's name.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rambo_trl.experiment.folder import write_atomically
from rambo_trl.reporting.ablation import ablation_table
from rambo_trl.reporting.adversary_table import Effect, draw_effects, effect_table, read_effects
from rambo_trl.reporting.figures import draw_learning_curves, draw_q_and_return
from rambo_trl.reporting.paper import published
from rambo_trl.reporting.runs import Configuration, configurations, find_runs
from rambo_trl.reporting.scores import draw_scores
from rambo_trl.reporting.statistics import interquartile_mean, iqm_interval
from rambo_trl.reporting.tables import notes, totals, value_tables
from rambo_trl.runtime.places import expand_home
from rambo_trl.runtime.progress import busy

COLUMNS = (
    "method", "dataset", "schedule", "settings", "seed", "epochs", "agent_updates",
    "model_updates", "behaviour_score", "behaviour_score_best", "cloned_score", "score",
    "return_mean", "diverged", "minutes",
)  # fmt: skip


def markdown_table(found: Sequence[Configuration], effects: Sequence[Effect] = ()) -> str:
    """The tables as text, and what must be known to read them."""
    lines = [*value_tables(found), *totals(found), *ablation_table(found), *effect_table(effects)]
    return "\n".join([*lines, *notes(found)]) + "\n"


def table_rows(found: Sequence[Configuration]) -> list[dict[str, Any]]:
    """The table as numbers, for ``table.csv``."""
    rows = []
    for c in found:
        paper = published(c.method, c.dataset)
        rows.append(
            {
                "dataset": c.dataset,
                "method": c.method,
                "schedule": c.schedule,
                "settings": settings_text(c.differs),
                "seeds": len(c.runs),
                "diverged": sum(bool(run.results["diverged"]) for run in c.runs),
                **aggregates("score", [run.score for run in c.runs]),
                **aggregates("return", [run.mean_return for run in c.runs]),
                "paper_score": paper and paper.score,
                "paper_std": paper and paper.std,
                "paper_same_data": paper and paper.same_data,
            }
        )
    return rows


def aggregates(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean, deviation and interquartile mean with its interval, without runs that have none."""
    known = [value for value in values if value is not None]
    low, high = iqm_interval([known]) or (None, None)
    return {
        f"{name}_mean": float(np.mean(known)) if known else None,
        f"{name}_std": float(np.std(known)) if len(known) > 1 else None,
        f"{name}_iqm": float(interquartile_mean(np.array(known))) if known else None,
        f"{name}_iqm_low": low,
        f"{name}_iqm_high": high,
    }


def settings_text(differs: Mapping[str, Any]) -> str:
    """What a configuration differs in, as one cell."""
    return " ".join(f"{key}={value}" for key, value in differs.items())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows; keys that are no columns are left out."""
    with path.open("w", newline="", encoding="utf-8") as file:
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
    parser.add_argument("--out", required=True, type=expand_home, help="folder of the report")
    parser.add_argument(
        "--readme", type=expand_home, help="file with markers to put the table into"
    )
    options = parser.parse_args(arguments)
    out: Path = options.out
    try:
        runs, left_out = find_runs(options.runs)
        found = configurations(runs)
        effects = read_effects(found)
        table = markdown_table(found, effects)
        readme = options.readme and put_between_markers(
            options.readme.read_text(encoding="utf-8"), out.name, table
        )
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in left_out:
        print(f"left out, {line}", file=sys.stderr)
    rows = [
        {
            **run.results,
            "method": run.method,
            "settings": settings_text(configuration.differs),
            "score": run.score,
            "return_mean": run.mean_return,
            "minutes": run.minutes,
        }
        for configuration in found
        for run in configuration.runs
    ]
    write_csv(out / "results.csv", COLUMNS, rows)
    summary = table_rows(found)
    write_csv(out / "table.csv", list(summary[0]), summary)
    (out / "table.md").write_text(table, encoding="utf-8")
    with busy("drawing the figures"):
        drawn = {
            "scores.png": draw_scores(found, out / "scores.png"),
            "learning_curves.png": draw_learning_curves(found, out / "learning_curves.png"),
            "q_and_return.png": draw_q_and_return(found, out / "q_and_return.png"),
            "adversary_effect.png": bool(effects),
        }
        if effects:
            draw_effects(effects, out / "adversary_effect.png")
    for name in (name for name, done in drawn.items() if not done):
        (out / name).unlink(missing_ok=True)  # an earlier report's, of other runs
    if readme:
        write_atomically(options.readme, readme.encode())
    print(table, end="")
    figures = [name for name, done in drawn.items() if done]
    print(f"report: {out}" + (f" with {', '.join(figures)}" if figures else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
