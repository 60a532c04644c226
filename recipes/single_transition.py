"""The paper's Single Transition Example (sec. 6, Table 3), one row of the table a method.

``python recipes/single_transition.py`` plays Algorithm 1 on a problem small enough to look at as
a whole, with the adversary (RAMBO), with conservative critics instead (COMBO) and with neither,
over several seeds. It prints the table beside the paper's numbers and draws what the model and the
critics believe of every action as training goes on. See ``config/single_transition.yaml``.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import hydra
import launcher.starting  # noqa: F401
import torch
from launcher import parts
from launcher.command_line import check_command_line
from launcher.program import refusing_bad_input
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SACLoss

from rambo_trl.data import OfflineDataset
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.envs.single_transition import expected_reward, make_single_transition_data
from rambo_trl.experiment.folder import RunFolder, new_folder, package_versions
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import AdversarialModelLoss, COMBOLoss
from rambo_trl.reporting.single_transition import GRID, METHODS, Run, Snapshot, draw
from rambo_trl.runtime.progress import Bar
from rambo_trl.training.pretraining import fit_world_model


class KnownRewardEnv(EnsembleModelEnv):
    """The model's env, with the reward that is known here: the successor state itself."""

    def judge(
        self, observation: Tensor, action: Tensor, next_observation: Tensor, reward: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The outcome of a step; the model's reward is ignored."""
        _, _, terminated = super().judge(observation, action, next_observation, reward)
        return next_observation, next_observation, terminated


def ends_at_once(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """The termination rule: every episode is one step long."""
    return torch.ones(next_observation.shape[:-1], dtype=torch.bool)


@torch.no_grad()
def take_snapshot(epoch: int, model: EnsembleWorldModel, agent_loss: SACLoss) -> Snapshot:
    """Ask model, critics and policy for what they make of the start state."""
    start = torch.zeros_like(GRID)
    mean, log_var = (x[..., 0] for x in model.predict(start, GRID, model.elites))
    variance = log_var.exp().mean(dim=0) + mean.var(dim=0, correction=0)
    asked = TensorDict(observation=start, action=GRID, batch_size=GRID.shape[:1])
    critic, critic_params = agent_loss.qvalue_network, agent_loss.qvalue_network_params
    values = []
    for params in critic_params.unbind(0):
        with params.to_module(critic):
            values.append(critic(asked.copy())["state_action_value"].squeeze(-1))
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        mode = agent_loss.actor_network(asked[:1].select("observation"))["action"].item()
    qvalue = torch.stack(values).amin(dim=0)
    return Snapshot(epoch, mean.mean(dim=0), variance.sqrt(), qvalue, mode)


def train(name: str, seed: int, cfg: DictConfig) -> Run:
    """Algorithm 1 on the example."""
    torch.set_num_threads(1)
    torchrl_logger.setLevel(logging.ERROR)  # that all episodes start alike is the example's point
    torch.manual_seed(seed)
    started = time.perf_counter()
    method = METHODS[name]
    data = OfflineDataset(
        make_single_transition_data(cfg.num_transitions),
        action_spec=Bounded(-1.0, 1.0, (1,)),
        name="single transition",
        normalize=False,
    )
    real, imagined, mixed = parts.make_buffers(cfg, data)

    # line 1: the model by maximum likelihood
    world_model = parts.make_world_model(cfg, data)
    fit_world_model(
        world_model,
        data.transitions,
        batch_size=cfg.model.batch_size,
        lr=cfg.model.lr,
        patience=cfg.model.patience,
        standardize_reward=False,  # the reward is a known function of the successor
    )

    actor, critic = parts.make_policy(cfg, data), parts.make_critic(cfg, data)
    settings: dict[str, Any] = {"target_entropy": cfg.agent.target_entropy}
    if method.conservative:
        settings.update(cfg.combo, num_real=mixed.num_real)
    loss = COMBOLoss if method.conservative else SACLoss
    agent_loss = parts.make_sac(loss, cfg, data, actor, critic, **settings)
    agent = parts.make_agent_phase(cfg, agent_loss)
    env = parts.make_model_env(KnownRewardEnv, data, world_model, real.storage[:], ends_at_once)
    collector = parts.make_collector(cfg, env, actor)
    weights = {"adversarial_weight": cfg.adversarial_weight, "gamma": cfg.agent.gamma}
    adversarial = AdversarialModelLoss.from_loss(world_model, agent_loss, **weights)
    adversary = parts.make_adversary(cfg, env, adversarial, real)
    phases = (agent, adversary) if method.adversarial else (agent,)
    schedulers = [
        LinearLR(phase.optimizer, 1.0, cfg.final_lr_share, total_iters=cfg.epochs)
        for phase in phases
    ]

    snapshots = []
    for epoch in range(1, cfg.epochs + 1):
        parts.add_rollouts(imagined, collector.collect(), mixed.keys)  # line 3
        agent.run(mixed.batches(cfg.agent_updates))  # line 4
        if method.adversarial:
            adversary.run(cfg.model_updates)  # line 5
        for scheduler in schedulers:
            scheduler.step()
        if epoch in cfg.figure.epochs or epoch == cfg.epochs:
            snapshots.append(take_snapshot(epoch, world_model, agent_loss))

    last = snapshots[-1]
    mode = torch.tensor(last.mode)
    return Run(
        name,
        seed,
        last.mode,
        expected_reward(mode).item(),
        last.successor_mean[(GRID.squeeze(-1) - mode).abs().argmin()].item(),
        time.perf_counter() - started,
        snapshots,
    )


def train_all(cfg: DictConfig) -> list[Run]:
    """Every method over every seed, in as many processes as asked for."""
    jobs = [(name, seed) for name in cfg.methods for seed in cfg.seeds]
    workers = min(cfg.workers or os.cpu_count() or 1, len(jobs))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(train, name, seed, cfg) for name, seed in jobs]
        with Bar(total=len(jobs), desc="runs") as bar:
            for future in as_completed(futures):
                run = future.result()
                bar.update()
                bar.set_postfix_str(f"{run.method} seed {run.seed}: {run.true_reward:.2f}")
        return [future.result() for future in futures]


def summarise(runs: Sequence[Run]) -> dict[str, dict[str, object]]:
    """Per method the seeds' results, with mean and (sample) standard deviation."""
    summary: dict[str, dict[str, object]] = {}
    for name in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == name]
        rewards = torch.tensor([run.true_reward for run in own])
        paper = METHODS[name].paper
        summary[name] = {
            "true_reward_mean": rewards.mean().item(),
            "true_reward_std": rewards.std().item() if len(own) > 1 else None,
            "paper_mean": paper and paper[0],
            "paper_std": paper and paper[1],
            "runs": [
                {
                    key: getattr(run, key)
                    for key in ("seed", "mode", "true_reward", "predicted_reward", "seconds")
                }
                for run in own
            ],
        }
    return summary


