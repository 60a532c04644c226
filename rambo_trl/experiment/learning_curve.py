"""Figures of a run, drawn from its metrics without a display."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, SymmetricalLogLocator

from rambo_trl.runtime.drawing import (
    BLACK,
    BLUE,
    DASH_DOTTED,
    DASHED,
    DOTTED,
    GREY,
    ORANGE,
    PINK,
    add_legend,
    eng_ticks,
    literal,
    styled,
)
from rambo_trl.runtime.numbers import format_value
from rambo_trl.runtime.places import expand_home

__all__ = ["format_value", "plot_learning_curve", "smoothed"]

Row = Mapping[str, float | int | None]


@styled()
def plot_learning_curve(
    rows: Sequence[Row],
    path: str | os.PathLike[str],
    *,
    title: str,
    behaviour_mean: float | None,
    behaviour_best: float | None,
    cloned: float | None = None,
    logged_mean: float | None = None,
    logged_best: float | None = None,
    y_label: str = "normalised score",
    policy_label: str = "policy",
    num_final: int = 10,
) -> Path | None:
    """Draw a run's evaluations against its data, and below them the critics' mean Q.

    A run that was never evaluated shows the value that the critics give the start states against
    the logged discounted returns, mean Q, and the model's error, as far as they are recorded.

    Args:
        rows: the rows of ``metrics.csv``: ``epoch``, ``score`` (None where the policy was not
            evaluated), and, where they are there, ``score_std``, ``mean_q``, ``start_value`` and
            ``model_error``.
        path: the PNG to write.
        title: the figure's first line; the second says how the policy compares with its data.
        behaviour_mean: mean score of the data's whole episodes; None where there are none.
        behaviour_best: score of the data's best whole episode, if there is one.
        cloned: score of the behaviour-cloned policy, if there is one.
        logged_mean: mean discounted return of the data's episodes, for ``start_value``.
        logged_best: the highest one.
        y_label: what the score is.
        policy_label: what to call the learnt policy.
        num_final: the final score is the mean of the last so many evaluations (10 in the paper,
            sec. 6), or of all where there are fewer; it is drawn as a bar across them.

    Returns:
        The path written; None, and no file, where the rows hold nothing to draw.

    Raises:
        ValueError: if ``num_final`` is below 1.
    """
    if num_final < 1:
        raise ValueError(f"num_final must be at least 1, got {num_final}")
    epoch = _column(rows, "epoch")
    columns = {
        key: values
        for key in ("score", "start_value", "mean_q", "model_error")
        if (np.isfinite(values := _column(rows, key)) & np.isfinite(epoch)).any()
    }
    if "score" in columns:
        columns = {key: columns[key] for key in ("score", "mean_q") if key in columns}
    if not columns:
        return None
    figure = Figure(figsize=(8, 5.6), dpi=130)
    ratios = [3.2 if key in ("score", "start_value") else 1.0 for key in columns]
    subplots = figure.subplots(len(columns), 1, sharex=True, height_ratios=ratios, squeeze=False)
    panels = dict(zip(columns, subplots[:, 0], strict=True))

    summary = "the policy was not evaluated"
    if axes := panels.get("score"):
        _draw_line(axes, behaviour_best, "data's best episode", GREY, DOTTED)
        _draw_line(axes, behaviour_mean, "data's mean", BLACK, DASHED)
        _draw_line(axes, cloned, "behaviour cloning", ORANGE, DASH_DOTTED)
        evaluated = np.isfinite(columns["score"]) & np.isfinite(epoch)
        x, y = epoch[evaluated], columns["score"][evaluated]
        _draw_evaluations(axes, x, y, _column(rows, "score_std")[evaluated])
        final = y[-num_final:]
        _draw_line(axes, final.mean(), policy_label, BLUE, "-", x[[-len(final), -1]])
        summary = _describe(final.mean(), len(final), behaviour_mean, behaviour_best)
        axes.set_ylabel(y_label)
    if axes := panels.get("start_value"):
        _draw_line(axes, logged_best, "best logged episode", GREY, DOTTED)
        _draw_line(axes, logged_mean, "mean logged episode", BLACK, DASHED)
        if logged_best is not None:
            summary += ": what it expects, beside the logged episodes (discounted returns)"
        value = columns["start_value"]
        final = value[np.isfinite(value)][-1]
        _draw_series(axes, epoch, value, color=BLUE, label=f"expected: {format_value(final)}")
        axes.set_ylabel("value at the start")
    for key, color, name in (("mean_q", PINK, "mean Q"), ("model_error", GREY, "model error")):
        if axes := panels.get(key):
            _draw_series(axes, epoch, columns[key], color=color)
            axes.set_ylabel(name)

    axes = subplots[-1, 0]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))
    axes.set_xlabel("epoch")
    figure.align_ylabels()
    figure.suptitle(literal(fill(title, 65)), x=0.01, ha="left", size=13, weight="bold")
    subplots[0, 0].set_title(fill(summary, 95), size=10, color=GREY)
    add_legend(figure, grow=False)
    path = expand_home(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def smoothed(x: np.ndarray, y: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring points, weighted by a Gaussian of their distance.

    Args:
        x: points, ascending [n], at least two.
        y: their values [n].
        fraction: the kernel's standard deviation as a part of the range, where the points are
            not so far apart that it must be wider.

    Returns:
        200 points over the same range, and the curve there.
    """
    at = np.linspace(x[0], x[-1], 200)
    bandwidth = max(fraction * (x[-1] - x[0]), 0.6 * np.diff(x).max())
    weight = np.exp(-0.5 * ((at[:, None] - x[None, :]) / bandwidth) ** 2)
    return at, (weight * y).sum(axis=1) / weight.sum(axis=1)


