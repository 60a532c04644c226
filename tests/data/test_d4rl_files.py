"""D4RL-format files: episode ends, names, three formats alike, refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.data import Bounded
from torchrl.data.datasets import d4rl

from rambo_trl.data import OfflineDataset, environment
from rambo_trl.data.d4rl_source import episode_ends
from rambo_trl.data.names import parse_d4rl_name

# An episode's end as D4RL flags it; the last one may be unfinished.
ENDS = st.sampled_from(["terminal", "timeout", "both"])
PLANS = st.lists(st.tuples(st.integers(1, 6), ENDS), min_size=1, max_size=8)


def make_arrays(plan: list[tuple[int, str]], *, seed: int = 0) -> dict[str, np.ndarray]:
    """Lay episodes out as D4RL does.

    The first observation entry counts on, in steps of 100 from one episode to the next, so that
    no row can be taken for the successor of another's.
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {
        key: [] for key in ("observations", "next_observations", "terminals", "timeouts")
    }
    for i, (steps, end) in enumerate(plan):
        states = rng.normal(size=(steps + 1, 3)).astype(np.float32)
        states[:, 0] = 100 * i + np.arange(steps + 1)
        columns["observations"].append(states[:-1])
        columns["next_observations"].append(states[1:])
        for key, ends in (("terminals", ("terminal", "both")), ("timeouts", ("timeout", "both"))):
            flags = np.zeros(steps, dtype=bool)
            flags[-1] = end in ends
            columns[key].append(flags)
    arrays = {key: np.concatenate(value) for key, value in columns.items()}
    size = len(arrays["terminals"])
    arrays["actions"] = rng.uniform(-1, 1, size=(size, 2)).astype(np.float32)
    arrays["rewards"] = rng.normal(size=size).astype(np.float32)
    return arrays


def without(arrays: Mapping[str, np.ndarray], *keys: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in arrays.items() if key not in keys}


