"""How well offline estimates rank policies: ``python benchmarks/offline_evaluation.py RUN ...``.

Each run's policy is valued by fitted Q evaluation and played in its environment, from seeds that no
training has. By data set: the rank correlation of estimate and truth, how often the choice's
intervals tell two policies apart and are wrong, and what is lost by choosing by each rule. Runs of
different quality come from ``offline_runs.py``. What was measured stays in the run's folder, as
``offline_study.json``. Writes ``runs.csv``, ``summary.csv`` and ``values.png``.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from measuring import add_out, at_least, markdown_table
from scipy import stats

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.episodes import rollout_episodes
from rambo_trl.experiment.policy import load_policy
from rambo_trl.reporting.offline_evaluation import OfflineEvaluation, act_by, samples_of
from rambo_trl.reporting.offline_values import Samples
from rambo_trl.reporting.runs import Configuration, Record, find_runs
from rambo_trl.reporting.selection import WINDOW, why_discarded, window_of
from rambo_trl.reporting.value_selection import DIVERGED, LEVEL, Valued, choose
from rambo_trl.runtime.drawing import BLUE, GREY, ORANGE, add_legend, styled

#: seed of the first true episode, beyond those of trainings' evaluations
SEED = 900_000_000
GAMMA = 0.99
FILE = "offline_study.json"
#: what a choice can go by; ``select_run.py`` goes by the first
RULES = ("this rule", "highest estimate", "highest lower end", "steadiest mean Q", "random")


@dataclass(frozen=True, eq=False)
class Studied:
    """A run with its estimate and what its policy gets.

    Attributes:
        record: the run.
        samples: the estimate of the discounted return.
        unsettled: why it cannot be used, if so.
        discounted: returns of the true episodes, discounted [episodes].
        returns: and undiscounted [episodes].
    """

    record: Record
    samples: Samples
    unsettled: str | None
    discounted: np.ndarray
    returns: np.ndarray

    @property
    def name(self) -> str:
        """The folder's."""
        return self.record.path.name

    @property
    def truth(self) -> float:
        """The mean discounted return."""
        return float(self.discounted.mean())

    @property
    def error(self) -> float:
        """Its standard error."""
        return standard_error(self.discounted)

    @property
    def configuration(self) -> Configuration:
        """The run as a configuration of its own."""
        run = self.record
        return Configuration(run.results["dataset"], self.name, run.method, {}, {}, [run])

    @property
    def out(self) -> str | None:
        """Why the choice discards it, if so."""
        diverged = (self.unsettled or "").startswith(DIVERGED)
        return why_discarded(self.record) or (self.unsettled if diverged else None)

    @property
    def valued(self) -> Valued:
        """As the choice sees it."""
        return Valued(self.configuration, {}, {self.record.path: self.samples})


def standard_error(x: np.ndarray) -> float:
    """Of the mean."""
    return float(x.std(ddof=1)) / len(x) ** 0.5


