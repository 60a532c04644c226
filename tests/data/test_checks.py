"""What is odd but usable, damaged Minari files, and builds that cannot be written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset

SPEC = Bounded(-1.0, 1.0, shape=(2,))


def make_episode(steps: int, seed: int, *, terminated: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    ends = np.zeros((2, steps), dtype=bool)
    ends[0 if terminated else 1, -1] = True
    return {
        "observations": rng.normal(size=(steps + 1, 3)),
        "actions": rng.uniform(-1, 1, size=(steps, 2)).astype(np.float32),
        "rewards": rng.normal(size=steps),
        "terminations": ends[0],
        "truncations": ends[1],
    }


def load(*episodes: dict[str, np.ndarray]) -> OfflineDataset:
    return OfflineDataset.from_episodes(episodes, action_spec=SPEC, name="toy")


def test_usual_data_has_no_remarks(heard: pytest.LogCaptureFixture) -> None:
    assert load(make_episode(5, 0), make_episode(5, 1), make_episode(1, 2)).remarks == ()
    assert not heard.records


def test_rewards_all_equal(heard: pytest.LogCaptureFixture) -> None:
    episode = make_episode(5, 0)
    episode["rewards"][:] = 1.0
    (remark,) = load(episode).data_warnings
    assert load(episode).remarks == (remark,)
    assert remark.startswith("all 5 rewards are 1:") and "check the rewards" in remark
    assert heard.records[0].getMessage() == f"toy: {remark}"
    assert heard.records[0].levelname == "WARNING"


def test_terminal_and_timed_out_at_once_is_told() -> None:
    both = make_episode(5, 0, terminated=True)
    both["truncations"][-1] = True
    (remark,) = load(both, make_episode(5, 1)).data_warnings
    assert remark.startswith("1 rows are terminal and timed out at once and count as terminal")
    assert "clear their terminal flags" in remark


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_duplicate_episodes(seeds: list[int]) -> None:
    # The seed decides the whole episode, its length too.
    remarks = load(*(make_episode(3 + seed, seed) for seed in seeds)).data_warnings
    repeats = [i for i, seed in enumerate(seeds) if seed in seeds[:i]]
    if not repeats:
        assert remarks == ()
    else:
        (remark,) = remarks
        assert remark.startswith(f"{len(repeats)} episodes repeat an earlier one")
        assert f"the first is episode {repeats[0]}:" in remark


def test_an_episode_that_goes_on_after_an_end_is_told() -> None:
    early = make_episode(5, seed=1, terminated=True)
    early["truncations"][2] = True
    late = make_episode(4, seed=2, terminated=True)
    late["terminations"][0] = True
    data = load(make_episode(3, seed=0), early, late)
    (told,) = data.data_warnings
    assert told.startswith(
        "2 episodes continue after an end flag, the first is episode 1 after step"
    )
    assert data.num_episodes == 3
    assert data.transitions["next", "done"].flatten().nonzero().flatten().tolist() == [
        *(2,), *(5, 7), *(8, 11),
    ]  # fmt: skip


def test_episodes_that_share_their_observations_are_no_duplicates() -> None:
    first, second = make_episode(5, 0), make_episode(5, 0)
    second["actions"][2, 0] = 0.5
    assert load(first, second).remarks == ()


def test_one_row_episodes() -> None:
    shuffled = [make_episode(1, seed) for seed in range(4)]
    (remark,) = load(*shuffled).data_warnings
    assert remark.startswith("all 4 episodes have one row")
    one_step_task = [make_episode(1, seed, terminated=True) for seed in range(4)]
    assert load(*one_step_task).remarks == ()
    assert len(load(*one_step_task)) == 4
