"""RAMBO's parts learn together: safe with the adversary, exploiting the model without it.

The problem is one step long. Its reward equals the action as far as the data reaches, and is
bad beyond. A model fitted to the data carries the trend on over the edge, where nothing
contradicts it: its optimism there is sure, and the policy's best reply to it is a bad action.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SACLoss

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.data import RealModelReplayBuffer, make_replay_buffer
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss, EnsembleModelLoss
from rambo_trl.training.phases import AgentPhase, ModelPhase
from rambo_trl.training.pretraining import fit_world_model

LOW, HIGH = -0.6, 0.3  # the actions that the data covers
CLIFF = 0.4  # from here on the truth is bad
BAD = -1.0
NOISE = 0.05
ROWS = 1000

EPOCHS = 16
LAST_EPOCHS = 4  # results are means over these: agent and model oscillate around their equilibrium
AGENT_UPDATES = 40
MODEL_UPDATES = 60
ADVERSARIAL_WEIGHT = 0.75  # large, for so short a training


def true_reward(action: Tensor) -> Tensor:
    """The expected reward of an action: rises with it up to the cliff."""
    return torch.where(action < CLIFF, action, BAD)


def ends_at_once(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    return torch.ones(next_observation.shape[:-1], dtype=torch.bool)


def make_transitions() -> TensorDict:
    action = LOW + (HIGH - LOW) * torch.rand(ROWS, 1)
    reward = true_reward(action) + NOISE * torch.randn(ROWS, 1)
    ended = torch.ones(ROWS, 1, dtype=torch.bool)
    return TensorDict(
        observation=torch.zeros(ROWS, 1),
        action=action,
        next=TensorDict(
            observation=reward.clone(),
            reward=reward,
            terminated=ended,
            done=ended.clone(),
            batch_size=[ROWS],
        ),
        batch_size=[ROWS],
    )


@dataclass
class Outcome:
    """Results, as means over the last epochs."""

    mode: float  # the policy's action
    true: float  # what it is worth
    predicted: float  # what the model says that it is worth
    model_error: float  # of the model on the data's actions, root mean square


def assess(actor: TensorDictModuleBase, model: EnsembleWorldModel) -> Outcome:
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        mode = actor(TensorDict(observation=torch.zeros(1, 1), batch_size=[1]))["action"]
        covered = torch.linspace(LOW, HIGH, 50).unsqueeze(-1)
        actions = torch.cat([mode, covered])
        mean, _ = model.predict(torch.zeros_like(actions), actions, model.elites)
    predicted = mean[..., -1:].mean(dim=0)
    error = (predicted[1:] - true_reward(covered)).square().mean().sqrt()
    return Outcome(mode.item(), true_reward(mode).item(), predicted[0].item(), error.item())


def train(seed: int, adversarial_weight: float) -> Outcome:
    """RAMBO from the data on, assembled from the library's parts."""
    torch.manual_seed(seed)
    spec = Bounded(-1, 1, shape=(1,))
    transitions = make_transitions()
    real = make_replay_buffer(ROWS)
    real.extend(transitions)

    model = EnsembleWorldModel(1, 1, num_members=4, num_elites=3, hidden_sizes=(32, 32))
    fit_world_model(model, transitions, batch_size=64, lr=3e-3, patience=5, max_passes=20)

    agent_loss = SACLoss(
        make_actor(1, spec, hidden_sizes=(32, 32)),
        make_qvalue(1, 1, hidden_sizes=(64, 64)),
        loss_function="l2",
        action_spec=spec,
        alpha_init=0.1,
    )
    agent_loss.make_value_estimator(gamma=0.99)
    agent = AgentPhase(agent_loss, critic_lr=3e-3, actor_lr=3e-3, alpha_lr=1e-2)

    env = EnsembleModelEnv(model, action_spec=spec, starts=real, termination=ends_at_once)
    collector = ModelRolloutCollector(env, agent_loss.actor_network, num_starts=256, horizon=1)
    rollouts = make_replay_buffer(5 * 256)
    mixed = RealModelReplayBuffer(real, rollouts, real_fraction=0.5, batch_size=128)
    adversarial_loss = AdversarialModelLoss.from_loss(
        model, agent_loss, adversarial_weight=adversarial_weight
    )
    model_loss = EnsembleModelLoss(model, members="elites")
    model_phase = ModelPhase(
        env, adversarial_loss, model_loss, real, batch_size=128, horizon=1, lr=2e-3
    )

    outcomes = []
    for _ in range(EPOCHS):
        rollouts.extend(collector.collect().select(*mixed.keys))
        agent.run(mixed.batches(AGENT_UPDATES))
        if adversarial_weight > 0:
            model_phase.run(MODEL_UPDATES)
        outcomes.append(astuple(assess(agent_loss.actor_network, model)))
    return Outcome(*torch.tensor(outcomes[-LAST_EPOCHS:]).mean(dim=0).tolist())


@pytest.mark.slow
def test_the_adversary_keeps_the_policy_where_the_data_is():
    robust = train(seed=0, adversarial_weight=ADVERSARIAL_WEIGHT)

    assert LOW < robust.mode < HIGH + 0.05  # the best covered action is the edge itself
    assert robust.true > 0.1  # the best of the covered actions is worth 0.3
    # the model is still a model of the data, and does not promise more than the truth
    assert robust.model_error < 0.12
    assert robust.predicted < robust.true + 0.05


@pytest.mark.slow
def test_without_the_adversary_the_policy_exploits_the_model():
    naive = train(seed=0, adversarial_weight=0.0)

    assert naive.mode > CLIFF + 0.1
    assert naive.true < BAD + 0.1
    assert naive.predicted > HIGH + 0.2  # more than any covered action is worth
    assert naive.model_error < 0.03  # though the model is right wherever there is data