def _column(rows: Sequence[Row], key: str) -> np.ndarray:
    """A column as floats [rows]; NaN where a row has none."""
    return np.array([row.get(key) for row in rows], dtype=float)


def _describe(
    final: float, num_final: int, behaviour_mean: float | None, behaviour_best: float | None
) -> str:
    """One line: how the final score compares with the data's."""
    what = "last evaluation" if num_final == 1 else f"mean of the last {num_final} evaluations"
    if behaviour_mean is None or behaviour_best is None:
        return f"{what}: {format_value(final)}; no episode of the data is whole"
    gap = final - behaviour_mean
    line = f"{what}: {format_value(final)}, {format_value(abs(gap))} "
    line += f"{'above' if gap >= 0 else 'below'} the data's mean"
    return f"{line} and above its best episode" if final > behaviour_best else line


def _draw_line(
    axes: Axes, y: float | None, name: str, color: str, style: Any, x: Sequence[float] = ()
) -> None:
    """A value as a horizontal line, across the panel or as a bar over a range of epochs."""
    if y is None or not np.isfinite(y):
        return
    label = f"{name}: {format_value(y)}"
    if len(x):
        axes.plot(x, [y, y], color=color, linewidth=4.5, zorder=4, label=label)
    else:
        axes.axhline(y, color=color, linewidth=1.5, linestyle=style, label=label)


def _draw_evaluations(axes: Axes, x: np.ndarray, y: np.ndarray, spread: np.ndarray) -> None:
    """Every evaluation as a point, its spread as a band, and a smoothed line through them."""
    if np.isfinite(spread).any():
        half = np.nan_to_num(spread)
        axes.fill_between(x, y - half, y + half, color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(x, y, "o", color=BLUE, markersize=4.5, alpha=0.5, markeredgewidth=0)
    if len(x) > 2:
        axes.plot(*smoothed(x, y, 0.03), color=BLUE, linewidth=2)


def _draw_series(
    axes: Axes, epoch: np.ndarray, values: np.ndarray, *, color: str, label: str | None = None
) -> None:
    """Values by epoch; the first epoch at which one is infinite is marked as divergence."""
    finite = np.isfinite(values) & np.isfinite(epoch)
    style = "-" if finite.sum() > 1 else "o"
    axes.plot(epoch[finite], values[finite], style, color=color, linewidth=1.8, label=label)
    size = np.abs(values[finite])
    if size.max() > 1e3 * (size.min() + 1):
        axes.set_yscale("symlog")
        ticks = axes.yaxis.get_major_locator()
        assert isinstance(ticks, SymmetricalLogLocator)
        ticks.set_params(numticks=4)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    eng_ticks(axes.yaxis)
    if np.isinf(values).any():
        first = epoch[np.isinf(values)][0]
        axes.axvline(first, color=ORANGE, linewidth=1.6)
        at_edge = axes.get_xaxis_transform()
        axes.text(first, 0.08, "not finite ", color=ORANGE, ha="right", transform=at_edge)