def spearman(
    estimates: Sequence[float], truths: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Spearman's rank correlation and its 90 % interval, by bootstrap over the runs."""
    x, y = np.asarray(estimates), np.asarray(truths)
    generator = np.random.default_rng(seed)
    drawn = []
    for rows in generator.integers(len(x), size=(resamples, len(x))):
        if np.ptp(x[rows]) > 0 and np.ptp(y[rows]) > 0:  # otherwise it is not defined
            drawn.append(stats.spearmanr(x[rows], y[rows]).statistic)
    low, high = np.quantile(drawn, (0.05, 0.95))
    return float(stats.spearmanr(x, y).statistic), float(low), float(high)


def regrets(truths: Sequence[float]) -> np.ndarray:
    """What each run loses against the best, as a share of the range from worst to best [runs]."""
    y = np.asarray(truths, dtype=float)
    return (y.max() - y) / np.ptp(y)


def choices(runs: Sequence[Studied], level: float = LEVEL) -> dict[str, int]:
    """Which run each of :data:`RULES` but the last takes, where it can: its place in ``runs``."""
    places = {run.record.path: i for i, run in enumerate(runs)}
    unsettled = {run.record.path: run.unsettled for run in runs if run.unsettled}
    samples = {run.record.path: run.samples for run in runs}
    choice = choose([run.configuration for run in runs], samples, level, unsettled)
    able = [v for v in choice.ranked if v.samples]

    def place(valued: Valued) -> int:
        return places[next(iter(valued.samples))]

    taken = {
        "this rule": place(choice.chosen),
        "highest estimate": place(choice.leader),
        "highest lower end": place(max(able, key=lambda v: v.interval(level).low)),
    }
    judged = [
        run.record
        for run in runs
        if len(run.record.series("mean_q")[1]) > 1 and not why_discarded(run.record)
    ]
    if judged:
        window = window_of(judged, WINDOW)
        strays = {run.path: float(np.std(run.series("mean_q")[1][-window:])) for run in judged}
        taken["steadiest mean Q"] = places[min(strays, key=lambda path: strays[path])]
    return taken


def told_apart(runs: Sequence[Studied], level: float = LEVEL) -> tuple[int, int, int]:
    """Pairs of runs; those that the choice's intervals tell apart; those of these that are wrong.

    Wrong is an order against which the truth speaks by more than two standard errors.
    """
    pairs = list(combinations(runs, 2))
    apart = wrong = 0
    for a, b in pairs:
        gap = a.valued.minus(b.valued, level, len(pairs))
        if gap.excludes_zero and not a.unsettled and not b.unsettled:
            apart += 1
            error = float(np.hypot(a.error, b.error))
            wrong += (a.truth - b.truth) * np.sign(gap.mean) < -2 * error
    return len(pairs), apart, wrong


def study(run: Record, evaluation: OfflineEvaluation, args: argparse.Namespace) -> None:
    """Measure a run and write the numbers into its folder."""
    policy = load_policy(run.path)
    played = rollout_episodes(
        policy, policy.environment, num_episodes=args.episodes, seed=SEED, gamma=GAMMA
    )
    fitted = evaluation.fit(act_by(policy.actor))
    first = torch.from_numpy(evaluation.blocks.held_out_rows[:, 0])
    starts = evaluation.data.transitions[first]
    samples = samples_of(fitted.values(starts).double().numpy())
    content = {
        "fit": fit_settings(args),
        "by_start": samples.by_start.tolist(),
        "by_member": samples.by_member.tolist(),
        "unsettled": fitted.unsettled,
        "discounted": played.discounted_returns.tolist(),
        "returns": played.returns.tolist(),
    }
    (run.path / FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def fit_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the fit."""
    return {
        "updates": args.updates,
        "regression_updates": args.updates // 6,
        "hidden_sizes": [args.width] * 2,
    }


def read(run: Record) -> Studied:
    """A run with what :func:`study` measured."""
    content = json.loads((run.path / FILE).read_text(encoding="utf-8"))
    arrays = {k: np.array(content[k]) for k in ("by_start", "by_member", "discounted", "returns")}
    return Studied(
        run,
        Samples(arrays["by_start"], arrays["by_member"]),
        content["unsettled"],
        arrays["discounted"],
        arrays["returns"],
    )


def row_of(run: Studied) -> dict[str, Any]:
    """A run's row of ``runs.csv``."""
    record, estimate = run.record, run.valued.interval(LEVEL)
    strays = record.series("mean_q")[1]
    numbers = {
        "estimate": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "true_discounted": run.truth,
        "true_discounted_error": run.error,
        "true_return": float(run.returns.mean()),
        "true_return_error": standard_error(run.returns),
    }
    return {
        "set": record.results["dataset"],
        "run": run.name,
        "method": record.method,
        "agent_updates": record.results.get("agent_updates", ""),
        **{key: f"{number:.5g}" for key, number in numbers.items()},
        "episodes": len(run.returns),
        "epochs_of_mean_q": len(strays),
        "out": run.out or "",
        "unsettled": run.unsettled or "",
    }


def summary_of(name: str, runs: Sequence[Studied]) -> dict[str, Any]:
    """A data set's row of ``summary.csv``, over the runs that the choice does not discard."""
    able = [run for run in runs if run.out is None]
    if len(able) < 3:
        reasons = "; ".join(f"{run.name}: {run.out}" for run in runs if run.out)
        raise SystemExit(f"{name}: a ranking needs three usable estimates ({reasons})")
    estimates, truths = [run.valued.mean for run in able], [run.truth for run in able]
    rho, low, high = spearman(estimates, truths)
    undiscounted = stats.spearmanr(estimates, [run.returns.mean() for run in able]).statistic
    pairs, apart, wrong = told_apart(able)
    intervals = [run.valued.interval(LEVEL) for run in able]
    held = sum(
        i.low - 2 * run.error <= run.truth <= i.high + 2 * run.error
        for i, run in zip(intervals, able, strict=True)
    )
    lost = regrets([run.truth for run in runs])
    taken = choices(runs)
    by_rule = {rule: lost[taken[rule]] for rule in RULES[:-1] if rule in taken}
    by_rule[RULES[-1]] = lost.mean()
    return {
        "set": name,
        "runs": len(runs),
        "out": len(runs) - len(able),
        "not settled": sum(run.unsettled is not None for run in able),
        "rank correlation": f"{rho:.2f}",
        "low": f"{low:.2f}",
        "high": f"{high:.2f}",
        "with undiscounted": f"{undiscounted:.2f}",
        "intervals that hold the truth": held,
        "pairs": pairs,
        "told apart": apart,
        "of these wrong": wrong,
        "taken": runs[taken["this rule"]].name,
        "best": max(runs, key=lambda run: run.truth).name,
        **{f"lost: {rule}": f"{by_rule[rule]:.3f}" if rule in by_rule else "" for rule in RULES},
    }


@styled(grid="both")
def draw(sets: Mapping[str, Sequence[Studied]]) -> Figure:
    """Estimate with its interval against truth, a panel for each data set."""
    columns = min(2, len(sets))
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(5 * columns, 4 * rows))
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(sets) :]:
        axes.set_visible(False)
    for axes, (name, runs) in zip(panels.flat, sets.items(), strict=False):
        taken = choices(runs)["this rule"]
        for i, run in enumerate(runs):
            estimate = run.valued.interval(LEVEL)
            color = GREY if run.out else ORANGE if i == taken else BLUE
            label = "discarded" if run.out else "chosen" if i == taken else "not chosen"
            axes.errorbar(
                run.truth,
                estimate.mean,
                xerr=run.error,
                yerr=[[estimate.mean - estimate.low], [estimate.high - estimate.mean]],
                fmt="o",
                ms=4,
                lw=1,
                color=color,
                label=label,
            )
        truths = [run.truth for run in runs]
        ends = [min(truths), max(truths)]
        axes.plot(ends, ends, color=GREY, lw=1, ls="--", label="estimate = truth")
        axes.set(title=name, xlabel="true discounted return", ylabel="estimate, 90 % interval")
    add_legend(figure)
    return figure


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def by_set(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Runs by data set, ordered by name."""
    sets: dict[str, list[Record]] = {}
    for run in sorted(records, key=lambda run: (run.results["dataset"], run.path.name)):
        sets.setdefault(run.results["dataset"], []).append(run)
    return sets


def main() -> None:
    """Measure what is missing, write tables and figure, print the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders of them")
    parser.add_argument("--episodes", type=at_least(2), default=20, help="true ones of each run")
    parser.add_argument("--updates", type=at_least(1), default=3000, help="of each evaluation")
    parser.add_argument("--width", type=at_least(1), default=128, help="of the critics' layers")
    add_out(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = by_set(find_runs(args.runs)[0])
    for name, records in sets.items():
        missing = [run for run in records if not (run.path / FILE).exists()]
        if missing:
            data = OfflineDataset.load(name, reward_scale=1.0)
            evaluation = OfflineEvaluation(data, gamma=GAMMA, fit=fit_settings(args))
        for run in missing:
            print(f"{name}: {run.path.name}", flush=True)
            study(run, evaluation, args)
    studied = {name: [read(run) for run in records] for name, records in sets.items()}
    out = Path(args.out)
    write_table(out / "runs.csv", [row_of(run) for runs in studied.values() for run in runs])
    summary = [summary_of(name, runs) for name, runs in studied.items()]
    write_table(out / "summary.csv", summary)
    draw(studied).savefig(out / "values.png")
    rows = [[str(cell) for cell in row.values()] for row in summary]
    print(markdown_table(list(summary[0]), rows))


if __name__ == "__main__":
    main()
