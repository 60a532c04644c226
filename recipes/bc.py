"""Behaviour cloning on an offline data set, by maximum likelihood.

``python recipes/bc.py task=... schedule=...``; see ``config/bc.yaml`` for the keys.
"""

from __future__ import annotations

import warnings
from typing import Any

import launcher.starting  # noqa: F401
from launcher import parts
from launcher.launch import launch
from omegaconf import DictConfig
from torchrl.objectives import BCLoss

from rambo_trl.data import OfflineDataset
from rambo_trl.data.returns import best_episode_rows
from rambo_trl.experiment.divergence import DivergenceMonitor
from rambo_trl.experiment.run import Run
from rambo_trl.training.gradient_step import adam
from rambo_trl.training.offline import OfflinePhase, UpdateStep
from rambo_trl.training.pretraining import clip_actions


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """Train the tanh-Gaussian policy that makes the data, or their best episodes, most likely."""
    actor = parts.make_policy(cfg, data)
    share = cfg.episode_share
    rows = data.transitions if share == 1 else data.transitions[best_episode_rows(data, share)]
    transitions = rows.copy()
    # a tanh policy's density is infinite at the bounds
    transitions["action"] = clip_actions(transitions["action"], data.action_spec)
    batches = parts.make_data_batches(cfg, transitions)
    with warnings.catch_warnings():
        # torchrl 0.14 lacks an annotation of its own in BCLoss and says so at length
        warnings.filterwarnings("ignore", "The name target_actor_network_params")
        loss = BCLoss(actor)
    optimizer = adam((loss.parameters(), cfg.agent.actor_lr))
    phase = OfflinePhase([UpdateStep(loss, optimizer)], compile=cfg.compile)
    label = "BC" if share == 1 else f"{100 * share:g} % BC"
    run.track(label=label, policy=actor, reward_unit=data.reward_scale, loss=loss, phase=phase)
    monitor = DivergenceMonitor(parts.max_abs_reward(data), 0.0)
    return parts.learn_from_data(run, cfg, monitor, phase, batches)


if __name__ == "__main__":
    launch("bc", train)
