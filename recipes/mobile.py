"""MOBILE on an offline data set: targets penalised where the members' Bellman backups disagree.

``python recipes/mobile.py task=... schedule=...``; see ``config/mobile.yaml`` for the keys and
https://proceedings.mlr.press/v202/sun23q.html for the method.
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
from rambo_trl.objectives import MOBILELoss
from rambo_trl.training.offline import cosine_decay

#: rollout length and penalty beta for D4RL's sets, from the authors' configuration files
PUBLISHED = {
    "halfcheetah-random": (5, 0.5),
    "halfcheetah-medium": (5, 0.5),
    "halfcheetah-medium-replay": (5, 0.1),
    "halfcheetah-medium-expert": (5, 1.0),
    "hopper-random": (5, 5.0),
    "hopper-medium": (5, 1.5),
    "hopper-medium-replay": (5, 0.1),
    "hopper-medium-expert": (5, 1.5),
    "walker2d-random": (5, 2.0),
    "walker2d-medium": (5, 0.5),
    "walker2d-medium-replay": (1, 0.5),
    "walker2d-medium-expert": (1, 1.5),
}
#: where the share of real rows is another than 0.05
REAL_FRACTION = {"halfcheetah-medium-expert": 0.5}
#: where the temperature is kept instead of learnt
FIXED_ALPHA = {"hopper-medium": 0.2, "hopper-medium-replay": 0.2}


def published(task: str) -> dict[str, Any]:
    """The settings for a task; for one that the authors lack the most common ones."""
    task = task.removeprefix("d4rl-")
    horizon, coefficient = PUBLISHED.get(task, (5, 0.5))
    return {
        "rollout_length": horizon,
        "penalty_coefficient": coefficient,
        "agent.real_fraction": REAL_FRACTION.get(task, 0.05),
        "agent.fixed_alpha": FIXED_ALPHA.get(task, 0.0),
    }


def clips_targets(cfg: DictConfig, data: OfflineDataset) -> bool:
    """Whether targets below 0 become 0, as by the authors, whose tasks reward more than they cost.

    Where ``clip_targets`` is null that is so for data whose mean reward is positive.

    Raises:
        ValueError: if it is asked for where no reward is positive, so that nothing could be learnt.
    """
    reward = data.transitions["next", "reward"]
    if cfg.clip_targets and not (reward > 0).any():
        raise ValueError(
            f"clip_targets=true makes all values 0, since no reward of {data.name} is positive: "
            "leave it out, or set clip_targets=false"
        )
    return bool(reward.mean() > 0) if cfg.clip_targets is None else bool(cfg.clip_targets)


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """Train SAC in the fitted model, its targets lowered by the model-Bellman inconsistency."""
    world_model = parts.make_world_model(cfg, data)
    actor, critic = parts.make_policy(cfg, data), parts.make_critic(cfg, data)
    real, imagined, mixed = parts.make_buffers(cfg, data)
    clipped, temperature = clips_targets(cfg, data), {}
    if cfg.agent.fixed_alpha:  # for rewards in the data's own unit
        alpha = cfg.agent.fixed_alpha / data.reward_scale
        temperature = {"fixed_alpha": True, "alpha_init": alpha}
    sac = parts.make_sac(
        MOBILELoss,
        cfg,
        data,
        actor,
        critic,
        world_model=world_model,
        num_real=mixed.num_real,
        penalty_coefficient=cfg.penalty_coefficient,
        num_samples=cfg.num_samples,
        min_target=0.0 if clipped else None,
        **temperature,
    )
    decay = cosine_decay(cfg.epochs * cfg.agent_updates)
    agent = parts.make_agent_phase(cfg, sac, schedules={"actor": decay})
    termination = parts.make_termination(cfg, data)
    env = parts.make_model_env(EnsembleModelEnv, data, world_model, real.storage[:], termination)
    collector = parts.make_collector(cfg, env, actor)
    run.track(
        label="MOBILE",
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
            "penalty_coefficient": cfg.penalty_coefficient,
            "clipped_targets": clipped,
            **parts.model_results(run, cfg),
        },
        model_env=env,
    )


if __name__ == "__main__":
    launch("mobile", train, published=published)
