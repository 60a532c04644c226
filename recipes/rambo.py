"""RAMBO on an offline data set: the paper's Algorithm 1, top to bottom.

``python recipes/rambo.py`` trains on the default task in minutes; ``schedule=paper`` is the
published schedule. See ``config/rambo.yaml`` for the keys, and
https://arxiv.org/abs/2204.12581 for the algorithm.
"""

from __future__ import annotations

import os
import time
from typing import Any

import hydra
import torch
from command_line import check_command_line
from omegaconf import DictConfig
from run_start import PRETRAINING, begin_or_resume, find_pretrained, prepare
from run_support import (
    EndingWell,
    Evaluation,
    Stopwatch,
    last_screen,
    progress_bar,
    refusing_bad_input,
    score_text,
    summarise,
    write_policy,
)
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
from rambo_trl.training.checkpoint import Checkpoints, seed_everything
from rambo_trl.training.divergence import DivergenceMonitor
from rambo_trl.training.interruption import Interruption
from rambo_trl.training.phases import AgentPhase, ModelPhase
from rambo_trl.training.pretraining import ModelFit, clone_behaviour, fit_world_model
from rambo_trl.training.run_folder import RunFolder

#: rows of the data on which the model's error is followed, and how many times the error after
#: the fit means that the model is lost
ERROR_ROWS, ERROR_MARGIN = 1000, 100.0