def write(path: Path, arrays: Mapping[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return path


def check_rows(
    data: OfflineDataset, arrays: Mapping[str, np.ndarray], rows: list[int], held: set[int]
) -> None:
    """Assert that the data's rows are those of the arrays, each with its true successor."""
    td = data.transitions
    assert len(data) == len(rows)
    following = arrays["next_observations"].copy()
    for row in held:
        following[row] = arrays["observations"][row]
    for key, want in (
        ("observation", arrays["observations"]),
        (("next", "observation"), following),
        ("action", arrays["actions"]),
        (("next", "reward"), arrays["rewards"][:, None]),
        (("next", "terminated"), arrays["terminals"][:, None]),
    ):
        np.testing.assert_array_equal(td[key].numpy(), want[rows])
    assert not (td["next", "truncated"] & td["next", "terminated"]).any()


def whole_returns(
    plan: list[tuple[int, str]], arrays: Mapping[str, np.ndarray], flags: np.ndarray
) -> np.ndarray:
    """Returns of the episodes of which the end, and that of the one before, has a flag [N]."""
    stops = np.cumsum([steps for steps, _ in plan])
    episodes = np.split(arrays["rewards"].astype(np.float64), stops[:-1])
    known = [True, *flags[stops - 1]]
    return np.array(
        [e.sum() for e, a, b in zip(episodes, known[:-1], known[1:], strict=True) if a and b]
    )


@settings(max_examples=60, deadline=None)
@given(PLANS, st.sampled_from(["timeouts", "no timeouts", "false timeouts"]), st.booleans())
def test_with_next_observations_every_row_is_kept(
    plan: list[tuple[int, str]], timeouts: str, unfinished: bool
) -> None:
    arrays = make_arrays(plan)
    if unfinished:
        arrays["timeouts"][-1] = arrays["terminals"][-1] = False
    given_arrays = dict(arrays)
    if timeouts == "no timeouts":
        del given_arrays["timeouts"]
    elif timeouts == "false timeouts":
        given_arrays["timeouts"] = np.zeros_like(arrays["timeouts"])
    data = OfflineDataset.from_arrays(given_arrays, normalize=False)
    check_rows(data, arrays, list(range(len(arrays["rewards"]))), held=set())
    # episodes end where they were played to, whatever the timeouts say
    stops = np.cumsum([steps for steps, _ in plan]) - 1
    done = data.transitions["next", "done"].squeeze(-1).numpy()
    np.testing.assert_array_equal(np.flatnonzero(done), stops)
    flags = arrays["terminals"] | given_arrays.get("timeouts", False)
    want = whole_returns(plan, arrays, flags)
    np.testing.assert_allclose(data.behaviour_returns, want, rtol=1e-6)
    assert data.num_episodes == len(plan) == len(want) + data.num_cut_episodes
    assert any("cut pieces" in remark for remark in data.remarks) == (len(want) < len(plan))


@settings(max_examples=60, deadline=None)
@given(PLANS, st.sampled_from(["hold", "drop"]), st.booleans())
def test_without_next_observations_none_is_invented(
    plan: list[tuple[int, str]], unknown: str, unfinished: bool
) -> None:
    arrays = make_arrays(plan)
    if unfinished:
        arrays["timeouts"][-1] = arrays["terminals"][-1] = False
    rows, last_of_episode, held, start = [], [], set(), 0
    for steps, _ in plan:
        last = start + steps - 1
        kept = list(range(start, last))
        if arrays["terminals"][last] and unknown == "hold":
            kept.append(last)
            held.add(last)
        rows += kept
        last_of_episode += kept[-1:]
        start += steps
    file_arrays = without(arrays, "next_observations")
    # longer than any episode; needed where the only end without a terminal is the unfinished one
    options = {"unknown_terminal_states": unknown, "max_episode_steps": 7}
    if not rows:
        with pytest.raises(ValueError, match="no next observation is known"):
            OfflineDataset.from_arrays(file_arrays, **options)
        return
    data = OfflineDataset.from_arrays(file_arrays, **options, normalize=False)
    check_rows(data, arrays, rows, held)
    done = data.transitions["next", "done"].squeeze(-1).numpy()
    assert [rows[i] for i in np.flatnonzero(done)] == last_of_episode
    # returns are of the whole episodes, rows left out included
    flags = arrays["terminals"] | arrays["timeouts"]
    want = whole_returns(plan, arrays, flags)
    np.testing.assert_allclose(data.behaviour_returns, want, rtol=1e-6)
    assert data.num_cut_episodes == len(plan) - len(want)
    # where their rows are, in the transitions
    inside = [row for start, stop in data.whole_episodes for row in rows[start:stop]]
    whole = [i for i, _ in enumerate(plan) if i < len(want)]  # only the last one may be cut
    stops = np.cumsum([0] + [steps for steps, _ in plan])
    assert inside == [r for r in rows if r < stops[len(whole)]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=8))
def test_a_time_limit_stands_in_for_missing_timeouts(plan: list[tuple[int, bool]]) -> None:
    # An episode that does not terminate lasts as long as the limit allows.
    limit = 5
    full = [(n, "terminal") if terminal else (limit, "timeout") for n, terminal in plan]
    arrays = make_arrays(full)
    want = without(arrays, "next_observations")
    for timeouts in ({}, {"timeouts": np.zeros_like(arrays["timeouts"])}):
        got = without(want, "timeouts") | timeouts
        kwargs = {"observations": arrays["observations"], "max_episode_steps": limit}
        np.testing.assert_array_equal(
            episode_ends(got["terminals"], got.get("timeouts"), **kwargs),
            arrays["terminals"] | arrays["timeouts"],
        )


@settings(max_examples=80, deadline=None)
@given(PLANS, st.booleans())
def test_flags_that_do_not_account_for_all_rows_are_refused(
    plan: list[tuple[int, str]], missing: bool
) -> None:
    arrays = make_arrays(plan)
    ends, terminals = arrays["terminals"] | arrays["timeouts"], arrays["terminals"]
    # what stays of the timeouts says nothing: there are none, or none is set
    timeouts = None if missing else np.zeros_like(terminals)
    kwargs = {"observations": arrays["observations"]}
    if missing or not terminals[-1]:
        flags = without(arrays, "next_observations", "timeouts")
        flags |= {} if missing else {"timeouts": timeouts}
        with pytest.raises(ValueError, match=r"arrays: it has n.*--max-episode-st") as caught:
            OfflineDataset.from_arrays(flags)
        assert "\n" not in str(caught.value)
    else:
        np.testing.assert_array_equal(episode_ends(terminals, timeouts, **kwargs), terminals)
    # each of what the line asks for is enough
    following = {"next_observations": arrays["next_observations"]}
    got = episode_ends(terminals, timeouts, **kwargs, **following)
    np.testing.assert_array_equal(got[:-1], ends[:-1])
    if arrays["timeouts"].any():
        got = episode_ends(terminals, arrays["timeouts"], **kwargs)
        np.testing.assert_array_equal(got, ends)
    for limit in (7, len(ends)):
        got = episode_ends(terminals, timeouts, **kwargs, max_episode_steps=limit)
        stops = np.append(np.flatnonzero(got), len(ends) - 1)
        assert got[terminals].all() and np.diff(stops, prepend=-1).max() <= limit


def test_one_long_log_and_episodes_that_all_end_in_terminals() -> None:
    # a single episode without any end looks like episodes that are joined: its last row is told
    log = without(make_arrays([(9, "unfinished")]), "next_observations")
    with pytest.raises(ValueError, match=r"no timeout is set and its last row is no terminal"):
        OfflineDataset.from_arrays(log)
    assert OfflineDataset.from_arrays(log, max_episode_steps=9).num_episodes == 1
    log["timeouts"][-1] = True
    assert OfflineDataset.from_arrays(log).num_episodes == 1
    # nothing is flagged after the last terminal: nor may cuts before it have been
    plan = [(4, "terminal"), (3, "terminal"), (2, "unfinished")]
    with pytest.raises(ValueError, match=r"its last row is no terminal"):
        OfflineDataset.from_arrays(without(make_arrays(plan), "next_observations"))
    all_end = without(make_arrays(plan[:2]), "next_observations")
    data = OfflineDataset.from_arrays(all_end)
    assert data.num_episodes == 2 and "all 2 episodes end in terminals" in data.remarks[0]
    # one-step problems: no row can be joined to another
    steps = without(make_arrays([(1, "terminal")] * 4), "next_observations")
    assert "no time limit" not in " ".join(OfflineDataset.from_arrays(steps).remarks)


def test_timeouts_that_seem_to_be_missing_are_told() -> None:
    arrays = make_arrays([(12, "timeout"), (5, "timeout"), (4, "terminal")])
    some = without(arrays, "next_observations")
    (told,) = OfflineDataset.from_arrays(some, max_episode_steps=5).data_warnings
    assert OfflineDataset.from_arrays(some, max_episode_steps=5).remarks[-1] == told
    assert (
        told.startswith("1 episodes are longer than the 5 steps") and "leave the timeouts" in told
    )
    assert "longer" not in " ".join(OfflineDataset.from_arrays(some, max_episode_steps=12).remarks)
    # next observations tell the ends by themselves
    assert OfflineDataset.from_arrays(arrays, max_episode_steps=5).remarks == ()


def test_actions_of_one_sign_under_assumed_bounds_are_told() -> None:
    arrays = make_arrays([(30, "timeout")])
    assert OfflineDataset.from_arrays(arrays).data_warnings == ()
    valve = arrays | {"actions": np.abs(arrays["actions"]) * [1, -1]}
    (told,) = OfflineDataset.from_arrays(valve).data_warnings
    assert told.startswith("action entry 0 lies between 0.0") and "--action-low" in told
    # meant so, once bounds are given or known; and an entry that never changes says nothing
    spec = Bounded(low=torch.tensor([0.0, -1.0]), high=torch.tensor([1.0, 0.0]), shape=(2,))
    assert OfflineDataset.from_arrays(valve, action_spec=spec).data_warnings == ()
    still = arrays | {"actions": arrays["actions"] * [0, 1]}
    assert OfflineDataset.from_arrays(still).data_warnings == ()


def test_one_array_for_both_observations_is_normalised_once() -> None:
    states = np.random.default_rng(0).normal(3, 2, size=(8, 3)).astype(np.float32)
    arrays = make_arrays([(7, "timeout")]) | {
        "observations": states[:-1],
        "next_observations": states[1:],
    }
    want = OfflineDataset.from_arrays(arrays).transitions.clone()
    assert (OfflineDataset.from_arrays(arrays, copy=False).transitions == want).all()


def test_medium_replay_file_without_timeouts(tmp_path: Path) -> None:
    # v0 files: neither timeouts nor next observations; the name tells the limit of 1000 steps.
    plan = [(1000, "timeout"), (30, "terminal"), (1000, "timeout"), (20, "unfinished")]
    arrays = make_arrays(plan)
    arrays["observations"] = np.resize(arrays["observations"], (2050, 3))
    path = write(tmp_path / "hopper_mixed.hdf5", without(arrays, "next_observations", "timeouts"))
    data = OfflineDataset.load(path)
    assert data.env_id == "Hopper-v5" and data.num_episodes == 4
    assert len(data) == 999 + 30 + 999 + 19
    other = write(tmp_path / "robot.hdf5", without(arrays, "next_observations", "timeouts"))
    with pytest.raises(ValueError, match=r"robot.hdf5: it has neither.*max_episode_steps="):
        OfflineDataset.load(other)
    assert len(OfflineDataset.load(other, max_episode_steps=1000)) == len(data)
    assert len(OfflineDataset.load(other, env_id="Hopper-v5")) == len(data)


def test_three_formats_give_the_same_transitions(
    tmp_path: Path, store: Callable[..., Path]
) -> None:
    arrays = make_arrays([(5, "terminal"), (7, "timeout"), (1, "terminal"), (4, "unfinished")])
    episodes, start = [], 0
    for steps in (5, 7, 1, 4):
        rows = slice(start, start + steps)
        states = np.concatenate(
            [arrays["observations"][rows], arrays["next_observations"][rows][-1:]]
        )
        episodes.append(
            {
                "observations": states.astype(np.float64),  # as MuJoCo's environments give them
                "actions": arrays["actions"][rows],
                "rewards": arrays["rewards"][rows],
                "terminations": arrays["terminals"][rows],
                "truncations": arrays["timeouts"][rows],
            }
        )
        start += steps
    store("three/formats-v0", *episodes)
    path = write(tmp_path / "own.hdf5", arrays)
    wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in arrays.items()}
    columns = {k: v[:, None] if v.ndim == 1 else v for k, v in arrays.items()}  # [N, 1]
    from_minari = OfflineDataset.load("three/formats-v0")
    assert from_minari.num_cut_episodes == 1
    raw = OfflineDataset.from_arrays(arrays, normalize=False)
    for other in (
        OfflineDataset.load(path),
        OfflineDataset.from_arrays(arrays),
        OfflineDataset.load(write(tmp_path / "wide.h5", wide)),
        OfflineDataset.load(write(tmp_path / "columns.h5", columns)),
        OfflineDataset(raw.transitions, action_spec=Bounded(-1, 1, shape=(2,))),
    ):
        assert (other.transitions == from_minari.transitions).all()
        assert torch.equal(other.observation_mean, from_minari.observation_mean)
        assert torch.equal(other.observation_std, from_minari.observation_std)
        assert other.action_spec == from_minari.action_spec
        # the rows of transitions in memory have had their end flagged by then
        returns = other.behaviour_returns[: 3 if other.name == "transitions" else None]
        np.testing.assert_allclose(returns, from_minari.behaviour_returns, rtol=1e-6)


