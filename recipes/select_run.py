"""Choose between configurations offline: ``python recipes/select_run.py RUN...``.

The paper (sec. 6) chooses "based on the magnitude and stability of the Q-values"; its details are
not public. Here a run is discarded if a quantity of its training is not finite, its mean Q exceeds
what the data's rewards allow, or it has fewer than two epochs. Of the other configurations the one
is taken whose mean Q varies least from epoch to epoch at the end of training. No evaluation in the
environment enters; what a choice by score would have given is told afterwards.

(Its name is not ``select``: next to the other programs that would hide Python's module of that
name from all of them.)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launcher.schedules import read_schedules

from rambo_trl.reporting.runs import find_runs
from rambo_trl.reporting.selection import WINDOW, select


def main(arguments: Sequence[str] | None = None) -> int:
    """Choose; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs or sweeps")
    parser.add_argument(
        "--window",
        type=int,
        default=WINDOW,
        help="epochs at the end to look at, at most half of a run (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        if options.window < 2:
            raise ValueError(f"--window must be at least 2, got {options.window}")
        runs, left_out = find_runs(options.runs)
        without = [run for run in runs if not run.series("mean_q")[1]]
        left_out += [f"no mean Q in its metrics: {run.path}" for run in without]
        for line in left_out:
            print(f"left out, {line}", file=sys.stderr)
        with_mean_q = [run for run in runs if run not in without]
        lines = select(with_mean_q, options.window, read_schedules())
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
