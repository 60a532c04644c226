"""The last screen says whether what a run expects can be so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.folder import RunFolder
from rambo_trl.experiment.results import last_screen
from rambo_trl.experiment.sanity import check_sanity, discounted_returns, value_range

GAMMA = 0.5


def episodes(*rewards: list[float], terminal: bool = True) -> OfflineDataset:
    """Data of some episodes' rewards."""
    ends = [t == len(r) - 1 for r in rewards for t in range(len(r))]
    count = len(ends)
    done = torch.tensor(ends)
    states = torch.arange(count + 1.0).unsqueeze(-1)
    rows = TensorDict(
        observation=states[:-1],
        action=torch.zeros(count, 1),
        next={
            "observation": states[1:],
            "reward": torch.tensor([x for r in rewards for x in r]),
            "terminated": done if terminal else torch.zeros_like(done),
            "truncated": torch.zeros_like(done) if terminal else done,
        },
        batch_size=[count],
    )
    return OfflineDataset(rows, action_spec=Bounded(-1, 1, shape=(1,)))


def test_discounted_returns_by_hand() -> None:
    found = discounted_returns(episodes([1.0, 2.0, 4.0], [8.0]), GAMMA)
    assert found.tolist() == pytest.approx([1 + 1 + 1, 8])
    # a cut one counts as if it had gone on as it was
    cut = discounted_returns(episodes([1.0, 1.0], [2.0], terminal=False), GAMMA)
    assert cut.tolist() == pytest.approx([2, 4])


def test_the_values_that_rewards_allow() -> None:
    forever = episodes([1.0, 3.0], terminal=False)
    assert value_range(forever, GAMMA, []) == pytest.approx((2, 6))
    # an episode may end after its first reward
    assert value_range(episodes([1.0, 3.0]), GAMMA, []) == pytest.approx((1, 6))
    assert value_range(forever, GAMMA, [], penalty=2.0) == pytest.approx((-2, 6))
    # SAC's entropy counts from the second step on, as much as it ever was
    rows = [{"alpha": 1.0, "entropy": 2.0}, {"alpha": 0.1, "entropy": -1.0}, {}]
    assert value_range(forever, GAMMA, rows) == pytest.approx((2 - 0.1, 6 + 2))


@pytest.mark.parametrize(
    ("mean_q", "expected"),
    [(6.5, "above 6.0, the most"), (1.5, "below 2.0, the least"), (4.0, None), (None, None)],
)
def test_q_outside_what_the_rewards_allow(mean_q: float | None, expected: str | None) -> None:
    data = episodes([1.0, 3.0], terminal=False)
    found = check_sanity([{"epoch": 1, "mean_q": 4.0}, {"epoch": 2, "mean_q": mean_q}], data, GAMMA)
    assert found["q_range"] == pytest.approx([2, 6])
    assert [expected in line for line in found["warnings"]] == ([True] if expected else [])
    assert found["mean_q"] == (4.0 if mean_q is None else mean_q)


def test_what_the_agent_expects_beside_the_log() -> None:
    data = episodes([500.0], [320.0])
    for value, words in (
        (870.0, "expects 870.0 from the start where the best logged episode gave 500.0"),
        (450.0, "logged episodes gave 410.0 in the mean and 500.0 at best"),
        (505.0, "at best (discounted)"),  # a little more is no reason yet
        (100.0, "less than any of them"),
    ):
        found = check_sanity([{"epoch": 1, "start_value": value}], data, GAMMA)
        (line,) = found["lines"]
        assert words in line and ("distrust" in line) == (value == 870.0) == bool(found["warnings"])
    cut = episodes([500.0], [320.0], terminal=False)
    for value in (870.0, 5000.0):
        (line,) = check_sanity([{"epoch": 1, "start_value": value}], cut, GAMMA)["lines"]
        assert "discounted, truncated episodes as if they went on)" in line
    # what may be SAC's entropy bonus
    row = {"epoch": 1, "start_value": 600.0, "alpha": 1.0, "entropy": 200.0}
    (line,) = check_sanity([row], data, GAMMA)["warnings"]
    assert "600.0 from the start (400.0 without SAC's entropy bonus)" in line
    assert line.endswith("distrust it, unless the bonus explains the difference")
    assert check_sanity([{**row, "entropy": 20.0}], data, GAMMA)["warnings"][0].endswith("it")


def test_a_method_without_critics_has_nothing_to_say() -> None:
    assert check_sanity([{"epoch": 1}], episodes([1.0]), None)["lines"] == []


def results_of(**changes: Any) -> dict[str, Any]:
    return {
        "method": "RAMBO", "dataset": "logs.hdf5", "env": None, "seed": 0, "epochs": 2,
        "behaviour_return_mean": -0.00125, "behaviour_return_best": -0.001, "score": None,
        "behaviour_score": None, "behaviour_score_best": None, "cloned_return_mean": None,
        "evaluations_averaged": 0, "cut_pieces": 0, "return_mean": None, "evaluated": False,
        "diverged": False,
        "sanity": {"lines": ["the agent expects too much"]}, **changes,
    }  # fmt: skip


def test_the_last_screen_has_what_there_is(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    text = last_screen(results_of(), folder)
    assert "-0.00125" in text and "score" not in text and "evaluation" not in text
    assert "  the agent expects too much\n" in text
    assert "learning curve" not in text, "there is none"
    (folder.path / "learning_curve.png").touch()
    assert f"learning curve: {folder.path / 'learning_curve.png'}" in last_screen(
        results_of(), folder
    )
    diverged = {"epoch": 2, "reason": "mean Q is too large"}
    text = last_screen(results_of(diverged=True, divergence=diverged), folder)
    assert "DIVERGED at epoch 2: mean Q is too large\n" in text and "scored 0" not in text
