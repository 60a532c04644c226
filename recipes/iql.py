"""IQL on an offline data set: expectile values, and a policy cloned by its advantages.

``python recipes/iql.py task=... schedule=...``; see ``config/iql.yaml`` for the keys and
https://arxiv.org/abs/2110.06169 for the method.
"""

from __future__ import annotations

from typing import Any

import launcher.starting  # noqa: F401
from launcher import parts
from launcher.launch import launch
from omegaconf import DictConfig
from torch import nn
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import IQLLoss, SoftUpdate

from rambo_trl.data import OfflineDataset
from rambo_trl.data.environment import is_scored_by_success
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.run import Run
from rambo_trl.modules.statistics import largest_magnitude
from rambo_trl.training.gradient_step import adam
from rambo_trl.training.offline import OfflinePhase, UpdateStep, cosine_decay
from rambo_trl.training.pretraining import clip_actions

#: expectile and inverse temperature by the family of tasks, from the authors' code; other tasks
#: have those of locomotion
PUBLISHED = {"antmaze": (0.9, 10.0)}
LOCOMOTION = (0.7, 3.0)


def published(task: str) -> dict[str, Any]:
    """The settings for a task."""
    family = task.removeprefix("d4rl-").split("-")[0]
    expectile, temperature = PUBLISHED.get(family, LOCOMOTION)
    return {"agent.expectile": expectile, "agent.temperature": temperature}


def reward_unit(cfg: DictConfig, data: OfflineDataset) -> float:
    """What a reward of 1 in training is in the data's units.

    The range of the episodes' returns over 1000, where rewards are scaled by it; as by the authors,
    they stay as they are where an episode's return is success.

    Raises:
        ValueError: if all episodes have the same return, or none is whole.
    """
    if not cfg.agent.scale_rewards or is_scored_by_success(data.env_spec or data.env_id):
        return data.reward_scale
    returns = data.behaviour_returns
    if len(returns) == 0:
        raise ValueError(
            "no episode of the data is whole, by the range of whose returns rewards are scaled: "
            "set agent.scale_rewards=false"
        )
    if returns.max() == returns.min():
        raise ValueError(
            "all episodes of the data have the same return, by whose range rewards are scaled: "
            "set agent.scale_rewards=false"
        )
    return float(returns.max() - returns.min()) / 1000


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """Train implicit Q-learning on the data alone."""
    actor, unit = parts.make_policy(cfg, data), reward_unit(cfg, data)
    transitions = data.transitions.copy()
    # a tanh policy's density is infinite at the bounds
    transitions["action"] = clip_actions(transitions["action"], data.action_spec)
    factor = data.reward_scale / unit
    transitions["next", "reward"] = transitions["next", "reward"] * factor
    batches = parts.make_data_batches(cfg, transitions)
    values = MLP(
        in_features=data.observation_size,
        out_features=1,
        num_cells=list(cfg.agent.hidden_sizes),
        activation_class=nn.ReLU,
        device=cfg.device,
    )
    loss = IQLLoss(
        actor,
        parts.make_critic(cfg, data),
        ValueOperator(values, in_keys=["observation"]),
        loss_function="l2",
        temperature=cfg.agent.temperature,
        expectile=cfg.agent.expectile,
    )
    loss.make_value_estimator(gamma=cfg.agent.gamma, device=cfg.device)
    optimizer = adam(
        (loss.actor_network_params.parameters(), cfg.agent.actor_lr),
        (loss.qvalue_network_params.parameters(), cfg.agent.critic_lr),
        (loss.value_network_params.parameters(), cfg.agent.value_lr),
    )
    decay = cosine_decay(cfg.epochs * cfg.agent_updates)  # of the actor's rate
    step = UpdateStep(loss, optimizer, lr_factor=[decay, lambda _: 1.0, lambda _: 1.0])
    target_update = SoftUpdate(loss, tau=cfg.agent.tau)
    phase = OfflinePhase([step], target_update, compile=cfg.compile)
    metrics = parts.critic_metrics(loss, actor, data, cfg.device)
    run.track(label="IQL", policy=actor, reward_unit=unit, loss=loss, phase=phase)
    monitor = DivergenceMonitor(
        largest_magnitude(transitions["next", "reward"]) * unit, cfg.agent.gamma
    )
    return parts.learn_from_data(run, cfg, monitor, phase, batches, metrics)


if __name__ == "__main__":
    launch("iql", train, published=published)
