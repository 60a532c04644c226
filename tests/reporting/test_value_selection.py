"""The choice by estimated values calls a difference only where the estimates show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rambo_trl.reporting.offline_values import OfflineValues, Samples
from rambo_trl.reporting.runs import Configuration, Record
from rambo_trl.reporting.value_selection import choose, select_by_value

DRAWS = 10


def record(name: str, *, mean_q: Sequence[float] = (1.0, 1.0), seed: int = 0) -> Record:
    results = {"diverged": False, "q_bound": 100.0, "epochs": len(mean_q), "dataset": "d",
               "seed": seed, "schedule": "quick", "score": None, "method": name}  # fmt: skip
    rows = [{"epoch": i, "mean_q": q} for i, q in enumerate(mean_q, 1)]
    return Record(Path(name) / str(seed), results, rows, {})


def configuration(*runs: Record) -> Configuration:
    return Configuration("d", runs[0].results["method"], "quick", {}, {}, runs)


def noise(seed: int, size: float) -> np.ndarray:
    """Of mean 0 and the given standard deviation [DRAWS]."""
    x = np.random.default_rng(seed).standard_normal(DRAWS)
    return size * (x - x.mean()) / x.std(ddof=1)


def around(level: float, by_member: np.ndarray) -> Samples:
    """An estimate whose start states are all alike."""
    return Samples(np.full(50, level), level + by_member)


def report(
    runs: Sequence[Record],
    samples: Mapping[Path, Samples],
    behaviour: Samples | None = None,
    **given: Any,
) -> str:
    known = [
        (
            run,
            OfflineValues(
                dataset="d",
                gamma=0.99,
                confidence=0.9,
                value_std=1.0,
                held_out={},
                values={},
                differences={},
                samples={"policy": samples[run.path]}
                | ({"behaviour": behaviour} if behaviour else {}),
                **given,
            ),
        )
        for run in runs
    ]
    return "\n".join(select_by_value(known, {}))


def test_a_clear_winner_is_chosen() -> None:
    runs = {name: record(name) for name in ("low", "high", "middle")}
    samples = {
        runs[name].path: around(level, noise(i, 1.0))
        for i, (name, level) in enumerate((("low", 0.0), ("high", 40.0), ("middle", 20.0)))
    }
    choice = choose([configuration(run) for run in runs.values()], samples)
    assert choice.chosen is choice.leader
    assert [v.configuration.method for v in choice.ranked] == ["high", "middle", "low"]
    assert choice.not_separated == []
    text = report(list(runs.values()), samples)
    assert "chosen: high, quick\nbecause its estimate exceeds that of every other" in text


def test_a_difference_within_chance_is_not_called_and_the_surer_one_taken() -> None:
    # the higher estimate by 1, but it varies by 5 where the other varies by 0.5
    sure, wild = record("sure"), record("wild")
    samples = {sure.path: around(10, noise(0, 0.5)), wild.path: around(11, noise(1, 5.0))}
    choice = choose([configuration(sure), configuration(wild)], samples)
    assert choice.leader.configuration.method == "wild"
    assert [v.configuration.method for v in choice.not_separated] == ["sure"]
    assert choice.chosen.configuration.method == "sure"
    lines = report([sure, wild], samples).splitlines()
    assert "chosen: sure, quick" in lines
    assert "the data do not separate wild, quick from: sure, quick" in lines


def test_differences_are_paired() -> None:
    # what moves both alike, such as the episodes that were drawn, is no reason for doubt
    common, hard = noise(0, 50.0), np.random.default_rng(3).normal(size=40, scale=30.0)
    own = np.random.default_rng(4).normal(size=40)
    a, b = record("a"), record("b")
    samples = {
        a.path: Samples(hard, common + noise(1, 0.1)),
        b.path: Samples(hard + 1 + own - own.mean(), common + 1 + noise(2, 0.1)),
    }
    choice = choose([configuration(a), configuration(b)], samples, level=0.9)
    assert choice.chosen.configuration.method == "b" and choice.not_separated == []
    ((_, gap),) = choice.behind
    parts = own.var(ddof=1) / 40, (noise(2, 0.1) - noise(1, 0.1)).var(ddof=1)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 39 + parts[1] ** 2 / (DRAWS - 1))
    reach = stats.t.ppf(0.95, freedom) * np.sqrt(sum(parts))
    assert (gap.mean, gap.low, gap.high) == pytest.approx((1.0, 1.0 - reach, 1.0 + reach))


def test_the_spread_between_seeds_counts() -> None:
    # each run's value is known well, but the configuration's depends on the seed
    steady = [record("steady", seed=s) for s in range(3)]
    chance = [record("chance", seed=s) for s in range(3)]
    samples = {run.path: around(10, noise(s, 0.1)) for s, run in enumerate(steady)}
    samples |= {
        run.path: around(level, noise(s + 3, 0.1))
        for s, (run, level) in enumerate(zip(chance, (0.0, 12.0, 24.0), strict=True))
    }
    candidates = [configuration(*steady), configuration(*chance)]
    choice = choose(candidates, samples)
    assert choice.leader.mean == pytest.approx(12.0)
    assert choice.leader.seeds == [(pytest.approx(144.0 / 3), 2)]
    assert choice.chosen.configuration.method == "steady"
    # without that spread the two are told apart
    alone = {run.path: around(12, noise(s + 3, 0.1)) for s, run in enumerate(chance)}
    assert choose(candidates, samples | alone).chosen.configuration.method == "chance"


def test_more_comparisons_ask_for_more() -> None:
    runs = [record(f"r{i}") for i in range(12)]
    samples = {run.path: around(0.0, noise(i, 1.0)) for i, run in enumerate(runs)}
    samples[runs[0].path] = around(4.5, noise(0, 1.0))
    two = choose([configuration(run) for run in runs[:2]], samples)
    assert two.not_separated == []
    assert choose([configuration(run) for run in runs], samples).not_separated


def test_the_rule_on_mean_q_filters() -> None:
    good, beyond, short = (
        record("good"),
        record("beyond", mean_q=(1.0, 101.0)),
        record("short", mean_q=(1.0,)),
    )
    clone = record("clone", mean_q=())  # a method without critics is not ruled out by them
    runs = [good, beyond, short, clone]
    samples = {
        run.path: around(level, noise(i, 1.0))
        for i, (run, level) in enumerate(zip(runs, (10.0, 90.0, 80.0, 0.0), strict=True))
    }
    choice = choose([configuration(run) for run in runs], samples)
    assert choice.chosen.configuration.method == "good"
    assert [v.configuration.method for v in choice.ranked[:2]] == ["good", "clone"]
    text = report(runs, samples)
    assert f"out: {beyond.path}: epoch 2: mean Q 101 is beyond" in text
    assert f"out: {short.path}: fewer than two epochs" in text
    with pytest.raises(ValueError, match="every run is out"):
        choose([configuration(beyond)], samples)


def test_the_logged_behaviour_is_compared_with() -> None:
    run = record("a")
    samples = {run.path: around(10, noise(0, 1.0))}
    for behaviour, expected in (
        (0.0, "its estimate exceeds that of the logged behaviour, by 10 ("),
        (9.5, "the data do not show whether it is better than the logged behaviour: 0.5 ("),
        (20.0, "its estimate lies below that of the logged behaviour, by 10 ("),
    ):
        logged = around(behaviour, noise(1, 1.0))
        text = report([run], samples, logged)
        assert expected in text


def test_no_difference_to_an_estimate_that_has_not_settled_is_called() -> None:
    low, high = record("low"), record("high")
    samples = {low.path: around(0.0, noise(0, 1.0)), high.path: around(50.0, noise(1, 1.0))}
    candidates = [configuration(low), configuration(high)]
    assert choose(candidates, samples).not_separated == []
    for run in (low, high):
        choice = choose(candidates, samples, unsettled={run.path: "it moved"})
        assert len(choice.not_separated) == 1 and choice.leader.configuration.method == "high"
    diverged = {high.path: "fitted Q evaluation diverged: beyond"}
    choice = choose(candidates, samples, unsettled=diverged)
    assert choice.chosen.configuration.method == "low" and choice.behind == []
    logged = around(-50.0, noise(1, 1.0))
    text = report([high], samples, logged, unsettled=("policy: it moved",))
    assert f"no difference to it is called: {high.path}: it moved" in text
    assert "the data do not show whether it is better than the logged behaviour: 100 (" in text
    assert "logged behaviour" not in report([high], samples, logged, unsettled=("behaviour: it",))


def test_samples_are_kept_with_the_values(tmp_path: Path) -> None:
    one = around(3.0, noise(0, 1.0))
    values = OfflineValues("d", 0.99, 0.9, 1.0, {}, {}, {}, samples={"policy": one})
    values.write(tmp_path)
    read = OfflineValues.read(tmp_path).samples["policy"]
    assert read.by_start == pytest.approx(one.by_start)
    assert read.by_member == pytest.approx(one.by_member)
