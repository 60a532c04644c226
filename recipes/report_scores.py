"""The figure of a report that answers first: who gets how far, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report_figures import draw_data, legend_entries, name_of, styles_of
from run_reading import Configuration

from rambo_trl.drawing import literal

_ROW, _LINE, _AROUND = 0.34, 0.15, 1.15  # inches of a row, of each further line, around them
_WIDEST = 36  # characters of a label's line


def draw_scores(found: Sequence[Configuration], path: Path) -> None:
    """One panel a data set, the best configuration first: its mean as a bar, each seed as a dot.

    Args:
        found: the configurations.
        path: the PNG to write.
    """
    datasets = sorted({c.dataset for c in found})
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
    figure.legend(
        list(lines.values()), list(lines), loc="outside lower left", ncols=3, frameon=False,
        fontsize=9, title="bar: mean over seeds; dot: a run; X: diverged",
        title_fontsize=9, alignment="left",
    )  # fmt: skip
    figure.savefig(path, dpi=120)


def worth(configuration: Configuration, *, scored: bool) -> list[float | None]:
    """Each run's score, or its return where the data have no reference scores."""
    return [run.score if scored else run.mean_return for run in configuration.runs]


def _label(configuration: Configuration) -> str:
    return literal(fill(name_of(configuration), _WIDEST))


def _row_height(configuration: Configuration) -> float:
    """Room for the label, in inches."""
    return _ROW + _LINE * _label(configuration).count("\n")


def _draw_panel(axes: Axes, members: Sequence[Configuration], colors: dict[str, str]) -> None:
    scored = any(run.scored for c in members for run in c.runs)

    def mean_of(configuration: Configuration) -> float:
        found = [v for v in worth(configuration, scored=scored) if v is not None]
        return float(np.mean(found)) if found else -np.inf

    ranked = sorted(members, key=mean_of, reverse=True)
    edges = np.cumsum([0.0, *map(_row_height, ranked)])
    rows = (edges[:-1] + edges[1:]) / 2
    for row, configuration in zip(rows, ranked, strict=True):
        color, mean = colors[name_of(configuration)], mean_of(configuration)
        if np.isfinite(mean):
            axes.barh(row, mean, height=0.62 * _ROW, color=color, alpha=0.35, linewidth=0)
            text = f"{mean:.1f}"
        else:
            text = "no value"
        diverged = [bool(run.results["diverged"]) for run in configuration.runs]
        for value, ended_early in zip(worth(configuration, scored=scored), diverged, strict=True):
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
    if not np.isfinite(mean_of(ranked[0])):
        axes.text(0.5, 0.5, "not evaluated", transform=axes.transAxes, ha="center")
    axes.set_xlabel("normalised score" if scored else "return")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)


def _epochs(configuration: Configuration) -> str:
    epochs = sorted({run.results["epochs"] for run in configuration.runs})
    return f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
