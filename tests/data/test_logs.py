"""Logs of a machine: gaps, lost terminals, names and units, text, constants, irregular steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pyarrow
import pytest
import torch
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.data.__main__ import main
from rambo_trl.data.checks import step_intervals
from rambo_trl.data.columns import as_numbers
from rambo_trl.data.report import describe_dataset, plot_dataset

OBSERVATIONS, ACTIONS = ("temp_C", "level_m", "tank_area_m2"), ("power_W", "flow_l_s")
SPEC = Bounded(torch.tensor([0.0, 0.0]), torch.tensor([50_000.0, 1.2]), shape=(2,))
EPISODES, STEPS = 4, 10


def log() -> dict[str, np.ndarray]:
    """Four episodes of ten steps, each reward -1; the last two end in a trip of the machine."""
    rng = np.random.default_rng(0)
    size = EPISODES * STEPS
    states = rng.normal(size=(EPISODES, STEPS + 1, 3)) + np.array([60.0, 1.0, 0.0])
    states[..., 2] = 0.8
    last = np.arange(1, size + 1) % STEPS == 0
    trip = last & (np.arange(size) >= 2 * STEPS)
    return {
        "observations": states[:, :-1].reshape(size, 3),
        "next_observations": states[:, 1:].reshape(size, 3),
        "actions": np.stack([rng.uniform(0, 5e4, size), rng.uniform(0, 1.2, size)], axis=1),
        "rewards": np.full(size, -1.0) - 0.001 * np.arange(size),
        "terminals": trip,
        "timeouts": last & ~trip,
    }


def load(arrays: dict[str, Any], **options: Any) -> OfflineDataset:
    options = {"observation_names": OBSERVATIONS, "action_names": ACTIONS} | options
    return OfflineDataset.from_arrays(arrays, action_spec=SPEC, **options)


def rows(arrays: dict[str, Any], keep: np.ndarray) -> dict[str, Any]:
    return {key: value[keep] for key, value in arrays.items()}


def told(data: OfflineDataset, words: str) -> str:
    (found,) = [remark for remark in data.remarks if words in remark]
    return found


def test_pieces_cut_at_gaps_have_no_return(tmp_path: Path) -> None:
    arrays = log()
    keep = np.ones(EPISODES * STEPS, bool)
    keep[[18, 24]] = False  # a row missing near the end of the second, and amid the third episode
    data = load(rows(arrays, keep))
    whole = arrays["rewards"].reshape(EPISODES, STEPS).sum(1)
    # rows 10 to 17 and 19, 20 to 23 and 25 to 29 are pieces; the shortest had the highest "return"
    np.testing.assert_allclose(data.behaviour_returns, whole[[0, 3]])
    assert data.num_episodes == 6 and data.num_cut_episodes == 4
    assert data.whole_episodes.tolist() == [[0, 10], [28, 38]]
    assert data.behaviour_return_best == pytest.approx(whole.max())
    assert told(data, "cut pieces").startswith("4 of 6 episodes are cut pieces")
    text = describe_dataset(data)
    assert "in 6 episodes, 4 of them cut pieces" in text
    # a flag says that an episode was whole
    flagged = rows(arrays, keep)
    flagged["timeouts"][[17, 22]] = True
    assert load(flagged).num_cut_episodes == 0
    opened = data.memmap(tmp_path / "set")
    assert opened.num_cut_episodes == 4 and opened.num_episodes == 6
    np.testing.assert_array_equal(opened.whole_episodes, data.whole_episodes)


def test_transitions_with_rows_missing_are_pieces_too() -> None:
    arrays = log()
    raw = load(arrays, normalize=False).transitions
    keep = torch.ones(len(raw), dtype=torch.bool)
    keep[24] = False
    data = OfflineDataset(raw[keep], action_spec=Bounded(-1e5, 1e5, shape=(2,)))
    assert data.num_episodes == 4 and data.num_cut_episodes == 1
    assert data.whole_episodes.tolist() == [[0, 10], [10, 20], [29, 39]]
    assert "1 of 4 episodes are cut pieces" in told(data, "cut pieces")


def test_a_length_of_the_time_limit_is_an_end() -> None:
    arrays = log()
    del arrays["timeouts"]
    assert load(arrays).num_cut_episodes == 3  # the trip at the end of the third closes the fourth
    assert load(arrays, max_episode_steps=STEPS).num_cut_episodes == 0


def test_without_a_whole_episode_returns_are_unknown(tmp_path: Path) -> None:
    arrays = log()
    arrays["timeouts"][:] = arrays["terminals"][:] = False
    data = load(arrays, reference_scores=(-20.0, 0.0))
    assert data.behaviour_return_mean is data.behaviour_return_best is data.behaviour_score is None
    assert "no return is known" in told(data, "cut pieces")
    text = describe_dataset(data)
    assert "return       unknown: no episode is whole" in text and "nan" not in text
    plot_dataset(data, tmp_path / "set.png")


def test_a_terminal_row_without_a_next_observation_stays() -> None:
    arrays = log()
    arrays["next_observations"][29, 1] = np.nan
    raw = load(log(), normalize=False).transitions
    raw["next", "observation"][29, 1] = torch.nan
    spec = Bounded(-1e5, 1e5, shape=(2,))
    for data in (
        load(arrays, normalize=False),
        OfflineDataset(raw, action_spec=spec, normalize=False),
    ):
        assert len(data) == 40 and int(data.transitions["next", "terminated"].sum()) == 2
        row = data.transitions[29]
        assert torch.equal(row["next", "observation"], row["observation"])
        assert told(data, "stands in").startswith("1 terminal rows have no next observation")
        assert data.num_cut_episodes == 0


def test_a_terminal_row_that_is_left_out_is_counted() -> None:
    arrays = log()
    arrays["next_observations"][29, 1] = np.nan
    data = load(arrays, unknown_terminal_states="drop")
    assert len(data) == 39 and int(data.transitions["next", "terminated"].sum()) == 1
    assert data.transitions["next", "truncated"][28]
    assert "1 terminal rows are left out with their rewards" in told(data, "left out")
    assert 'unknown_terminal_states="hold" keeps them' in told(data, "left out")
    del arrays["next_observations"]
    assert "2 terminal rows are left out" in told(
        load(arrays, unknown_terminal_states="drop"), "terminal rows"
    )
    # but any other row needs its next observation
    arrays = log()
    arrays["next_observations"][19, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 in next observation .*row 19.* of level_m"):
        load(arrays)


class Frame(dict):
    """A data frame as pandas has it: columns by name."""

    @property
    def columns(self) -> list[str]:
        return list(self)


def structured(columns: dict[str, np.ndarray]) -> np.ndarray:
    values = np.zeros(len(next(iter(columns.values()))), [(name, float) for name in columns])
    for name, column in columns.items():
        values[name] = column
    return values


@pytest.mark.parametrize("table", [dict, Frame, pyarrow.table, structured])
def test_columns_keep_their_names(table: Any, tmp_path: Path) -> None:
    arrays = log()
    want = load(arrays)
    for key, names in (("observations", OBSERVATIONS), ("actions", ACTIONS)):
        arrays[key] = table(dict(zip(names, arrays[key].T, strict=True)))
    data = OfflineDataset.from_arrays(arrays, action_spec=SPEC)
    assert data.observation_names == OBSERVATIONS and data.action_names == ACTIONS
    assert (data.transitions == want.transitions).all()
    opened = data.memmap(tmp_path / "tank")
    assert (opened.observation_names, opened.action_names) == (OBSERVATIONS, ACTIONS)
    assert data.name == "arrays" and opened.name == str(tmp_path / "tank")


def test_next_observations_in_another_order_are_refused() -> None:
    arrays = log()
    for key, names in (("observations", OBSERVATIONS), ("next_observations", OBSERVATIONS[::-1])):
        columns = dict(zip(OBSERVATIONS, arrays[key].T, strict=True))
        arrays[key] = {name: columns[name] for name in names}
    with pytest.raises(ValueError, match="must have the columns of observations in their order"):
        OfflineDataset.from_arrays(arrays, action_spec=SPEC)


def test_names_come_with_files(store: Callable[..., Path], tmp_path: Path) -> None:
    arrays = log()
    with h5py.File(tmp_path / "tank.hdf5", "w") as file:
        for key, value in arrays.items():
            file[key] = value
        file["observations"].attrs["names"] = OBSERVATIONS
        file["actions"].attrs["names"] = ACTIONS
    from_file = OfflineDataset.load(tmp_path / "tank.hdf5", action_spec=SPEC)
    first = slice(STEPS)
    episode = {
        "observations": np.append(
            arrays["observations"][first], arrays["next_observations"][9:10], axis=0
        ),
        "actions": arrays["actions"][first],
        "rewards": arrays["rewards"][first],
        "terminations": arrays["terminals"][first],
        "truncations": arrays["timeouts"][first],
    }
    bounds = gymnasium.spaces.Box(np.zeros(2), np.array([5e4, 1.2]), dtype=np.float64)
    store("tank/log-v0", episode, action_space=bounds)
    names = {"observation_names": OBSERVATIONS, "action_names": ACTIONS}
    minari.load_dataset("tank/log-v0").storage.update_metadata(names)
    for data in (from_file, OfflineDataset.load("tank/log-v0")):
        assert data.observation_names == OBSERVATIONS and data.action_names == ACTIONS


def test_names_stand_in_reports_and_messages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(log()).memmap(tmp_path / "tank")
    assert main([str(tmp_path / "tank"), "--figure", str(tmp_path / "tank.png")]) == 0
    text = capsys.readouterr().out
    for name in (*OBSERVATIONS, *ACTIONS):
        assert f"\n{name} " in text
    assert "observation 0" not in text and "action 0" not in text and "unnamed" not in text
    arrays = log()
    arrays["actions"][7, 1] = 2.0
    with pytest.raises(ValueError, match=r"1 actions leave .* in flow_l_s, the first in row 7"):
        load(arrays)
    arrays = log()
    arrays["observations"][[3, 5], 1] = np.nan
    with pytest.raises(ValueError, match=r"2 in observation \(2 rows, .*row 3.* of level_m[ ;.]"):
        load(arrays)
    arrays = log()
    arrays["actions"] /= [5e4, 1.2]
    valve = OfflineDataset.from_arrays(arrays, action_names=ACTIONS)
    assert valve.data_warnings[0].startswith("power_W lies between")


@pytest.mark.parametrize(
    "names", ["temp_C", ("a", "b"), ("a", "b", "b"), ("a", "b", ""), ("a", "b", 3)]
)
def test_names_that_do_not_fit_are_refused(names: Any) -> None:
    with pytest.raises(ValueError, match=r"^arrays: observation_names must be .*names"):
        load(log(), observation_names=names)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (np.array(["open", "closed"] * 20), r"column 'valve' .* but 'open', 'closed': give"),
        (np.array([1.0, "n/a"] * 20, object), r"column 'valve' .* but 'n/a': give num"),
        (
            np.array(["2024-01-01"] * 40, "M8[D]"),
            r"column 'valve' .* dates as seconds",
        ),
        (np.array(["20,5", "21,0"] * 20), r"'20,5', '21,0': give .* decimal point"),
        (np.full(40, np.nan), r"of valve, where valve has no number at all"),
        (np.array([1.0, None] * 20, object), r"18 in observation .* of valve[ ;.]"),
        (
            np.ma.masked_greater(np.arange(40.0), 30),
            r"9 in observation .* step 1 of episode 3\) of valve[ ;.]",
        ),
        (np.zeros((40, 2)), r"columns of one number a step and of one length"),
        (np.zeros(39), r"columns of one number a step and of one length"),
    ],
)
def test_columns_of_text_or_with_gaps_are_named(column: np.ndarray, words: str) -> None:
    arrays = log()
    del arrays["next_observations"]
    temperature = arrays["observations"][:, 0]
    arrays["observations"] = {"temp_C": temperature, "valve": column}
    with pytest.raises(ValueError, match=words) as caught:
        OfflineDataset.from_arrays(arrays, action_spec=SPEC)
    assert "\n" not in str(caught.value)


def test_a_name_of_two_columns_is_told() -> None:
    frame = SimpleNamespace(columns=["temp_C", "valve", "valve"])  # as a data frame may have
    with pytest.raises(ValueError, match=r"observations have several columns named \['valve'\]"):
        as_numbers(frame, "observations", "arrays")


def test_constant_columns_are_told() -> None:
    remark = told(load(log()), "tank_area_m2")
    assert remark.startswith("tank_area_m2 is 0.8 in all rows") and "leave an entry out" in remark
    arrays = log()
    arrays["actions"][:, 1] = 0.6
    assert told(load(arrays), "flow_l_s").startswith("flow_l_s is 0.6 in all rows")
    assert "every entry changes" not in describe_dataset(load(arrays))


def test_irregular_steps_are_told(tmp_path: Path) -> None:
    arrays = log()
    time = np.arange(40) * 10.0 + np.repeat([0, 5000, 9000, 12000], STEPS)
    even = load(arrays | {"timestamps": time})
    assert even.step_intervals == {"mean": 10, "std": 0, "min": 10, "median": 10, "max": 10}
    assert not any("steps are irregular" in remark for remark in even.remarks)
    time[5:10] += 25
    uneven = load(arrays | {"timestamps": time})
    assert told(uneven, "irregular").startswith(
        "steps are irregular: 2.8 % of them differ by more than 10 % from the median of 10"
    )
    (line,) = [x for x in describe_dataset(uneven).splitlines() if x.startswith("interval")]
    assert line.split()[-1] == "35.00"
    assert uneven.memmap(tmp_path / "set").step_intervals == uneven.step_intervals
    dates = np.datetime64("2024-01-01T00:00:00") + time.astype(int).astype("m8[s]")
    for same in (
        time.astype(object),
        dates,
        dates.astype(str),
        dates.astype("M8[us]").astype(object),
    ):
        assert load(arrays | {"timestamps": same}).step_intervals == uneven.step_intervals
    assert uneven.data_warnings == ()
    time[22:30] += 500
    (odd,) = load(arrays | {"timestamps": time}).data_warnings
    assert odd.startswith("1 steps within episodes take more than 10 times the median of 10, the")
    time[22:30] -= 500
    time[7] = time[6]
    assert load(arrays | {"timestamps": time}).data_warnings[0].startswith("time stands still")
    for wrong in (np.where(time > 50, np.nan, time), time[:-1], np.array(["a"] * 40)):
        with pytest.raises(ValueError, match="timestamps|differ in length"):
            load(arrays | {"timestamps": wrong})


def test_intervals_do_not_cross_ends() -> None:
    measured, remarks = step_intervals([0, 1, 100, 101, 100.5], np.array([0, 1, 0, 1, 1], bool), "")
    assert measured["max"] == 1 and remarks == []
    assert step_intervals([3.0], np.array([True]), "") == ({}, [])
