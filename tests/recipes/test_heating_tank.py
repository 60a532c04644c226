"""The heating tank: its physics against independent solutions, and what its log looks like."""

from __future__ import annotations

import csv
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import gymnasium
import heating_tank
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from launcher.tank import (
    ACTIONS,
    OBSERVATIONS,
    REWARD,
    STEPS,
    HeatingTank,
    Operation,
    Plant,
    play,
    reward_of,
)
from scipy.integrate import solve_ivp

from rambo_trl.reporting.offline_values import OfflineValues

PLANT = Plant()


@pytest.mark.parametrize("action", [(12_000.0, 0.08), (0.0, 0.05), (6_000.0, 0.01)])
def test_a_step_solves_the_energy_balances(action: tuple[float, float]) -> None:
    def balances(_: float, state: np.ndarray) -> list[float]:
        water, element = state
        heat = 200.0 * (element - water)
        into_water = heat - action[1] * 4186.0 * (water - 10.0) - 15.0 * (water - 20.0)
        return [into_water / (60 * 4186.0), (action[0] - heat) / 16_000.0]

    exact = solve_ivp(balances, (0, 2_000), [40.0, 70.0], rtol=1e-10, atol=1e-10).y[:, -1]
    state = (40.0, 70.0)
    for _ in range(100):
        state = PLANT.after(state, action, 10.0, 20.0)
    np.testing.assert_allclose(state, exact, atol=1e-3)


def test_the_steady_state_is_where_the_heat_is_carried_off() -> None:
    power, flow, inlet, ambient = 8_000.0, 0.04, 12.0, 20.0
    state = (30.0, 30.0)
    for _ in range(2_000):
        state = PLANT.after(state, (power, flow), inlet, ambient)
    water = (power + flow * 4186 * inlet + 15 * ambient) / (flow * 4186 + 15)
    np.testing.assert_allclose(state, (water, water + power / 200), rtol=1e-6)