def test_environment_scores_and_bounds(tmp_path: Path) -> None:
    arrays = make_arrays([(5, "terminal")])
    named = OfflineDataset.load(write(tmp_path / "hopper_medium_replay-v2.hdf5", arrays))
    assert named.env_id == "Hopper-v5" and named.reference_scores == (-20.272305, 3234.3)
    assert named.name.endswith("hopper_medium_replay-v2.hdf5")
    own = write(tmp_path / "own.hdf5", arrays)
    assert OfflineDataset.load(own).env_id is None
    given_ = OfflineDataset.load(own, env_id="Walker2d-v5", reference_scores=(0, 1))
    assert given_.env_id == "Walker2d-v5" and given_.reference_scores == (0, 1)
    # bounds: the environment's, else D4RL's, else as given
    arrays["actions"] = 2 * np.ones((5, 1), np.float32)
    wide = write(tmp_path / "wide.hdf5", arrays)
    pendulum = OfflineDataset.load(wide, env_id="InvertedPendulum-v5")
    assert pendulum.action_high.tolist() == [3.0]
    with pytest.raises(ValueError, match=r"5 actions leave their bounds \[-1.0\] to \[1.0\]"):
        OfflineDataset.load(wide)
    with pytest.raises(ValueError, match=r"leave their bounds .* correct the action_spec or clip"):
        OfflineDataset.load(wide, action_spec=Bounded(-1, 1, shape=(1,)))
    spec = Bounded(-2, 2, shape=(1,))
    assert OfflineDataset.load(wide, action_spec=spec).action_high.tolist() == [2.0]


