"""A model's errors and intervals are measured right: on models whose error is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.reporting.model_accuracy import (
    LEVELS,
    calibration,
    find_held_out,
    k_step_error,
    one_step_error,
    windows,
)
from rambo_trl.training.pretraining import fit_world_model

LENGTH = 40
NOISE = torch.tensor([0.1, 0.3, 0.2])  # of the two states and the reward


def logged(episodes: int = 50, noise: Tensor = NOISE) -> OfflineDataset:
    """Episodes of x' = x + (a, 0) + noise, with the reward a + noise, in units of their own."""
    torch.manual_seed(1)
    rows = []
    for _ in range(episodes):
        state = torch.randn(2)
        for step in range(LENGTH):
            action = torch.rand(1) * 2 - 1
            off = noise * torch.randn(3)
            following = state + torch.cat([action, torch.zeros(1)]) + off[:2]
            rows.append((state, action, following, action + off[2:], step == LENGTH - 1))
            state = following
    state, action, following, reward, ended = (
        torch.stack([torch.as_tensor(x) for x in column]) for column in zip(*rows, strict=True)
    )
    scale = torch.tensor([10.0, 0.5])
    transitions = TensorDict(
        observation=state * scale,
        action=action,
        next={
            "observation": following * scale,
            "reward": 4 * reward,
            "terminated": torch.zeros_like(ended),
            "truncated": ended,
        },
        batch_size=[len(rows)],
    )
    return OfflineDataset(
        transitions,
        action_spec=Bounded(-1, 1, shape=(1,)),
        observation_names=("temp_C", "level_m"),
        reward_scale=2.0,
    )


def model_of(
    data: OfflineDataset, *, spread: float = 1.0, bias: tuple[float, float] = (0.0, 0.0)
) -> EnsembleWorldModel:
    """The log's own law; with ``spread`` times its noise, and a bias a step in units of x."""
    model = EnsembleWorldModel(2, 1, num_members=3, num_elites=2, hidden_sizes=())
    unit = torch.tensor([10.0, 0.5]) / data.observation_std  # of x, normalised
    noise = torch.cat([NOISE[:2] * unit, NOISE[2:] * 2])  # rewards are 4 (a + noise) / 2
    with torch.no_grad():
        model.weights[0].zero_()
        model.weights[0][:, 2, 0] = unit[0]
        model.weights[0][:, 2, 2] = 2.0
        model.biases[0].zero_()
        model.biases[0][..., :2] = torch.tensor(bias) * unit
        model.biases[0][..., 3:] = 2 * (spread * noise).log()
        model.min_log_var.fill_(-30.0)
        model.max_log_var.fill_(30.0)
    return model


def pieces(data: OfflineDataset) -> np.ndarray:
    starts = np.arange(0, len(data), LENGTH)
    return np.stack([starts, starts + LENGTH], axis=1)


def test_the_error_of_a_step_is_the_noise_in_the_column_s_own_unit() -> None:
    data = logged()
    model, after = model_of(data), model_of(data, bias=(0.0, 0.4))
    held = find_held_out(data, model, pieces(data))
    found = one_step_error(data, held, model, after)
    assert found["columns"] == ["temp_C", "level_m", "reward"] and not found["unseen"]
    assert "has learnt from most of these" in found["where"]
    assert found["error"] == pytest.approx([1.0, 0.15, 0.8], rel=0.05)
    raw = data.denormalize(data.transitions["observation"]).numpy()
    std = [*raw.std(axis=0), 4 * math.sqrt(1 / 3 + 0.2**2)]
    assert found["std"] == pytest.approx(std, rel=0.03)
    assert found["relative"] == pytest.approx(
        [e / s for e, s in zip(found["error"], found["std"], strict=True)], rel=1e-5
    )
    # no change errs by the action and the noise; in the reward by two of each
    still = [10 * math.hypot(3**-0.5, 0.1), 0.15, 4 * math.sqrt(2 / 3 + 2 * 0.2**2)]
    assert found["no_change"] == pytest.approx(
        [e / s for e, s in zip(still, std, strict=True)], rel=0.05
    )
    ratio = np.array(found["after_training"]) / found["relative"]
    assert ratio == pytest.approx([1, math.hypot(0.3, 0.4) / 0.3, 1], rel=0.05)


@pytest.mark.parametrize("spread", [1.0, 0.5, 2.0])
def test_coverage_is_the_normal_law_s(spread: float) -> None:
    data = logged()
    model = model_of(data, spread=spread)
    found = calibration(data, find_held_out(data, model, pieces(data)), model)
    for level, coverage in zip(LEVELS, found["coverage"], strict=True):
        wanted = 2 * stats.norm.cdf(spread * stats.norm.ppf(0.5 + level / 2)) - 1
        assert coverage == pytest.approx([wanted] * 3, abs=0.035), level
    assert np.array(found["spread"]) / found["error"] == pytest.approx([spread] * 3, rel=0.05)
    groups = np.array(found["group_spread"]) / found["group_error"]
    assert groups == pytest.approx([spread] * len(groups), rel=0.2)


def test_a_mixture_s_interval_is_that_of_its_sampled_values() -> None:
    data = logged()
    model = model_of(data, spread=0.4)
    with torch.no_grad():  # two elites that disagree, unlike each other
        model.biases[0][0, :, 0] += 0.5
        model.biases[0][1, :, 0] -= 0.2
        model.biases[0][1, :, 3] += 1.0
    held = find_held_out(data, model, pieces(data))
    found = calibration(data, held, model)
    some = held.rows[:500]
    draws = torch.stack([model.sample(some["observation"], some["action"])[0] for _ in range(400)])
    low, high = draws.quantile(torch.tensor([0.25, 0.75]), dim=0)
    target = some["next", "observation"]
    sampled = ((target >= low) & (target <= high)).float().mean(dim=0).tolist()
    assert found["coverage"][LEVELS.index(0.5)][:2] == pytest.approx(sampled, abs=0.05)


