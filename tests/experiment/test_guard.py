"""A guarded policy against NumPy, over sequences, with readings of every kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.data import Bounded

import rambo_trl
from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.guard import GuardedPolicy
from rambo_trl.experiment.policy import Policy, load_policy, save_policy
from rambo_trl.experiment.tensor_files import read_safetensors, write_safetensors
from rambo_trl.modules import make_actor

NAMES, ACTIONS = ("temp_C", "return_C", "area_m2"), ("power_W", "flow_l_s")
LOW, HIGH = np.array([0.0, 0.0]), np.array([9000.0, 2.0])
USUAL = np.array([50.0, 40.0, 0.8])


def make_data(seed: int = 0) -> OfflineDataset:
    """The return is 10 degrees below the tank; actions are logged in a part of their bounds."""
    rng = np.random.default_rng(seed)
    temp = rng.uniform(30, 70, 600)
    ramp = 0.5 + 0.4 * np.sin(np.arange(600) / 9)
    return OfflineDataset.from_arrays(
        {
            "observations": dict(
                zip(NAMES, (temp, temp - 10 + rng.normal(size=600), np.full(600, 0.8)), strict=True)
            ),
            "actions": {"power_W": 1000 + 5000 * ramp, "flow_l_s": 1.6 * ramp},
            "rewards": rng.normal(size=600),
            "terminals": np.arange(600) % 100 == 99,
        },
        action_spec=Bounded(LOW, HIGH, dtype=torch.float32),
        max_episode_steps=200,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data, path = make_data(), tmp_path_factory.mktemp("run") / "policy.safetensors"
    torch.manual_seed(0)
    actor = make_actor(3, data.action_spec, hidden_sizes=(16,))
    with torch.no_grad():  # it uses its whole range
        list(actor.parameters())[-2].mul_(20)
    save_policy(
        path,
        actor,
        **data.statistics,
        action_spec=data.action_spec,
        env_id="",
        data=data.description,
    )
    return path


@pytest.fixture
def policy(path: Path) -> Policy:
    return load_policy(path)


def rows(count: int = 200) -> np.ndarray:
    rng = np.random.default_rng(7)
    temp = rng.uniform(30, 70, count)
    return np.stack([temp, temp - 10 + rng.normal(size=count), np.full(count, 0.8)], 1)


def test_actions_stay_in_the_logged_range(policy: Policy) -> None:
    data, low, high = policy.data, *map(np.array, logged(policy))
    assert data is not None and (low > LOW).all() and (high < HIGH).all()
    free = np.stack([GuardedPolicy(policy, "flags")(row).action for row in rows()])
    np.testing.assert_allclose(free, policy(rows()), rtol=1e-5)
    assert ((free < low).any(0) & (free > high).any(0)).all()  # or nothing would be tested
    guard = GuardedPolicy(policy, "range")
    for row, wanted in zip(rows(), free, strict=True):
        step = guard(row)
        np.testing.assert_allclose(step.action, np.clip(wanted, low, high), rtol=1e-6)
        beyond = (wanted < low) | (wanted > high)
        assert step.limited == tuple(n for n, b in zip(ACTIONS, beyond, strict=True) if b)
        assert not step.flagged and not step.by_fallback


def logged(policy: Policy) -> tuple[tuple[float, ...], tuple[float, ...]]:
    assert policy.data is not None
    assert policy.data.logged_action_low is not None and policy.data.logged_action_high is not None
    return policy.data.logged_action_low, policy.data.logged_action_high


def test_the_rate_holds_over_a_sequence(policy: Policy) -> None:
    (low, high), data = map(np.array, logged(policy)), policy.data
    assert data is not None
    change = np.array(data.logged_action_change)
    guard, wanted = GuardedPolicy(policy), policy(rows()).astype(float)
    expected, slow = None, 0
    for row, free in zip(rows(), wanted, strict=True):
        target = np.clip(free, low, high)
        if expected is None:
            expected = target
        else:
            near = np.clip(target, expected - change, expected + change)
            slow += (near != target).any()
            expected = near
        step = guard(row)
        np.testing.assert_allclose(step.action, expected, rtol=1e-4, atol=1e-3)
        expected = step.action.astype(float)
        np.testing.assert_array_equal(guard.previous_action, step.action)
    assert slow > 100

    guard.reset()  # the first action is free within the range
    np.testing.assert_allclose(guard(rows()[0]).action, np.clip(wanted[0], low, high), rtol=1e-6)
    now = np.array([3000.0, 1.0])
    guard.reset(previous_action=now)
    near = np.clip(np.clip(wanted[0], low, high), now - change, now + change)
    np.testing.assert_allclose(guard(rows()[0]).action, near, rtol=1e-4)
    # from outside of the logged range it comes back no faster
    guard.previous_action = HIGH
    assert (np.abs(guard(rows()[0]).action - HIGH) <= change * 1.0001).all()
    assert (guard.previous_action > high).all()


@pytest.mark.parametrize(
    ("row", "far"),
    [
        ([50, 40, 0.8], ()),
        ([50, 40, 0.81], ("area_m2",)),  # a constant that has moved
        ([200, 190, 0.8], ("temp_C", "return_C")),
        ([69, 21, 0.8], ("temp_C", "return_C")),  # each is usual, the pair is not
        ([50, 1e30, 0.8], ("return_C",)),
    ],
)
def test_far_entries_are_named(policy: Policy, row: list[float], far: tuple[str, ...]) -> None:
    step = GuardedPolicy(policy)(row)
    assert set(step.far) == set(far) and step.flagged == bool(far) and step.missing == ()
    assert np.isfinite(step.action).all()
    data = policy.data
    assert data is not None and data.distance_limit is not None
    if max(row) < 1e3:
        assert step.distance == pytest.approx(float(data.distances(np.array(row))), rel=1e-3)


def test_the_entry_that_is_out_of_step_is_named_of_many(policy: Policy) -> None:
    """Of ten correlated entries one is off: the distance is its own, and so is the name."""
    data, rng = policy.data, np.random.default_rng(0)
    assert data is not None
    mixed = rng.normal(size=(10, 10))
    covariance = mixed @ mixed.T / 10 + np.eye(10)
    values, directions = np.linalg.eigh(covariance)
    root = directions / np.sqrt(values) @ directions.T
    names = tuple(f"x{i}" for i in range(10))
    policy = replace(
        policy,
        actor=make_actor(10, Bounded(-torch.ones(2), torch.ones(2)), hidden_sizes=(4,)),
        observation_mean=torch.zeros(10),
        observation_std=torch.ones(10),
        data=replace(
            data,
            observation_names=names,
            observation_low=(-9.0,) * 10,
            observation_high=(9.0,) * 10,
            observation_p01=None,
            observation_p99=None,
            distance_centre=(0.0,) * 10,
            distance_matrix=tuple(map(tuple, root.tolist())),
            distance_limit=5.0,
        ),
    )
    for i in range(10):
        row = np.zeros(10)
        row[i] = 8.0
        shares = (root @ row) ** 2
        if shares.sum() <= 25:
            continue
        step = GuardedPolicy(policy)(row)
        left = 10  # the fewest that bring the rest below the limit
        while np.sort(shares)[:left].sum() > 25:
            left -= 1
        expected = {names[j] for j in np.argsort(shares)[left:]}
        assert set(step.far) == expected and names[i] in step.far


@pytest.mark.parametrize("bad", [np.nan, np.inf, None, 1e300])
def test_missing_readings_are_flagged(policy: Policy, bad: float | None) -> None:
    guard = GuardedPolicy(policy)
    before = guard(USUAL)
    step = guard([50.0, bad, 0.8])
    assert step.missing == ("return_C",) and step.flagged and step.distance == np.inf
    assert np.isnan(step.action).all() and not step.by_fallback
    np.testing.assert_array_equal(guard.previous_action, before.action)  # NaN was not applied
    assert guard([np.nan, np.nan, 0.9]).far == ("area_m2",)
    assert not guard(USUAL).flagged


@pytest.mark.parametrize(
    "reading", [[50, None, 0.8], [50, "n/a", 0.8], [50], None, [[50, 40, 0.8]], {}, [500, 1, 9]]
)
def test_with_a_fallback_no_reading_raises(policy: Policy, reading: object) -> None:
    asked = []

    def thermostat(observation: object) -> list[float]:
        asked.append(observation)
        return [0.0, 1.9]  # outside of the logged range, and not limited

    guard = GuardedPolicy(policy, fallback=thermostat)
    assert not guard(USUAL).by_fallback and not asked
    step = guard(reading)
    assert step.by_fallback and step.flagged and asked == [reading]
    np.testing.assert_allclose(step.action, [0.0, 1.9], rtol=1e-6)
    # the policy takes over from there, at the logged rate
    change = np.array(policy.data.logged_action_change)
    assert (np.abs(guard(USUAL).action - [0.0, 1.9]) <= change * 1.0001).all()


@pytest.mark.parametrize("reading", [[50], [50, "n/a", 0.8]])
def test_without_one_what_is_no_row_of_readings_raises(policy: Policy, reading: list) -> None:
    with pytest.raises(ValueError, match="expected 3 readings|could not convert"):
        GuardedPolicy(policy)(reading)


def test_the_limit_of_the_distance_may_be_set(policy: Policy) -> None:
    assert not GuardedPolicy(policy)([69, 57, 0.8]).far
    policy.data = replace(policy.data, distance_limit=0.5)
    assert GuardedPolicy(policy)([69, 57, 0.8]).far


def test_what_the_guard_needs_is_asked_for(policy: Policy, path: Path, tmp_path: Path) -> None:
    header, tensors = read_safetensors(path, "rambo_trl_policy", "policy file")
    assert header is not None
    # of the version that knew names and ranges alone
    new = ("logged_", "distance_", "observation_p", "step_")
    old = {key: value for key, value in header.items() if not key.startswith(new)}
    assert len(old) == len(header) - 8
    write_safetensors(tmp_path / "old.safetensors", tensors, "rambo_trl_policy", old)
    old_policy = load_policy(tmp_path / "old.safetensors")
    np.testing.assert_array_equal(old_policy(rows()), policy(rows()))
    with pytest.raises(ValueError, match="older version.*set policy.data to"):
        GuardedPolicy(old_policy)
    old_policy.data = make_data().description
    assert not GuardedPolicy(old_policy)(USUAL).flagged

    policy.data = replace(policy.data, logged_action_change=None)
    with pytest.raises(ValueError, match="take guard=range"):
        GuardedPolicy(policy)
    GuardedPolicy(policy, "range")(USUAL)
    with pytest.raises(ValueError, match="guard must be one of flags, range, rate, got speed"):
        GuardedPolicy(policy, "speed")
    next(policy.actor.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="diverged"):
        GuardedPolicy(policy, "range")


def test_time_stamps_and_large_units(tmp_path: Path) -> None:
    """Statistics and bounds in double precision."""
    rng = np.random.default_rng(0)
    data = OfflineDataset.from_arrays(
        {
            "observations": {"time_s": 1.7e9 + np.arange(300), "level": rng.normal(size=300)},
            "actions": {"valve": 1e9 + rng.uniform(0.2, 0.8, 300)},
            "rewards": rng.normal(size=300),
            "terminals": np.arange(300) == 299,
        },
        action_spec=Bounded(1e9, 1e9 + 1.0, shape=(1,), dtype=torch.float64),
        max_episode_steps=400,
    )
    save_policy(
        tmp_path / "policy.safetensors",
        make_actor(2, data.action_spec, hidden_sizes=(8,)),
        **data.statistics,
        action_spec=data.action_spec,
        env_id="",
        data=data.description,
    )
    guard = rambo_trl.GuardedPolicy(load_policy(tmp_path), "range")
    step = guard([1.7e9 + 150, 0.0])
    assert not step.flagged and 1e9 + 0.19 < step.action[0] < 1e9 + 0.81
    assert guard([1.7e9 + 1000, 0.0]).far == ("time_s",)
    assert guard([1.7e9 + 150, 9.0]).far == ("level",)
