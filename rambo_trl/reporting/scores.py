"""The figure of a report that answers first: who gets how far, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rambo_trl.reporting.figures import draw_data, legend_entries, name_of, styles_of, write_plainly
from rambo_trl.reporting.runs import Configuration
from rambo_trl.reporting.tables import formatter
from rambo_trl.runtime.drawing import literal

_ROW, _LINE, _AROUND = 0.34, 0.15, 1.15  # inches of a row, of each further line, around them
_WIDEST = 36  # characters of a label's line


def draw_scores(found: Sequence[Configuration], path: Path) -> bool:
    """One panel a data set, the best configuration first: its mean, and each seed as a dot.

    A mean score is a bar from 0, which is a random policy's. A return of 0 means nothing: the mean
    is a mark there.

    Args:
        found: the configurations.
        path: the PNG to write.

    Returns:
        Whether there was anything to draw; without there is no file.
    """
    datasets = sorted({c.dataset for c in found if c.values})
    if not datasets:
        return False
    heights = [
        sum(_row_height(c) for c in found if c.dataset == dataset) + _AROUND for dataset in datasets
    ]
    figure = Figure(figsize=(7.6, sum(heights) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(datasets), 1, squeeze=False, height_ratios=heights)[:, 0]
    colors = {name: style["color"] for name, style in styles_of(found).items()}
    for axes, dataset in zip(panels, datasets, strict=True):
        _draw_panel(axes, [c for c in found if c.dataset == dataset], colors)
        axes.set_title(literal(dataset), loc="left", fontsize=11)
    lines = legend_entries(panels)
    drawn = [c for c in found if c.dataset in datasets]
    scored = {c.scored for c in drawn}
    marks = [*(["bar"] if True in scored else []), *(["upright line"] if False in scored else [])]
    title = f"{' or '.join(marks)}: mean over seeds; dot: a run"
    if any(run.results["diverged"] and run.scored for c in drawn for run in c.runs):
        title += "; X: diverged"
    figure.legend(
        list(lines.values()), list(lines), loc="outside lower left", ncols=3, frameon=False,
        fontsize=9, title=title, title_fontsize=9, alignment="left",
    )  # fmt: skip
    figure.savefig(path, dpi=120)
    return True


def _label(configuration: Configuration) -> str:
    return literal(fill(name_of(configuration), _WIDEST))


def _row_height(configuration: Configuration) -> float:
    """Room for the label, in inches."""
    return _ROW + _LINE * _label(configuration).count("\n")


def _mean(configuration: Configuration) -> float:
    return float(np.mean(configuration.values)) if configuration.values else -np.inf


def _draw_panel(axes: Axes, members: Sequence[Configuration], colors: dict[str, str]) -> None:
    ranked = sorted(members, key=_mean, reverse=True)
    scored = any(c.scored for c in ranked)
    edges = np.cumsum([0.0, *map(_row_height, ranked)])
    rows = (edges[:-1] + edges[1:]) / 2
    for row, configuration in zip(rows, ranked, strict=True):
        color, mean = colors[name_of(configuration)], _mean(configuration)
        text = "no value"
        if np.isfinite(mean):
            half = 0.31 * _ROW
            if scored:
                axes.barh(row, mean, height=2 * half, color=color, alpha=0.35, linewidth=0)
            else:
                axes.plot([mean] * 2, [row - half, row + half], color=color, linewidth=4, alpha=0.6)
            text = formatter(configuration)(mean)
        diverged = [bool(run.results["diverged"]) for run in configuration.runs]
        for value, ended_early in zip(configuration.by_run, diverged, strict=True):
            if value is not None:
                marker = "X" if ended_early else "o"
                axes.plot(value, row, marker, color=color, markersize=6, zorder=4)
        text += f"   {len(diverged)} seed{'s' if len(diverged) > 1 else ''}, "
        text += f"{sum(diverged)} diverged, " if any(diverged) else ""
        text += f"{_epochs(configuration)} epochs"
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    draw_data(axes.axvline, members)
    axes.set_yticks(rows, [_label(c) for c in ranked], fontsize=9)
    axes.set_ylim(edges[-1], 0)
    axes.set_xlabel("normalised score" if scored else "return")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    write_plainly(axes.xaxis)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)


def _epochs(configuration: Configuration) -> str:
    epochs = sorted({run.results["epochs"] for run in configuration.runs})
    return f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
