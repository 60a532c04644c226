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
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.evaluation import SCORE_COLUMNS
from rambo_trl.reporting.runs import Configuration, Record, configurations, find_runs

#: epochs at the end of training over which the mean Q is followed
WINDOW = 100


@dataclass
class Candidate:
    """What is known of a configuration without evaluating it.

    Attributes:
        configuration: its runs.
        discarded: run to why it is out.
        variances: run to the variance of its mean Q over the window.
        mean_q: mean Q over the window, of the runs that are not out.
    """

    configuration: Configuration
    discarded: dict[Path, str] = field(default_factory=dict)
    variances: dict[Path, float] = field(default_factory=dict)
    mean_q: float = float("nan")

    @property
    def share_discarded(self) -> float:
        """Share of the runs that are out."""
        return len(self.discarded) / len(self.configuration.runs)

    @property
    def variance(self) -> float:
        """Mean variance of the runs that are not out."""
        return float(np.mean(list(self.variances.values()))) if self.variances else float("inf")


def why_discarded(run: Record) -> str | None:
    """What in a run's training rules it out; None if nothing does.

    A mean Q of fewer than two epochs does: it can't stray, so the shortest run would be chosen.

    Returns:
        One sentence.
    """
    if run.results["diverged"]:
        found = run.results.get("divergence") or {}
        return found.get("reason", "it diverged")
    bound = run.results.get("q_bound")
    # the bound as the run's own monitor had it at its end, the policy's entropy included
    monitor = DivergenceMonitor(
        sys.float_info.max if bound is None else bound, gamma=0.0, margin=1.0
    )
    for row in run.metrics:
        training = {key: value for key, value in row.items() if key not in SCORE_COLUMNS}
        entropy = training.get("entropy")
        if entropy is not None and math.isfinite(entropy):
            del training["entropy"]  # the monitor would add it to the bound once more
        if reason := monitor.check(training):
            return f"epoch {row['epoch']}: {reason}"
    if len(run.series("mean_q")[1]) < 2:
        return "fewer than two epochs of mean Q: it can't stray, train for more"
    return None