@pytest.mark.parametrize(
    ("env_id", "size", "where"),
    [
        (None, 1, "are assumed, because no environment is named; give env_id"),
        ("Nowhere-v0", 1, "are assumed, because environment Nowhere-v0 is not installed"),
        ("Pendulum-v1", 2, r"are assumed, because Pendulum-v1 has .*another size \(1, not 2\)"),
        ("Pendulum-v1", 1, "are those of Pendulum-v1"),
    ],
)
def test_where_bounds_that_actions_leave_come_from(
    env_id: str | None, size: int, where: str
) -> None:
    arrays = make_arrays([(5, "terminal")])
    arrays["actions"] = np.full((5, size), 3, np.float32)
    with pytest.raises(ValueError, match=f"5 actions leave .*: the bounds {where}.*") as error:
        OfflineDataset.from_arrays(arrays, env_id=env_id)
    assert "--action-low and --action-high of python -m rambo_trl.data" in str(error.value)
    assert ("clip" in str(error.value)) == (where == "are those of Pendulum-v1")


@pytest.mark.parametrize("actions", [(0, 1), (0, 2)])
def test_an_environment_of_discrete_actions_is_refused(actions: tuple[int, int]) -> None:
    arrays = make_arrays([(5, "terminal")])
    arrays["actions"] = np.random.default_rng(0).choice(actions, (5, 1)).astype(np.float32)
    with pytest.raises(ValueError, match="environment CartPole-v1 has Discrete actions: RAMBO"):
        OfflineDataset.from_arrays(arrays, env_id="CartPole-v1")


