"""A run's policy judged from its data alone, measured once and kept in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from launcher.inspection import SavedRun, load_saved
from launcher.parts import Actor, make_policy
from launcher.pretraining import CLONED_POLICY, cloning_updates
from omegaconf import DictConfig

from rambo_trl.data import OfflineDataset
from rambo_trl.data.returns import best_episode_rows
from rambo_trl.experiment.policy import load_into_actor
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.reporting.offline_evaluation import OfflineEvaluation
from rambo_trl.reporting.offline_values import OFFLINE_VALUES_FILE, Method, OfflineValues
from rambo_trl.training.pretraining import clone_behaviour

__all__ = ["NO_DISCOUNT", "cloned_policy", "discount_of", "offline_values"]

#: with what a policy is valued whose training has no discount factor
NO_DISCOUNT = 0.99


def offline_values(
    path: Path,
    *,
    again: bool = False,
    run: SavedRun | None = None,
    evaluation: OfflineEvaluation | None = None,
    confidence: float = 0.9,
    fit: Mapping[str, Any] | None = None,
    name: str = OFFLINE_VALUES_FILE,
) -> OfflineValues:
    """Read what was measured for a run, or measure it and write it into the run folder.

    Args:
        path: folder of a run of any method that has ended.

    Keyword Args:
        again: measure in any case.
        run: the run, where it has been read already.
        evaluation: of the run's data, so that runs on the same data share the evaluation of the
            behaviour; by default one with the run's discount factor. See
            :class:`~rambo_trl.reporting.offline_evaluation.OfflineEvaluation`.
        confidence: of the intervals, where there is no ``evaluation``.
        fit: arguments of fitted Q evaluation, likewise.
        name: of the file in the run folder.

    Raises:
        OSError, ValueError: one line on what is missing or does not fit.
    """
    if not again and (path / name).is_file():
        return OfflineValues.read(path, name)
    run = run or load_saved(path)
    cfg, data = run.cfg, run.data
    if evaluation is None:
        gamma = discount_of(cfg)
        evaluation = OfflineEvaluation(data, gamma=gamma, confidence=confidence, fit=fit)
    models: dict[Method, EnsembleWorldModel] = {}
    left_out, env = {}, None
    if run.model is None:
        left_out["model"] = f"method={cfg.method} has no model"
    else:
        env = run.model.env
        if run.model.fitted is None:
            left_out["model"] = "the run folder has no file of the model as it was fitted"
        else:
            models["model"] = run.model.fitted
        if cfg.get("adversarial_weight"):
            models["adversarial_model"] = env.world_model
    if "adversarial_model" not in models:
        left_out["adversarial_model"] = "the run had no adversary"
    clone = cloned_policy(path, cfg, data)
    values = evaluation.measure(run.actor, clone=clone, models=models, env=env, left_out=left_out)
    values.write(path, name)
    return values


def discount_of(cfg: DictConfig) -> float:
    """A run's discount factor; that of most methods where cloning alone needs none."""
    agent = cfg.get("agent") or {}
    return float(agent.get("gamma") or cfg.get("gamma") or NO_DISCOUNT)


def cloned_policy(path: Path, cfg: DictConfig, data: OfflineDataset) -> Actor | None:
    """The policy that a run began with: its file, or a new clone by the run's settings.

    Older runs keep no such file. None where the run cloned nothing.
    """
    file = path / CLONED_POLICY
    cloned = "cloning" in cfg and cfg.clone_behaviour and cfg.cloned_policy is None
    if not file.is_file() and not (cloned and cloning_updates(cfg, len(data))):
        return None
    with torch.random.fork_rng():
        torch.manual_seed(cfg.seed)
        actor = make_policy(cfg, data)
        if file.is_file():
            load_into_actor(file, actor, data)
        else:
            clone_behaviour(
                actor,
                data.transitions[best_episode_rows(data, cfg.cloning.episode_share)],
                data.action_spec,
                updates=cloning_updates(cfg, len(data)),
                batch_size=cfg.cloning.batch_size,
                lr=cfg.cloning.lr,
            )
    return actor
