"""Is this policy good, and how do we know? ``python recipes/offline_report.py RUN``.

Judges a finished run of any method by the log alone, without an environment: what the policy is
worth beside the logged controller, with intervals; what it does with the actions; how far from the
data it goes; and how well its model knows the process, column by column. Writes one page,
``offline_report/index.md`` in the run folder (or where ``--out`` says), with its figures and the
numbers as ``report.json``. The verdict is first on the page and last on the screen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import launcher.starting  # noqa: F401
from launcher.command_line import describe
from launcher.inspection import SavedRun, load_saved
from launcher.offline import discount_of, offline_values

from rambo_trl.reporting.offline_findings import find
from rambo_trl.reporting.offline_measures import measure_run
from rambo_trl.reporting.offline_page import write_page
from rambo_trl.reporting.offline_values import verdict
from rambo_trl.runtime.places import expand_home
from rambo_trl.runtime.progress import busy


def describe_run(path: Path, run: SavedRun) -> dict[str, Any]:
    """What the page says first of the run and its data."""
    data, step = run.data, run.data.step_intervals
    mean = "" if "mean" not in step else f", a step every {step['mean']:.3g} s"
    return {
        "title": f"`{path.name}` on `{data.name}`",
        "facts": [
            f"The policy of `{path.name}` (method {run.cfg.method}) was trained on {len(data)} "
            f"steps of {data.num_episodes} logged episodes{mean}. All of this page was computed "
            "from that log and the run's own model: no simulator and no plant was asked."
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, tell; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=expand_home, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", type=expand_home, help="folder, by default RUN/offline_report")
    parser.add_argument(
        "--horizon", type=int, default=100, help="steps of rollouts (default: %(default)s)"
    )
    parser.add_argument(
        "--again", action="store_true", help="measure values again that the run folder holds"
    )
    parser.add_argument(
        "--updates", type=int, help="of fitted Q evaluation, fewer for a first look"
    )
    options = parser.parse_args(arguments)
    out: Path = options.out or options.run / "offline_report"
    try:
        if options.horizon < 1:
            raise ValueError(f"--horizon must be at least 1, got {options.horizon}")
        fit = {} if options.updates is None else {"updates": options.updates}
        with busy("reading the run"):
            run = load_saved(options.run)
        with busy("estimating what the policy is worth"):
            values = offline_values(options.run, run=run, again=options.again, fit=fit)
        with busy("measuring the policy and its model on the log"):
            found = measure_run(
                run.data,
                run.actor,
                gamma=discount_of(run.cfg),
                horizon=options.horizon,
                **({} if run.model is None else vars(run.model)),
            )
        findings = find(found["actions"], found["support"], found["model"])
        report = {**describe_run(options.run, run), "values": values, **found}
        written = write_page(report, findings, out)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 2
    for finding in findings:
        if finding.level != "fine":
            print(f"{finding.level}: {finding.text}")
    judged = verdict(values)
    print(f"page: {written[0]}")
    print(f"what would settle it: {'; '.join(judged.would_settle)}")
    print(f"verdict: {judged.sentence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