def test_a_terminal_that_is_also_a_timeout_is_a_terminal() -> None:
    arrays = make_arrays([(3, "both"), (2, "timeout")])
    ends = OfflineDataset.from_arrays(arrays).transitions["next"]
    assert ends["terminated"].squeeze(-1).tolist() == [False, False, True, False, False]
    assert ends["truncated"].squeeze(-1).tolist() == [False, False, False, False, True]
    for given_arrays in (arrays, without(arrays, "next_observations")):
        remarks = OfflineDataset.from_arrays(given_arrays).remarks
        assert sum("1 rows are terminal and timed out at once" in r for r in remarks) == 1


def test_what_is_left_out_is_told() -> None:
    arrays = without(make_arrays([(3, "terminal"), (4, "timeout")]), "next_observations")
    left_out, held = OfflineDataset.from_arrays(arrays).remarks
    assert "last rows of 1 truncated episodes are left out" in left_out
    assert "1 terminal rows have no next observation" in held
    assert OfflineDataset.from_arrays(make_arrays([(3, "terminal"), (4, "timeout")])).remarks == ()


def test_arrays_of_any_memory_layout_stay_as_they_are() -> None:
    arrays = make_arrays([(3, "terminal"), (4, "timeout")])
    want = OfflineDataset.from_arrays(arrays)
    strided = {key: np.repeat(value, 2, axis=0)[::-2][::-1] for key, value in arrays.items()}
    other_endian = {key: value.astype(value.dtype.newbyteorder()) for key, value in arrays.items()}
    plain = {key: value.copy() for key, value in arrays.items()}
    for value in arrays.values():
        value.flags.writeable = False
    flags = [
        arrays | {key: arrays[key].astype(dtype) for key in ("terminals", "timeouts")}
        for dtype in (np.uint8, np.float32, np.int64)
    ]
    for layout in (plain, arrays, strided, other_endian, *flags):
        before = {key: value.copy() for key, value in layout.items()}
        assert (OfflineDataset.from_arrays(layout).transitions == want.transitions).all()
        assert all((layout[key] == before[key]).all() for key in layout)


