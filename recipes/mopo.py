"""MOPO on an offline data set: rollouts whose rewards are penalised by the model's uncertainty.

``python recipes/mopo.py task=... schedule=...``; see ``config/mopo.yaml`` for the keys and
https://arxiv.org/abs/2005.13239 for the method.
"""

from __future__ import annotations

from typing import Any

import launcher.starting  # noqa: F401
import torch
from launcher import parts
from launcher.launch import launch
from launcher.pretraining import pretrain
from omegaconf import DictConfig
from torchrl.objectives import SACLoss

from rambo_trl.data import OfflineDataset
from rambo_trl.envs import MOPOPenalty, PessimisticModelEnv
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.run import Run

#: rollout length h and penalty lambda for D4RL's sets, from the authors' configuration files
PUBLISHED = {
    "halfcheetah-random": (5, 0.5),
    "halfcheetah-medium": (1, 1.0),
    "halfcheetah-medium-replay": (5, 1.0),
    "halfcheetah-medium-expert": (5, 5.0),
    "hopper-random": (5, 1.0),
    "hopper-medium": (5, 5.0),
    "hopper-medium-replay": (5, 1.0),
    "hopper-medium-expert": (5, 1.0),
    "walker2d-random": (1, 1.0),
    "walker2d-medium": (5, 5.0),
    "walker2d-medium-replay": (1, 1.0),
    "walker2d-medium-expert": (1, 2.0),
}


def published(task: str) -> dict[str, Any]:
    """The settings for a task; for one that the paper lacks the most common ones."""
    horizon, coefficient = PUBLISHED.get(task.removeprefix("d4rl-"), (5, 1.0))
    return {"rollout_length": horizon, "penalty_coefficient": coefficient}


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """Train SAC in a model whose rewards are lowered by the members' largest standard deviation."""
    world_model = parts.make_world_model(cfg, data)
    actor, critic = parts.make_policy(cfg, data), parts.make_critic(cfg, data)
    real, imagined, mixed = parts.make_buffers(cfg, data)
    sac = parts.make_sac(SACLoss, cfg, data, actor, critic)
    agent = parts.make_agent_phase(cfg, sac)
    termination = parts.make_termination(cfg, data)
    # lambda is for the data's own units
    units = torch.cat([data.observation_std, data.observation_std.new_tensor([data.reward_scale])])
    penalty = MOPOPenalty(cfg.penalty_coefficient, units=units.to(cfg.device))
    env = parts.make_model_env(
        PessimisticModelEnv, data, world_model, real.storage[:], termination, pessimism=penalty
    )
    collector = parts.make_collector(cfg, env, actor)
    run.track(
        label="MOPO",
        policy=actor,
        reward_unit=data.reward_scale,
        termination=parts.learned_or_none(termination),
        world_model=world_model,
        agent=agent,
        model_buffer=imagined,
        collector=collector,
    )
    pretrain(run, cfg, data, world_model, actor)

    # the largest penalty: log-variances have an upper bound
    largest = world_model.max_log_var.detach() + 2 * world_model.output_scale.log()
    most = float(penalty.of(largest[None, None])) * data.reward_scale
    monitor = DivergenceMonitor(parts.max_abs_reward(data) + most, cfg.agent.gamma)
    parts.learn_in_model(
        run, cfg, data, monitor, agent=agent, imagined=imagined, mixed=mixed, collector=collector
    )
    return run.finish(
        results={
            "agent_updates": run.progress["epoch"] * cfg.agent_updates,
            "penalty_coefficient": cfg.penalty_coefficient,
            "penalty_units": "data",
            **parts.model_results(run, cfg),
        },
        penalty=most,
        model_env=env,
    )


if __name__ == "__main__":
    launch("mopo", train, published=published)
