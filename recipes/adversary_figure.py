"""The figure of what a game did to the world model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, BLACK, GREY = "#0072B2", "#D55E00", "#222222", "#666666"
PLACES = {
    "real": "in the environment",
    "fitted": "in the fitted model",
    "adversarial": "in the adversarial model",
}
_PROMISED = "what the critics promise, without entropy"
_COUNTED = "with the entropy that SAC counts"
_TRUE = "what the environment gives"


def draw(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Four panels: off the data, along a rollout, and the game's course.

    Args:
        found: what :func:`measure` returns.
        rows: of ``metrics.csv``.
        path: the PNG to write.
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    (one, many), (believed, achieved) = figure.subplots(2, 2)
    one.axhline(0, color=GREY, linewidth=1)
    for key, color, label in (
        ("random_actions", ORANGE, "towards random actions"),
        ("policy_actions", BLUE, "towards the policy's actions"),
    ):
        change = found[key]
        one.fill_between(
            change["share"], change["value_low"], change["value_high"], color=color, alpha=0.15,
            linewidth=0,
        )  # fmt: skip
        one.plot(change["share"], change["value"], color=color, linewidth=2.4, label=label)
    error = found["model_error"]
    one.set_title(
        "one step: what the game did to the model's promise\n"
        f"(error on the data: {error['fitted']:.3g} before, {error['adversarial']:.3g} after)",
        loc="left",
    )
    one.set_xlabel("way off the data (0: the data's action, 1: the other action)")
    one.set_ylabel("change of r + gamma V(s')")
    for name, color in (("fitted", ORANGE), ("adversarial", BLUE), ("real", BLACK)):
        if name in found["returns"]:
            _band(many, found["returns"][name], color, PLACES[name])
    starts = "" if "real" in found["returns"] else ", from states of the data"
    many.set_title(f"many steps: the policy's discounted return{starts}", loc="left")
    many.set_xlabel("step")
    many.set_ylabel("discounted return so far")
    promised, true = _promises(rows, found["gamma"]), _series(rows, "discounted_return_mean")
    panels: list[tuple[Axes, tuple[str, ...], str, str]] = [
        (achieved, ("score", "return_mean"), "", "during the game: what the policy achieves")
    ]
    if promised:
        believed.plot(*zip(*promised, strict=True), color=BLUE, linewidth=2, label=_PROMISED)
        counted = _series(rows, "start_value")
        believed.plot(*zip(*counted, strict=True), color=BLUE, linewidth=1, ls=":", label=_COUNTED)
        if true:
            x, y = zip(*true, strict=True)
            believed.plot(x, y, color=BLACK, linewidth=1.4, marker="o", ms=3.5, label=_TRUE)
        believed.set_title("during the game: the value of the start states", loc="left")
        believed.set_xlabel("epoch")
        believed.set_ylabel("discounted return")
        believed.legend(frameon=False, fontsize=9)
    else:  # a run of before it was recorded
        title = "during the game: the value in the adversarial model"
        panels.append((believed, ("mean_q",), "mean Q", title))
    for axes, keys, label, title in panels:
        points: list[tuple[float, float]] = []
        for key in keys:
            points = _series(rows, key)
            if points:
                label = label or {"score": "normalised score", "return_mean": "return"}[key]
                break
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=BLUE, linewidth=2, marker="o" if len(x) < 40 else None, ms=3.5)
        else:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center")
        axes.set_title(title, loc="left")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
    if rows:  # side by side, both over the whole game
        for axes in (believed, achieved):
            axes.set_xlim(0, rows[-1]["epoch"] + 1)
    for axes in (many, believed, achieved):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (one, many):
        axes.legend(frameon=False, fontsize=9)
    for axes in (one, many, believed, achieved):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.suptitle(
        f"{found['dataset']}, lambda = {found['adversarial_weight']:g}, seed {found['seed']}, "
        f"after {found['epoch']} epochs",
        x=0.01, ha="left", weight="bold",
    )  # fmt: skip
    figure.savefig(path, dpi=110)


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
