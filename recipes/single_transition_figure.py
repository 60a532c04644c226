"""The Single Transition Example's figure: what is believed of every action as training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from single_transition_training import GRID, METHODS, Run, Snapshot

from rambo_trl.envs.single_transition import DATA_INTERVALS, expected_reward


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
    beside = 6 if columns > 2 else columns + 1  # of the legend's six entries, which need the width
    height = 2.9 * len(rows) + 0.6 + 0.3 * (6 // beside)
    figure = Figure(figsize=(max(3.6 * columns, 4.4), height), dpi=130, layout="constrained")
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
        ncols=beside,
        frameon=False,
        fontsize=11,
    )
    figure.savefig(path)
