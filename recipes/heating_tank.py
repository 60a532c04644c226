"""A heating tank and its logs: a plant that is not MuJoCo, to see whether a report is right.

``python recipes/heating_tank.py log tank.csv`` writes what a plant's historian would have: batches
of an hour under PI controllers, every batch tuned a little differently, with missing readings and
an outage now and then. Policies are trained and judged from that file alone. Afterwards
``python recipes/heating_tank.py evaluate RUN...`` plays them in the simulator: the truth, which the
user of a real plant does not have. docs/tutorials/heating_tank.md goes all the way.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import launcher.starting  # noqa: F401
import numpy as np
from launcher.offline import NO_DISCOUNT
from launcher.tank import (
    ACTIONS,
    DISCOUNTED_STEPS,
    OBSERVATIONS,
    REWARD,
    STEP_S,
    STEPS,
    Array,
    Bools,
    Operation,
    Played,
    play,
)
from matplotlib.figure import Figure
from scipy.stats import binomtest

from rambo_trl import load_policy
from rambo_trl.reporting.offline_values import OFFLINE_VALUES_FILE, OfflineValues
from rambo_trl.reporting.offline_verdict import MOST_OUTSIDE, SMALL, verdict
from rambo_trl.runtime.drawing import BLACK, BLUE, GREY, ORANGE, styled

Interval = tuple[float, float, float]  #: a mean and the ends of its interval


def write_log(path: Path, *, batches: int, seed: int) -> None:
    """Write batches under PI control to a CSV, a row a step and one with the last readings.

    A reading is missing in one row of a hundred, and one batch of ten has an outage of 10 rows.
    """
    played = play(Operation(seed, batches), batches=batches, seed=seed, steps=STEPS)
    random = np.random.default_rng([seed, 1])
    start = datetime(2026, 1, 5, 6)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["timestamp", "batch", "operator", *OBSERVATIONS, *ACTIONS, "line_bar", "trip"]
        )
        for batch in range(batches):
            steps = int(np.isfinite(played.actions[:, batch, 0]).sum())
            operator = random.choice(["Anna", "Boris", "Chen"])
            outage = random.integers(steps) if random.random() < 0.1 else steps + 1
            for step in range(steps + 1):
                cells = [f"{x:.4g}" for x in played.readings[step, batch]]
                if random.random() < 0.01:
                    cells[random.integers(len(cells))] = ""
                # nothing is set behind the end
                power, flow = ("", "")
                if step < steps:
                    set_power, set_flow = played.actions[step, batch]
                    power, flow = f"{set_power:.0f}", f"{set_flow:.4f}"
                trip = int(played.trips[batch] and step == steps)
                time = start + timedelta(seconds=STEP_S * step)
                if not outage <= step < outage + 10:
                    row = [time.isoformat(), batch, operator, *cells, power, flow, 3.0, trip]
                    writer.writerow(row)
            start += timedelta(hours=1.5)


@dataclass(frozen=True)
class Truth:
    """What the simulator says of a policy, beside what was said without it.

    Attributes:
        run: name of the run's folder.
        batch_return: mean return of a batch, with the ends of its 95 % interval, as all below.
        gain: its mean difference from the PI controllers' on the same batches.
        discounted_gain: the same of the discounted return, which the report estimates.
        trips: share of the batches that trip.
        reported: the report's estimate of ``discounted_gain``; None without one.
        verdict: the report's; None without one.
        right: whether the verdict was, by :func:`is_right`.
    """

    run: str
    batch_return: Interval
    gain: Interval
    discounted_gain: Interval
    trips: Interval
    reported: Interval | None = None
    verdict: str | None = None
    right: bool | None = None


def mean_of(values: Array) -> Interval:
    """Mean of independent values, with the ends of its 95 % interval."""
    mean, half = values.mean(), 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return float(mean), float(mean - half), float(mean + half)


def share_of(events: Bools) -> Interval:
    """Share of events, with the ends of its 95 % interval (Clopper and Pearson)."""
    interval = binomtest(int(events.sum()), len(events)).proportion_ci()
    return float(events.mean()), float(interval.low), float(interval.high)


def is_right(
    verdict: str, gain: Interval, reported: Interval, *, small: float, outside: bool
) -> bool:
    """Whether a verdict was right about a policy's true gain over the logged control.

    "better" is, where the gain is above 0; "not better", where it is not above what counts as a
    difference; both beyond the simulation's own interval. "cannot tell" is right only where the
    policy leaves the data, or where the true gain is smaller than half of the reported interval, so
    that this much data could not have told it.

    Args:
        verdict: the report's.
        gain: the true one.
        reported: the report's estimate of it.
        small: what counts as a difference.
        outside: whether most of the policy's actions are ones that the data hardly ever show.
    """
    if verdict == "better":
        return gain[1] > 0
    if verdict == "not better":
        return gain[2] < small
    return outside or abs(gain[0]) < (reported[2] - reported[1]) / 2


def truth_of(run: Path, played: Played, logged: Played) -> Truth:
    """Compare a policy with the PI controllers on the same starts and disturbances."""
    judged = (run / OFFLINE_VALUES_FILE).is_file()
    values = OfflineValues.read(run) if judged else None
    gamma = NO_DISCOUNT if values is None else values.gamma  # the report's
    truth = Truth(
        run.name,
        mean_of(played.returns),
        mean_of(played.returns - logged.returns),
        mean_of(played.discounted(gamma) - logged.discounted(gamma)),
        share_of(played.trips),
    )
    if values is None:
        return truth
    label, estimate = verdict(values).label, values.difference("behaviour", "fqe")
    reported = (0.0, -np.inf, np.inf) if estimate is None else astuple(estimate)
    outside = values.checks["action_share_outside"] > MOST_OUTSIDE
    small = SMALL * values.value_std
    right = is_right(label, truth.discounted_gain, reported, small=small, outside=outside)
    return replace(truth, reported=reported, verdict=label, right=right)


def evaluate_runs(runs: Sequence[Path], *, batches: int, seed: int) -> list[Truth]:
    """Play PI controllers such as the logged ones, and the runs' policies."""

    def played(controller: Callable[[Array], Array]) -> Played:
        return play(controller, batches=batches, seed=seed, steps=DISCOUNTED_STEPS)

    logged = played(Operation(seed, batches))
    truths = [truth_of(Path("PI control"), logged, logged)]
    for run in runs:
        truths.append(truth_of(run, played(load_policy(run)), logged))
    return truths


