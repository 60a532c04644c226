"""Algorithm 1 on the Single Transition Example, with an adversary or what stands in its place."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SACLoss

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.data import RealModelReplayBuffer, make_replay_buffer
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.envs.single_transition import expected_reward, make_single_transition_data
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss, COMBOLoss, EnsembleModelLoss
from rambo_trl.training.phases import AgentPhase, ModelPhase
from rambo_trl.training.pretraining import fit_world_model

GAMMA = 0.99  # of no effect: every episode is one step long
GRID = torch.linspace(-1, 1, 401).unsqueeze(-1)


@dataclass(frozen=True)
class Method:
    """One row of the table and of the figure.

    Attributes:
        title: its name there.
        adversarial: whether the model plays against the agent.
        conservative: whether COMBO's term pushes the critics down off the data.
        paper: mean and standard deviation in the paper's Table 3, where it has the method.
    """

    title: str
    adversarial: bool
    conservative: bool = False
    paper: tuple[float, float] | None = None


METHODS = {
    "rambo": Method("RAMBO", adversarial=True, paper=(1.49, 0.04)),
    "combo": Method("COMBO", adversarial=False, conservative=True, paper=(1.34, 0.14)),
    "no_adversary": Method("no adversary", adversarial=False),
}


@dataclass
class Snapshot:
    """What is believed of the actions in ``GRID`` after an epoch, and what the policy does."""

    epoch: int
    successor_mean: Tensor
    successor_std: Tensor
    qvalue: Tensor
    mode: float


@dataclass
class Run:
    """One seed of one method."""

    method: str
    seed: int
    mode: float  # the final policy's action
    true_reward: float  # its expected reward in the real environment
    predicted_reward: float  # the same in the model
    seconds: float
    snapshots: list[Snapshot]


class KnownRewardEnv(EnsembleModelEnv):
    """The model's env, with the reward that is known here: the successor state itself."""

    def transition(
        self,
        observation: Tensor,
        action: Tensor,
        prediction: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step on plain tensors; the model's own reward is left aside."""
        following, _, terminated = super().transition(observation, action, prediction)
        return following, following, terminated


def ends_at_once(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """The termination rule: every episode is one step long."""
    return torch.ones(next_observation.shape[:-1], dtype=torch.bool)


@torch.no_grad()
def take_snapshot(epoch: int, model: EnsembleWorldModel, agent_loss: SACLoss) -> Snapshot:
    """Ask model, critics and policy for what they make of the start state."""
    start = torch.zeros_like(GRID)
    mean, log_var = (x[..., 0] for x in model.predict(start, GRID, model.elites))
    variance = log_var.exp().mean(dim=0) + mean.var(dim=0, correction=0)
    asked = TensorDict(observation=start, action=GRID, batch_size=GRID.shape[:1])
    critic, critic_params = agent_loss.qvalue_network, agent_loss.qvalue_network_params
    values = []
    for params in critic_params.unbind(0):
        with params.to_module(critic):
            values.append(critic(asked.copy())["state_action_value"].squeeze(-1))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        mode = agent_loss.actor_network(asked[:1].select("observation"))["action"].item()
    qvalue = torch.stack(values).amin(dim=0)
    return Snapshot(epoch, mean.mean(dim=0), variance.sqrt(), qvalue, mode)


def make_agent_loss(
    cfg: DictConfig, spec: Bounded, *, conservative: bool, num_real: int
) -> SACLoss:
    """SAC's loss, or COMBO's on batches whose first ``num_real`` rows are the data's."""
    parts = (
        make_actor(1, spec, hidden_sizes=cfg.agent.hidden_sizes),
        make_qvalue(1, 1, hidden_sizes=cfg.agent.hidden_sizes),
    )
    options: dict[str, Any] = {
        "loss_function": "l2",
        "action_spec": spec,
        "alpha_init": cfg.agent.alpha_init,
        "target_entropy": cfg.agent.target_entropy,
    }
    if conservative:
        options.update(cfg.combo, num_real=num_real)
        loss = COMBOLoss(*parts, **options)
    else:
        loss = SACLoss(*parts, **options)
    loss.make_value_estimator(gamma=GAMMA)
    return loss


def train(name: str, seed: int, cfg: DictConfig) -> Run:
    """Algorithm 1 on the example."""
    torch.set_num_threads(1)
    torchrl_logger.setLevel(logging.WARNING)
    torch.manual_seed(seed)
    started = time.perf_counter()
    method = METHODS[name]
    spec = Bounded(-1.0, 1.0, (1,))
    data = make_single_transition_data(cfg.num_transitions)
    real = make_replay_buffer(len(data))
    real.extend(data)

    # line 1: the model by maximum likelihood
    model = EnsembleWorldModel(
        1,
        1,
        num_members=cfg.model.num_members,
        num_elites=cfg.model.num_elites,
        hidden_sizes=cfg.model.hidden_sizes,
    )
    fit_world_model(
        model,
        data,
        batch_size=cfg.model.batch_size,
        lr=cfg.model.lr,
        patience=cfg.model.patience,
        standardize_reward=False,  # the reward is a known function of the successor
    )

    rollouts = make_replay_buffer(cfg.retained_epochs * cfg.rollout_starts)
    mixed = RealModelReplayBuffer(
        real,
        rollouts,
        real_fraction=cfg.agent.real_fraction,
        batch_size=cfg.agent.batch_size,
    )
    agent_loss = make_agent_loss(
        cfg, spec, conservative=method.conservative, num_real=mixed.num_real
    )
    agent = AgentPhase(
        agent_loss,
        critic_lr=cfg.agent.critic_lr,
        actor_lr=cfg.agent.actor_lr,
        alpha_lr=cfg.agent.alpha_lr,
    )
    env = KnownRewardEnv(model, action_spec=spec, starts=real, termination=ends_at_once)
    collector = ModelRolloutCollector(
        env, agent_loss.actor_network, num_starts=cfg.rollout_starts, horizon=1
    )
    model_phase = ModelPhase(
        env,
        AdversarialModelLoss.from_loss(
            model, agent_loss, adversarial_weight=cfg.adversarial_weight, gamma=GAMMA
        ),
        EnsembleModelLoss(model, members="elites"),
        real,
        batch_size=cfg.model.batch_size,
        horizon=1,
        lr=cfg.model.adversarial_lr,
    )
    schedulers = [
        LinearLR(phase.optimizer, 1.0, cfg.final_lr_share, total_iters=cfg.epochs)
        for phase in ((agent, model_phase) if method.adversarial else (agent,))
    ]

    snapshots = []
    for epoch in range(1, cfg.epochs + 1):
        # line 3: rollouts of the policy in the model
        rollouts.extend(collector.collect().select(*mixed.keys))
        # line 4: the agent
        agent.run(mixed.batches(cfg.agent_updates))
        # line 5: the adversarial model
        if method.adversarial:
            model_phase.run(cfg.model_updates)
        for scheduler in schedulers:
            scheduler.step()
        if epoch in cfg.figure.epochs or epoch == cfg.epochs:
            snapshots.append(take_snapshot(epoch, model, agent_loss))

    last = snapshots[-1]
    mode = torch.tensor(last.mode)
    return Run(
        name,
        seed,
        last.mode,
        expected_reward(mode).item(),
        last.successor_mean[(GRID.squeeze(-1) - mode).abs().argmin()].item(),
        time.perf_counter() - started,
        snapshots,
    )
