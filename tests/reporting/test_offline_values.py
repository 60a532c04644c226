"""Offline estimates: their intervals, what they are made of, and each verdict."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from markov_chain import GAMMA, STATES, chain_data, true_values
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, TanhNormal

from rambo_trl.data import OfflineDataset
from rambo_trl.data.blocks import EpisodeBlocks
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.reporting.offline_evaluation import OfflineEvaluation, imagined_values
from rambo_trl.reporting.offline_values import Estimate, OfflineValues, verdict

#: of small fits
FIT = {
    "hidden_sizes": (32, 32),
    "num_qvalue_nets": 5,
    "updates": 300,
    "regression_updates": 100,
    "batch_size": 64,
    "lr": 3e-3,
}


class Linear(nn.Module):
    """The mean's logits are fixed weights of the state; the scale is fixed too."""

    def __init__(self, weights: list[float], scale: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights)[:, None])
        self.scale = scale

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc = observation @ self.weights
        return loc, torch.full_like(loc, self.scale)


def linear_actor(weights: list[float], scale: float = 0.3) -> ProbabilisticActor:
    return ProbabilisticActor(
        TensorDictModule(Linear(weights, scale), ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=Bounded(-1, 1, shape=(1,)),
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -1.0, "high": 1.0, "tanh_loc": False},
    )


# -- intervals


def test_an_estimate_adds_the_variances_of_starts_and_members() -> None:
    starts = np.random.default_rng(0).normal(3, 2, size=400)
    alone = Estimate.of(starts, confidence=0.9)
    half = 1.6487 * starts.std(ddof=1) / 20  # Student's 95 % point with 399 degrees of freedom
    assert alone.high - alone.mean == pytest.approx(half, rel=1e-3)
    assert alone.mean - alone.low == pytest.approx(half, rel=1e-3)
    members = Estimate.of(np.full(50, 7.0), [6.0, 8.0, 7.0, 7.0], confidence=0.9)
    half = 2.3534 * math.sqrt(2 / 3)  # three degrees of freedom
    assert members.mean == 7
    assert members.high - 7 == pytest.approx(half, rel=1e-3)
    both = Estimate.of(starts, [2.0, 4.0, 3.0, 3.0], confidence=0.9)
    assert both.high - both.mean > 5 * (alone.high - alone.mean)
    assert Estimate.of([1.0], confidence=0.9).low == -math.inf


def test_the_intervals_hold_the_truth_as_often_as_they_say() -> None:
    truth, held, widths = true_values(np.array([1.0, 1.0, 1.0, 0.0])).mean(), [], []
    for seed in range(10):
        evaluation = OfflineEvaluation(
            chain_data(80, seed=seed), gamma=GAMMA, seed=seed, fit=FIT | {"updates": 200}
        )
        fitted = evaluation.fit(lambda x: 0.5 * x @ torch.tensor([[1.0], [1.0], [1.0], [-1.0]]))
        estimate = evaluation._estimate(fitted.values(evaluation._starts).numpy())
        held.append(estimate.low < truth < estimate.high)
        widths.append(estimate.high - estimate.low)
    assert np.mean(held) >= 0.7
    assert np.mean(widths) < 0.5 * truth  # nor are they so wide that they say nothing


# -- the episodes that are held out


def test_whole_episodes_are_held_out() -> None:
    data = chain_data(60)
    blocks = EpisodeBlocks.of(data, gamma=GAMMA)
    assert not blocks.cut
    assert len(blocks.rows) == 60
    assert blocks.held_out.sum() == 15
    done = data.transitions["next", "done"].flatten().numpy()
    assert done[blocks.rows[:, 1] - 1].all()
    assert (blocks.rows[1:, 0] == blocks.rows[:-1, 1]).all()


