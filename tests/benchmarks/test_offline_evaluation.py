"""What the study of offline estimates computes is right, and its trainings can be configured."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import offline_evaluation
import pytest
from offline_evaluation import Studied, choices, draw, regrets, row_of, spearman, told_apart
from offline_runs import RUNS, TASKS, configured

from rambo_trl.reporting.offline_values import Samples
from rambo_trl.reporting.runs import Record


def studied(
    name: str,
    truth: float,
    estimate: float,
    *,
    spread: float = 1.0,
    mean_q: Sequence[float] = (1.0, 1.0),
    unsettled: str | None = None,
) -> Studied:
    """A run whose true episodes deviate by 1, of which a hundred were played."""
    results = {"diverged": False, "q_bound": 100.0, "epochs": 2, "dataset": "d", "seed": 0,
               "schedule": "quick", "score": None, "method": "IQL"}  # fmt: skip
    rows = [{"epoch": i, "mean_q": q} for i, q in enumerate(mean_q, 1)]
    member = np.random.default_rng(sum(map(ord, name))).standard_normal(8)
    member = estimate + spread * (member - member.mean()) / member.std(ddof=1)
    played = truth + np.tile([-1.0, 1.0], 50)
    samples = Samples(np.full(20, estimate), member)
    return Studied(Record(Path(name), results, rows, {}), samples, unsettled, played, 10 * played)


def test_the_rank_correlation_is_that_of_the_ranks() -> None:
    # by hand: the ranks' differences are 1, 1, 1, 1, 0, and 1 - 6 * 4 / (5 * 24) = 0.8
    rho, low, high = spearman([1, 20, 300, 4000, 50000], [0.2, 0.1, 0.4, 0.3, 0.5])
    assert rho == pytest.approx(0.8)
    assert low < rho <= high <= 1
    assert spearman([1, 2, 3, 4], [9, 7, 5, 3])[0] == pytest.approx(-1)


def test_regret_is_a_share_of_the_range() -> None:
    assert regrets([10.0, 30.0, 20.0, 50.0]) == pytest.approx([1.0, 0.5, 0.75, 0.0])


def test_every_rule_takes_its_own() -> None:
    runs = [
        studied("surest", 20, 29, spread=0.5, mean_q=(1.0, 5.0)),
        studied("highest", 10, 30, spread=9.0, mean_q=(1.0, 4.0)),
        studied("steady", 5, 10, mean_q=(1.0, 1.1)),
        studied("beyond", 1, 90, mean_q=(1.0, 200.0)),
        studied(
            "unsettled", 1, 80, mean_q=(1.0, 3.0), unsettled="fitted Q evaluation diverged: beyond"
        ),
    ]
    taken = {rule: runs[i].name for rule, i in choices(runs).items()}
    assert taken == {
        "this rule": "surest", "highest estimate": "highest", "highest lower end": "surest",
        "steadiest mean Q": "steady",
    }  # fmt: skip
    without = [studied("a", 1, 1, mean_q=()), studied("b", 2, 2, mean_q=())]
    assert "steadiest mean Q" not in choices(without)


def test_pairs_are_wrong_only_where_the_truth_says_so() -> None:
    # a and b: told apart and right; c: above both although its truth is far below; d: the truth
    # of a and d differs by less than two standard errors
    a, b, c = studied("a", 10, 50), studied("b", 20, 90), studied("c", 0, 200)
    d = studied("d", 10.1, 20)
    assert told_apart([a, b]) == (1, 1, 0)
    assert told_apart([a, b, c]) == (3, 3, 2)
    assert told_apart([a, d]) == (1, 1, 0)
    assert told_apart([a, studied("m", 20, 90, unsettled="it moved")]) == (1, 0, 0)
    assert told_apart([a, studied("e", 0, 50.5)]) == (1, 0, 0)


def test_tables_and_figure_are_of_what_was_measured(tmp_path: Path) -> None:
    runs = [studied(name, 10 * i, 10 * i + 1) for i, name in enumerate("pqrst")]
    runs.append(studied("out", 70, 5, unsettled="fitted Q evaluation diverged: beyond"))
    row = row_of(runs[1])
    assert (row["estimate"], row["true_discounted"], row["true_return"]) == ("11", "10", "100")
    assert float(row["true_discounted_error"]) == pytest.approx(1.005 / 10, rel=1e-3)
    summary = offline_evaluation.summary_of("d", runs)
    assert (summary["rank correlation"], summary["runs"], summary["out"]) == ("1.00", 6, 1)
    assert (summary["taken"], summary["best"]) == ("t", "out")
    assert summary["lost: this rule"] == f"{30 / 70:.3f}"
    assert summary["lost: random"] == f"{(70 + 60 + 50 + 40 + 30) / 6 / 70:.3f}"
    offline_evaluation.write_table(tmp_path / "t.csv", [summary])
    with (tmp_path / "t.csv").open() as file:
        assert next(csv.DictReader(file))["pairs"] == "10"
    with pytest.raises(
        SystemExit,
        match=r"d: a ranking needs three .*\(out: fitted Q evaluation diverged: beyond\)",
    ):
        offline_evaluation.summary_of("d", runs[-3:])
    assert len(draw({"d": runs, "e": runs, "f": runs}).axes) == 4


@pytest.mark.parametrize("name", RUNS)
def test_trainings_are_configured(name: str, tmp_path: Path) -> None:
    fitted = str(tmp_path / "fitted")
    cfg = configured(TASKS[0], name, tmp_path, fitted)
    assert cfg.method == RUNS[name][0] and not cfg.compile and cfg.run_dir == str(tmp_path)
    assert cfg.get("fitted_model") == (fitted if cfg.method == "rambo" else None)