def test_a_file_cut_short_or_of_another_kind_is_named(tmp_path: Path) -> None:
    arrays = make_arrays([(300, "terminal")])
    path = write(tmp_path / "own.hdf5", arrays)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:40], b"", b"observations,actions\n1,2\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="own.hdf5 is truncated, corrupt") as caught:
            OfflineDataset.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no data file .*other.hdf5"):
        OfflineDataset.load(tmp_path / "other.hdf5")
    table = path.rename(tmp_path / "log.csv")
    with pytest.raises(ValueError, match=r"log.csv is no HDF5 file .*tutorials/own_data.md"):
        OfflineDataset.load(table)


@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals"])
def test_missing_arrays_are_named(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "own.hdf5", without(make_arrays([(3, "terminal")]), key))
    with pytest.raises(ValueError, match=f"own.hdf5 lacks {key}: a D4RL file needs"):
        OfflineDataset.load(path)
    with pytest.raises(ValueError, match=f"lacks {key}"):
        OfflineDataset.from_arrays(without(make_arrays([(3, "terminal")]), key))


def test_a_group_instead_of_an_array_and_a_minari_file(tmp_path: Path) -> None:
    arrays = without(make_arrays([(3, "terminal")]), "actions")
    with pytest.raises(ValueError, match="lacks actions"):
        OfflineDataset.load(write(tmp_path / "a.hdf5", arrays | {"actions/left": np.zeros(3)}))
    path = write(tmp_path / "main_data.hdf5", {"episode_0/rewards": np.zeros(3)})
    with pytest.raises(ValueError, match="inside of a Minari set.*folder"):
        OfflineDataset.load(path)


