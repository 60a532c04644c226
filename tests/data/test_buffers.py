"""Mixed batches: the exact share, first in first out, uniform draws, state."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, TensorDictReplayBuffer

from rambo_trl.data import (
    OfflineDataset,
    RealModelReplayBuffer,
    buffers,
    make_real_buffer,
    make_replay_buffer,
)


def rows(start: int, count: int) -> TensorDict:
    """Make transitions numbered from ``start`` on, in every entry."""
    number = torch.arange(start, start + count, dtype=torch.float32).unsqueeze(-1)
    flag = torch.zeros(count, 1, dtype=torch.bool)
    step = {"observation": number, "reward": number, "terminated": flag, "done": flag}
    return TensorDict(
        {"observation": number, "action": number, "next": step, "extra": number}, [count]
    )


def buffer(start: int, count: int, capacity: int | None = None) -> TensorDictReplayBuffer:
    made = make_replay_buffer(capacity or count)
    if count:
        made.extend(rows(start, count))
    return made


@pytest.mark.parametrize("batch_size", [1, 7, 100, 256])
@pytest.mark.parametrize("real_fraction", [0.0, 0.05, 0.5, 0.999, 1.0])
def test_share_is_exact_in_every_batch(real_fraction: float, batch_size: int) -> None:
    mixed = RealModelReplayBuffer(
        buffer(0, 50), buffer(1000, 50), real_fraction=real_fraction, batch_size=batch_size
    )
    want = round(real_fraction * batch_size)
    assert mixed.num_real == want and mixed.num_model == batch_size - want
    batches = [mixed.sample(), *mixed.batches(7, chunk_size=3)]
    assert len(batches) == 8
    for batch in batches:
        assert batch.batch_size == (batch_size,)
        real = batch["observation"].squeeze(-1) < 1000
        assert int(real.sum()) == want and real[:want].all()
        for key in ("action", ("next", "observation"), ("next", "reward")):
            assert torch.equal(batch[key], batch["observation"])  # rows stay together
        assert set(batch.keys(include_nested=True, leaves_only=True)) == set(
            buffers.TRANSITION_KEYS
        )


def test_batches_differ_and_cover_both_buffers_uniformly() -> None:
    torch.manual_seed(0)
    mixed = RealModelReplayBuffer(buffer(0, 10), buffer(1000, 10), batch_size=100)
    drawn = torch.stack([b["observation"].squeeze(-1) for b in mixed.batches(200)])
    assert not torch.equal(drawn[0], drawn[1])
    for start in (0, 1000):
        counts = torch.stack([(drawn == start + i).sum() for i in range(10)]).double()
        expected = 200 * 50 / 10
        assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 df, p = 0.001


def test_empty_model_buffer() -> None:
    with pytest.raises(RuntimeError, match="the model buffer is empty"):
        RealModelReplayBuffer(buffer(0, 5), buffer(0, 0, capacity=5)).sample()
    all_real = RealModelReplayBuffer(buffer(0, 5), buffer(0, 0, capacity=5), real_fraction=1.0)
    assert all_real.sample().batch_size == (256,)
    with pytest.raises(RuntimeError, match="the real buffer is empty"):
        RealModelReplayBuffer(buffer(0, 0, capacity=5), buffer(0, 5)).sample()


def test_missing_key_is_named() -> None:
    made = make_replay_buffer(5)
    made.extend(rows(0, 5).exclude("action"))
    with pytest.raises(KeyError, match="the model buffer lacks"):
        RealModelReplayBuffer(buffer(0, 5), made).sample()


def test_model_buffer_is_first_in_first_out() -> None:
    made = make_replay_buffer(10)
    for start in (12, 8, 4, 0):  # not in the order of their values
        made.extend(rows(start, 4))
    assert len(made) == 10
    newest = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]
    assert sorted(made.storage[:]["observation"].squeeze(-1).tolist()) == newest
    mixed = RealModelReplayBuffer(buffer(100, 5), made, real_fraction=0.0)
    drawn = torch.cat([b["observation"] for b in mixed.batches(20)]).unique()
    assert drawn.tolist() == newest


def test_new_model_rows_are_seen_from_the_next_chunk_on() -> None:
    made = buffer(0, 5)
    mixed = RealModelReplayBuffer(buffer(100, 5), made, real_fraction=0.0, batch_size=64)
    batches = mixed.batches(4, chunk_size=2)
    assert next(batches)["observation"].max() < 5
    made.extend(rows(200, 5))
    assert next(batches)["observation"].max() < 5
    assert next(batches)["observation"].min() >= 200


def test_state_round_trip() -> None:
    made = buffer(0, 7, capacity=10)
    mixed = RealModelReplayBuffer(buffer(100, 5), made, batch_size=32)
    again = RealModelReplayBuffer(buffer(100, 5), make_replay_buffer(10), batch_size=32)
    again.load_state_dict(mixed.state_dict())
    assert len(again.model) == 7
    torch.manual_seed(1)
    want = mixed.sample()
    torch.manual_seed(1)
    assert (again.sample() == want).all()
    for each in (mixed, again):  # the write position is restored too
        each.model.extend(rows(50, 5))
    assert (again.model.storage[:]["observation"] == made.storage[:]["observation"]).all()
    other = RealModelReplayBuffer(buffer(100, 5), make_replay_buffer(10), real_fraction=0.1)
    with pytest.raises(ValueError, match="saved real_fraction"):
        other.load_state_dict(mixed.state_dict())


def test_real_buffer_holds_the_data_set_and_takes_no_more() -> None:
    episode = {
        "observations": np.random.default_rng(0).normal(size=(21, 3)),
        "actions": np.zeros((20, 2)),
        "rewards": np.ones(20),
        "terminations": np.zeros(20, dtype=bool),
        "truncations": np.zeros(20, dtype=bool),
    }
    data = OfflineDataset.from_episodes([episode], action_spec=Bounded(-1, 1, shape=(2,)))
    real = make_real_buffer(data)
    assert len(real) == 20
    assert (real.storage[:] == data.transitions).all()
    with pytest.raises(RuntimeError):
        real.extend(data.transitions)
    made = make_replay_buffer(20)
    made.extend(data.transitions.clone())
    batch = RealModelReplayBuffer(real, made).sample()
    assert batch["next", "terminated"].dtype == torch.bool and batch["action"].shape == (256, 2)


def test_examples_in_the_docstring() -> None:
    assert doctest.testmod(buffers).failed == 0


@pytest.mark.parametrize(
    "wrong", [{"real_fraction": -0.1}, {"real_fraction": float("nan")}, {"batch_size": 0}]
)
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RealModelReplayBuffer(buffer(0, 5), buffer(0, 5), **wrong)
