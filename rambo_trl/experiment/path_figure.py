"""A policy's path as a figure: rewards by step, and the model's error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rambo_trl.experiment.learning_curve import format_value, smoothed
from rambo_trl.experiment.policy_path import PolicyPath
from rambo_trl.runtime.drawing import (
    BLACK,
    BLUE,
    DASHED,
    DOTTED,
    GREY,
    ORANGE,
    PINK,
    add_legend,
    literal,
    styled,
)
from rambo_trl.runtime.places import expand_home

__all__ = ["plot_policy_path"]

#: a curve's name, its place in the numbers, its colour and its line
_CURVES = (
    ("best logged episode", "return_logged_best", GREY, DOTTED),
    ("mean logged episode", "return_logged_mean", BLACK, DASHED),
    ("environment", "return_truth", BLUE, "-"),
    ("model", "return_model", ORANGE, "-"),
)

#: steps above which a curve is smoothed
_MANY = 100


@styled()
def plot_policy_path(path: PolicyPath, file: str | os.PathLike[str], *, title: str) -> Path:
    """Draw the rewards along a policy's path and, below, the model's error on it.

    Args:
        path: what :func:`~rambo_trl.experiment.policy_path.follow_policy` returns.
        file: the PNG to write.
        title: the figure's first line.

    Returns:
        The file written.
    """
    error = path.error
    figure = Figure(figsize=(8, 3.8 if error is None else 5.6), dpi=130)
    panels = 1 if error is None else 2
    subplots = figure.subplots(
        panels, 1, sharex=True, height_ratios=[2.0, 1.0][:panels], squeeze=False
    )[:, 0]
    for name, key, color, style in _CURVES:
        if (rewards := path.rewards.get(name)) is not None:
            label = f"{name}: return {format_value(path.numbers[key])}"
            _draw_curve(subplots[0], rewards, color=color, linestyle=style, label=label)
    subplots[0].set_ylabel("reward")
    if error is not None:
        _draw_error(subplots[1], error, path.numbers)
    subplots[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))
    subplots[-1].set_xlabel("step of the episode")
    figure.align_ylabels()
    figure.suptitle(literal(fill(title, 65)), x=0.01, ha="left", size=13, weight="bold")
    where = "in the model, from the starts of logged episodes"
    if error is not None:
        where = "in the environment and in the model, from the same starts"
    subplots[0].set_title(
        f"the policy's mode {where}\n(mean reward by step, 0 after an episode's end)",
        size=10,
        color=GREY,
    )
    add_legend(figure, grow=False)
    file = expand_home(file)
    figure.savefig(file, format="png")
    return file


def _draw_curve(axes: Axes, values: np.ndarray, *, label: str, **style: Any) -> None:
    """Values by step, from the first on; many of them behind a smoothed line through them."""
    step = np.arange(1, len(values) + 1)
    known = np.isfinite(values)
    step, values = step[known], values[known]
    if len(step) > _MANY:
        axes.plot(step, values, color=style["color"], linewidth=0.8, alpha=0.35)
        step, values = smoothed(step, values, 0.01)
    axes.plot(step, values, linewidth=2, label=label, **style)


def _draw_error(axes: Axes, error: np.ndarray, numbers: Mapping[str, Any]) -> None:
    """The model's error by step, beside that on held-out rows."""
    label = f"one-step error on the path: {numbers['model_error']:.3g}"
    axes.plot(np.arange(1, len(error) + 1), error, color=PINK, linewidth=1.5, label=label)
    if numbers["holdout_error"]:
        label = f"on held-out data, after the fit: {numbers['holdout_error']:.3g}"
        axes.axhline(numbers["holdout_error"], color=BLACK, linestyle=DASHED, label=label)
    if (error > 0).any():
        axes.set_yscale("log")
    axes.set_ylabel("model error")
