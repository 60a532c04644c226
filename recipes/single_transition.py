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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from run_support import refusing_bad_input
from tensordict import TensorDict
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SACLoss
from tqdm import tqdm

from rambo_trl.collectors import ModelRolloutCollector
from rambo_trl.data import RealModelReplayBuffer, make_replay_buffer
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.envs.single_transition import (
    DATA_INTERVALS,
    expected_reward,
    make_single_transition_data,
)
from rambo_trl.modules import EnsembleWorldModel, make_actor, make_qvalue
from rambo_trl.objectives import AdversarialModelLoss, COMBOLoss, EnsembleModelLoss
from rambo_trl.training.phases import AgentPhase, ModelPhase
from rambo_trl.training.pretraining import fit_world_model
from rambo_trl.training.run_folder import RunFolder, package_versions

GAMMA = 0.99  # of no effect: every episode is one step long
GRID = torch.linspace(-1, 1, 401).unsqueeze(-1)


@dataclass(frozen=True)
class Method:
    """One row of the table and of the figure.

    Attributes:
        title: its name there.
        adversarial: whether the model plays against the agent.
        conservative: whether COMBO's term pushes the critics down off the data.
        paper: mean and standard deviation in the paper's Table 3, where it has the method.
    """

    title: str
    adversarial: bool
    conservative: bool = False
    paper: tuple[float, float] | None = None


METHODS = {
    "rambo": Method("RAMBO", adversarial=True, paper=(1.49, 0.04)),
    "combo": Method("COMBO", adversarial=False, conservative=True, paper=(1.34, 0.14)),
    "no_adversary": Method("no adversary", adversarial=False),
}


@dataclass
class Snapshot:
    """What is believed of the actions in ``GRID`` after an epoch, and what the policy does."""

    epoch: int
    successor_mean: Tensor
    successor_std: Tensor
    qvalue: Tensor
    mode: float


@dataclass
class Run:
    """One seed of one method."""

    method: str
    seed: int
    mode: float  # the final policy's action
    true_reward: float  # its expected reward in the real environment
    predicted_reward: float  # the same in the model
    seconds: float
    snapshots: list[Snapshot]


