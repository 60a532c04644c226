"""The real buffer of fine-tuning: offline rows that stay, online rows with their share."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from rambo_trl.data import OnlineRows, OnlineShareSampler


def rows(start: int, count: int) -> TensorDict:
    """Make transitions numbered from ``start`` on, in every entry."""
    number = torch.arange(start, start + count, dtype=torch.float32).unsqueeze(-1)
    step = {"observation": number, "reward": number, "terminated": number > start}
    return TensorDict({"observation": number, "action": number, "next": step}, [count])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_every_batch_of_a_draw_has_the_share(share: float) -> None:
    online = OnlineRows(rows(0, 40), 20, online_share=share)
    online.extend(rows(40, 10))
    later = (online.buffer.sample(50 * 10)["action"] >= 40).reshape(50, 10).sum(1)
    assert later.tolist() == [round(10 * share)] * 50


def test_rows_of_each_side_are_drawn_uniformly() -> None:
    online = OnlineRows(rows(0, 4), 2, online_share=0.5)
    online.extend(rows(4, 2))
    drawn = online.buffer.sample(40_000)["action"].flatten().long().bincount(minlength=6)
    expected = torch.tensor([5_000, 5_000, 5_000, 5_000, 10_000, 10_000])
    assert ((drawn - expected).abs() < 5 * expected.sqrt()).all()
    alike = OnlineRows(rows(0, 4), 2, online_share=None)
    alike.extend(rows(4, 2))
    drawn = alike.buffer.sample(60_000)["action"].flatten().long().bincount(minlength=6)
    assert ((drawn - 10_000).abs() < 500).all()


def test_without_online_rows_all_are_offline() -> None:
    online = OnlineRows(rows(0, 4), 2, online_share=0.9)
    assert len(online) == 0 and online.buffer.sample(100)["action"].max() < 4


def test_the_data_stay_as_they_are_and_nothing_takes_their_place() -> None:
    offline = rows(0, 5)
    online = OnlineRows(offline, 3)
    online.extend(rows(5, 2).update({"loc": torch.zeros(2, 1)}))
    assert len(online) == 2 and "loc" not in online.buffer[:]
    with pytest.raises(ValueError, match="2 rows do not fit into a buffer with room for 1"):
        online.extend(rows(7, 2))
    online.buffer[:]["action"].add_(100)  # what the buffer holds is a copy
    assert (offline == rows(0, 5)).all()
    with pytest.raises(ValueError, match="online_share must lie in"):
        OnlineShareSampler(5, 1.5)


def test_a_state_holds_the_online_rows_alone() -> None:
    online = OnlineRows(rows(0, 5), 4)
    empty = online.state_dict()
    online.extend(rows(5, 3))
    state = online.state_dict()
    assert state["rows"]["action"].flatten().tolist() == [5, 6, 7]
    other = OnlineRows(rows(0, 5), 9)
    other.extend(rows(50, 2))  # which were not there when the state was saved
    other.load_state_dict(state)
    assert (other.buffer[:] == online.buffer[:]).all() and len(other) == 3
    other.extend(rows(8, 1))
    assert other.buffer[:]["action"].flatten().tolist() == list(range(9))
    other.load_state_dict(empty)
    assert len(other) == 0 and len(other.buffer) == 5
