"""MOReL on an offline data set: rollouts that end, badly, where the model's members disagree.

``python recipes/morel.py task=... schedule=...``; see ``config/morel.yaml`` for the keys and
https://arxiv.org/abs/2005.05951 for the method. The agent is SAC where the paper's is NPG.
"""

from __future__ import annotations

from typing import Any

import launcher.starting  # noqa: F401
from launcher import parts
from launcher.launch import launch
from launcher.pretraining import pretrain
from omegaconf import DictConfig
from torchrl.objectives import SACLoss
from tqdm import tqdm

from rambo_trl.data import OfflineDataset
from rambo_trl.envs import MORELHalting, PessimisticModelEnv
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.run import Run


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """Train SAC in the pessimistic MDP of a fitted model."""
    world_model = parts.make_world_model(cfg, data)
    actor, critic = parts.make_policy(cfg, data), parts.make_critic(cfg, data)
    real, imagined, mixed = parts.make_buffers(cfg, data)
    sac = parts.make_sac(SACLoss, cfg, data, actor, critic)
    agent = parts.make_agent_phase(cfg, sac)
    termination = parts.make_termination(cfg, data)
    # until the model is fitted it knows nothing of halts
    halting = MORELHalting(0.0, 0.0)
    env = parts.make_model_env(
        PessimisticModelEnv, data, world_model, real.storage[:], termination, pessimism=halting
    )
    collector = parts.make_collector(cfg, env, actor)
    run.track(
        label="MOReL (SAC)",
        policy=actor,
        reward_unit=data.reward_scale,
        termination=parts.learned_or_none(termination),
        world_model=world_model,
        agent=agent,
        model_buffer=imagined,
        collector=collector,
    )
    pretrain(run, cfg, data, world_model, actor)

    # the threshold and the halt's reward come from the data
    env.pessimism = halting = MORELHalting.from_data(
        world_model,
        data.transitions,
        num_stds=cfg.halting.num_stds,
        penalty=cfg.halting.penalty / data.reward_scale,
    )
    halt_reward = halting.halt_reward * data.reward_scale
    tqdm.write(
        f"halting: beyond a disagreement of {halting.threshold:.4g}, with reward {halt_reward:.4g}"
    )
    largest = max(parts.max_abs_reward(data), abs(halt_reward))
    monitor = DivergenceMonitor(largest, cfg.agent.gamma)
    parts.learn_in_model(
        run, cfg, data, monitor, agent=agent, imagined=imagined, mixed=mixed, collector=collector
    )
    return run.finish(
        results={
            "agent_updates": run.progress["epoch"] * cfg.agent_updates,
            "halting": {"threshold": halting.threshold, "reward": halt_reward},
            **parts.model_results(run, cfg),
        },
        penalty=largest - parts.max_abs_reward(data),
        model_env=env,
    )


if __name__ == "__main__":
    launch("morel", train)
