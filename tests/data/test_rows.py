"""Rows that something is measured on meet no period of the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset, report
from rambo_trl.data.report import measure_coverage
from rambo_trl.data.transitions import draw_rows
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.envs.termination import check_rule
from rambo_trl.modules import EnsembleWorldModel


@pytest.mark.parametrize("period", [2, 10, 100, 125])
def test_rows_meet_no_period(period: int) -> None:
    rows = draw_rows(100_000, 1000)
    assert len(rows.unique()) == 1000 and (rows.diff() > 0).all() and rows[-1] < 100_000
    share = ((rows % period) == 0).double().mean()
    assert abs(share - 1 / period) < 5 * (1 / period / 1000) ** 0.5


def test_they_are_the_same_every_time_and_use_no_global_generator() -> None:
    before, numpy = torch.get_rng_state(), np.random.get_state()[1]
    first = draw_rows(5000, 100)
    torch.manual_seed(7)
    torch.set_rng_state(before)
    assert torch.equal(draw_rows(5000, 100), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy).all()
    assert not torch.equal(draw_rows(5000, 100, seed=1), first)


@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_of_few_rows_all_are_taken(num_rows: int) -> None:
    assert draw_rows(num_rows, 7).tolist() == list(range(num_rows))


def periodic(rows: int) -> TensorDict:
    """Every second row of another kind: 1 with the action 1, else 0 with the action -1."""
    kind = (torch.arange(rows) % 2).float().unsqueeze(-1)
    following = TensorDict(
        observation=kind,
        reward=kind,
        terminated=torch.zeros(rows, 1, dtype=torch.bool),
        batch_size=[rows],
    )
    return TensorDict(observation=kind, action=2 * kind - 1, next=following, batch_size=[rows])


def test_a_rule_is_tried_on_rows_of_each_kind() -> None:
    _, ended = check_rule(
        lambda s, a, n: a[:, 0] > 0,
        periodic(4000),
        observation_mean=torch.zeros(1),
        observation_std=torch.ones(1),
        max_rows=2000,
    )
    assert ended == pytest.approx(0.5, abs=0.05)


def test_coverage_is_that_of_rows_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_MAX_ROWS", 1000)
    rows = periodic(2000)
    rows["next", "terminated"][-1] = True
    data = OfflineDataset(rows, action_spec=Bounded(-1, 1, shape=(1,)))
    assert measure_coverage(data).actions == pytest.approx([2 / 20], abs=1e-3)


def test_starts_that_a_rule_is_tried_on_come_from_all_over() -> None:
    rows = periodic(8000)
    rows["action"][:2000] = -1.0  # the first ones say nothing
    rows["action"][2000:] = 1.0
    with pytest.warns(UserWarning, match="ends 7. % of the non-terminal transitions in starts"):
        EnsembleModelEnv(
            EnsembleWorldModel(1, 1, hidden_sizes=(2,)),
            action_spec=Bounded(-1, 1, shape=(1,)),
            starts=rows,
            termination=lambda s, a, n: a[:, 0] > 0,
        )
