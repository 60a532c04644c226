"""Algorithm 1 on the Single Transition Example, with an adversary or what stands in its place."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from launcher.parts import (
    add_rollouts,
    make_adversary,
    make_agent_phase,
    make_buffers,
    make_collector,
    make_critic,
    make_model_env,
    make_policy,
    make_sac,
    make_world_model,
)
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SACLoss

from rambo_trl.data import OfflineDataset
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.envs.single_transition import expected_reward, make_single_transition_data
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import AdversarialModelLoss, COMBOLoss
from rambo_trl.training.pretraining import fit_world_model

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

    def judge(
        self, observation: Tensor, action: Tensor, next_observation: Tensor, reward: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The outcome of a step; the model's reward is ignored."""
        _, _, terminated = super().judge(observation, action, next_observation, reward)
        return next_observation, next_observation, terminated


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


def example_data(num_transitions: int) -> OfflineDataset:
    """The example's data; states and rewards stay as they are."""
    return OfflineDataset(
        make_single_transition_data(num_transitions),
        action_spec=Bounded(-1.0, 1.0, (1,)),
        name="single transition",
        normalize=False,
    )


def train(name: str, seed: int, cfg: DictConfig) -> Run:
    """Algorithm 1 on the example."""
    torch.set_num_threads(1)
    torchrl_logger.setLevel(logging.ERROR)  # that all episodes start alike is the example's point
    torch.manual_seed(seed)
    started = time.perf_counter()
    method = METHODS[name]
    data = example_data(cfg.num_transitions)
    real, imagined, mixed = make_buffers(cfg, data)

    # line 1: the model by maximum likelihood
    world_model = make_world_model(cfg, data)
    fit_world_model(
        world_model,
        data.transitions,
        batch_size=cfg.model.batch_size,
        lr=cfg.model.lr,
        patience=cfg.model.patience,
        standardize_reward=False,  # the reward is a known function of the successor
    )

    actor, critic = make_policy(cfg, data), make_critic(cfg, data)
    settings: dict[str, Any] = {"target_entropy": cfg.agent.target_entropy}
    if method.conservative:
        settings.update(cfg.combo, num_real=mixed.num_real)
    loss = COMBOLoss if method.conservative else SACLoss
    agent_loss = make_sac(loss, cfg, data, actor, critic, **settings)
    agent = make_agent_phase(cfg, agent_loss)
    env = make_model_env(KnownRewardEnv, data, world_model, real.storage[:], ends_at_once)
    collector = make_collector(cfg, env, actor)
    adversarial = AdversarialModelLoss.from_loss(
        world_model,
        agent_loss,
        adversarial_weight=cfg.adversarial_weight,
        gamma=cfg.agent.gamma,
    )
    adversary = make_adversary(cfg, env, adversarial, real)
    phases = (agent, adversary) if method.adversarial else (agent,)
    schedulers = [
        LinearLR(phase.optimizer, 1.0, cfg.final_lr_share, total_iters=cfg.epochs)
        for phase in phases
    ]

    snapshots = []
    for epoch in range(1, cfg.epochs + 1):
        add_rollouts(imagined, collector, mixed.keys)  # line 3
        agent.run(mixed.batches(cfg.agent_updates))  # line 4
        if method.adversarial:
            adversary.run(cfg.model_updates)  # line 5
        for scheduler in schedulers:
            scheduler.step()
        if epoch in cfg.figure.epochs or epoch == cfg.epochs:
            snapshots.append(take_snapshot(epoch, world_model, agent_loss))

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