def window_of(runs: Sequence[Record], wanted: int = WINDOW) -> int:
    """Epochs that all runs are compared over: the last half of the shortest run, or fewer."""
    shortest = min(len(run.series("mean_q")[1]) for run in runs)
    return max(2, min(wanted, shortest // 2))


def unsteadiness(path: str | Path, wanted: int = WINDOW) -> float:
    """What a search minimises: one run's part of the choice.

    Args:
        path: the folder of a run that has ended.
        wanted: epochs at the end of training, at most half of the run.

    Returns:
        The standard deviation of its mean Q over these epochs; infinite where the run is out.

    Raises:
        ValueError: for a run whose method has no mean Q.
    """
    (run,), _ = find_runs([path])
    values = run.series("mean_q")[1]
    if not values:
        raise ValueError(f"{path} has no mean Q to choose by")
    if len(values) < 2:
        raise ValueError(f"{path} has one epoch only: its mean Q can't stray, train for more")
    if why_discarded(run):
        return math.inf
    return float(np.std(values[-window_of([run], wanted) :]))


def rank(found: Sequence[Configuration], window: int) -> list[Candidate]:
    """The configurations, the one to take first.

    A configuration of which a smaller share of the runs is out comes first, then the one with
    the lower variance of mean Q.

    Args:
        found: configurations of one data set, whose runs have a mean Q.
        window: epochs at the end of training.
    """
    candidates = []
    for configuration in found:
        candidate = Candidate(configuration)
        means = []
        for run in configuration.runs:
            if reason := why_discarded(run):
                candidate.discarded[run.path] = reason
                continue
            values = np.array(run.series("mean_q")[1][-window:])
            candidate.variances[run.path] = float(values.var())
            means.append(values.mean())
        candidate.mean_q = float(np.mean(means)) if means else float("nan")
        candidates.append(candidate)
    return sorted(candidates, key=lambda c: (c.share_discarded, c.variance))


def describe(candidates: Sequence[Candidate], window: int) -> list[str]:
    """The ranking as a table, and why the others are out."""
    lines = [
        f"| rank | configuration | runs | out | mean Q, last {window} epochs | its deviation |",
        "|---|---|---|---|---|---|",
    ]
    for place, candidate in enumerate(candidates, 1):
        name = f"{candidate.configuration.label}, {candidate.configuration.schedule}"
        out = len(candidate.discarded)
        numbers = f"{candidate.mean_q:.4g} | {candidate.variance**0.5:.4g}"
        lines.append(
            f"| {place if candidate.variances else '-'} | {name} | "
            f"{len(candidate.configuration.runs)} | {out or '-'} | "
            f"{numbers if candidate.variances else '- | -'} |"
        )
    for candidate in candidates:
        lines += [f"out: {path}: {reason}" for path, reason in candidate.discarded.items()]
    return lines


def online(found: Sequence[Configuration]) -> list[tuple[float, Configuration]]:
    """Mean score (or return, where the data have no scores) of each configuration, best first.

    A run that diverged has a score but no return: where returns count, the configuration comes
    first of which the smallest share of the runs diverged. One without a number is left out.
    """
    scored = any(run.score is not None for c in found for run in c.runs)
    graded = []
    for configuration in found:
        runs = configuration.runs
        values = [run.score if scored else run.mean_return for run in runs]
        known = [value for value in values if value is not None]
        lost = 0.0 if scored else sum(bool(run.results["diverged"]) for run in runs) / len(runs)
        if known:
            graded.append((lost, float(np.mean(known)), configuration))
    graded.sort(key=lambda entry: (entry[0], -entry[1]))
    return [(value, configuration) for _, value, configuration in graded]


def afterwards(chosen: Configuration, found: Sequence[Configuration]) -> list[str]:
    """What the choice is worth in the environment, and what choosing there would have given."""
    graded = online(found)
    own = next((value for value, configuration in graded if configuration is chosen), None)
    lines = ["", "afterwards, from evaluations that the choice has not seen:"]
    if own is None:
        return [*lines, "  nothing: the runs were not evaluated"]
    best, by_score = graded[0]
    lines.append(f"  offline choice  {own:8.1f}  {chosen.label}, {chosen.schedule}")
    lines.append(f"  online choice   {best:8.1f}  {by_score.label}, {by_score.schedule}")
    mean = float(np.mean([value for value, _ in graded]))
    lines.append(f"  mean of all     {mean:8.1f}  a configuration taken at random")
    lost = [run for c in found for run in c.runs if run.results["diverged"] and not run.scored]
    if lost:
        lines.append(
            f"  these are returns: without the diverged runs ({len(lost)}), and the configurations "
            "come first of which fewer diverged"
        )
    return lines


def select(paths: Sequence[str], wanted: int) -> list[str]:
    """Read, rank and tell.

    Raises:
        OSError, ValueError: one line on what to change.
    """
    runs, left_out = find_runs(paths)
    for line in left_out:
        print(f"left out, {line}", file=sys.stderr)
    for run in [run for run in runs if not run.series("mean_q")[1]]:
        print(f"left out, no mean Q in its metrics: {run.path}", file=sys.stderr)
        runs.remove(run)
    if not runs:
        raise ValueError("none of these runs has a mean Q to choose by")
    datasets = sorted({run.results["dataset"] for run in runs})
    if len(datasets) > 1:
        raise ValueError(f"runs on different data sets ({', '.join(datasets)}): choose within one")
    found = configurations(runs)
    # a run that ended early must not shorten the window of the others
    whole = [run for run in runs if not why_discarded(run)]
    if not whole:
        raise ValueError("every run is out: " + "; ".join(map(str, map(why_discarded, runs))))
    window = window_of(whole, wanted)
    candidates = rank(found, window)
    chosen = candidates[0]
    steadiest = min(chosen.variances, key=lambda path: chosen.variances[path])
    lines = [f"offline choice on {datasets[0]}, from quantities of training alone", ""]
    lines += describe(candidates, window)
    if any(run.results.get("q_bound") is None for run in whole):
        lines.append(
            "note: some of these runs do not record what mean Q their data allow; they are out "
            "only where they noticed it themselves"
        )
    if len({run.method for run in whole}) > 1:
        lines.append("note: methods that change the rewards have a mean Q of another scale")
    lines += [
        "",
        f"chosen: {chosen.configuration.label}, {chosen.configuration.schedule}",
        f"because the fewest of its runs are out ({len(chosen.discarded)} of "
        f"{len(chosen.configuration.runs)}) and, among such, its mean Q varies least over the "
        f"last {window} epochs: by {chosen.variance**0.5:.4g} around {chosen.mean_q:.4g}",
        f"steadiest run: {steadiest}",
    ]
    return lines + afterwards(chosen.configuration, found)


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
        lines = select(options.runs, options.window)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
