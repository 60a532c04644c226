"""The offline choice between configurations: from the stability of mean Q, without evaluations."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.evaluation import SCORE_COLUMNS
from rambo_trl.reporting.runs import Configuration, Record, configurations, find_runs
from rambo_trl.reporting.tables import markdown

#: epochs at the end of training over which mean Q is compared
WINDOW = 100


@dataclass(frozen=True)
class Candidate:
    """What is known of a configuration without evaluating it.

    Attributes:
        configuration: its runs.
        discarded: run to why it is out.
        variances: run to the variance of its mean Q over the window.
        mean_q: mean Q over the window, of the runs that are not out.
    """

    configuration: Configuration
    discarded: Mapping[Path, str]
    variances: Mapping[Path, float]
    mean_q: float

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

    A mean Q of a single epoch does: it can't stray, so the shortest run would be chosen. A method
    without critics has none, and nothing to rule it out by but divergence.

    Returns:
        One sentence.
    """
    if run.diverged:
        return (run.results.get("divergence") or {}).get("reason", "it diverged")
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
    if len(run.series("mean_q")[1]) == 1:
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


def rank(candidates: Sequence[Configuration], window: int) -> list[Candidate]:
    """The configurations, the one to take first.

    A configuration of which a smaller share of the runs is out comes first, then the one with
    the lower variance of mean Q.

    Args:
        candidates: configurations of one data set, whose runs have a mean Q.
        window: epochs at the end of training.
    """
    ranked = []
    for configuration in candidates:
        reasons = {run.path: why_discarded(run) for run in configuration.runs}
        values = {
            run.path: np.array(run.series("mean_q")[1][-window:])
            for run in configuration.runs
            if not reasons[run.path]
        }
        discarded = {path: reason for path, reason in reasons.items() if reason}
        variances = {path: float(x.var()) for path, x in values.items()}
        mean_q = float(np.mean([x.mean() for x in values.values()])) if values else math.nan
        ranked.append(Candidate(configuration, discarded, variances, mean_q))
    return sorted(ranked, key=lambda c: (c.share_discarded, c.variance))


def rank_by_return(candidates: Sequence[Configuration]) -> list[tuple[float, Configuration]]:
    """Mean score (or return, where the data have no scores) of each configuration, best first.

    A run that diverged has a score but no return: where returns count, the configuration comes
    first of which the smallest share of the runs diverged. One without a number is left out.
    """
    scored = any(run.score is not None for c in candidates for run in c.runs)
    graded = []
    for c in candidates:
        values = [run.score if scored else run.mean_return for run in c.runs]
        known = [value for value in values if value is not None]
        lost = 0.0 if scored else sum(run.diverged for run in c.runs) / len(c.runs)
        if known:
            graded.append((lost, float(np.mean(known)), c))
    graded.sort(key=lambda entry: (entry[0], -entry[1]))
    return [(value, configuration) for _, value, configuration in graded]


def check_one_dataset(runs: Sequence[Record]) -> str:
    """The runs' data set; a ValueError where they have several."""
    datasets = sorted({run.results["dataset"] for run in runs})
    if len(datasets) > 1:
        raise ValueError(f"runs on different data sets ({', '.join(datasets)}): choose within one")
    return datasets[0]


def select(
    runs: Sequence[Record], wanted: int, schedules: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Choose between the configurations of some runs, and say why.

    Args:
        runs: runs that have a mean Q.
        wanted: epochs at the end to compare, at most half of a run.
        schedules: by name, what each schedule sets.

    Returns:
        The lines of a report.

    Raises:
        ValueError: one line on what to change.
    """
    if not runs:
        raise ValueError("none of these runs has a mean Q to choose by")
    dataset = check_one_dataset(runs)
    # a run that ended early must not shorten the window of the others
    whole = [run for run in runs if not why_discarded(run)]
    if not whole:
        raise ValueError("every run is out: " + "; ".join(map(str, map(why_discarded, runs))))
    window, found = window_of(whole, wanted), configurations(runs, schedules)
    candidates = rank(found, window)
    chosen = candidates[0]
    steadiest = min(chosen.variances, key=lambda path: chosen.variances[path])
    lines = [f"offline choice on {dataset}, from quantities of training alone", ""]
    lines += _describe(candidates, window)
    if any(run.results.get("q_bound") is None for run in whole):
        lines.append(
            "note: some of these runs do not record what mean Q their data allow; they are out "
            "only where they noticed it themselves"
        )
    if len({run.method for run in whole}) > 1:
        lines.append("note: methods that change the rewards have a mean Q of another scale")
    lines += [
        "",
        f"chosen: {chosen.configuration.name}",
        f"because the fewest of its runs are out ({len(chosen.discarded)} of "
        f"{len(chosen.configuration.runs)}) and, among such, its mean Q varies least over the "
        f"last {window} epochs: by {chosen.variance**0.5:.4g} around {chosen.mean_q:.4g}",
        f"steadiest run: {steadiest}",
    ]
    return lines + compare_with_returns(chosen.configuration, found)


def _describe(candidates: Sequence[Candidate], window: int) -> list[str]:
    """The ranking as a table, and why the others are out."""
    columns = ["rank", "configuration", "runs", "out", f"mean Q, last {window} epochs",
               "its deviation"]  # fmt: skip
    rows = []
    for place, c in enumerate(candidates, 1):
        out, known = str(len(c.discarded) or "-"), bool(c.variances)
        numbers = [f"{c.mean_q:.4g}", f"{c.variance**0.5:.4g}"] if known else ["-", "-"]
        configuration = c.configuration
        runs = str(len(configuration.runs))
        rows.append([str(place) if known else "-", configuration.name, runs, out, *numbers])
    discarded = [item for c in candidates for item in c.discarded.items()]
    return markdown(columns, rows) + [f"out: {path}: {reason}" for path, reason in discarded]


def compare_with_returns(chosen: Configuration, candidates: Sequence[Configuration]) -> list[str]:
    """What the choice is worth in the environment, and what choosing there would have given."""
    graded = rank_by_return(candidates)
    value = next((value for value, c in graded if c is chosen), None)
    lines = ["", "afterwards, from evaluations that the choice has not seen:"]
    if value is None:
        return [*lines, "  nothing: the runs were not evaluated"]
    best, by_return = graded[0]
    mean = float(np.mean([value for value, _ in graded]))
    lines += [
        f"  offline choice  {value:8.1f}  {chosen.name}",
        f"  online choice   {best:8.1f}  {by_return.name}",
        f"  mean of all     {mean:8.1f}  a configuration taken at random",
    ]
    lost = [run for c in candidates for run in c.runs if run.diverged and not run.scored]
    if lost:
        lines.append(
            f"  these are returns: without the diverged runs ({len(lost)}), and the configurations "
            "come first of which fewer diverged"
        )
    return lines
