"""A run that has diverged is noticed; one that has not is left alone."""

from __future__ import annotations

import math

import pytest

from rambo_trl.training.divergence import DivergenceMonitor


def test_mean_q_beyond_what_the_rewards_allow_is_found() -> None:
    monitor = DivergenceMonitor(max_abs_reward=4.0, gamma=0.99, margin=2.0)
    assert monitor.q_bound == pytest.approx(800.0)
    assert monitor.check({"mean_q": 799.0}) is None
    assert monitor.check({"mean_q": -799.0}) is None
    assert "mean Q 801" in (monitor.check({"mean_q": 801.0}) or "")
    assert "mean Q -801" in (monitor.check({"mean_q": -801.0}) or "")


def test_a_model_that_has_left_the_data_is_found() -> None:
    monitor = DivergenceMonitor(max_abs_reward=1.0, gamma=0.9, max_model_error=5.0)
    assert monitor.check({"model_error": 4.9, "mean_q": 0.0}) is None
    assert "error on the data, 5.1" in (monitor.check({"model_error": 5.1}) or "")
    assert DivergenceMonitor(1.0, 0.9).check({"model_error": 1e9}) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_named(value: float) -> None:
    monitor = DivergenceMonitor(max_abs_reward=1.0, gamma=0.9)
    found = monitor.check({"mean_q": 0.0, "loss_model": value, "score": None})
    assert found == "not finite: loss_model"


def test_missing_metrics_are_no_divergence() -> None:
    assert DivergenceMonitor(1.0, 0.9).check({"epoch": 3, "score": None}) is None


@pytest.mark.parametrize(
    ("reward", "gamma", "word"), [(math.nan, 0.9, "max_abs_reward"), (1.0, 1.0, "gamma")]
)
def test_settings_without_a_bound_are_refused(reward: float, gamma: float, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        DivergenceMonitor(reward, gamma)
