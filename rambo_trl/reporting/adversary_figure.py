"""The figure of what adversarial training did to the world model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rambo_trl.runtime.drawing import BLACK, BLUE, GREY, ORANGE, literal, plain_log_ticks, styled

PLACES = {
    "real": "in the environment",
    "fitted": "in the fitted model",
    "adversarial": "in the adversarial model",
}
_WAYS = (
    ("random_actions", ORANGE, "towards random actions"),
    ("policy_actions", BLUE, "towards the policy's actions"),
)
_WAY = "way off the data (0: the data's action, 1: the other action)"
_ACHIEVED = (("score", "normalised score"), ("return_mean", "return"))

Points = list[tuple[float, float]]


@styled(grid="both")
def draw(effect: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Two panels of a step off the data, one of many steps, and the course of training.

    What a run did not record (evaluations, without an environment) has no panel.

    Args:
        effect: what was measured.
        rows: of ``metrics.csv``.
        path: the PNG to write.
    """
    believed = _column(rows, "start_value") or _column(rows, "mean_q")
    achieved = next(((p, label) for key, label in _ACHIEVED if (p := _column(rows, key))), None)
    course = [*(["D"] if believed else []), *(["E"] if achieved else [])]
    below = "".join(name * (6 // len(course)) for name in course)
    figure = Figure(figsize=(15, 8.5))
    panels = figure.subplot_mosaic("AABBCC" + (f";{below}" if below else ""))
    _draw_promise(panels["A"], effect)
    _draw_next_states(panels["B"], effect)
    _draw_returns(panels["C"], effect)
    if believed:
        _draw_belief(panels["D"], rows, effect["gamma"])
    if achieved:
        points, label = achieved
        marker = "o" if len(points) < 40 else None
        _draw_points(panels["E"], points, color=BLUE, linewidth=2, marker=marker)
        panels["E"].set(title="during training: what the policy achieves", ylabel=label)
    for name in course:  # side by side, both over the whole training
        panels[name].set(xlim=(0, rows[-1]["epoch"] + 1), xlabel="epoch")
    for name in ("C", *course):
        panels[name].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels.values():
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left" if axes in (panels["A"], panels["B"]) else "best")
    figure.suptitle(
        f"{literal(effect['dataset'])}, lambda = {effect['adversarial_weight']:g}, "
        f"seed {effect['seed']}, after {effect['epoch']} epochs",
        x=0.01, ha="left", weight="bold",
    )  # fmt: skip
    figure.savefig(path)


def _draw_promise(axes: Axes, effect: Mapping[str, Any]) -> None:
    axes.axhline(0, color=GREY, linewidth=1)
    for key, color, label in _WAYS:
        _draw_way(axes, effect[key], "value", color, label)
    error = effect["model_error"]
    title = (
        "one step: what training did to the model's promise\n"
        f"(error on the data: {error['fitted']:.3g} before, {error['adversarial']:.3g} after)"
    )
    axes.set(title=title, xlabel=_WAY, ylabel="change of r + gamma V(s')")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))  # room for the legend


def _draw_next_states(axes: Axes, effect: Mapping[str, Any]) -> None:
    states = effect["next_states"]
    for key, color, label in _WAYS:
        _draw_way(axes, states[key], "moved", color, f"moved, {label}")
    for model, style in (("fitted", "--"), ("adversarial", ":")):
        for key, color, _ in _WAYS:
            axes.plot(states[key]["share"], states[key][model], color=color, lw=1.3, ls=style)
        label = f"{model} model's distance from the data's own"
        axes.plot([], [], color=GREY, lw=1.3, ls=style, label=label)
    axes.set_yscale("log")
    plain_log_ticks(axes.yaxis)
    at_data = {key: values[0] for key, values in states["policy_actions"].items()}
    title = (
        "one step: how far training moved the next state\n"
        f"(on the data {at_data['moved']:.2g}; error {at_data['fitted']:.2g} before, "
        f"{at_data['adversarial']:.2g} after)"
    )
    axes.set(title=title, xlabel=_WAY, ylabel="distance [standard deviations of the data]")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.4)  # room for the legend


def _draw_returns(axes: Axes, effect: Mapping[str, Any]) -> None:
    returns = effect["returns"]
    for name, color in (("fitted", ORANGE), ("adversarial", BLUE), ("real", BLACK)):
        if name in returns:
            mean, error = (np.array(returns[name][key]) for key in ("mean", "standard_error"))
            x, low, high = np.arange(1, len(mean) + 1), mean - 2 * error, mean + 2 * error
            axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(x, mean, color=color, linewidth=2.2, label=PLACES[name])
    starts = "" if "real" in returns else ",\nfrom states of the data"
    title = f"many steps: the policy's discounted return{starts}"
    axes.set(title=title, xlabel="step", ylabel="discounted return so far")


def _draw_belief(axes: Axes, rows: Sequence[Mapping[str, Any]], gamma: float) -> None:
    counted = _column(rows, "start_value")
    if not counted:  # older runs did not record it
        _draw_points(axes, _column(rows, "mean_q"), color=BLUE, linewidth=2)
        axes.set(title="during training: the value in the adversarial model", ylabel="mean Q")
        return
    # what SAC adds to every later reward, as if the epoch's mean entropy were that of every state
    # for ever: an estimate, too large where episodes end early
    later = gamma / (1 - gamma)
    bonus = [
        later * row["alpha"] * row["entropy"] for row in rows if row.get("start_value") is not None
    ]
    promised = [(epoch, value - b) for (epoch, value), b in zip(counted, bonus, strict=True)]
    label = "what the critics promise, without entropy"
    _draw_points(axes, promised, color=BLUE, linewidth=2, label=label)
    label = "with the entropy that SAC counts"
    _draw_points(axes, counted, color=BLUE, linewidth=1, ls=":", label=label)
    true, label = _column(rows, "discounted_return_mean"), "what the environment gives"
    if true:
        _draw_points(axes, true, color=BLACK, linewidth=1.4, marker="o", label=label)
    title = "during training: the value of the start states"
    axes.set(title=title, ylabel="discounted return")


def _draw_way(
    axes: Axes, way: Mapping[str, Sequence[float]], key: str, color: str, label: str
) -> None:
    """Median and quartiles on the way off the data."""
    low, high = way[f"{key}_low"], way[f"{key}_high"]
    axes.fill_between(way["share"], low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(way["share"], way[key], color=color, linewidth=2.4, label=label)


def _draw_points(axes: Axes, points: Points, **style: Any) -> None:
    axes.plot(*zip(*points, strict=True), markersize=3.5, **style)


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    """Epoch and value, where there is one."""
    return [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
