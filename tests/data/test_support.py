"""What is measured of a data set for its policy's file, against NumPy and SciPy on the raw log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset, support
from rambo_trl.data.columns import DataDescription

EPISODE, EPISODES = 50, 8
#: beyond the data's action bounds of 0 to 9 kW and 0 to 2 l/s none is logged
SPEC = {"low": np.array([0.0, 0.0], np.float32), "high": np.array([9000.0, 2.0], np.float32)}


def make_log(seed: int = 0) -> dict[str, np.ndarray]:
    """A tank: two sensors that agree, a time stamp, a constant, and actions that move slowly."""
    rng = np.random.default_rng(seed)
    rows = EPISODE * EPISODES
    temp = 50 + 10 * rng.normal(size=rows)
    step = rng.uniform(0, 1, (EPISODES, EPISODE, 2)) * [100, 0.03]
    actions = np.array([1000, 0.1]) + np.cumsum(step, axis=1)  # each episode starts anew
    return {
        "temp_C": temp,
        "temp_again_C": temp + 0.5 * rng.normal(size=rows),
        "time_s": 1.7e9 + np.arange(rows),
        "area_m2": np.full(rows, 0.8),
        "actions": actions.reshape(rows, 2),
    }


def make_data(log: dict[str, np.ndarray], **options: bool) -> OfflineDataset:
    names = ["temp_C", "temp_again_C", "time_s", "area_m2"]
    rows = len(log["temp_C"])
    return OfflineDataset.from_arrays(
        {
            "observations": {name: log[name] for name in names},
            "actions": dict(zip(("power_W", "flow_l_s"), log["actions"].T, strict=True)),
            "rewards": np.random.default_rng(1).normal(size=rows),
            "terminals": np.arange(rows) % EPISODE == EPISODE - 1,
        },
        action_spec=Bounded(SPEC["low"], SPEC["high"]),
        max_episode_steps=EPISODE + 1,
        **options,
    )


@pytest.fixture(scope="module")
def log() -> dict[str, np.ndarray]:
    return make_log()


@pytest.fixture(scope="module")
def known(log: dict[str, np.ndarray]) -> DataDescription:
    return make_data(log).description


def test_ranges_and_quantiles_are_in_the_log_s_units(
    log: dict[str, np.ndarray], known: DataDescription
) -> None:
    for i, name in enumerate(known.observation_names):
        column, unit = log[name], max(np.ptp(log[name]), 1e-3)
        for value, expected in (
            (known.observation_low, column.min()),
            (known.observation_high, column.max()),
            (known.observation_p01, np.quantile(column, 0.01)),
            (known.observation_p99, np.quantile(column, 0.99)),
        ):
            assert value is not None and abs(value[i] - expected) < 1e-4 * unit
    actions = log["actions"]
    np.testing.assert_allclose(known.logged_action_low, actions.min(0), rtol=1e-5)
    np.testing.assert_allclose(known.logged_action_high, actions.max(0), rtol=1e-5)


@pytest.mark.parametrize("chunk", [7, 65_536])
def test_the_largest_change_is_within_episodes(
    chunk: int, log: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "_CHUNK", chunk)
    actions = log["actions"].reshape(EPISODES, EPISODE, 2)
    expected = np.abs(np.diff(actions, axis=1)).max((0, 1))
    across = np.abs(np.diff(log["actions"], axis=0)).max(0)
    assert (across > 2 * expected).any()
    np.testing.assert_allclose(make_data(log).description.logged_action_change, expected, rtol=1e-4)


def test_rows_that_do_not_follow_each_other_tell_no_change(log: dict[str, np.ndarray]) -> None:
    data = make_data(log)
    data.transitions = data.transitions.flip(0)
    assert data.description.logged_action_change is None


def test_the_distance_is_mahalanobis_s(log: dict[str, np.ndarray], known: DataDescription) -> None:
    moving = np.stack([log[n] for n in known.observation_names[:3]], 1)
    shift = np.array([0, 0, 1.7e9])
    precision = np.linalg.inv(np.cov((moving - shift).T, bias=True))
    rng = np.random.default_rng(3)
    points = moving[:20] + rng.normal(size=(20, 3)) * [30, 30, 900]
    mean = (moving - shift).mean(0)
    expected = [mahalanobis(p - shift, mean, precision) for p in points]
    got = known.distances(np.c_[points, rng.normal(size=20)])  # the constant counts for nothing
    np.testing.assert_allclose(got, expected, rtol=1e-3)
    # one row in a thousand is beyond its limit
    own = known.distances(np.c_[moving, np.full(len(moving), 0.8)])
    assert known.distance_limit == pytest.approx(np.quantile(own, 0.999), rel=1e-3)
    # each entry's share is of the one that moved: the sensors disagree, or the clock is off
    matrix = np.array(known.distance_matrix)
    np.testing.assert_allclose(
        matrix @ np.diag([*moving.std(0), 1]), (matrix @ np.diag([*moving.std(0), 1])).T, atol=1e-4
    )


def test_a_sensor_that_always_agreed_is_far_where_it_does_not(log: dict[str, np.ndarray]) -> None:
    known = make_data(log | {"temp_again_C": 2 * log["temp_C"] + 1}).description
    row = np.array([50, 101, 1.7e9 + 200, 0.8])
    assert known.distance_limit is not None
    assert known.distances(row) < 0.5 * known.distance_limit
    assert known.distances(row + np.array([0, 8, 0, 0])) > 3 * known.distance_limit


def test_units_normalisation_and_storage_do_not_matter(
    log: dict[str, np.ndarray], known: DataDescription, tmp_path: Path
) -> None:
    rows = np.stack([log[n] for n in known.observation_names], 1)
    data = make_data(log)
    data.memmap(tmp_path / "set")
    stored = OfflineDataset.load(str(tmp_path / "set")).description
    assert stored == known
    raw = make_data(log | {"time_s": log["time_s"] - 1.7e9}, normalize=False).description
    for other, shift, scale in (
        (raw, np.array([0, 0, 1.7e9, 0]), np.ones(4)),
        (
            make_data(log | {"temp_C": log["temp_C"] * 1e-6}).description,
            np.zeros(4),
            np.array([1e-6, 1, 1, 1]),
        ),
    ):
        np.testing.assert_allclose(
            other.distances((rows - shift) * scale), known.distances(rows), rtol=1e-3
        )


def test_a_long_log_is_measured_on_evenly_spaced_rows(
    log: dict[str, np.ndarray], known: DataDescription, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "_ROWS", len(log["temp_C"]) // 3)
    some = make_data(log).description
    for exact in ("observation_low", "observation_high", "logged_action_change"):
        assert getattr(some, exact) == getattr(known, exact)
    assert some.distance_limit == pytest.approx(known.distance_limit, rel=0.2)
    assert some.distance_limit != known.distance_limit


def test_it_goes_through_a_header(known: DataDescription) -> None:
    import json

    known = replace(known, step_interval=15.0)
    assert None not in vars(known).values()
    assert DataDescription.of_header(json.loads(json.dumps(known.as_header())), (4, 2)) == known


@pytest.mark.parametrize(
    "change",
    [
        {"logged_action_low": (0.0,)},
        {"distance_matrix": ((1.0,),)},
        {"distance_limit": float("nan")},
        {"distance_centre": 3.0},
        {"step_interval": "fast"},
    ],
)
def test_numbers_that_do_not_fit_are_refused(change: dict, known: DataDescription) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(known, **change)
