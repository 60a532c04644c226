"""Choose between configurations offline: ``python recipes/select_run.py RUN...``.

Each run's policy is valued by fitted Q evaluation on held-out episodes. The table has the estimates
with their intervals, and says which configurations the data tell apart. Runs are out that diverged,
whose mean Q exceeds what the data's rewards allow, that have a single epoch, or whose evaluation
diverged. What is missing of ``RUN/offline_values.json`` is measured first, a few minutes a
run. ``--rule q`` chooses by the steadiness of mean Q alone, as the paper (sec. 6) may have done.
No evaluation in the environment enters; what a choice by score would have given is told afterwards.

(Its name is not ``select``: next to the other programs that would hide Python's module of that
name from all of them.)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import launcher.starting  # noqa: F401
from launcher.command_line import describe
from launcher.schedules import read_schedules
from launcher.valuing import values_of_runs

from rambo_trl.reporting.runs import Record, find_runs
from rambo_trl.reporting.selection import WINDOW, select
from rambo_trl.reporting.value_selection import LEVEL, select_by_value


def main(arguments: Sequence[str] | None = None) -> int:
    """Choose; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs or sweeps")
    parser.add_argument(
        "--rule",
        choices=("value", "q"),
        default="value",
        help="by the policies' estimated values, or by the steadiness of mean Q (default: value)",
    )
    parser.add_argument(
        "--gamma",
        type=float,
        help="discount factor of the values (default: the runs' own, the smallest if they differ)",
    )
    parser.add_argument(
        "--level",
        type=float,
        default=LEVEL,
        help="probability that all intervals hold (default: %(default)s)",
    )
    parser.add_argument(
        "--window",
        type=int,
        default=WINDOW,
        help="with --rule q: epochs at the end, at most half of a run (default: %(default)s)",
    )
    parser.add_argument("--again", action="store_true", help="measure all values again")
    options = parser.parse_args(arguments)
    try:
        if options.window < 2:
            raise ValueError(f"--window must be at least 2, got {options.window}")
        if options.gamma is not None and not 0 <= options.gamma < 1:
            raise ValueError(f"--gamma must be at least 0 and less than 1, got {options.gamma}")
        if not 0 < options.level < 1:
            raise ValueError(f"--level must lie between 0 and 1, got {options.level}")
        runs, left_out = find_runs(options.runs)
        for line in left_out:
            print(f"left out, {line}", file=sys.stderr)
        if options.rule == "q":
            lines = select(_with_mean_q(runs), options.window, read_schedules())
        else:
            known = values_of_runs(runs, again=options.again, gamma=options.gamma)
            lines = select_by_value(known, read_schedules(), options.level)
    except (OSError, ValueError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def _with_mean_q(runs: Sequence[Record]) -> list[Record]:
    """The runs that the rule on mean Q can judge; the others are named."""
    without = [run for run in runs if not run.series("mean_q")[1]]
    for run in without:
        print(f"left out, no mean Q in its metrics: {run.path}", file=sys.stderr)
    return [run for run in runs if run not in without]


if __name__ == "__main__":
    sys.exit(main())