def test_a_bias_adds_up_over_the_steps() -> None:
    data = logged(noise=torch.zeros(3))
    model = model_of(data, bias=(0.25, 0.0), spread=1e-3)
    found = k_step_error(data, find_held_out(data, model, pieces(data)), model)
    assert found is not None and found["steps"] == [1, 2, 5, 10, 20] and not found["unseen"]
    std = float(data.denormalize(data.transitions["observation"])[:, 0].std()) / 10
    errors = np.array(found["relative"])
    assert errors[:, 0] == pytest.approx([0.25 * k / std for k in found["steps"]], rel=1e-3)
    assert errors[:, 2] == pytest.approx([0] * 5, abs=1e-5)
    # no change: a walk of uniform actions
    wanted = [math.sqrt(k / 3) / std for k in found["steps"]]
    assert np.array(found["no_change"])[:, 0] == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(("spread", "low", "high"), [(1.0, 0.87, 0.93), (0.3, 0.2, 0.5)])
def test_sampled_rollouts_hold_the_log_as_often_as_they_should(
    spread: float, low: float, high: float
) -> None:
    data = logged(200)
    model = model_of(data, spread=spread)
    found = k_step_error(data, find_held_out(data, model, pieces(data)), model)
    assert found is not None and low < np.mean(found["coverage"]) < high, found["coverage"]


def test_the_rows_that_a_fit_held_out_are_found_again() -> None:
    data = logged(20)
    model = EnsembleWorldModel(2, 1, num_members=3, num_elites=2, hidden_sizes=(16,))
    state = torch.get_rng_state()
    fit = fit_world_model(model, data.transitions, batch_size=64, max_updates=30)
    held = find_held_out(data, model, pieces(data), holdout_mse=fit.holdout_mse, random_state=state)
    torch.set_rng_state(state)
    drawn = torch.rand(len(data)).argsort()[: len(data) // 10].sort().values
    assert held.rows_unseen and not held.pieces_unseen and "that the fit held out" in held.where
    torch.testing.assert_close(held.rows["action"], data.transitions["action"][drawn])
    before = data.transitions["next", "reward"][drawn - 1]
    first = drawn % LENGTH == 0
    assert held.previous_reward[first].isnan().all()
    torch.testing.assert_close(held.previous_reward[~first], before[~first])
    ratio = k_step_error(data, held, model)
    assert ratio is not None and 0.5 < ratio["seen_ratio"] < 2
    # of another random state, or another fit, they are not
    other = find_held_out(
        data, model, pieces(data), holdout_mse=fit.holdout_mse, random_state=torch.get_rng_state()
    )
    assert not other.rows_unseen
    worse = [2 * error for error in fit.holdout_mse]
    held = find_held_out(data, model, pieces(data), holdout_mse=worse, random_state=state)
    assert not held.rows_unseen


def test_validation_episodes_are_taken_where_there_are_some() -> None:
    data, other = logged(20), logged(5)
    raw = other.transitions.clone()
    raw["observation"] = other.denormalize(raw["observation"])
    raw["next", "observation"] = other.denormalize(raw["next", "observation"])
    raw["next", "reward"] = raw["next", "reward"] * other.reward_scale
    data.hold_out(raw)
    held = find_held_out(data, model_of(data), pieces(data))
    assert held.rows_unseen and held.pieces_unseen and len(held.rows) == 5 * LENGTH
    assert held.pieces.tolist() == pieces(other).tolist()
    found = k_step_error(data, held, model_of(data))
    assert found is not None and found["unseen"] and found["seen_ratio"] is None


def test_pieces_neither_cross_ends_nor_gaps() -> None:
    data = logged(4)
    table = data.transitions.clone()
    table["next", "observation"][LENGTH + 9] += 1.0  # a gap in the second episode
    numbers, steps = windows(table, pieces(data))
    assert steps == 20
    first, inside = numbers // LENGTH, numbers % LENGTH
    assert (inside >= 1).all() and (inside + steps <= LENGTH).all()
    second = inside[first == 1]
    assert second.tolist() == list(range(11, 21))  # from the second row after it on
    assert inside[first == 0].tolist() == list(range(1, 21))
    assert windows(table, pieces(data)[:, :1] + np.array([[0, 1]]))[1] == 0
    short = np.stack([np.arange(10, 90), np.arange(10, 90) + 3], axis=1)
    assert windows(table, short)[1] == 2


def test_a_column_that_never_changes_has_no_error_in_its_deviations() -> None:
    data = logged()
    raw = data.transitions.clone()
    raw["observation"] = data.denormalize(raw["observation"])
    raw["next", "observation"] = data.denormalize(raw["next", "observation"])
    for key in ("observation", ("next", "observation")):
        raw[key][:, 1] = 7.0
    still = OfflineDataset(raw, action_spec=Bounded(-1, 1, shape=(1,)))
    model = model_of(still)
    held = find_held_out(still, model, pieces(still))
    found = one_step_error(still, held, model, model)
    assert math.isnan(found["relative"][1]) and found["std"][1] == 0
    coverage = np.array(calibration(still, held, model)["coverage"])
    assert np.isnan(coverage[:, 1]).all() and np.isfinite(coverage[:, [0, 2]]).all()
