"""The figure of what a game did to the world model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from rambo_trl.runtime.drawing import literal

#: what is measured of a run, in its folder
EFFECT_FILE = "adversary_effect.json"
BLUE, ORANGE, BLACK, GREY = "#0072B2", "#D55E00", "#222222", "#666666"
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
_PROMISED = "what the critics promise, without entropy"
_COUNTED = "with the entropy that SAC counts"
_TRUE = "what the environment gives"


def draw(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Two panels of a step off the data, one of many steps, and the game's course.

    What a run did not record (evaluations, without an environment) has no panel.

    Args:
        found: what was measured.
        rows: of ``metrics.csv``.
        path: the PNG to write.
    """
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    achieves = {"score": "normalised score", "return_mean": "return"}
    course = [
        *(["D"] if any(_series(rows, key) for key in ("start_value", "mean_q")) else []),
        *(["E"] if any(_series(rows, key) for key in achieves) else []),
    ]
    below = "".join(name * (6 // len(course)) for name in course)
    panels = figure.subplot_mosaic("AABBCC" + (f";{below}" if below else ""))
    _draw_promise(panels["A"], found)
    _draw_next_states(panels["B"], found)
    _draw_returns(panels["C"], found)
    if "D" in panels:
        _draw_belief(panels["D"], rows, found["gamma"])
    if "E" in panels:
        title = "during the game: what the policy achieves"
        _draw_series(panels["E"], rows, achieves, title)
    for name in course:  # side by side, both over the whole game
        panels[name].set_xlim(0, rows[-1]["epoch"] + 1)
    for name in ("C", *course):
        panels[name].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.suptitle(
        f"{literal(found['dataset'])}, lambda = {found['adversarial_weight']:g}, "
        f"seed {found['seed']}, after {found['epoch']} epochs",
        x=0.01, ha="left", weight="bold",
    )  # fmt: skip
    figure.savefig(path, dpi=110)


def plain_numbers(axis: Axis) -> None:
    """Mark 1, 2 and 5 of each power of ten on a logarithmic axis, as they are written."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_promise(axes: Axes, found: Mapping[str, Any]) -> None:
    axes.axhline(0, color=GREY, linewidth=1)
    for key, color, label in _WAYS:
        _way(axes, found[key], "value", color, label)
    error = found["model_error"]
    axes.set_title(
        "one step: what the game did to the model's promise\n"
        f"(error on the data: {error['fitted']:.3g} before, {error['adversarial']:.3g} after)",
        loc="left",
    )
    axes.set_xlabel(_WAY)
    axes.set_ylabel("change of r + gamma V(s')")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    axes.legend(loc="upper left", frameon=False, fontsize=9)


def _draw_next_states(axes: Axes, found: Mapping[str, Any]) -> None:
    for key, color, label in _WAYS:
        way = found["next_states"][key]
        _way(axes, way, "moved", color, f"moved, {label}")
    for key, color, _ in _WAYS:
        way = found["next_states"][key]
        for model, style in (("fitted", "--"), ("adversarial", ":")):
            axes.plot(way["share"], way[model], color=color, linewidth=1.3, ls=style)
    for model, style in (("fitted", "--"), ("adversarial", ":")):
        label = f"{model} model's distance from the data's own"
        axes.plot([], [], color=GREY, linewidth=1.3, ls=style, label=label)
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    at_data = {key: values[0] for key, values in found["next_states"]["policy_actions"].items()}
    axes.set_title(
        "one step: how far the game moved the next state\n"
        f"(on the data {at_data['moved']:.2g}; error {at_data['fitted']:.2g} before, "
        f"{at_data['adversarial']:.2g} after)",
        loc="left",
    )
    axes.set_xlabel(_WAY)
    axes.set_ylabel("distance [standard deviations of the data]")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.4)  # room for the legend
    axes.legend(loc="upper left", frameon=False, fontsize=9)


def _draw_returns(axes: Axes, found: Mapping[str, Any]) -> None:
    for name, color in (("fitted", ORANGE), ("adversarial", BLUE), ("real", BLACK)):
        if name in found["returns"]:
            _band(axes, found["returns"][name], color, PLACES[name])
    starts = "" if "real" in found["returns"] else ",\nfrom states of the data"
    axes.set_title(f"many steps: the policy's discounted return{starts}", loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel("discounted return so far")
    axes.legend(frameon=False, fontsize=9)


def _draw_belief(axes: Axes, rows: Sequence[Mapping[str, Any]], gamma: float) -> None:
    promised, true = _promises(rows, gamma), _series(rows, "discounted_return_mean")
    if not promised:  # a run of before it was recorded
        title = "during the game: the value in the adversarial model"
        _draw_series(axes, rows, {"mean_q": "mean Q"}, title)
        return
    axes.plot(*zip(*promised, strict=True), color=BLUE, linewidth=2, label=_PROMISED)
    counted = _series(rows, "start_value")
    axes.plot(*zip(*counted, strict=True), color=BLUE, linewidth=1, ls=":", label=_COUNTED)
    if true:
        x, y = zip(*true, strict=True)
        axes.plot(x, y, color=BLACK, linewidth=1.4, marker="o", ms=3.5, label=_TRUE)
    axes.set_title("during the game: the value of the start states", loc="left")
    axes.set_xlabel("epoch")
    axes.set_ylabel("discounted return")
    axes.legend(frameon=False, fontsize=9)


def _draw_series(
    axes: Axes, rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str], title: str
) -> None:
    """The first of some columns that has values, over the epochs."""
    for key, label in labels.items():
        if points := _series(rows, key):
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=BLUE, linewidth=2, marker="o" if len(x) < 40 else None, ms=3.5)
            axes.set_ylabel(label)
            break
    axes.set_title(title, loc="left")
    axes.set_xlabel("epoch")


def _way(axes: Axes, way: Mapping[str, Sequence[float]], key: str, color: str, label: str) -> None:
    """Median and quartiles on the way off the data."""
    low, high = way[f"{key}_low"], way[f"{key}_high"]
    axes.fill_between(way["share"], low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(way["share"], way[key], color=color, linewidth=2.4, label=label)


def _promises(rows: Sequence[Mapping[str, Any]], gamma: float) -> list[tuple[float, float]]:
    """Epoch and the value of the start, less what SAC adds to every later reward.

    The entropy is the epoch's mean, as if it were the same in every state and for ever: an
    estimate, too large where episodes end early.
    """
    later = gamma / (1 - gamma)
    return [
        (row["epoch"], row["start_value"] - later * row["alpha"] * row["entropy"])
        for row in rows
        if row.get("start_value") is not None
    ]


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Epoch and value, where there is one."""
    return [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]


def _band(axes: Axes, curve: Mapping[str, Sequence[float]], color: str, label: str) -> None:
    mean, error = np.array(curve["mean"]), np.array(curve["standard_error"])
    x = np.arange(1, len(mean) + 1)
    axes.fill_between(x, mean - 2 * error, mean + 2 * error, color=color, alpha=0.15, linewidth=0)
    axes.plot(x, mean, color=color, linewidth=2.2, label=label)