class KnownRewardEnv(EnsembleModelEnv):
    """The model's env, with the reward that is known here: the successor state itself."""

    def transition(
        self,
        observation: Tensor,
        action: Tensor,
        prediction: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step on plain tensors; the model's own reward is left aside."""
        following, _, terminated = super().transition(observation, action, prediction)
        return following, following, terminated


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


def make_agent_loss(
    cfg: DictConfig, spec: Bounded, *, conservative: bool, num_real: int
) -> SACLoss:
    """SAC's loss, or COMBO's on batches whose first ``num_real`` rows are the data's."""
    parts = (
        make_actor(1, spec, hidden_sizes=cfg.agent.hidden_sizes),
        make_qvalue(1, 1, hidden_sizes=cfg.agent.hidden_sizes),
    )
    options: dict[str, Any] = {
        "loss_function": "l2",
        "action_spec": spec,
        "alpha_init": cfg.agent.alpha_init,
        "target_entropy": cfg.agent.target_entropy,
    }
    if conservative:
        options.update(cfg.combo, num_real=num_real)
        loss = COMBOLoss(*parts, **options)
    else:
        loss = SACLoss(*parts, **options)
    loss.make_value_estimator(gamma=GAMMA)
    return loss


def train(name: str, seed: int, cfg: DictConfig) -> Run:
    """Algorithm 1 on the example."""
    torch.set_num_threads(1)
    torchrl_logger.setLevel(logging.WARNING)
    torch.manual_seed(seed)
    started = time.perf_counter()
    method = METHODS[name]
    spec = Bounded(-1.0, 1.0, (1,))
    data = make_single_transition_data(cfg.num_transitions)
    real = make_replay_buffer(len(data))
    real.extend(data)

    # line 1: the model by maximum likelihood
    model = EnsembleWorldModel(
        1,
        1,
        num_members=cfg.model.num_members,
        num_elites=cfg.model.num_elites,
        hidden_sizes=cfg.model.hidden_sizes,
    )
    fit_world_model(
        model,
        data,
        batch_size=cfg.model.batch_size,
        lr=cfg.model.lr,
        patience=cfg.model.patience,
    )

    rollouts = make_replay_buffer(cfg.retained_epochs * cfg.rollout_starts)
    mixed = RealModelReplayBuffer(
        real,
        rollouts,
        real_fraction=cfg.agent.real_fraction,
        batch_size=cfg.agent.batch_size,
    )
    agent_loss = make_agent_loss(
        cfg, spec, conservative=method.conservative, num_real=mixed.num_real
    )
    agent = AgentPhase(
        agent_loss,
        critic_lr=cfg.agent.critic_lr,
        actor_lr=cfg.agent.actor_lr,
        alpha_lr=cfg.agent.alpha_lr,
    )
    env = KnownRewardEnv(model, action_spec=spec, starts=real, termination=ends_at_once)
    collector = ModelRolloutCollector(
        env, agent_loss.actor_network, num_starts=cfg.rollout_starts, horizon=1
    )
    model_phase = ModelPhase(
        env,
        AdversarialModelLoss.from_loss(
            model, agent_loss, adversarial_weight=cfg.adversarial_weight, gamma=GAMMA
        ),
        EnsembleModelLoss(model, members="elites"),
        real,
        batch_size=cfg.model.batch_size,
        horizon=1,
        lr=cfg.model.adversarial_lr,
    )
    schedulers = [
        LinearLR(phase.optimizer, 1.0, cfg.final_lr_share, total_iters=cfg.epochs)
        for phase in ((agent, model_phase) if method.adversarial else (agent,))
    ]

    snapshots = []
    for epoch in range(1, cfg.epochs + 1):
        # line 3: rollouts of the policy in the model
        rollouts.extend(collector.collect().select(*mixed.keys))
        # line 4: the agent
        agent.run(mixed.batches(cfg.agent_updates))
        # line 5: the adversarial model
        if method.adversarial:
            model_phase.run(cfg.model_updates)
        for scheduler in schedulers:
            scheduler.step()
        if epoch in cfg.figure.epochs or epoch == cfg.epochs:
            snapshots.append(take_snapshot(epoch, model, agent_loss))

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
        with tqdm(total=len(jobs), desc="runs", smoothing=0.1) as bar:
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


def _draw_panel(axes: Axes, snapshot: Snapshot) -> None:
    x, mean, std = GRID.squeeze(-1), snapshot.successor_mean, snapshot.successor_std
    for low, high in DATA_INTERVALS:
        axes.axvspan(low, high, color="#BBBBBB", alpha=0.55, linewidth=0)
    axes.plot(x, expected_reward(x), color="#222222", linewidth=1, linestyle=(0, (2, 1.5)))
    axes.fill_between(x, mean - std, mean + std, color="#56B4E9", alpha=0.30, linewidth=0)
    axes.plot(x, mean, color="#0072B2", linewidth=1.8)
    axes.plot(x, snapshot.qvalue, color="#D55E00", linewidth=1.8)
    reward = expected_reward(torch.tensor(snapshot.mode)).item()
    axes.axvline(snapshot.mode, color="#009E73", linewidth=1.2, alpha=0.8)
    axes.plot([snapshot.mode], [reward], "o", color="#009E73", markersize=8, zorder=5)
    axes.set(xlim=(-1, 1), xticks=[-1, -0.5, 0, 0.5, 1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.text(
        0.03,
        0.97,
        f"policy's action {snapshot.mode:.2f}: truly worth {reward:.2f}",
        transform=axes.transAxes,
        va="top",
        color="#00664B",
        size=9.5,
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5},
    )


def _limits(runs: Sequence[Run]) -> tuple[float, float]:
    """The vertical range that holds every curve, and a line of text above them."""
    shown = [snapshot for run in runs for snapshot in run.snapshots]
    low = min(float((s.successor_mean - s.successor_std).min()) for s in shown)
    high = max(float((s.successor_mean + s.successor_std).max()) for s in shown)
    low = min(0.0, low, *(float(s.qvalue.min()) for s in shown))
    high = max(high, *(float(s.qvalue.max()) for s in shown))
    return low, high + 0.2 * (high - low)


def draw(runs: Sequence[Run], path: Path) -> None:
    """One row a method, one column a snapshot, of each method's first seed."""
    first = {run.method: run for run in reversed(runs)}
    rows = [first[name] for name in dict.fromkeys(run.method for run in runs)]
    columns = max(len(run.snapshots) for run in rows)
    figure = Figure(figsize=(3.6 * columns, 2.9 * len(rows) + 0.9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    for run, line in zip(rows, grid, strict=True):
        for snapshot, axes in zip(run.snapshots, line, strict=True):
            _draw_panel(axes, snapshot)
        line[0].set_ylabel(f"{METHODS[run.method].title}\n\nsuccessor = reward", size=11)
    grid[0, 0].set_ylim(*_limits(rows))  # shared by all
    for snapshot, axes in zip(rows[0].snapshots, grid[0], strict=True):
        axes.set_title(f"epoch {snapshot.epoch}", size=12)
    for axes in grid[-1]:
        axes.set_xlabel("action", size=11)
    handles = [
        *grid[0, 0].lines[:3],
        grid[0, 0].lines[4],
        grid[0, 0].collections[0],
        grid[0, 0].patches[0],
    ]
    labels = ["truth", "model's mean", "Q", "policy", "model's spread (1 std)", "data"]
    order = [5, 0, 1, 4, 2, 3]
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside upper center",
        ncols=6,
        frameon=False,
        fontsize=11,
    )
    figure.savefig(path)


def check(cfg: DictConfig) -> None:
    """Refuse a configuration that cannot run before any work starts."""
    unknown = [name for name in cfg.methods if name not in METHODS]
    if unknown or not cfg.methods:
        raise ValueError(f"methods must be some of {list(METHODS)}, got {list(cfg.methods)}")
    if not cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise ValueError(f"seeds must be different whole numbers, got {cfg.seeds}")


@hydra.main(version_base="1.3", config_path="config", config_name="single_transition")
def main(cfg: DictConfig) -> None:
    """Run, print the table, write the results and the figure."""
    with refusing_bad_input():
        check(cfg)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        folder = RunFolder.create(cfg.run_dir or Path("runs") / f"single-transition-{stamp}")
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
    main()