def format_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The table: true reward of the final policies, beside the paper's."""

    def spread(mean: object, std: object) -> str:
        if mean is None:
            return "-"
        return f"{mean:.2f}" + ("" if std is None else f" +- {std:.2f}")

    lines = [f"{'':<14}{'true reward':>14}{'paper':>14}   the policies' actions"]
    for name, row in summary.items():
        actions = "  ".join(f"{run['mode']:.2f}" for run in row["runs"])
        ours = spread(row["true_reward_mean"], row["true_reward_std"])
        paper = spread(row["paper_mean"], row["paper_std"])
        lines.append(f"{METHODS[name].title:<14}{ours:>14}{paper:>14}   {actions}")
    return "\n".join(lines)


def check(cfg: DictConfig) -> None:
    """Refuse a configuration that cannot run before any work starts."""
    unknown = [name for name in cfg.methods if name not in METHODS]
    if unknown or not cfg.methods:
        raise ValueError(f"methods must be some of {list(METHODS)}, got {list(cfg.methods)}")
    seeds = cfg.seeds if OmegaConf.is_list(cfg.seeds) else []
    if not all(type(seed) is int for seed in seeds) or not 0 < len(seeds) == len(set(seeds)):
        raise ValueError(f"seeds must be different whole numbers, got {cfg.seeds}")


@hydra.main(version_base="1.3", config_path="config", config_name="single_transition")
def main(cfg: DictConfig) -> None:
    """Run, print the table, write the results and the figure."""
    with refusing_bad_input():
        check(cfg)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = cfg.run_dir or new_folder(Path("runs") / f"single-transition-{stamp}")
        folder = RunFolder.create(path)
    print(f"run folder: {folder.path}", flush=True)
    folder.write_config(OmegaConf.to_yaml(cfg))
    runs = train_all(cfg)
    summary = summarise(runs)
    settings = OmegaConf.to_container(cfg.combo)
    folder.write_results({"methods": summary, "combo": settings, "versions": package_versions()})
    draw(runs, folder.path / "single_transition.png")
    print(format_table(summary))
    print(f"run folder: {folder.path}")


if __name__ == "__main__":
    check_command_line("single_transition", check)
    main()
