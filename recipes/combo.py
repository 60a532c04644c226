"""COMBO on an offline data set: critics pushed down on the model's rollouts, up on the data.

``python recipes/combo.py task=... schedule=...``; see ``config/combo.yaml`` for the keys and
https://arxiv.org/abs/2102.08363 for the method.
"""

from __future__ import annotations

from typing import Any

import launcher.starting  # noqa: F401
from launcher import parts
from launcher.launch import launch
from launcher.pretraining import pretrain
from omegaconf import DictConfig

from rambo_trl.data import OfflineDataset
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.run import Run
from rambo_trl.objectives import COMBOLoss

#: rollout length and conservative weight beta for D4RL's sets, from OfflineRL-Kit's recipes
PUBLISHED = {
    "halfcheetah-medium": (5, 0.5),
    "halfcheetah-medium-replay": (5, 0.5),
    "halfcheetah-medium-expert": (5, 5.0),
    "hopper-medium": (5, 5.0),
    "hopper-medium-replay": (5, 0.5),
    "hopper-medium-expert": (5, 5.0),
    "walker2d-medium": (1, 5.0),
    "walker2d-medium-replay": (1, 0.5),
    "walker2d-medium-expert": (1, 5.0),
}


def published(task: str) -> dict[str, Any]:
    """The settings for a task; for one that they lack (the random sets) the milder ones."""
    horizon, weight = PUBLISHED.get(task.removeprefix("d4rl-"), (5, 0.5))
    return {"rollout_length": horizon, "conservative_weight": weight}


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """Train SAC with conservative critics on real and imagined transitions."""
    world_model = parts.make_world_model(cfg, data)
    actor, critic = parts.make_policy(cfg, data), parts.make_critic(cfg, data)
    real, imagined, mixed = parts.make_buffers(cfg, data)
    sac = parts.make_sac(
        COMBOLoss,
        cfg,
        data,
        actor,
        critic,
        num_real=mixed.num_real,
        conservative_weight=cfg.conservative_weight,
        penalized_actions=cfg.penalized_actions,
        num_actions=cfg.num_actions,
    )
    agent = parts.make_agent_phase(cfg, sac)
    termination = parts.make_termination(cfg, data)
    env = parts.make_model_env(EnsembleModelEnv, data, world_model, real.storage[:], termination)
    collector = parts.make_collector(cfg, env, actor)
    run.track(
        label="COMBO",
        policy=actor,
        reward_unit=data.reward_scale,
        termination=parts.learned_or_none(termination),
        world_model=world_model,
        agent=agent,
        model_buffer=imagined,
        collector=collector,
    )
    pretrain(run, cfg, data, world_model, actor)

    monitor = DivergenceMonitor(parts.max_abs_reward(data), cfg.agent.gamma)
    parts.learn_in_model(
        run, cfg, data, monitor, agent=agent, imagined=imagined, mixed=mixed, collector=collector
    )
    return run.finish(
        results={
            "agent_updates": run.progress["epoch"] * cfg.agent_updates,
            "conservative_weight": cfg.conservative_weight,
            "deterministic_backup": True,
            **parts.model_results(run, cfg),
        },
        model_env=env,
    )


if __name__ == "__main__":
    launch("combo", train, published=published)