class Rambo:
    """The parts of Algorithm 1, put together as configured.

    Args:
        cfg: the recipe's configuration.
        dataset: the offline data.
    """

    def __init__(self, cfg: DictConfig, dataset: OfflineDataset) -> None:
        device = torch.device(cfg.device)
        sizes = (dataset.observation_size, dataset.action_size)
        self.world_model = EnsembleWorldModel(
            *sizes,
            num_members=cfg.model.num_members,
            num_elites=cfg.model.num_elites,
            hidden_sizes=cfg.model.hidden_sizes,
            device=device,
        )
        self.actor = make_actor(
            dataset.observation_size,
            dataset.action_spec,
            hidden_sizes=cfg.agent.hidden_sizes,
            device=device,
        )
        sac = SACLoss(
            self.actor,
            make_qvalue(*sizes, hidden_sizes=cfg.agent.hidden_sizes, device=device),
            loss_function="l2",
            alpha_init=cfg.agent.alpha_init,
            action_spec=dataset.action_spec,
        )
        sac.make_value_estimator(gamma=cfg.agent.gamma)
        self.agent = AgentPhase(
            sac,
            critic_lr=cfg.agent.critic_lr,
            actor_lr=cfg.agent.actor_lr,
            alpha_lr=cfg.agent.alpha_lr,
            tau=cfg.agent.tau,
            compile=cfg.compile,
        )
        real = make_real_buffer(dataset, device)
        env = EnsembleModelEnv(
            self.world_model,
            action_spec=dataset.action_spec,
            starts=real,
            termination=termination.rule_for(dataset.env_id or ""),
            observation_mean=dataset.observation_mean,
            observation_std=dataset.observation_std,
        )
        self.collector = ModelRolloutCollector(
            env,
            self.actor if cfg.rollout_policy == "current" else None,
            num_starts=cfg.rollout_starts,
            horizon=cfg.rollout_length,
            compile=cfg.compile,
        )
        self.model_buffer = make_replay_buffer(
            cfg.retained_epochs * cfg.rollout_starts * cfg.rollout_length, device
        )
        self.mixed = RealModelReplayBuffer(
            real,
            self.model_buffer,
            real_fraction=cfg.agent.real_fraction,
            batch_size=cfg.agent.batch_size,
        )
        self.adversary = ModelPhase(
            env,
            AdversarialModelLoss.from_loss(
                self.world_model,
                sac,
                adversarial_weight=cfg.adversarial_weight,
                gamma=cfg.agent.gamma,
            ),
            EnsembleModelLoss(self.world_model, members="elites"),
            real,
            batch_size=cfg.model.batch_size,
            horizon=cfg.rollout_length,
            lr=cfg.model.adversarial_lr,
            compile=cfg.compile,
        )

        every = max(1, len(dataset) // ERROR_ROWS)
        self.error_rows = dataset.transitions[::every][:ERROR_ROWS].to(device)

    def model_error(self) -> float:
        """The elites' mean squared error on fixed rows of the data; no random number is drawn."""
        error = self.adversary.model_loss.member_mse(self.error_rows)
        return float(error[self.world_model.elites].mean())

    def stateful_parts(self) -> dict[str, Any]:
        """Everything that decides the run's future, for checkpoints."""
        return {
            "world_model": self.world_model,
            "agent_loss": self.agent.loss,
            "agent_optimizer": self.agent.optimizer,
            "model_optimizer": self.adversary.optimizer,
            "model_buffer": self.model_buffer,
            "collector": self.collector,
        }


def pretrain(
    rambo: Rambo,
    cfg: DictConfig,
    dataset: OfflineDataset,
    evaluation: Evaluation,
    checkpoints: Checkpoints,
    progress: dict[str, Any],
) -> None:
    """Line 1: the maximum-likelihood model and its elites; and the cloned actor."""
    watch = Stopwatch(progress["seconds"])
    if "holdout_mse" not in progress:
        fit = fit_model(rambo, cfg, dataset, watch)
        progress.update(holdout_mse=fit.holdout_mse, model_passes=fit.passes)
        checkpoints.save(progress)
    cloned: dict[str, float | None] = {}
    if cfg.clone_behaviour and cfg.cloning.passes:
        total = cfg.cloning.passes * (len(dataset) // cfg.cloning.batch_size)
        with watch("cloning"), progress_bar("clone the behaviour", total) as bar:
            clone_behaviour(
                rambo.actor,
                dataset.transitions,
                dataset.action_spec,
                passes=cfg.cloning.passes,
                batch_size=cfg.cloning.batch_size,
                lr=cfg.cloning.lr,
                compile=cfg.compile,
                bar=bar,
            )
        with watch("evaluation"):
            cloned = evaluation(0)
        tqdm.write(f"behaviour cloning: return {cloned['return_mean']:.1f}{score_text(cloned)}")
    progress["cloned"] = cloned


def fit_model(rambo: Rambo, cfg: DictConfig, dataset: OfflineDataset, watch: Stopwatch) -> ModelFit:
    """Fit the ensemble by maximum likelihood, with a bar and a line on the outcome."""
    per_pass = len(dataset) // cfg.model.batch_size
    limit = cfg.model.max_passes
    with (
        watch("model_fit"),
        progress_bar("fit the model", limit and limit * per_pass) as bar,
    ):
        fit = fit_world_model(
            rambo.world_model,
            dataset.transitions,
            batch_size=cfg.model.batch_size,
            lr=cfg.model.lr,
            patience=cfg.model.patience,
            min_improvement=cfg.model.min_improvement,
            max_passes=limit,
            compile=cfg.compile,
            on_pass=lambda n, error: bar.set_postfix(holdout_mse=f"{error.mean():.4f}"),
            bar=bar,
        )
    tqdm.write(
        f"model: {fit.passes} passes, holdout mse {min(fit.holdout_mse):.4f} to "
        f"{max(fit.holdout_mse):.4f}, elites {fit.elites}"
    )
    return fit


def epoch_metrics(
    rambo: Rambo, cfg: DictConfig, watch: Stopwatch, bar: tqdm
) -> tuple[dict[str, float | int | None], float]:
    """Lines 3 to 5: rollouts, the agent's updates, the model's updates.

    Returns:
        The epoch's metrics, which a second run with the same seed repeats, and its updates
        per second, which it does not.
    """
    # line 3: k-step rollouts in the model from states of the data
    with watch("rollouts"):
        rollouts = rambo.collector.collect()
        rambo.model_buffer.extend(rollouts.select(*rambo.mixed.keys))
    started = time.perf_counter()
    # line 4: the agent, on real and imagined transitions
    with watch("agent"):
        agent = rambo.agent.run(rambo.mixed.batches(cfg.agent_updates), bar)
    # line 5: the model, against the agent and true to the data; without an adversary the model
    # stays as it was fitted
    model: dict[str, float] = {}
    updates = cfg.model_updates if cfg.adversarial_weight > 0 else 0
    if updates:
        with watch("model"):
            model = rambo.adversary.run(updates, bar)
            model["error"] = rambo.model_error()
    speed = (cfg.agent_updates + updates) / (time.perf_counter() - started)
    metrics = {
        "model_transitions": rollouts.shape[0],
        "model_reward": float(rollouts["next", "reward"].mean()),
        "model_terminated": float(rollouts["next", "terminated"].float().mean()),
        **agent,
        **{k if k.startswith("loss") else f"model_{k}": v for k, v in model.items()},
    }
    return metrics, speed


def train(
    cfg: DictConfig, dataset: OfflineDataset, folder: RunFolder, signals: Interruption
) -> dict[str, Any]:
    """Algorithm 1, from the data set to an evaluated policy."""
    with refusing_bad_input():
        rambo = Rambo(cfg, dataset)
        evaluation = Evaluation(
            rambo.actor,
            dataset,
            num_episodes=cfg.evaluation.episodes,
            seed=cfg.seed,
            device=cfg.device,
        )
        checkpoints = Checkpoints(
            folder.checkpoint_dir,
            rambo.stateful_parts(),
            every=cfg.checkpoint_every,
            minutes=cfg.checkpoint_minutes,
            keep=cfg.checkpoints_kept,
            device=cfg.device,
        )
        progress = begin_or_resume(checkpoints, dataset)
        pretrained = find_pretrained(
            cfg, progress, world_model=rambo.world_model, actor=rambo.actor
        )
    if "cloned" not in progress:
        with pretrained.claimed():
            with refusing_bad_input():
                found = pretrained.load()
            if found is None:
                pretrain(rambo, cfg, dataset, evaluation, checkpoints, progress)
                pretrained.save({k: progress[k] for k in PRETRAINING})
            else:
                tqdm.write(f"pretrained: {pretrained.path}")
                progress.update(found)
        checkpoints.save(progress)
    monitor = DivergenceMonitor(
        float(dataset.transitions["next", "reward"].abs().max()),
        cfg.agent.gamma,
        max_model_error=ERROR_MARGIN * max(progress["holdout_mse"]),
    )
    folder.truncate_metrics(progress["epoch"])
    watch = Stopwatch(progress["seconds"])

    updates = cfg.agent_updates + (cfg.model_updates if cfg.adversarial_weight > 0 else 0)
    with progress_bar("train", cfg.epochs * updates) as bar:
        bar.update(progress["epoch"] * updates)
        bar.unpause()
        for epoch in range(progress["epoch"] + 1, cfg.epochs + 1):
            with signals.deferred():
                metrics, speed = epoch_metrics(rambo, cfg, watch, bar)
                row = {"epoch": epoch, **metrics}
                found = monitor.check(row)
                stop = found is not None and cfg.on_divergence == "stop"
                score: dict[str, float | None] = dict.fromkeys(
                    ("score", "score_std", "return_mean", "return_std")
                )
                due = epoch % cfg.evaluation.every == 0 or epoch > cfg.epochs - cfg.evaluation.last
                if due and not stop:
                    with watch("evaluation"):
                        score = evaluation(epoch)
                row.update(score)
                folder.append_metrics(row)
                tqdm.write(f"{epoch_line(row)} | {speed:.0f} updates/s")
                progress["epoch"] = epoch
                progress["transitions"] += row["model_transitions"]
                if found and progress["divergence"] is None:
                    progress["divergence"] = {"epoch": epoch, "reason": found}
                    tqdm.write(f"DIVERGED in epoch {epoch}: {found}")
                    checkpoints.keep_last_good()
                if stop:
                    break
                if checkpoints.due(epoch) or epoch == cfg.epochs or signals.received:
                    with watch("checkpoint"):
                        checkpoints.save(progress)
    if progress["divergence"]:
        # the folder's policy is that of the last good checkpoint
        checkpoints.load(checkpoints.last_good)
    write_policy(folder, rambo.actor, dataset, cfg)
    epochs = progress["epoch"]
    return summarise(
        folder,
        dataset,
        cfg,
        method="RAMBO" if cfg.adversarial_weight > 0 else "model-based SAC (lambda = 0)",
        cloned=progress["cloned"],
        divergence=progress["divergence"],
        extra={
            "adversarial_weight": cfg.adversarial_weight,
            "rollout_length": cfg.rollout_length,
            "agent_updates": epochs * cfg.agent_updates,
            "model_updates": epochs * (updates - cfg.agent_updates),
            "model_transitions": progress["transitions"],
            "holdout_mse": progress["holdout_mse"],
            "model_passes": progress["model_passes"],
            "seconds": {k: round(v, 2) for k, v in progress["seconds"].items()},
            "checkpoint_bytes": checkpoints.size,
        },
    )


def epoch_line(row: dict[str, Any]) -> str:
    """What an epoch did, as a line."""
    parts = [f"epoch {row['epoch']:4d}"]
    if row["return_mean"] is not None:
        parts.append(f"return {row['return_mean']:8.1f}{score_text(row)}")
    parts.append(f"mean Q {row['mean_q']:8.2f}")
    if "loss_model" in row:
        parts.append(f"model loss {row['loss_model']:7.3f}")
        mean, std = row["model_advantage_mean"], row["model_advantage_std"]
        parts.append(f"advantage {mean:6.2f} +- {std:.2f}")
    return " | ".join(parts)


@hydra.main(version_base="1.3", config_path="config", config_name="rambo")
def main(cfg: DictConfig) -> None:
    """Run Algorithm 1 as configured."""
    with EndingWell() as run:
        with refusing_bad_input():
            cfg, dataset, run.folder = prepare(cfg)
        torch.set_num_threads(cfg.threads or os.cpu_count() or 1)
        seed_everything(cfg.seed)
        results = train(cfg, dataset, run.folder, run.signals)
        print(last_screen(results, run.folder), flush=True)


if __name__ == "__main__":
    check_command_line("rambo")
    main()
