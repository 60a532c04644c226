"""The Single Transition Example's figure: what is believed of every action as training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rambo_trl.envs.single_transition import DATA_INTERVALS, expected_reward
from rambo_trl.runtime.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, SKY, add_legend, styled

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


def _draw_panel(axes: Axes, snapshot: Snapshot) -> None:
    x, mean, std = GRID.squeeze(-1), snapshot.successor_mean, snapshot.successor_std
    for low, high in DATA_INTERVALS:
        axes.axvspan(low, high, color=GREY, alpha=0.25, linewidth=0, label="data")
    axes.plot(x, expected_reward(x), color=BLACK, linewidth=1, linestyle=":", label="truth")
    axes.plot(x, mean, color=BLUE, linewidth=1.8, label="model's mean")
    spread = (mean - std, mean + std)
    axes.fill_between(x, *spread, color=SKY, alpha=0.3, lw=0, label="model's spread (1 std)")
    axes.plot(x, snapshot.qvalue, color=ORANGE, linewidth=1.8, label="Q")
    reward = expected_reward(torch.tensor(snapshot.mode)).item()
    axes.axvline(snapshot.mode, color=GREEN, linewidth=1.2, alpha=0.8)
    axes.plot(snapshot.mode, reward, "o", color=GREEN, markersize=8, zorder=5, label="policy")
    axes.set(xlim=(-1, 1), xticks=[-1, -0.5, 0, 0.5, 1])
    axes.text(
        0.03, 0.97, f"policy's action {snapshot.mode:.2f}: truly worth {reward:.2f}",
        transform=axes.transAxes, va="top", color="#00664B", size=9.5,
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5},
    )  # fmt: skip


def _limits(runs: Sequence[Run]) -> tuple[float, float]:
    """The vertical range that holds every curve, and a line of text above them."""
    shown = [snapshot for run in runs for snapshot in run.snapshots]
    means, stds, qvalues = (
        torch.stack([getattr(s, key) for s in shown])
        for key in ("successor_mean", "successor_std", "qvalue")
    )
    low = min(0.0, float((means - stds).min()), float(qvalues.min()))
    high = max(float((means + stds).max()), float(qvalues.max()))
    return low, high + 0.2 * (high - low)


@styled()
def draw(runs: Sequence[Run], path: Path) -> None:
    """One row a method, one column a snapshot, of each method's first seed."""
    first = {run.method: run for run in reversed(runs)}
    rows = [first[name] for name in dict.fromkeys(run.method for run in runs)]
    columns = max(len(run.snapshots) for run in rows)
    figure = Figure(figsize=(max(3.6 * columns, 4.4), 2.9 * len(rows) + 0.6))
    grid = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    for run, line in zip(rows, grid, strict=True):
        for snapshot, axes in zip(run.snapshots, line, strict=True):
            _draw_panel(axes, snapshot)
        line[0].set_ylabel(f"{METHODS[run.method].title}\n\nsuccessor = reward", size=11)
    grid[0, 0].set_ylim(*_limits(rows))  # shared by all
    for snapshot, axes in zip(rows[0].snapshots, grid[0], strict=True):
        axes.set_title(f"epoch {snapshot.epoch}")
    for axes in grid[-1]:
        axes.set_xlabel("action", size=11)
    add_legend(figure)
    figure.savefig(path)
