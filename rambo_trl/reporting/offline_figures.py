"""The figures of a report on one run without its environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rambo_trl.reporting.offline_value_section import METHODS, WHOSE
from rambo_trl.reporting.offline_values import Estimate, OfflineValues
from rambo_trl.runtime.drawing import (
    BLACK,
    BLUE,
    DASHED,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    add_legend,
    literal,
    plain_log_ticks,
    styled,
)

__all__ = [
    "draw_actions", "draw_calibration", "draw_distance", "draw_model_error", "draw_values",
    "worst_columns",
]  # fmt: skip

#: what a figure is written to
File: TypeAlias = Path | BinaryIO

#: columns and actions that have a place in a figure
MOST_COLUMNS, MOST_ACTIONS = 30, 12
_LABEL = 36  # characters of a name


def worst_columns(model: Mapping[str, Any]) -> list[int]:
    """The columns that are shown, in the data's order: those that the model knows least.

    Args:
        model: with ``one_step``.
    """
    one_step = model["one_step"]
    error, still = (np.array(one_step[key]) for key in ("relative", "no_change"))
    varies = np.flatnonzero(np.isfinite(error))
    ratio = error[varies] / np.maximum(still[varies], 1e-12)
    return sorted(varies[np.argsort(-ratio, kind="stable")[:MOST_COLUMNS]].tolist())


def _short(name: str) -> str:
    return literal(name if len(name) <= _LABEL else name[: _LABEL - 3] + "...")


def _log_ticks(axis: Axis) -> None:
    """Plain digits on a logarithmic axis; over many powers of ten at these alone."""
    low, high = axis.get_view_interval()
    plain_log_ticks(axis)
    if high > 300 * low:
        axis.set_major_locator(LogLocator())


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first above


@styled(grid="x")
def draw_values(values: OfflineValues, file: File) -> None:
    """What the policy, its clone and the logged controller are worth, and the differences.

    Args:
        values: the estimates.
        file: the PNG to write.
    """
    figure = Figure(figsize=(10.5, 3.4))
    panels = figure.subplots(1, 2)
    worth = {WHOSE[who]: found for who, found in values.values.items()}
    gains = {f"over {WHOSE[key.split(' - ')[1]]}": v for key, v in values.differences.items()}
    for axes, groups in zip(panels, (worth, gains), strict=True):
        _draw_estimates(axes, groups)
    panels[0].set_title("value: discounted return from the start")
    panels[1].set_title("the policy's advantage")
    panels[1].axvline(0, color=BLACK, linewidth=1)
    for axes in panels:
        axes.set_xlabel("[unit of the reward]")
    add_legend(figure, f"means and {100 * values.confidence:g} % intervals, estimated by")
    figure.savefig(file, format="png")


def _draw_estimates(axes: Axes, groups: Mapping[str, Mapping[str, Estimate]]) -> None:
    """A row for each group, a point and an interval for each method; far ones at the edge."""
    colors = dict(zip(METHODS, (BLUE, GREY, GREEN, ORANGE, PINK), strict=True))
    ends = [
        x
        for found in groups.values()
        for method, estimate in found.items()
        if method != "adversarial_model"  # which may be anywhere below
        for x in (estimate.low, estimate.high)
        if np.isfinite(x)
    ] or [0.0, 1.0]
    low, high = min(ends), max(ends)
    room = max(high - low, 1e-9)
    low, high = low - 0.6 * room, high + 0.6 * room
    for row, found in enumerate(groups.values()):
        methods = [method for method in METHODS if method in found]
        for place, method in enumerate(methods):
            estimate, color = found[method], colors[method]
            y = row + 0.16 * (place - (len(methods) - 1) / 2)
            axes.plot([], [], "o-", color=color, label=METHODS[method])
            if not low <= estimate.mean <= high:
                edge, side = (low, "left") if estimate.mean < low else (high, "right")
                text = f"< {estimate.mean:.3g}" if side == "left" else f"{estimate.mean:.3g} >"
                axes.text(edge, y, text, ha=side, va="center", color=color, size=9)
                continue
            within = np.clip([estimate.low, estimate.high], low, high)
            axes.plot(within, [y, y], color=color, linewidth=2.2, alpha=0.5)
            axes.plot(estimate.mean, y, "o", color=color)
    axes.set_xlim(low, high)
    _name_rows(axes, list(groups))


@styled(grid="x")
def draw_model_error(model: Mapping[str, Any], file: File) -> None:
    """The model's error by column beside the forecast of no change, and by steps ahead.

    Args:
        model: with ``one_step`` and ``k_step``.
        file: the PNG to write.
    """
    one_step, k_step = model["one_step"], model["k_step"]
    shown = worst_columns(model)
    figure = Figure(figsize=(10.5, 1.9 + 0.27 * len(shown)))
    panels = figure.subplots(1, 1 if k_step is None else 2, squeeze=False)[0]
    axes = panels[0]
    still, error = (np.array(one_step[key])[shown] for key in ("no_change", "relative"))
    for row, (a, b) in enumerate(zip(error, still, strict=True)):
        axes.plot([a, b], [row, row], color=GREY, linewidth=1, alpha=0.5)
    rows = range(len(shown))
    axes.plot(still, rows, "|", color=BLACK, markersize=11, markeredgewidth=2, label="no change")
    axes.plot(error, rows, "o", color=BLUE, label="the model")
    axes.set_xscale("log")
    _log_ticks(axes.xaxis)
    _name_rows(axes, [one_step["columns"][column] for column in shown])
    axes.set_title("one step ahead")
    axes.set_xlabel("error [standard deviations of the column]")
    if k_step is not None:
        _draw_steps(panels[1], k_step, shown)
    add_legend(figure, "further left, or lower, is better; the forecast of", grow=False)
    figure.savefig(file, format="png")


def _draw_steps(axes: Axes, k_step: Mapping[str, Any], shown: list[int]) -> None:
    """The median column's error by steps ahead, and every column's behind it."""
    steps = np.array(k_step["steps"])
    for key, color, style, label in (
        ("no_change", BLACK, DASHED, "no change (median column)"),
        ("relative", BLUE, "-", "the model (median column; thin: each column)"),
    ):
        errors = np.array(k_step[key], dtype=float)[:, shown]
        if key == "relative":
            axes.plot(steps, errors, color=color, linewidth=0.8, alpha=0.3)
        middle = np.nanmedian(errors, axis=1)
        axes.plot(steps, middle, color=color, linestyle=style, linewidth=2.2, label=label)
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    _log_ticks(axes.yaxis)
    axes.grid(visible=True, axis="both")
    axes.set_title("several steps ahead, by the logged actions alone")
    axes.set_xlabel("steps ahead")
    axes.set_ylabel("error [standard deviations]")


@styled(grid="x")
def draw_calibration(model: Mapping[str, Any], file: File) -> None:
    """How often the model's 90 % interval holds the truth, and its spread against its error.

    Args:
        model: with ``one_step`` and ``calibration``.
        file: the PNG to write.
    """
    found, shown = model["calibration"], worst_columns(model)
    figure = Figure(figsize=(10.5, max(4.2, 1.7 + 0.27 * len(shown))))
    axes, spread = figure.subplots(1, 2)
    coverage = np.array(found["coverage"])[found["levels"].index(0.9)][shown]
    axes.axvline(0.9, color=BLACK, linestyle=DASHED, label="as promised")
    low = min(0.5, float(coverage.min()) - 0.03)
    axes.axvspan(low, 0.8, color=ORANGE, alpha=0.12, linewidth=0, label="too sure of itself")
    axes.plot(coverage, range(len(shown)), "o", color=BLUE, label="the model")
    axes.set_xlim(low, 1.01)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
    _name_rows(axes, [model["one_step"]["columns"][column] for column in shown])
    axes.set_title("log within the model's 90 % interval")
    axes.set_xlabel("share of held-out rows")
    predicted, error = found["group_spread"], found["group_error"]
    ends = [min(predicted + error) * 0.8, max(predicted + error) * 1.25]
    spread.plot(ends, ends, color=BLACK, linestyle=DASHED)
    spread.plot(predicted, error, "o-", color=BLUE)
    spread.set_xscale("log")
    spread.set_yscale("log")
    for axis in (spread.xaxis, spread.yaxis):
        _log_ticks(axis)
    spread.grid(visible=True, axis="both")
    spread.set_title("does it know where it errs?")
    spread.set_xlabel("error that the model expects [standard deviations]")
    spread.set_ylabel("error that it makes")
    spread.annotate(
        "too sure of itself", (0.04, 0.95), xycoords="axes fraction", va="top", color=GREY
    )
    spread.annotate("too cautious", (0.96, 0.05), xycoords="axes fraction", ha="right", color=GREY)
    add_legend(figure, grow=False)
    figure.savefig(file, format="png")


@styled()
def draw_actions(actions: Mapping[str, Any], file: File) -> None:
    """How often each value of an action is used, by the policy and in the log.

    Args:
        actions: what :func:`~rambo_trl.reporting.policy_support.action_use` returns.
        file: the PNG to write.
    """
    shown = np.argsort(-np.array(actions["difference"]) / _width(actions))[:MOST_ACTIONS]
    shown = np.sort(shown)
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.6, 2.3 * rows + 0.7))
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, action in zip(panels.flat, shown, strict=False):
        low, high = actions["low"][action], actions["high"][action]
        bins = np.linspace(low, high, 41)
        for key, label, style in (
            ("logged", "the logged controller", {"color": GREY, "alpha": 0.45}),
            ("policy", "the policy", {"color": BLUE, "histtype": "step", "linewidth": 1.8}),
        ):
            values = actions[key][:, action]
            axes.hist(
                values, bins, weights=np.full(len(values), 1 / len(values)), label=label, **style
            )
        for end in ("logged_low", "logged_high"):
            axes.axvline(actions[end][action], color=BLACK, linestyle=DASHED, linewidth=1,
                         label="range of the log")  # fmt: skip
        axes.set_title(_short(actions["names"][action]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    for axes in panels[:, 0]:
        axes.set_ylabel("share of steps")
    add_legend(figure)
    figure.savefig(file, format="png")


def _width(actions: Mapping[str, Any]) -> np.ndarray:
    return np.array(actions["high"]) - np.array(actions["low"])


@styled()
def draw_distance(support: Mapping[str, Any], file: File) -> None:
    """The share of the policy's states that are unlike any logged one, by step.

    Args:
        support: what :func:`~rambo_trl.reporting.policy_support.distance_from_data` returns for a
            run with a model.
        file: the PNG to write.
    """
    figure = Figure(figsize=(8, 3.2))
    axes = figure.subplots()
    share = np.array([np.nan if x is None else x for x in support["by_step"]], dtype=float)
    step = np.arange(1, len(share) + 1)
    axes.plot(step, share, ".", color=BLUE, alpha=0.4, markersize=4)
    width = max(1, len(share) // 10)
    weights = np.convolve(np.isfinite(share), np.ones(width), "same")
    smooth = np.convolve(np.nan_to_num(share), np.ones(width), "same")
    label = "the policy in the model"
    axes.plot(
        step, smooth / np.where(weights, weights, np.nan), color=BLUE, linewidth=2, label=label
    )
    axes.axhline(0.01, color=BLACK, linestyle=DASHED, label="logged episodes themselves")
    axes.set_ylim(0, max(0.1, 1.05 * float(np.nanmax(share))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))
    axes.set_title("states unlike any logged one")
    axes.set_xlabel("step from the start of an episode")
    axes.set_ylabel("share")
    add_legend(figure)
    figure.savefig(file, format="png")
