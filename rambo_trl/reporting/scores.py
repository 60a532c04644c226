"""The figure of a report that answers first: who gets how far, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rambo_trl.reporting.figures import draw_data, styles_of
from rambo_trl.reporting.runs import Configuration
from rambo_trl.reporting.tables import formatter
from rambo_trl.runtime.drawing import add_legend, eng_ticks, literal, styled

_ROW, _LINE, _AROUND = 0.34, 0.15, 1.15  # inches of a row, of each further line, around them
_WIDEST = 36  # characters of a label's line


@styled(grid="x")
def draw_scores(configurations: Sequence[Configuration], path: Path) -> bool:
    """One panel a data set, the best configuration first: its mean, and each seed as a dot.

    A mean score is a bar from 0, which is a random policy's. A return of 0 means nothing: the mean
    is a mark there.

    Args:
        configurations: those of the report.
        path: the PNG to write.

    Returns:
        Whether there was anything to draw; without there is no file.
    """
    datasets = sorted({c.dataset for c in configurations if c.values})
    if not datasets:
        return False
    groups = [[c for c in configurations if c.dataset == dataset] for dataset in datasets]
    heights = [sum(map(_row_height, group)) + _AROUND for group in groups]
    figure = Figure(figsize=(7.6, sum(heights)))
    panels = figure.subplots(len(datasets), 1, squeeze=False, height_ratios=heights)[:, 0]
    colors = {name: style["color"] for name, style in styles_of(configurations).items()}
    for axes, dataset, group in zip(panels, datasets, groups, strict=True):
        _draw_panel(axes, group, colors)
        axes.set_title(literal(dataset))
    drawn = [c for group in groups for c in group]
    marks = {c.scored: "bar" if c.scored else "upright line" for c in drawn}
    title = f"{' or '.join(sorted(marks.values()))}: mean over seeds; dot: a run"
    if any(run.diverged and run.scored for c in drawn for run in c.runs):
        title += "; X: diverged"
    add_legend(figure, title)
    figure.savefig(path)
    return True


def _label(configuration: Configuration) -> str:
    return literal(fill(configuration.name, _WIDEST))


def _row_height(configuration: Configuration) -> float:
    """Room for the label, in inches."""
    return _ROW + _LINE * _label(configuration).count("\n")


def _mean(configuration: Configuration) -> float:
    return float(np.mean(configuration.values)) if configuration.values else -np.inf


def _draw_panel(axes: Axes, members: Sequence[Configuration], colors: dict[str, str]) -> None:
    ranked = sorted(members, key=_mean, reverse=True)
    scored = any(c.scored for c in ranked)
    edges = np.cumsum([0.0, *map(_row_height, ranked)])
    rows, half = (edges[:-1] + edges[1:]) / 2, 0.31 * _ROW
    for row, configuration in zip(rows, ranked, strict=True):
        color, mean = colors[configuration.name], _mean(configuration)
        text = formatter(configuration)(mean) if configuration.values else "no value"
        if configuration.values and scored:
            axes.barh(row, mean, height=2 * half, color=color, alpha=0.35, linewidth=0)
        elif configuration.values:
            axes.plot([mean] * 2, [row - half, row + half], color=color, linewidth=4, alpha=0.6)
        for value, run in zip(configuration.by_run, configuration.runs, strict=True):
            if value is not None:
                marker = "X" if run.diverged else "o"
                axes.plot(value, row, marker, color=color, markersize=6, zorder=4)
        count, diverged = len(configuration.runs), sum(run.diverged for run in configuration.runs)
        text += f"   {count} seed{'s' if count > 1 else ''}, "
        text += f"{diverged} diverged, " if diverged else ""
        text += f"{configuration.epochs} epochs"
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    draw_data(axes.axvline, members)
    axes.set_yticks(rows, [_label(c) for c in ranked], fontsize=9)
    axes.set_ylim(edges[-1], 0)
    axes.set_xlabel("normalised score" if scored else "return")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    eng_ticks(axes.xaxis)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