def test_heat_is_kept_where_nothing_leaves() -> None:
    closed = Plant(loss_W_K=0.0, flow_J_K_l=0.0)
    state = (20.0, 90.0)
    for _ in range(200):
        state = closed.after(state, (0.0, 0.05), 10.0, 20.0)
    mixed = (60 * 4186 * 20 + 16_000 * 90) / (60 * 4186 + 16_000)
    np.testing.assert_allclose(state, (mixed, mixed), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*normalized space:UserWarning")
def test_the_environment_follows_gymnasium() -> None:
    assert gymnasium.spec("HeatingTank-v0").max_episode_steps == STEPS
    check_env(HeatingTank(), skip_render_check=True)


def test_the_plant_trips_only_if_the_heater_is_too_hot() -> None:
    full, low = (
        play(lambda x, p=power: np.tile([p, 0.03], (len(x), 1)), batches=8, seed=3, steps=STEPS)
        for power in (12_000.0, 3_000.0)
    )
    assert full.trips.all() and not low.trips.any()
    assert np.nanmax(full.readings[..., 1]) == pytest.approx(PLANT.trip_C, abs=1.5)
    ends = np.isfinite(full.actions[..., 0]).sum(axis=0)
    last = full.readings[ends, range(8), 1]
    assert (last > PLANT.trip_C - 1).all() and (ends < STEPS).all()


def test_the_reward_is_the_logged_columns_expression() -> None:
    reading, power, flow = np.array([52.0, 80.0, 10.0, 20.0, 0.05]), 9_000.0, 0.04
    columns = dict(zip(OBSERVATIONS, reading, strict=True)) | {"power_W": power, "flow_l_s": flow}
    for trip in (False, True):
        expected = eval(REWARD.replace("next.", ""), columns | {"trip": trip})
        assert reward_of(reading, power, flow, trip) == pytest.approx(expected)


def test_pi_control_holds_the_tank_near_its_setpoint() -> None:
    operation = Operation(seed=1, batches=30)
    played = play(operation, batches=30, seed=1, steps=STEPS)
    whole = played.trips == 0
    late = played.readings[-50:, whole, 0].mean(axis=0)
    off = np.abs(late - operation.setpoint[whole])
    assert np.median(off) < 1.5
    assert played.trips.mean() < 0.3
    untouched = play(lambda x: np.zeros((len(x), 2)), batches=30, seed=1, steps=STEPS)
    assert (played.returns > untouched.returns + 50).mean() > 0.9


def test_policies_meet_the_same_starts_and_disturbances() -> None:
    hot, cold = (
        play(lambda x, p=power: np.tile([p, 0.03], (len(x), 1)), batches=3, seed=5, steps=20)
        for power in (9_000.0, 0.0)
    )
    np.testing.assert_array_equal(hot.readings[0], cold.readings[0])
    np.testing.assert_array_equal(hot.readings[..., 2:], cold.readings[..., 2:])
    assert (hot.readings[-1, :, 0] > cold.readings[-1, :, 0] + 2).all()


def test_the_truth_is_discounted_as_the_report_is(tmp_path: Path) -> None:
    hot, cold = (
        play(lambda x, p=power: np.tile([p, 0.03], (len(x), 1)), batches=3, seed=5, steps=20)
        for power in (9_000.0, 0.0)
    )
    gains = {}
    for gamma in (0.9, 0.99):
        checks = {"action_share_outside": 0.0}
        values = OfflineValues("d", gamma, 0.9, 1.0, {}, {}, {}, checks=checks)
        values.write(tmp_path)
        gains[gamma] = heating_tank.truth_of(tmp_path, hot, cold).discounted_gain[0]
        weights = gamma ** np.arange(20)
        expected = (weights[:, None] * (hot.rewards - cold.rewards)).sum(axis=0).mean()
        assert gains[gamma] == pytest.approx(expected)
    assert abs(gains[0.99]) > 1.5 * abs(gains[0.9])


def test_a_log_has_named_columns_times_gaps_and_missing_readings(tmp_path: Path) -> None:
    path = tmp_path / "tank.csv"
    assert heating_tank.main(["log", str(path), "--batches", "40", "--seed", "2"]) == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "timestamp", "batch", "operator", *OBSERVATIONS, *ACTIONS, "line_bar", "trip"
    ]  # fmt: skip
    batches: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        batches.setdefault(row["batch"], []).append(row)
    assert len(batches) == 40
    gaps = []
    for steps in batches.values():
        assert all(row["trip"] == "0" for row in steps[:-1])
        times = [datetime.fromisoformat(row["timestamp"]) for row in steps]
        seconds = {(b - a).total_seconds() for a, b in pairwise(times)}
        gaps.append(max(seconds) > 20)
        assert seconds <= {20.0, 220.0}
    assert 0 < sum(gaps) < 12
    missing = sum(not row[name] for row in rows for name in OBSERVATIONS)
    assert 0.005 < missing / len(rows) < 0.015
    assert {row["trip"] for row in rows} == {"0", "1"}


@pytest.mark.parametrize(
    ("verdict", "gain", "right"),
    [
        ("better", (1.0, 0.5, 1.5), True),
        ("better", (1.0, -0.1, 2.1), False),
        ("not better", (-1.0, -1.5, -0.5), True),
        ("not better", (1.0, 0.8, 1.2), False),
        ("not better", (0.0, -0.2, 0.2), True),  # no difference that counts
        ("cannot tell", (1.0, 0.5, 1.5), True),  # less than the report's half-width
        ("cannot tell", (5.0, 4.5, 5.5), False),
        ("cannot tell", (-5.0, -5.5, -4.5), False),
    ],
)
def test_a_verdict_is_right_only_where_the_truth_agrees(
    verdict: str, gain: tuple[float, float, float], right: bool
) -> None:
    reported = (0.0, -2.0, 2.0)
    assert heating_tank.is_right(verdict, gain, reported, small=0.5, outside=False) is right
    if verdict == "cannot tell":  # it must not know about actions that are not in the data
        assert heating_tank.is_right(verdict, gain, reported, small=0.5, outside=True)
