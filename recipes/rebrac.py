"""ReBRAC on an offline data set: TD3+BC with penalties of their own for actor and critics.

``python recipes/rebrac.py task=... schedule=...``; see ``config/rebrac.yaml`` for the keys and
https://arxiv.org/abs/2305.09836 for the method.
"""

from __future__ import annotations

from typing import Any

import launcher.starting  # noqa: F401
from launcher import parts
from launcher.launch import launch
from omegaconf import DictConfig
from tensordict import TensorDict, TensorDictBase
from torchrl.objectives import SoftUpdate

from rambo_trl.data import OfflineDataset
from rambo_trl.data.buffers import TRANSITION_KEYS
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.run import Run
from rambo_trl.modules import make_actor, make_qvalue
from rambo_trl.objectives.rebrac import ReBRACLoss, with_next_actions
from rambo_trl.training.gradient_step import adam
from rambo_trl.training.offline import OfflinePhase, UpdateStep

#: penalties of actor and critics for D4RL's sets, from the authors' configuration files; AntMaze's
#: rewards are multiplied by 100 there, and the critics' penalties divided by it here
PUBLISHED = {
    "halfcheetah-random": (0.001, 0.1),
    "halfcheetah-medium": (0.001, 0.01),
    "halfcheetah-medium-replay": (0.01, 0.001),
    "halfcheetah-medium-expert": (0.01, 0.1),
    "hopper-random": (0.001, 0.01),
    "hopper-medium": (0.01, 0.01),
    "hopper-medium-replay": (0.05, 0.5),
    "hopper-medium-expert": (0.1, 0.01),
    "walker2d-random": (0.01, 0.0),
    "walker2d-medium": (0.05, 0.1),
    "walker2d-medium-replay": (0.05, 0.01),
    "walker2d-medium-expert": (0.01, 0.01),
    "antmaze-umaze": (0.003, 2e-5),
    "antmaze-umaze-diverse": (0.003, 1e-5),
    "antmaze-medium-play": (0.001, 5e-6),
    "antmaze-medium-diverse": (0.001, 0.0),
    "antmaze-large-play": (0.002, 1e-5),
    "antmaze-large-diverse": (0.002, 2e-5),
}
#: rates of actor and critics, batch and discount factor for AntMaze, and for all other tasks
ANTMAZE = (3e-4, 5e-5, 256, 0.999)
LOCOMOTION = (1e-3, 1e-3, 1024, 0.99)


def published(task: str) -> dict[str, Any]:
    """The settings for a task; for one that the authors lack the most common ones."""
    task = task.removeprefix("d4rl-")
    actor_penalty, critic_penalty = PUBLISHED.get(task, (0.01, 0.01))
    settings = ANTMAZE if task.startswith("antmaze") else LOCOMOTION
    names = ("agent.actor_lr", "agent.critic_lr", "agent.batch_size", "agent.gamma")
    return {
        "agent.actor_penalty": actor_penalty,
        "agent.critic_penalty": critic_penalty,
        **dict(zip(names, settings, strict=True)),
    }


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """Train ReBRAC on the data alone; the policy is the mode of the shared tanh-Gaussian."""
    sizes = [cfg.agent.hidden_sizes[0]] * cfg.agent.hidden_layers
    actor = make_actor(
        data.observation_size, data.action_spec, hidden_sizes=sizes, device=cfg.device
    )
    critic = make_qvalue(
        data.observation_size,
        data.action_size,
        hidden_sizes=sizes,
        layer_norm=cfg.agent.layer_norm,
        device=cfg.device,
    )
    transitions = with_next_actions(data.transitions)
    keys = (*TRANSITION_KEYS, ("next", "action"))
    batches = parts.make_data_batches(cfg, transitions, keys=keys)
    loss = ReBRACLoss(
        actor,
        critic,
        action_spec=data.action_spec,
        actor_penalty=cfg.agent.actor_penalty,
        critic_penalty=cfg.agent.critic_penalty / data.reward_scale,  # for the data's own unit
        policy_noise=cfg.agent.policy_noise,
        noise_clip=cfg.agent.noise_clip,
        loss_function="l2",
    )
    loss.make_value_estimator(gamma=cfg.agent.gamma, device=cfg.device)

    def critic_losses(batch: TensorDictBase) -> TensorDictBase:
        """The critics' squared TD errors."""
        return TensorDict(loss_qvalue=loss.qvalue_loss(batch)[0])

    def actor_losses(batch: TensorDictBase) -> TensorDictBase:
        """The actor's, of its own state-actions and the data's."""
        term, metrics = loss.actor_loss(batch)
        return TensorDict(loss_actor=term, cloning_error=metrics["bc_loss"], weight=metrics["lmbd"])

    critics = adam((loss.qvalue_network_params.parameters(), cfg.agent.critic_lr))
    policy = adam((loss.actor_network_params.parameters(), cfg.agent.actor_lr))
    every = cfg.agent.actor_every
    phase = OfflinePhase(
        [
            UpdateStep(critic_losses, critics, name="the critics' update"),
            UpdateStep(actor_losses, policy, every=every, name="the actor's update"),
        ],
        SoftUpdate(loss, tau=cfg.agent.tau),
        target_every=every,
        compile=cfg.compile,
    )
    metrics = parts.critic_metrics(loss, actor, data, cfg.device)
    run.track(label="ReBRAC", policy=actor, reward_unit=data.reward_scale, loss=loss, phase=phase)
    monitor = DivergenceMonitor(parts.max_abs_reward(data), cfg.agent.gamma)
    return parts.learn_from_data(run, cfg, monitor, phase, batches, metrics)


if __name__ == "__main__":
    launch("rebrac", train, published=published)
