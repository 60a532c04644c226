"""OfflineDataset: episode ends, normalisation, scores, checks."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset, offline_dataset, reference_scores_for

ACTION_SPEC = Bounded(-1.0, 1.0, shape=(2,))


def make_episode(
    steps: int, end: str = "truncated", *, start: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """Make an episode whose first observation entry counts on from ``start``."""
    rng = np.random.default_rng(seed)
    flags = np.zeros((2, steps), dtype=bool)
    if end != "cut" and steps:
        flags[["terminated", "truncated"].index(end), -1] = True
    observations = rng.normal(size=(steps + 1, 3))
    observations[:, 0] = start + np.arange(steps + 1)
    return {
        "observations": observations,
        "actions": rng.uniform(-1, 1, size=(steps, 2)),
        "rewards": rng.normal(size=steps),
        "terminations": flags[0],
        "truncations": flags[1],
    }


def load(episodes: list[dict[str, Any]], **kwargs: Any) -> OfflineDataset:
    return OfflineDataset.from_episodes(episodes, **{"action_spec": ACTION_SPEC} | kwargs)


ENDS = st.sampled_from(["terminated", "truncated", "cut"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), ENDS), min_size=1, max_size=8))
def test_every_true_transition_and_no_other(plan: list[tuple[int, str]]) -> None:
    # Pitfall 4. Observations count on across episodes in steps of 100: a next observation from
    # the following episode, a dropped last row or a shift by a row cannot go unseen.
    episodes = [
        make_episode(steps, end, start=100.0 * i, seed=i) for i, (steps, end) in enumerate(plan)
    ]
    steps_in_all = sum(steps for steps, _ in plan)
    if steps_in_all == 0:
        with pytest.raises(ValueError, match="empty"):
            load(episodes)
        return
    data = load(episodes, normalize=False)
    assert len(data) == steps_in_all
    row = 0
    for (steps, end), episode in zip(plan, episodes, strict=True):
        for t in range(steps):
            got = data.transitions[row]
            for key, want in (
                ("observation", episode["observations"][t]),
                (("next", "observation"), episode["observations"][t + 1]),
                ("action", episode["actions"][t]),
                (("next", "reward"), episode["rewards"][t : t + 1]),
            ):
                np.testing.assert_array_equal(got[key].numpy(), want.astype(np.float32))
            last = t == steps - 1
            assert got["next", "terminated"].item() == (last and end == "terminated")
            assert got["next", "truncated"].item() == (last and end != "terminated")
            assert got["next", "done"].item() == last
            row += 1
    played = [e for e in zip(episodes, plan, strict=True) if len(e[0]["rewards"])]
    known = [True, *(end != "cut" for _, (_, end) in played)]
    want = [e["rewards"].sum() for i, (e, _) in enumerate(played) if known[i] and known[i + 1]]
    np.testing.assert_allclose(data.behaviour_returns, want)
    assert data.num_episodes == len(played) == len(want) + data.num_cut_episodes


def test_layout() -> None:
    data = load([make_episode(5), make_episode(4, "terminated")], name="toy")
    td = data.transitions
    assert td.batch_size == (9,) and len(data) == 9 and data.num_episodes == 2
    assert data.observation_size == 3 and data.action_size == 2
    assert td["next", "reward"].shape == (9, 1) and td["next", "reward"].dtype == torch.float32
    for key in ("terminated", "truncated", "done"):
        assert td["next", key].shape == (9, 1) and td["next", key].dtype == torch.bool
    assert td["observation"].dtype == td["action"].dtype == torch.float32
    assert data.action_spec.dtype == torch.float32 and data.action_spec.shape == (2,)
    assert "toy" in repr(data)


def test_normalise_and_back() -> None:
    episodes = [make_episode(40, seed=1), make_episode(25, "terminated", seed=2)]
    raw, data = load(episodes, normalize=False), load(episodes)
    observation = raw.transitions["observation"]
    want_mean = observation.double().mean(0)
    want_std = observation.double().std(0, correction=0)
    torch.testing.assert_close(data.observation_mean, want_mean.float())
    torch.testing.assert_close(data.observation_std, want_std.float())
    normalized = data.transitions["observation"]
    torch.testing.assert_close(normalized.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.std(0, correction=0), torch.ones(3))
    for key in ("observation", ("next", "observation")):
        torch.testing.assert_close(data.normalize(raw.transitions[key]), data.transitions[key])
        torch.testing.assert_close(data.denormalize(data.transitions[key]), raw.transitions[key])
    # rewards and actions stay as they are
    for key in ("action", ("next", "reward")):
        assert torch.equal(raw.transitions[key], data.transitions[key])
    assert torch.equal(raw.normalize(observation), observation)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
def test_constant_dimension_keeps_its_unit(value: float) -> None:
    episode = make_episode(50)
    episode["observations"][:, 1] = value
    data = load([episode])
    assert data.observation_std[1] == 1.0
    assert data.transitions["observation"][:, 1].abs().max() < 1e-2
    off = torch.from_numpy(episode["observations"][:1]).float() + 0.5
    assert data.normalize(off)[0, 1].item() == pytest.approx(0.5, abs=1e-2)


def test_the_callers_tensors_stay_as_they_are() -> None:
    raw = load([make_episode(20)], normalize=False).transitions
    before = raw.clone()
    OfflineDataset(raw, action_spec=ACTION_SPEC)
    assert (raw == before).all()


def test_a_last_episode_without_an_end_has_no_return() -> None:
    flat = load([make_episode(4, "terminated"), make_episode(3)], normalize=False).transitions
    flat["next", "truncated"][-1] = flat["next", "done"][-1] = False
    data = OfflineDataset(flat, action_spec=ACTION_SPEC)
    assert data.num_episodes == 2 and data.num_cut_episodes == 1
    want = [flat["next", "reward"][:4].sum().item()]
    np.testing.assert_allclose(data.behaviour_returns, want, rtol=1e-6)
    limited = OfflineDataset(flat[4:], action_spec=ACTION_SPEC, env_id="Hopper-v5")
    assert len(limited.behaviour_returns) == 0 and limited.behaviour_score is None


@pytest.mark.parametrize(
    ("env_id", "want"),
    [
        ("Hopper-v5", (-20.272305, 3234.3)),
        ("Hopper-v2", (-20.272305, 3234.3)),
        ("HalfCheetah-v5", (-280.178953, 12135.0)),
        ("Walker2d-v5", (1.629008, 4592.3)),
        ("Ant-v5", (-325.6, 3879.7)),
        ("AntMaze_Medium_Diverse_GR-v4", (0.0, 1.0)),
        ("my_module:Hopper-v3", (-20.272305, 3234.3)),
        ("MyLab/Hopper-v3", None),
        ("my_module:MyLab/Hopper-v3", None),
        ("HopperBullet-v0", None),
        ("InvertedDoublePendulum-v5", None),
        (None, None),
    ],
)
def test_reference_scores(env_id: str | None, want: tuple[float, float] | None) -> None:
    assert reference_scores_for(env_id) == want
    data = load([make_episode(3)], env_id=env_id)
    assert data.reference_scores == want
    if want is None:
        assert data.normalized_score(1.0) is None and data.behaviour_score is None
    else:
        assert data.normalized_score(want[0]) == pytest.approx(0)
        assert data.normalized_score(want[1]) == pytest.approx(100)
        assert data.normalized_score(sum(want) / 2) == pytest.approx(50)
        mean = data.behaviour_returns.mean()
        assert data.behaviour_score == pytest.approx(data.normalized_score(mean))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e60])
def test_values_that_are_not_finite_are_located(bad: float) -> None:
    episodes = [make_episode(4), make_episode(6)]
    episodes[1]["rewards"][2] = bad
    episodes[1]["actions"][3] = bad
    with pytest.raises(ValueError) as caught, np.errstate(over="ignore"):
        load(episodes)
    said = str(caught.value)
    assert (
        "2 in action (1 rows, the first is row 7, which is step 3 of episode 1) of action 0" in said
    )
    assert "1 in next reward (1 rows, the first is row 6, which is step 2 of episode 1)" in said
    assert "in observation" not in said and "in next observation" not in said


def test_a_last_observation_that_is_not_finite_is_found() -> None:
    episode = make_episode(4)
    episode["observations"][-1, 1] = np.nan
    with pytest.raises(ValueError, match=r"next observation .* row 3, which is step 3 of"):
        load([episode])


@pytest.mark.parametrize("field", ["observations", "actions", "terminations", "truncations"])
def test_lengths_that_differ_are_refused(field: str) -> None:
    episodes = [make_episode(4), make_episode(4)]
    episodes[1][field] = episodes[1][field][:-1]
    with pytest.raises(ValueError, match="episode 1 has arrays of lengths"):
        load(episodes)


@pytest.mark.parametrize("bad", [np.nan, 2.0, -1.0])
def test_flags_that_are_neither_0_nor_1_are_refused(bad: float) -> None:
    # An empty cell of a log becomes NaN, and NaN would become True: an end that is none.
    for field in ("terminations", "truncations"):
        episode = make_episode(4)
        episode[field] = episode[field].astype(float)
        episode[field][1] = bad
        with pytest.raises(ValueError, match=f"episode 0: {field} must be 0 or 1, but 1 .*row 1"):
            load([episode])
    flat = load([make_episode(4)], normalize=False).transitions
    for key in ("terminated", "truncated", "done"):
        flags = flat["next", key].float()
        flags[1] = bad
        other = flat.clone().set(("next", key), flags)
        with pytest.raises(ValueError, match=f"{key}.* must be 0 or 1, but 1 are not.*row 1"):
            OfflineDataset(other, action_spec=ACTION_SPEC)


def test_actions_must_fit_their_spec() -> None:
    with pytest.raises(ValueError, match="do not fit the action_spec"):
        OfflineDataset.from_episodes([make_episode(3)], action_spec=Bounded(-1, 1, shape=(3,)))
    for high in (-1.0, -2.0):
        spec = Bounded(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, high]), shape=(2,))
        with pytest.raises(ValueError, match="lower bounds must lie below .*leave out an action"):
            OfflineDataset.from_episodes([make_episode(3)], action_spec=spec)
    episode = make_episode(3)
    episode["actions"][1, 0] = 1.5
    with pytest.raises(
        ValueError, match="1 actions leave their .*the first in row 1, which is step 1"
    ):
        load([episode])


def test_examples_in_the_docstring() -> None:
    assert doctest.testmod(offline_dataset).failed == 0


def test_empty_is_refused() -> None:
    with pytest.raises(ValueError, match="toy is empty"):
        load([], name="toy")
    raw = load([make_episode(2)], normalize=False).transitions
    with pytest.raises(ValueError, match="empty"):
        OfflineDataset(raw[:0], action_spec=ACTION_SPEC)
    with pytest.raises(ValueError, match="lack the keys"):
        OfflineDataset(raw.select("observation"), action_spec=ACTION_SPEC)


def test_missing_arrays_are_refused() -> None:
    episode = make_episode(4)
    del episode["truncations"]
    with pytest.raises(ValueError, match="episode 0 lacks truncations"):
        load([episode])
    other = make_episode(4)
    other["observations"] = other["observations"][:, :2]
    with pytest.raises(ValueError, match="episode 1's arrays differ in shape"):
        load([make_episode(4), other])


@pytest.mark.parametrize("without", ["done", "truncated"])  # TorchRL's may hold only one of them
def test_flat_transitions_give_the_same_data(without: str) -> None:
    episodes = [make_episode(5, "terminated"), make_episode(7, seed=3), make_episode(2, "cut")]
    want = load(episodes)
    flat = load(episodes, normalize=False).transitions
    flat["next", "reward"] = flat["next", "reward"].squeeze(-1)  # [N] is accepted too
    got = OfflineDataset(flat.exclude(("next", without)), action_spec=ACTION_SPEC)
    assert (got.transitions == want.transitions).all() and got.num_episodes == 3
    assert want.num_cut_episodes == 1 and got.num_cut_episodes == 0  # the flag is there by then
    np.testing.assert_allclose(got.behaviour_returns[:2], want.behaviour_returns, rtol=1e-6)


def counted(rewards: list[float], ends: list[bool], **options: Any) -> OfflineDataset:
    states = np.arange(5.0)[:, None]
    arrays = {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": np.zeros((4, 2)),
        "rewards": np.float32(rewards),
        "terminals": ends,
    }
    return OfflineDataset.from_arrays(arrays, **options)


def test_returns_stay_in_the_environment_s_units() -> None:
    given_ = [1, 2, 4, 8], [False, True, False, True]
    plain, shifted = (counted(*given_, env_id="Nowhere-v0", reward_shift=s) for s in (0, -1))
    assert shifted.transitions["next", "reward"].flatten().tolist() == [0, 1, 3, 7]
    assert shifted.behaviour_returns.tolist() == plain.behaviour_returns.tolist() == [3, 12]


def test_returns_are_summed_in_double_precision() -> None:
    # in float32 a small reward is lost beside the sum of those before it
    data = counted([2.0**24, 1, 1, 1], [False, False, False, True], normalize=False)
    flat = OfflineDataset(data.transitions, action_spec=ACTION_SPEC)
    assert flat.behaviour_returns.tolist() == data.behaviour_returns.tolist() == [2.0**24 + 3]


def stored_episodes() -> list[dict[str, Any]]:
    return [make_episode(6, "terminated"), make_episode(4, seed=5)]


def test_minari_sets_and_objects(minari_root: Path, store: Callable[..., Path]) -> None:
    spec = Bounded(-2, 2, shape=(2,))
    store("toy/set-v0", *stored_episodes(), action_space=gymnasium.spaces.Box(-2, 2, (2,)))
    want = load(stored_episodes(), action_spec=spec)
    opened = minari.load_dataset("toy/set-v0")
    buffers = [EpisodeBuffer(**episode) for episode in stored_episodes()]
    for data in (
        OfflineDataset.load("toy/set-v0"),
        OfflineDataset.load(minari_root / "toy/set-v0"),
        OfflineDataset.load(minari_root / "toy/set-v0/data"),
        OfflineDataset.from_episodes(opened),
        OfflineDataset.from_episodes(opened.iterate_episodes(), action_spec=spec),
        OfflineDataset.from_episodes(buffers, action_spec=spec),
    ):
        assert (data.transitions == want.transitions).all()
        assert data.env_id is None and data.reference_scores is None
        assert data.action_high.tolist() == [2.0, 2.0]
    assert OfflineDataset.from_episodes(opened).name == "toy/set-v0"
    with pytest.raises(ValueError, match="give action_spec="):
        OfflineDataset.from_episodes(buffers)
    with pytest.raises(TypeError, match="episode 0 is of type str: give mappings"):
        OfflineDataset.from_episodes(["toy/set-v0"], action_spec=spec)  # type: ignore[list-item]


def test_minari_metadata_win_over_constants(store: Callable[..., Path]) -> None:
    played, evaluated = (gymnasium.make("Hopper-v5", max_episode_steps=n) for n in (9, 7))
    store("toy/hopper-v0", *stored_episodes(), env=gymnasium.spec("Hopper-v5"))
    assert OfflineDataset.load("toy/hopper-v0").reference_scores == (-20.272305, 3234.3)
    scores = {"ref_min_score": 1.0, "ref_max_score": 3.0}
    store("toy/hopper-v1", *stored_episodes(), env=played, eval_env=evaluated, **scores)
    data = OfflineDataset.load("toy/hopper-v1")
    assert data.reference_scores == (1.0, 3.0) and data.env_id == "Hopper-v5"
    assert data.environment.max_episode_steps == 7  # what the set names for it


@pytest.mark.parametrize(
    ("kind", "space", "match"),
    [
        ("action", gymnasium.spaces.Discrete(3), "Discrete actions"),
        ("action", gymnasium.spaces.Box(-np.inf, np.inf, (2,)), "finite bounds"),
        ("observation", gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8), "are images.*extract a"),
        ("observation", gymnasium.spaces.Dict(), "Dict observations"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(
    kind: str, space: gymnasium.Space, match: str, store: Callable[..., Path]
) -> None:
    given_ = make_episode(6) | ({"observations": {}} if match == "Dict observations" else {})
    store("toy/set-v0", given_, **{f"{kind}_space": space})
    with pytest.raises(ValueError, match=match):
        OfflineDataset.load("toy/set-v0")


def test_no_such_set_says_what_to_do(minari_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host\nand more lines")

    monkeypatch.setattr(minari, "list_remote_datasets", no_network)
    damaged = minari_root / "mine/robot-v0/data"
    damaged.mkdir(parents=True)
    (damaged / "metadata.json").write_text("{")  # another set's trouble is not told here
    with pytest.raises(ValueError) as caught:
        OfflineDataset.load("mujoco/hopper/medium-v0")
    message = str(caught.value)
    assert "ConnectionError: no route to host" in message and "\n" not in message
    assert "bundled/hopper/medium-v0" in message  # the nearest known name
    assert "minari download mujoco/hopper/medium-v0" in message
    for name in ("hopper medium replay", "hopper-medium", "zzz"):
        with pytest.raises(ValueError, match="no valid Minari id.*names: bundled/hop") as caught:
            OfflineDataset.load(name)
        assert "minari download" not in str(caught.value)  # there is no such command for it


def test_the_home_folder_is_where_a_path_begins(
    minari_root: Path, store: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(minari_root))
    store("toy/set-v0", *stored_episodes())
    assert len(OfflineDataset.load("~/toy/set-v0")) == 10
    OfflineDataset.load("toy/set-v0").memmap("~/mapped")
    assert len(OfflineDataset.load("~/mapped")) == 10
    with pytest.raises(ValueError, match=f"no data file {minari_root}/none.hdf5: check"):
        OfflineDataset.load("~/none.hdf5")
