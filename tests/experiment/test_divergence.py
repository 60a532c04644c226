"""A run that has diverged is noticed; one that has not is left alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded
from torchrl.objectives import SACLoss

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.data import RealModelReplayBuffer, make_replay_buffer
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.divergence import DivergenceMonitor, model_error_bound
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss, EnsembleModelLoss
from rambo_trl.training.phases import AgentPhase, ModelPhase
from rambo_trl.training.pretraining import fit_world_model


def test_mean_q_beyond_what_the_rewards_allow_is_found() -> None:
    monitor = DivergenceMonitor(max_abs_reward=4.0, gamma=0.99, margin=2.0)
    assert monitor.q_bound == pytest.approx(800.0)
    assert monitor.check({"mean_q": 799.0}) is None
    assert monitor.check({"mean_q": -799.0}) is None
    assert "mean Q 801" in (monitor.check({"mean_q": 801.0}) or "")
    assert "mean Q -801" in (monitor.check({"mean_q": -801.0}) or "")


def test_the_entropy_that_sac_adds_to_the_rewards_is_allowed_for() -> None:
    # small rewards and a temperature that starts at 1: the critics hold entropy at first
    monitor = DivergenceMonitor(max_abs_reward=0.05, gamma=0.99)
    assert monitor.q_bound == pytest.approx(10.0)
    assert monitor.check({"mean_q": 100.0, "alpha": 0.9, "entropy": -4.0}) is None
    assert monitor.q_bound == pytest.approx(2 * (0.05 + 3.6) / 0.01)
    # they lag behind the temperature
    assert monitor.check({"mean_q": 700.0, "alpha": 0.01, "entropy": -4.0}) is None
    assert "mean Q 731" in (monitor.check({"mean_q": 731.0, "alpha": 0.01, "entropy": 0.0}) or "")


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


def steps_and_rewards(num: int = 1000, size: int = 11) -> TensorDict:
    """Transitions whose steps and rewards can be predicted but for some noise."""
    observation, action = torch.randn(num, size), 2 * torch.rand(num, 1) - 1
    following = 0.9 * observation + 0.3 * action + 0.05 * torch.randn(num, size)
    ended = torch.zeros(num, 1, dtype=torch.bool)
    return TensorDict(
        observation=observation,
        action=action,
        next=TensorDict(
            observation=following,
            reward=action + 0.3 * torch.randn(num, 1),
            terminated=ended,
            done=ended.clone(),
            batch_size=[num],
        ),
        batch_size=[num],
    )


#: variances of the steps 1 and 0, so that the least is 0.005, and of the rewards 5
ROWS = TensorDict(
    observation=torch.ones(2, 2),
    next=TensorDict(
        observation=torch.tensor([[2.0, 1.0], [4.0, 1.0]]),
        reward=torch.tensor([[-(5.0**0.5)], [5.0**0.5]]),
        batch_size=[2],
    ),
    batch_size=[2],
)


@pytest.mark.parametrize(
    ("fitted", "bound"),
    [
        ([0.1, 0.0001, 0.5], [1.0, 0.005, 5.0]),  # no more than means
        ([3.0, 0.004, 3.0], [6.0, 0.008, 6.0]),  # the fitted one knew no more
        ([0.005, 0.0, 0.01], [0.5, 0.0005, 1.0]),  # a hundred times as much
        ([1e-6, 0.0, 1e-6], [0.1, 0.0005, 0.5]),  # but not so little
        ([math.nan] * 3, [1.0, 0.005, 5.0]),
    ],
)
def test_a_model_must_know_more_than_means_unless_the_fitted_one_did_not(
    fitted: list[float], bound: list[float]
) -> None:
    found = model_error_bound(ROWS, torch.tensor(fitted))
    torch.testing.assert_close(found.bound, torch.tensor(bound))


def test_an_entry_that_nobody_can_predict_hides_no_other() -> None:
    fitted = torch.tensor([0.1, 0.0, 4000.0])  # the mean over entries would be the last one's
    monitor = DivergenceMonitor(1.0, 0.9, max_model_error=model_error_bound(ROWS, fitted))
    assert monitor.check({"model_error": fitted, "mean_q": 0.0}) is None
    assert monitor.check({"model_error": torch.tensor([0.9, 0.0004, 7900.0])}) is None
    found = monitor.check({"model_error": torch.tensor([1.1, 0.0, 4000.0])}) or ""
    assert "error in observation 0 is 1.1 (0.1 after the fit, 1 at most)" in found
    found = monitor.check({"model_error": torch.tensor([1.1, 0.0, 9e9])}) or ""
    assert "error in reward is 9e+09" in found and "1 more" in found
    assert monitor.check({"model_error": torch.tensor([0.0, math.nan, 0.0])}) == (
        "not finite: model_error"
    )
    # a row that is read back has the mean alone, and was looked at when it was written
    assert monitor.check({"model_error": 1e9}) is None


def play(adversarial_weight: float, epochs: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A small run of Algorithm 1: each epoch's metrics, and the settings of its monitor."""
    torch.manual_seed(0)
    data, spec = steps_and_rewards(), Bounded(-1, 1, shape=(1,))
    real = make_replay_buffer(len(data))
    real.extend(data)
    model = EnsembleWorldModel(11, 1, num_members=3, num_elites=2, hidden_sizes=(32, 32))
    fit_world_model(model, data, batch_size=64, lr=3e-3, max_passes=12)
    sac = SACLoss(
        make_actor(11, spec, hidden_sizes=(32, 32)),
        make_qvalue(11, 1, hidden_sizes=(32, 32)),
        loss_function="l2",
        action_spec=spec,
    )
    sac.make_value_estimator(gamma=0.99)
    agent = AgentPhase(sac)
    env = EnsembleModelEnv(model, action_spec=spec, starts=real)
    collector = ModelRolloutCollector(env, sac.actor_network, num_starts=100, horizon=5)
    imagined = make_replay_buffer(2500)
    mixed = RealModelReplayBuffer(real, imagined, real_fraction=0.5, batch_size=128)
    likelihood = EnsembleModelLoss(model, members="elites")
    bound = model_error_bound(data, likelihood.entry_mse(data))
    adversarial = AdversarialModelLoss.from_loss(model, sac, adversarial_weight=adversarial_weight)
    adversary = ModelPhase(env, adversarial, likelihood, real, batch_size=128, lr=3e-3)
    metrics = []
    for _ in range(epochs):
        imagined.extend(collector.collect().select(*mixed.keys))
        row = {**agent.run(mixed.batches(10)), **adversary.run(60)}
        row["model_error"] = likelihood.entry_mse(data)
        metrics.append(row)
    return metrics, {
        "max_abs_reward": float(data["next", "reward"].abs().max()),
        "gamma": 0.99,
        "max_model_error": bound,
    }


@pytest.mark.slow
@pytest.mark.parametrize("adversarial_weight", [1.0, 100.0])
def test_a_large_lambda_is_caught_in_the_epoch_that_breaks_the_model(
    adversarial_weight: float,
) -> None:
    (row,), settings = play(adversarial_weight, epochs=1)
    found = DivergenceMonitor(**settings).check(row)
    assert found is not None and "the model's error in " in found
    # nothing else of the epoch shows it: all is finite, and the critics have not followed
    assert DivergenceMonitor(**{**settings, "max_model_error": None}).check(row) is None


@pytest.mark.slow
def test_the_published_lambda_is_left_alone() -> None:
    rows, settings = play(3e-4, epochs=2)
    monitor = DivergenceMonitor(**settings)
    assert [monitor.check(row) for row in rows] == [None] * 2
    assert all((row["model_error"] < 0.5 * settings["max_model_error"].bound).all() for row in rows)
