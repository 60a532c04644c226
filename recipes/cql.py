"""CQL on an offline data set: SAC whose critics are pushed down off the data.

``python recipes/cql.py task=... schedule=...``; see ``config/cql.yaml`` for the keys and
https://arxiv.org/abs/2006.04779 for the method.
"""

from __future__ import annotations

from typing import Any

import launcher.starting  # noqa: F401
from launcher import parts
from launcher.launch import launch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torchrl.objectives import SoftUpdate

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.run import Run
from rambo_trl.objectives.cql import ConservativeQLoss
from rambo_trl.training.gradient_step import adam
from rambo_trl.training.offline import OfflinePhase, UpdateStep


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """Train CQL(H) with a fixed weight on the data alone."""
    actor = parts.make_policy(cfg, data)
    batches = parts.make_data_batches(cfg, data.transitions)
    loss = ConservativeQLoss(
        actor,
        parts.make_critic(cfg, data),
        loss_function="l2",
        alpha_init=cfg.agent.alpha_init,
        action_spec=data.action_spec,
        min_q_weight=cfg.agent.conservative_weight,
        num_random=cfg.agent.num_actions,
    )
    loss.make_value_estimator(gamma=cfg.agent.gamma, device=cfg.device)
    optimizer = adam(
        (loss.qvalue_network_params.parameters(), cfg.agent.critic_lr),
        (loss.actor_network_params.parameters(), cfg.agent.actor_lr),
        ([loss.log_alpha], cfg.agent.alpha_lr),
    )

    def losses(batch: TensorDictBase) -> TensorDictBase:
        """CQL's terms, without the cloning term that would stand in for the actor's."""
        return loss(batch).exclude("loss_actor_bc")

    target_update = SoftUpdate(loss, tau=cfg.agent.tau)
    phase = OfflinePhase([UpdateStep(losses, optimizer)], target_update, compile=cfg.compile)
    metrics = parts.critic_metrics(loss, actor, data, cfg.device)
    run.track(label="CQL", policy=actor, reward_unit=data.reward_scale, loss=loss, phase=phase)
    monitor = DivergenceMonitor(parts.max_abs_reward(data), cfg.agent.gamma)
    return parts.learn_from_data(run, cfg, monitor, phase, batches, metrics)


if __name__ == "__main__":
    launch("cql", train)
