"""TD3+BC on an offline data set: TD3 whose actor stays near the data's actions.

``python recipes/td3_bc.py task=... schedule=...``; see ``config/td3_bc.yaml`` for the keys and
https://arxiv.org/abs/2106.06860 for the method.
"""

from __future__ import annotations

from typing import Any

import launcher.starting  # noqa: F401
from launcher import parts
from launcher.launch import launch
from omegaconf import DictConfig
from tensordict import TensorDict, TensorDictBase
from torchrl.objectives import SoftUpdate, TD3BCLoss

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.run import Run
from rambo_trl.training.gradient_step import adam
from rambo_trl.training.offline import OfflinePhase, UpdateStep


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """Train TD3+BC on the data alone.

    The deterministic actor is the mode of the shared tanh-Gaussian: TorchRL's losses evaluate
    policies deterministically, and the scale's half of the outputs gets no gradient.
    """
    actor = parts.make_policy(cfg, data)
    batches = parts.make_data_batches(cfg, data.transitions)
    loss = TD3BCLoss(
        actor,
        parts.make_critic(cfg, data),
        action_spec=data.action_spec,
        alpha=cfg.agent.bc_alpha,
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
    run.track(label="TD3+BC", policy=actor, reward_unit=data.reward_scale, loss=loss, phase=phase)
    monitor = DivergenceMonitor(parts.max_abs_reward(data), cfg.agent.gamma)
    return parts.learn_from_data(run, cfg, monitor, phase, batches, metrics)


if __name__ == "__main__":
    launch("td3_bc", train)