def test_a_log_of_one_long_episode_is_cut_into_blocks() -> None:
    rows = 2000
    episode = {
        "observations": np.random.default_rng(0).normal(size=(rows + 1, 2)),
        "actions": np.random.default_rng(1).uniform(-1, 1, size=(rows, 1)),
        "rewards": np.ones(rows),
        "terminations": np.zeros(rows, dtype=bool),
        "truncations": np.arange(rows) == rows - 1,
    }
    spec = Bounded(-1, 1, shape=(1,))
    data = OfflineDataset.from_episodes([episode], action_spec=spec)
    blocks = EpisodeBlocks.of(data, gamma=0.9)
    assert blocks.cut
    lengths = blocks.rows[:, 1] - blocks.rows[:, 0]
    assert lengths.sum() == rows
    assert lengths.min() >= 20
    with pytest.raises(ValueError, match="record more episodes"):
        EpisodeBlocks.of(data, gamma=0.999)


# -- rollouts in a model


class KnownModel(EnsembleWorldModel):
    """s' = s / 2 + a and r = s, plus each member's own bias of the reward."""

    BIAS = torch.tensor([0.0, 0.5, -0.5])

    def __init__(self) -> None:
        super().__init__(1, 1, num_members=3, num_elites=3, hidden_sizes=(2,))
        self.elites.copy_(torch.arange(3))

    def predict(
        self, observation: Tensor, action: Tensor, members: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        reward = observation + self.BIAS.view(3, 1, 1)
        mean = torch.cat([observation / 2 + action, reward], dim=-1)
        return mean, torch.full_like(mean, -60.0)


@pytest.mark.parametrize("ends", [False, True])
def test_rollouts_give_each_elites_discounted_return(ends: bool) -> None:
    gamma, rng = 0.9, np.random.default_rng(0)
    made = [
        {
            "observations": rng.uniform(-4, 4, size=(6, 1)),
            "actions": rng.uniform(-1, 1, size=(5, 1)),
            "rewards": rng.uniform(-10, 10, size=5),
            "terminations": np.zeros(5, dtype=bool),
            "truncations": np.arange(5) == 4,
        }
        for _ in range(30)
    ]
    spec = Bounded(-1, 1, shape=(1,))
    data = OfflineDataset.from_episodes(made, action_spec=spec, normalize=False)
    env = EnsembleModelEnv(
        KnownModel(),
        action_spec=spec,
        starts=data.transitions.select("observation"),
        termination=(lambda s, a, t: t[..., 0] < 0.6) if ends else None,
    )
    start = torch.tensor([[1.0], [2.0]])
    imagined = imagined_values(
        env.world_model, env, lambda x: torch.full_like(x, 0.1), start, gamma=gamma, data=data
    )
    for column, first in enumerate(start.flatten().tolist()):
        for member, bias in enumerate(KnownModel.BIAS.tolist()):
            state, value = first, 0.0
            for step in range(51):
                value += gamma**step * (state + bias)
                state = state / 2 + 0.1
                if ends and state < 0.6:
                    break
            assert imagined.values[member, column] == pytest.approx(value, rel=1e-4)
    assert imagined.outside == 0


# -- all of it on one small data set


def test_what_is_measured_agrees_with_the_closed_form(tmp_path: Path) -> None:
    evaluation = OfflineEvaluation(chain_data(200), gamma=GAMMA, fit=FIT)
    # about what the behaviour is: the sign of its actions is drawn evenly
    evaluation.__dict__["density"] = linear_actor([0.0, 0.0, 0.0, 0.0], 2.0)
    values = evaluation.measure(linear_actor([0.5, 0.5, 0.5, -0.5], 2.0))
    truth = true_values(np.array([1.0, 1.0, 1.0, 0.0])).mean()  # of the mode
    forward = NormalDist(0.5, 2.0)
    shares = np.array([1 - forward.cdf(0)] * 3 + [forward.cdf(0)])
    sampled = true_values(shares).mean()
    behaviour = true_values(np.full(STATES, 0.5)).mean()
    policy, logged = values.value("policy", "fqe"), values.value("behaviour", "logged")
    robust, difference = (
        values.value("policy", "doubly_robust"),
        values.difference("behaviour", "fqe"),
    )
    assert policy is not None and logged is not None
    assert robust is not None and difference is not None
    assert policy.mean == pytest.approx(truth, rel=0.15)
    assert logged.low < behaviour < logged.high
    assert difference.low < truth - behaviour < difference.high
    assert robust.low < sampled < robust.high
    assert robust.high - robust.low < 0.5 * sampled
    assert values.checks["effective_sample_size"] > 10
    assert values.checks["action_share_outside"] < 0.1
    assert "model" in values.left_out

    values.write(tmp_path)
    again = OfflineValues.read(tmp_path)
    assert again.values == values.values
    assert again.differences == values.differences
    assert verdict(again) == verdict(values)

    reasons: dict[str, str] = {}
    far = linear_actor([3.0, 3.0, 3.0, 3.0], 0.1)  # never goes back
    assert evaluation._share_outside(far) == 1
    evaluation._weigh(far, {}, {}, {}, reasons)
    assert "weights" in reasons["doubly_robust"]


# -- the verdict


def known(fqe: Estimate, model: Estimate | None, **changes: Any) -> OfflineValues:
    differences = {"fqe": fqe} | ({} if model is None else {"model": model})
    return replace(
        OfflineValues(
            dataset="tank",
            gamma=0.99,
            confidence=0.9,
            value_std=10.0,
            held_out={"held_out": 25, "episodes": 100},
            values={},
            differences={"policy - behaviour": differences},
            checks={
                "action_share_outside": 0.05,
                "model_share_outside": 0.02,
                "behaviour_gap_fqe": [0.2, -1.0, 1.4],
                "behaviour_gap_model": [0.5, -1.0, 2.0],
            },
        ),
        **changes,
    )


UP, DOWN, NONE, WIDE = (
    Estimate(5.0, 3.0, 7.0),
    Estimate(-5.0, -7.0, -3.0),
    Estimate(0.1, -0.5, 0.8),
    Estimate(1.0, -6.0, 8.0),
)
CHECKS = known(UP, UP).checks


def test_a_policy_that_both_estimators_find_better_is_called_better() -> None:
    told = verdict(known(UP, Estimate(1.0, -1.0, 3.0)))
    assert told.label == "better"
    assert "by 5 " in told.sentence
    assert "90% confidence" in told.sentence


def test_a_clone_whose_value_has_not_settled_does_not_matter() -> None:
    unsettled = known(UP, UP, unsettled=("clone: its value still moves",))
    assert verdict(unsettled).label == "better"


@pytest.mark.parametrize(("fqe", "word"), [(DOWN, "worse"), (NONE, "no better")])
def test_a_policy_that_is_no_better_is_called_not_better(fqe: Estimate, word: str) -> None:
    told = verdict(known(fqe, Estimate(0.0, -2.0, 2.0)))
    assert told.label == "not better"
    assert word in told.sentence


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (known(WIDE, UP), "includes none and one that matters"),
        (known(UP, DOWN), "contradict"),
        (known(DOWN, UP), "contradict"),
        (known(UP, None, left_out={"model": "no file"}), r"no second opinion.*no file"),
        (known(UP, UP, unsettled=("policy: diverged",)), "diverged"),
        (known(UP, UP, checks=CHECKS | {"action_share_outside": 0.9}), "hardly ever show"),
        (known(UP, UP, checks=CHECKS | {"behaviour_gap_fqe": [8.0, 6.0, 9.0]}), "is off by 8"),
        (known(UP, UP, checks=CHECKS | {"model_share_outside": 0.6}), "far outside"),
        (known(UP, UP, checks=CHECKS | {"behaviour_gap_model": [-9.0, -12.0, -6.0]}), "off by -9"),
        (known(UP, UP, differences={}), "no estimate"),
    ],
)
def test_what_cannot_be_told_is_not_told(values: OfflineValues, reason: str) -> None:
    told = verdict(values)
    assert told.label == "cannot tell"
    assert told.would_settle
    assert re.search(reason, " ".join(told.reasons))