@pytest.mark.parametrize(
    "key", ["observations", "actions", "rewards", "terminals", "timeouts", "next_observations"]
)
def test_lengths_that_differ_are_named(tmp_path: Path, key: str) -> None:
    arrays = make_arrays([(5, "terminal")])
    path = write(tmp_path / "own.hdf5", arrays | {key: arrays[key][:-1]})
    with pytest.raises(ValueError, match=f"own.hdf5: arrays differ in length.*'{key}': 4"):
        OfflineDataset.load(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"actions": np.zeros(5, np.int64)}, "discrete actions"),
        ({"observations": np.zeros((5, 8, 8, 3), np.uint8)}, "are images"),
        ({"observations": np.array(["x"] * 5)}, "no real numbers"),
        ({"rewards": np.zeros((5, 2), np.float32)}, "rewards must be one number per step"),
        ({"terminals": np.zeros((5, 2), bool)}, "terminals must be one flag per step"),
        ({"timeouts": np.arange(5)}, "timeouts must be 0 or 1, but 3 are not.*row 2"),
        ({"terminals": np.float32([0, 0, 0, np.nan, 1])}, "terminals must be 0 or 1.*row 3"),
        ({"next_observations": np.zeros((5, 2), np.float32)}, "must have the shape of obs"),
        ({"rewards": np.float32([0, 1, np.nan, np.inf, 2])}, "2 in next reward .*first is row 2"),
        ({"unknown_terminal_states": "guess"}, "'hold' or 'drop', got 'guess'"),
        ({"max_episode_steps": 0}, "at least 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any], match: str) -> None:
    arrays = make_arrays([(5, "terminal")])
    if "observations" in change:
        del arrays["next_observations"]
    options = {k: v for k, v in change.items() if k in ("unknown_terminal_states",)}
    limit = change.get("max_episode_steps")
    arrays |= {k: v for k, v in change.items() if isinstance(v, np.ndarray)}
    with pytest.raises(ValueError, match=match):
        OfflineDataset.from_arrays(arrays, max_episode_steps=limit, **options)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    arrays = {key: value[:0] for key, value in make_arrays([(5, "terminal")]).items()}
    with pytest.raises(ValueError, match="own.hdf5 is empty"):
        OfflineDataset.load(write(tmp_path / "own.hdf5", arrays))
    one_row = without(make_arrays([(1, "timeout")] * 4), "next_observations")
    with pytest.raises(ValueError, match="empty without its episodes' last rows"):
        OfflineDataset.from_arrays(one_row)


def test_bounds_where_the_environment_is_known_but_cannot_be_made() -> None:
    gymnasium.register("Uninstalled-v0", "nowhere_at_all:Env", max_episode_steps=5)
    try:
        arrays = without(make_arrays([(5, "timeout"), (5, "timeout")]), "timeouts")
        del arrays["next_observations"]
        data = OfflineDataset.from_arrays(arrays, env_id="Uninstalled-v0")
    finally:
        del gymnasium.registry["Uninstalled-v0"]
    assert data.num_episodes == 2 and data.action_spec.space.high.tolist() == [1.0, 1.0]


def test_torchrls_own_reader_loses_the_states_that_episodes_end_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Why these files are not read through D4RLExperienceReplay: it writes zeros where done.
    arrays = make_arrays([(3, "terminal"), (4, "timeout"), (2, "timeout")])
    path = write(tmp_path / "hopper_medium-v2.hdf5", arrays)
    monkeypatch.setattr(d4rl, "_download_dataset_from_url", lambda *args: str(path))
    theirs = d4rl.D4RLExperienceReplay(
        "hopper-medium-v2",
        batch_size=2,
        root=tmp_path / "torchrl",
        direct_download=True,
        use_truncated_as_done=True,
    )[:]
    ours = OfflineDataset.load(path, normalize=False).transitions[: len(theirs)]
    done = ours["next", "done"].squeeze(-1)
    assert (theirs["next", "observation"][done] == 0).all()
    assert (ours["next", "observation"][done] != 0).all()
    assert torch.equal(theirs["next", "observation"][~done], ours["next", "observation"][~done])
    assert torch.equal(theirs["next", "reward"], ours["next", "reward"])


def test_walkers_other_simulator_is_told(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    arrays = make_arrays([(3, "terminal")])
    OfflineDataset.from_arrays(arrays, env_id="Walker2d-v5")
    assert "foot" not in heard.text
    OfflineDataset.from_arrays(arrays, env_id="Walker2d-v2")
    OfflineDataset.load(write(tmp_path / "walker2d_medium-v2.hdf5", arrays))
    assert heard.text.count("recorded in Walker2d-v2, whose right foot") == 2


def test_a_mazes_time_limit_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    # Their package registers them when it is imported, which nothing else may have done yet.
    spec = EnvSpec("PointMaze_UMaze-v3", max_episode_steps=300)
    monkeypatch.delitem(gymnasium.registry, spec.id, raising=False)
    register = monkeypatch.setitem
    monkeypatch.setattr(
        environment, "register_mazes", lambda: register(gymnasium.registry, spec.id, spec)
    )
    assert environment.time_limit(spec.id) == 300


@pytest.mark.parametrize(
    ("name", "env_id", "limit"),
    [
        ("hopper_medium_replay-v2", "Hopper-v5", 1000),
        ("hopper-medium-replay-v2", "Hopper-v5", 1000),
        ("halfcheetah_medium_expert-v0", "HalfCheetah-v5", 1000),
        ("walker2d_full_replay-v2", "Walker2d-v5", 1000),
        ("ant_random", "Ant-v5", 1000),
        ("antmaze-umaze-diverse-v2", "AntMaze_UMaze-v4", 700),
        (
            "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse",
            "AntMaze_Large-v4",
            1000,
        ),
        ("hopper_of_ours", None, None),
        ("antelope_medium-v2", None, None),
        ("my_hopper_medium-v2", None, None),
    ],
)
def test_what_a_file_is_called(name: str, env_id: str | None, limit: int | None) -> None:
    parsed = parse_d4rl_name(Path(f"/somewhere/{name}.hdf5"))
    assert (parsed and parsed.env_id, parsed and parsed.max_episode_steps) == (env_id, limit)
