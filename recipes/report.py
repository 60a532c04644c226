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
have the same data, ``table.md`` sets them side by side with the paper's Table 2, and scores on
NeoRL-2's data sets with those that it published; where run folders hold what
``adversary_effect.py`` writes, it tells and ``adversary_effect.png`` draws what the adversary did
to their models. With ``--readme FILE`` the tables are put between the file's
``<!-- results:NAME -->`` markers, where NAME is the folder's name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.schedules import read_schedules

from rambo_trl.experiment.folder import write_atomically
from rambo_trl.reporting.ablation import ablation_table
from rambo_trl.reporting.adversary_report import Effect, draw_effects, effect_table, read_effects
from rambo_trl.reporting.figures import draw_learning_curves, draw_q_and_return, draw_scores
from rambo_trl.reporting.neorl2 import neorl2_table
from rambo_trl.reporting.runs import Configuration, configurations, find_runs
from rambo_trl.reporting.tables import notes, totals, value_tables, write_results, write_summary
from rambo_trl.runtime.places import expand_home
from rambo_trl.runtime.progress import busy


def markdown_tables(found: Sequence[Configuration], effects: Sequence[Effect] = ()) -> str:
    """All tables as text, and notes on how to read them."""
    lines = [*value_tables(found), *totals(found), *neorl2_table(found), *ablation_table(found)]
    lines += effect_table(effects)
    return "\n".join([*lines, *notes(found)]) + "\n"


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
        found = configurations(runs, read_schedules())
        effects = read_effects(found)
        table = markdown_tables(found, effects)
        readme = options.readme and put_between_markers(
            options.readme.read_text(encoding="utf-8"), out.name, table
        )
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in left_out:
        print(f"left out, {line}", file=sys.stderr)
    write_results(found, out / "results.csv")
    write_summary(found, out / "table.csv")
    (out / "table.md").write_text(table, encoding="utf-8")
    with busy("drawing the figures"):
        drawn = {
            "scores.png": draw_scores(found, out / "scores.png"),
            "learning_curves.png": draw_learning_curves(found, out / "learning_curves.png"),
            "q_and_return.png": draw_q_and_return(found, out / "q_and_return.png"),
            "adversary_effect.png": draw_effects(effects, out / "adversary_effect.png"),
        }
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