HEADER = "| policy | return of a batch | gain | trips | true discounted gain | reported | verdict |"


def as_table(truths: Sequence[Truth]) -> list[str]:
    """A Markdown table, the best policy first."""
    lines = [HEADER, "|---|---|---|---|---|---|---|"]
    for truth in sorted(truths, key=lambda truth: -truth.batch_return[0]):
        said = "" if truth.verdict is None else f"{truth.verdict}: {RIGHT[truth.right]}"
        numbers = (truth.batch_return, truth.gain, truth.discounted_gain, truth.reported)
        cells = ["" if x is None else "{:.1f} ({:.1f} to {:.1f})".format(*x) for x in numbers]
        cells.insert(2, "{:.1%} ({:.1%} to {:.1%})".format(*truth.trips))
        lines.append(f"| {truth.run} | {' | '.join(cells)} | {said} |")
    return lines


RIGHT = {True: "right", False: "wrong", None: ""}


def write_truths(truths: Sequence[Truth], path: Path) -> None:
    """Write a CSV file with one row a policy."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ends = ("", "_low", "_high")
        names = ("batch_return", "gain", "discounted_gain", "trips", "reported")
        writer.writerow(["run", *(f"{n}{e}" for n in names for e in ends), "verdict", "right"])
        for truth in truths:
            intervals = [getattr(truth, name) or ("", "", "") for name in names]
            cells = [f"{x:.4g}" if x != "" else "" for interval in intervals for x in interval]
            writer.writerow([truth.run, *cells, truth.verdict, truth.right])


COLOURS = {"better": BLUE, "not better": ORANGE, "cannot tell": GREY}


@styled()
def draw(truths: Sequence[Truth], path: Path) -> None:
    """Draw the reported gain of every judged policy over the true one."""
    judged = [truth for truth in truths if truth.reported is not None]
    figure = Figure(figsize=(6.4, 5.2), dpi=130)
    axes = figure.subplots()
    for label, colour in COLOURS.items():
        found = [truth for truth in judged if truth.verdict == label]
        if not found:
            continue
        true, said = (np.array([getattr(t, k) for t in found]).T for k in SIDES)
        axes.errorbar(
            true[0],
            said[0],
            xerr=np.abs(true[1:] - true[0]),
            yerr=np.abs(said[1:] - said[0]),
            fmt="o",
            color=colour,
            label=f"report: {label}",
        )
        for truth, x, y in zip(found, true[0], said[0], strict=True):
            axes.annotate(truth.run, (x, y), (5, 4), textcoords="offset points", fontsize=7)
    axes.axline((0, 0), slope=1, color=BLACK, lw=0.8)
    axes.axhline(0, color=BLACK, lw=0.5, ls=":")
    axes.axvline(0, color=BLACK, lw=0.5, ls=":")
    axes.set_xlabel("true gain in discounted return (simulator, 95 %)")
    axes.set_ylabel("gain in the report (log alone, 90 %)")
    axes.legend(loc="upper left")
    figure.savefig(path)


SIDES = ("discounted_gain", "reported")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a log, or play policies; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    log = commands.add_parser("log", help="write the log of a plant under PI control")
    log.add_argument("out", type=Path, metavar="CSV")
    log.add_argument("--batches", type=int, default=150, help="default: %(default)s")
    log.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    evaluate = commands.add_parser("evaluate", help="play runs' policies in the simulator")
    evaluate.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    evaluate.add_argument("--batches", type=int, default=400, help="default: %(default)s")
    evaluate.add_argument("--seed", type=int, default=1_000_000, help="default: %(default)s")
    evaluate.add_argument("--out", type=Path, help="a folder for table, figure and numbers")
    options = parser.parse_args(arguments)
    try:
        if options.command == "log":
            write_log(options.out, batches=options.batches, seed=options.seed)
            print(f"{options.out}: {options.batches} batches; reward: {REWARD}")
        else:
            truths = evaluate_runs(options.runs, batches=options.batches, seed=options.seed)
            table = "\n".join(as_table(truths))
            print(table)
            judged = [truth for truth in truths if truth.verdict]
            if judged:
                right = sum(truth.right is True for truth in judged)
                print(f"\n{right} of {len(judged)} verdicts are right")
            if options.out:
                options.out.mkdir(parents=True, exist_ok=True)
                write_truths(truths, options.out / "truth.csv")
                if judged:
                    draw(truths, options.out / "truth.png")
                (options.out / "table.md").write_text(table + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
