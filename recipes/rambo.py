"""RAMBO on an offline data set: the paper's Algorithm 1, top to bottom.

``python recipes/rambo.py`` trains on the default task in minutes; ``schedule=paper`` is the
published schedule. See ``config/rambo.yaml`` for every key.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torchrl._utils import logger
from torchrl.objectives import SACLoss
from tqdm import tqdm

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.data import (
    OfflineDataset,
    RealModelReplayBuffer,
    make_real_buffer,
    make_replay_buffer,
)
from rambo_trl.envs import EnsembleModelEnv, termination
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss, EnsembleModelLoss
from rambo_trl.training.evaluation import evaluate_policy
from rambo_trl.training.phases import AgentPhase, ModelPhase
from rambo_trl.training.pretraining import clone_behaviour, fit_world_model
from rambo_trl.training.run_folder import RunFolder


def train(cfg: DictConfig, dataset: OfflineDataset, folder: Path) -> None:
    """Algorithm 1."""
    import csv
    device = torch.device(cfg.device)
    t0 = time.perf_counter()
    world_model = EnsembleWorldModel(
        dataset.observation_size,
        dataset.action_size,
        num_members=cfg.model.num_members,
        num_elites=cfg.model.num_elites,
        hidden_sizes=cfg.model.hidden_sizes,
        device=device,
    )
    actor = make_actor(
        dataset.observation_size,
        dataset.action_spec,
        hidden_sizes=cfg.agent.hidden_sizes,
        device=device,
    )
    qvalue = make_qvalue(
        dataset.observation_size,
        dataset.action_size,
        hidden_sizes=cfg.agent.hidden_sizes,
        device=device,
    )
    real = make_real_buffer(dataset, device)
    model_buffer = make_replay_buffer(
        cfg.retained_epochs * cfg.rollout_starts * cfg.rollout_length, device
    )
    agent_loss = SACLoss(
        actor, qvalue, loss_function="l2", action_spec=dataset.action_spec, alpha_init=cfg.agent.alpha_init
    )
    agent_loss.make_value_estimator(gamma=cfg.agent.gamma)
    agent = AgentPhase(agent_loss, critic_lr=cfg.agent.critic_lr, actor_lr=cfg.agent.actor_lr, alpha_lr=cfg.agent.alpha_lr, tau=cfg.agent.tau, compile=cfg.compile)
    env = EnsembleModelEnv(
        world_model,
        action_spec=dataset.action_spec,
        starts=real,
        termination=termination.rule_for(dataset.env_id),
        observation_mean=dataset.observation_mean,
        observation_std=dataset.observation_std,
    )
    collector = ModelRolloutCollector(env, actor, num_starts=cfg.rollout_starts, horizon=cfg.rollout_length, compile=False)
    adversarial = AdversarialModelLoss.from_loss(world_model, agent_loss, adversarial_weight=cfg.adversarial_weight, gamma=cfg.agent.gamma)
    likelihood = EnsembleModelLoss(world_model, members="elites")
    model_phase = ModelPhase(env, adversarial, likelihood, real, horizon=cfg.rollout_length, lr=cfg.model.adversarial_lr, compile=cfg.compile)
    mixed = RealModelReplayBuffer(real, model_buffer, real_fraction=cfg.agent.real_fraction, batch_size=cfg.agent.batch_size)

    def score(n, seed):
        r = evaluate_policy(actor, dataset.env_id, num_episodes=n, seed=seed, observation_mean=dataset.observation_mean, observation_std=dataset.observation_std)
        return dataset.normalized_score(r.return_mean)
    print("data mean", dataset.behaviour_score, "best", dataset.normalized_score(dataset.behaviour_returns.max()), len(dataset), flush=True)
    t=time.perf_counter()
    fit = fit_world_model(world_model, dataset.transitions, batch_size=cfg.model.batch_size, lr=cfg.model.lr, patience=cfg.model.patience, max_passes=cfg.model.max_passes, compile=cfg.compile)
    print("fit", time.perf_counter()-t, [round(float(np.mean(h)),4) for h in fit.history], fit.elites, flush=True)
    t=time.perf_counter()
    out = clone_behaviour(actor, dataset.transitions, dataset.action_spec, passes=cfg.cloning.passes, batch_size=cfg.cloning.batch_size, lr=cfg.cloning.lr)
    print("clone", time.perf_counter()-t, out, score(10, 10**6), flush=True)
    f = open(folder / "m.csv", "w"); w = None
    for epoch in range(1, cfg.epochs + 1):
        a=time.perf_counter()
        rollouts = collector.collect(); model_buffer.extend(rollouts.select(*mixed.keys))
        b=time.perf_counter()
        am = agent.run(mixed.batches(cfg.agent_updates))
        c=time.perf_counter()
        mm = model_phase.run(cfg.model_updates) if cfg.adversarial_weight > 0 and cfg.model_updates else {}
        d=time.perf_counter()
        row = dict(epoch=epoch, score=None, t=d-t0, tr=b-a, ta=c-b, tm=d-c, rollr=float(rollouts["next","reward"].mean()), term=float(rollouts["next","terminated"].float().mean()), **am, **mm)
        if epoch % cfg.evaluation.every == 0 or epoch > cfg.epochs - cfg.evaluation.last:
            row["score"] = score(cfg.evaluation.episodes, 10**6 + 1000*epoch)
        if w is None:
            w = csv.DictWriter(f, list(row)); w.writeheader()
        w.writerow(row); f.flush()
        if row["score"] is not None or epoch <2: print({k: (round(v, 3) if isinstance(v, float) else v) for k, v in row.items()}, flush=True)


@hydra.main(version_base="1.3", config_path="config", config_name="rambo")
def main(cfg: DictConfig) -> None:
    """Run Algorithm 1 as configured."""
    torch.manual_seed(cfg.seed)
    if cfg.threads: torch.set_num_threads(cfg.threads)
    dataset = OfflineDataset.load(cfg.dataset)
    p = Path(cfg.run_dir); p.mkdir(parents=True, exist_ok=True)
    train(cfg, dataset, p)


if __name__ == "__main__":
    main()
