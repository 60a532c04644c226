"""The offline choice between configurations: by the estimated value of their policies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rambo_trl.reporting.offline_values import Estimate, OfflineValues, Samples
from rambo_trl.reporting.runs import Configuration, Record, configurations
from rambo_trl.reporting.selection import check_one_dataset, compare_with_returns, why_discarded
from rambo_trl.reporting.tables import markdown
from rambo_trl.runtime.numbers import format_value

#: probability that all intervals of differences hold at once
LEVEL = 0.9
#: how the reason begins for which an estimate cannot be used at all
DIVERGED = "fitted Q evaluation diverged"


@dataclass(frozen=True)
class Valued:
    """What is estimated of a configuration.

    Attributes:
        configuration: its runs.
        discarded: run to why it is out.
        samples: the other runs' estimates.
        unsettled: of these, why an estimate may still move.
    """

    configuration: Configuration
    discarded: Mapping[Path, str]
    samples: Mapping[Path, Samples]
    unsettled: Mapping[Path, str] = field(default_factory=dict)

    @property
    def pooled(self) -> Samples:
        """The mean over the runs."""
        return Samples.mean_of(self.samples.values())

    @property
    def mean(self) -> float:
        """The estimated value; minus infinity if every run is out."""
        return float(self.pooled.by_start.mean()) if self.samples else -math.inf

    @property
    def seeds(self) -> list[tuple[float, int]]:
        """Variance of the mean that comes from the seeds, and its degrees of freedom.

        Nothing for a single run: what another seed would give is then not known.
        """
        by_run = [float(each.by_start.mean()) for each in self.samples.values()]
        if len(by_run) < 2:
            return []
        return [(float(np.var(by_run, ddof=1)) / len(by_run), len(by_run) - 1)]

    def interval(self, level: float) -> Estimate:
        """The estimate, with an interval of its own."""
        return self.pooled.estimate(level, self.seeds)

    def minus(self, other: Valued, level: float, comparisons: int = 1) -> Estimate:
        """The difference to another configuration.

        Args:
            other: what is subtracted.
            level: probability that all comparisons' intervals are to hold at once (Bonferroni).
            comparisons: how many there are.
        """
        difference = self.pooled - other.pooled
        return difference.estimate(1 - (1 - level) / comparisons, [*self.seeds, *other.seeds])


@dataclass(frozen=True)
class Choice:
    """What the estimates say.

    Attributes:
        chosen: the configuration to take.
        leader: the one with the highest estimate.
        ranked: all of them, the highest estimate first; those without a run left come last.
        behind: of each of the others that is not out, how far it lies below the leader.
    """

    chosen: Valued
    leader: Valued
    ranked: Sequence[Valued]
    behind: Sequence[tuple[Valued, Estimate]]

    @property
    def not_separated(self) -> list[Valued]:
        """Those that the data do not show to be worse than the leader."""
        return [v for v, gap in self.behind if not _exceeds(self.leader, v, gap)]


def _exceeds(leader: Valued, other: Valued, gap: Estimate) -> bool:
    """Whether the data show that the leader is better than another one, by this gap."""
    return gap.low > 0 and not leader.unsettled and not other.unsettled


def choose(
    candidates: Sequence[Configuration],
    samples: Mapping[Path, Samples],
    level: float = LEVEL,
    unsettled: Mapping[Path, str] | None = None,
) -> Choice:
    """Choose between configurations by their policies' estimated values.

    A run that the rule on mean Q rules out is no candidate, nor one whose estimate diverged. A
    configuration's value is the mean over its other runs. Two are told apart where both estimates
    have settled and the interval of their difference leaves out 0: the estimates share start states
    and bootstraps, so the differences are paired; the spread between seeds, over their number, adds
    to the variance. Since the same data name the one with the highest estimate, the intervals hold
    for all pairs at once (Bonferroni).

    Among the configurations that are not told apart from the highest, the one is taken whose
    interval begins highest: the least is risked with it (pessimism, as in
    https://arxiv.org/abs/2012.15085).

    Args:
        candidates: configurations of one data set.
        samples: run to its policy's estimate.
        level: probability that all intervals hold at once.
        unsettled: run to why its estimate has not settled, or has diverged.

    Raises:
        ValueError: if every run is out.
    """
    valued = []
    for configuration in candidates:
        moving = {run.path: (unsettled or {}).get(run.path, "") for run in configuration.runs}
        reasons = {
            run.path: why_discarded(run)
            or (moving[run.path] if moving[run.path].startswith(DIVERGED) else None)
            for run in configuration.runs
        }
        left = {path: samples[path] for path, reason in reasons.items() if reason is None}
        discarded = {path: reason for path, reason in reasons.items() if reason}
        moving = {path: why for path, why in moving.items() if why and path in left}
        valued.append(Valued(configuration, discarded, left, moving))
    ranked = sorted(valued, key=lambda v: -v.mean)
    able = [v for v in ranked if v.samples]
    if not able:
        raise ValueError(
            "every run is out: " + "; ".join(r for v in valued for r in v.discarded.values())
        )
    leader, *others = able
    pairs = len(able) * (len(able) - 1) // 2
    behind = [(other, leader.minus(other, level, pairs)) for other in others]
    tied = [leader, *(other for other, gap in behind if not _exceeds(leader, other, gap))]
    chosen = max(tied, key=lambda v: v.interval(level).low)
    return Choice(chosen, leader, ranked, behind)


def select_by_value(
    known: Sequence[tuple[Record, OfflineValues | None]],
    schedules: Mapping[str, Mapping[str, Any]],
    level: float = LEVEL,
) -> list[str]:
    """Choose between the configurations of some runs, and say what the data show.

    Args:
        known: runs on one data set with their values; None for those that their training rules out.
        schedules: by name, what each schedule sets.
        level: as for :func:`choose`.

    Returns:
        The lines of a report.

    Raises:
        ValueError: one line on what to change.
    """
    runs = [run for run, _ in known]
    dataset, found = check_one_dataset(runs), configurations(runs, schedules)
    measured = {run.path: values for run, values in known if values is not None}
    discounts = sorted({values.gamma for values in measured.values()})
    if len(discounts) > 1:
        raise ValueError(
            f"these runs discount by {' and '.join(map(str, discounts))}: returns can be compared "
            "at one discount factor only; choose within those of one"
        )
    samples = {path: values.samples["policy"] for path, values in measured.items()}
    if len({(len(x.by_start), len(x.by_member)) for x in samples.values()}) > 1:
        raise ValueError("these runs' values come from different held-out episodes: give --again")
    unsettled = {
        path: reason.removeprefix("policy: ")
        for path, values in measured.items()
        for reason in values.unsettled
        if reason.startswith("policy: ")
    }
    choice = choose(found, samples, level, unsettled)
    # the logged behaviour's estimate is the same for all of them
    first = next(iter(measured.values()))
    doubtful = any(reason.startswith("behaviour: ") for reason in first.unsettled)
    behaviour = None if doubtful else first.samples.get("behaviour")
    lines = [
        f"offline choice on {dataset}, by the discounted return that fitted Q evaluation estimates",
        "",
        *_table(choice, behaviour, level),
        *(f"out: {path}: {why}" for v in choice.ranked for path, why in v.discarded.items()),
        *(
            f"no difference to it is called: {path}: {why}"
            for v in choice.ranked
            for path, why in v.unsettled.items()
        ),
        "",
        *_verdict(choice, behaviour, level),
    ]
    return lines + compare_with_returns(choice.chosen.configuration, found)


def _table(choice: Choice, behaviour: Samples | None, level: float) -> list[str]:
    percent = f"{100 * level:g} %"
    columns = ["rank", "configuration", "runs", "out", f"estimated return ({percent})",
               f"the highest exceeds it by ({percent} for all at once)", "told apart"]  # fmt: skip
    gaps = {id(v): gap for v, gap in choice.behind}
    rows = []
    for place, v in enumerate(choice.ranked, 1):
        gap = gaps.get(id(v))
        rows.append([
            str(place) if v.samples else "-",
            v.configuration.name,
            str(len(v.configuration.runs)),
            str(len(v.discarded) or "-"),
            str(v.interval(level)) if v.samples else "-",
            str(gap) if gap else "-",
            ("yes" if _exceeds(choice.leader, v, gap) else "no") if gap else "-",
        ])  # fmt: skip
    if behaviour is not None:
        logged = behaviour.estimate(level)
        rows.append(["-", "the logged behaviour", "-", "-", str(logged), "-", "-"])
    return markdown(columns, rows)


def _verdict(choice: Choice, behaviour: Samples | None, level: float) -> list[str]:
    chosen, leader, tied = choice.chosen, choice.leader, choice.not_separated
    lines = [f"chosen: {chosen.configuration.name}"]
    if not choice.behind:
        lines.append("because no other configuration is left to compare it with")
    elif not tied:
        lines.append("because its estimate exceeds that of every other beyond what may be chance")
    else:
        names = "; ".join(v.configuration.name for v in tied)
        lines.append(f"the data do not separate {leader.configuration.name} from: {names}")
        lines.append(
            "of these the one is taken whose interval begins highest "
            f"({format_value(chosen.interval(level).low)}); with another it may be as well"
        )
    if behaviour is not None:
        difference = chosen.pooled - behaviour
        gain = difference.estimate(level, chosen.seeds)
        if chosen.unsettled:
            said = f"the data do not show whether it is better than the logged behaviour: {gain}"
        elif gain.low > 0:
            said = f"its estimate exceeds that of the logged behaviour, by {gain}"
        elif gain.high < 0:
            loss = Estimate(-gain.mean, -gain.high, -gain.low)
            said = f"its estimate lies below that of the logged behaviour, by {loss}"
        else:
            said = f"the data do not show whether it is better than the logged behaviour: {gain}"
        lines.append(said)
    if chosen.discarded:
        share = f"{len(chosen.discarded)} of its {len(chosen.configuration.runs)}"
        lines.append(f"note: {share} runs are out, and another seed's may be")
    best = max(chosen.samples, key=lambda path: float(chosen.samples[path].by_start.mean()))
    lines.append(f"run of the highest estimate in it: {best}")
    return lines
