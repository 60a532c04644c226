"""What the adversary did to the models of runs, as ``adversary_effect.py`` measured it.

Drawn for one run, and put into the table and the figure of a report on several; no model is read
and nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rambo_trl.reporting.runs import Configuration, Record
from rambo_trl.reporting.tables import markdown, name_cells
from rambo_trl.runtime import drawing

#: what is measured of a run, in its folder
EFFECT_FILE = "adversary_effect.json"
#: where an effect is looked at: actions, first or last point towards them, colour, name
_SPOTS = (
    ("policy_actions", 0, drawing.BLACK, "at the data's actions"),
    ("policy_actions", -1, drawing.BLUE, "at the policy's"),
    ("random_actions", -1, drawing.ORANGE, "at random ones"),
)
#: rewards' sources and their names
PLACES = {
    "real": "in the environment",
    "fitted": "in the fitted model",
    "adversarial": "in the adversarial model",
}
_WAYS = (
    ("random_actions", drawing.ORANGE, "towards random actions"),
    ("policy_actions", drawing.BLUE, "towards the policy's actions"),
)
_WAY = "way off the data (0: the data's action, 1: the other action)"
_ACHIEVED = (("score", "normalised score"), ("return_mean", "return"))

Points = list[tuple[float, float]]
#: median, lower and upper quartile over rows of the data
Spread = tuple[float, float, float]


@dataclass(frozen=True)
class Effect:
    """What the adversary did to the model of one run.

    Attributes:
        configuration: the run's.
        run: the run.
        adversarial_weight: lambda.
        epoch: epochs trained when it was measured.
        value: change of r + gamma V(s') at the data's actions, the policy's and random ones.
        moved: the same of the distance by which next states have moved, in standard deviations of
            the data; None where it was not measured.
        error: median distance of the fitted model's next states from the data's, in the same unit.
    """

    configuration: Configuration
    run: Record
    adversarial_weight: float
    epoch: int
    value: Sequence[Spread]
    moved: Sequence[Spread] | None
    error: float | None


def read_effects(configurations: Sequence[Configuration]) -> list[Effect]:
    """The effects that were measured of a report's runs, in the order of the report.

    Args:
        configurations: those of the report.

    Raises:
        ValueError: for a file that is not what ``adversary_effect.py`` writes.
    """
    effects = []
    for configuration in configurations:
        for run in configuration.runs:
            path = run.path / EFFECT_FILE
            if path.is_file():
                try:
                    measured = json.loads(path.read_text(encoding="utf-8"))
                    effects.append(_effect(configuration, run, measured))
                except (ValueError, LookupError, TypeError) as error:
                    raise ValueError(f"{path} is not what adversary_effect.py writes") from error
    return effects


def _effect(configuration: Configuration, run: Record, measured: dict[str, Any]) -> Effect:
    def spreads(ways: Mapping[str, Any], key: str) -> list[Spread]:
        return [
            (float(way[key][at]), float(way[f"{key}_low"][at]), float(way[f"{key}_high"][at]))
            for way, at in ((ways[name], at) for name, at, _, _ in _SPOTS)
        ]

    states = dict(measured).get("next_states")  # older files have none
    return Effect(
        configuration,
        run,
        float(measured["adversarial_weight"]),
        int(measured["epoch"]),
        spreads(measured, "value"),
        None if states is None else spreads(states, "moved"),
        None if states is None else float(states["policy_actions"]["fitted"][0]),
    )


def effect_table(effects: Sequence[Effect]) -> list[str]:
    """One row a configuration: the runs' medians, in the mean; nothing where none was measured.

    Args:
        effects: of the report's runs.
    """
    groups: dict[int, list[Effect]] = {}
    for effect in effects:
        groups.setdefault(id(effect.configuration), []).append(effect)
    rows = []
    for members in groups.values():
        value = np.mean([[at[0] for at in effect.value] for effect in members], axis=0)
        moved = [[at[0] for at in effect.moved] for effect in members if effect.moved is not None]
        weights = dict.fromkeys(effect.adversarial_weight for effect in members)
        rows.append(
            [
                *name_cells(members[0].configuration),
                ", ".join(f"{weight:g}" for weight in weights),
                str(len(members)),
                *(f"{x:+.2g}" for x in value),
                *([f"{x:.2g}" for x in np.mean(moved, axis=0)] if moved else "-" * len(_SPOTS)),
            ]
        )
    intro = (
        "What the adversary did to the model, from the fitted one to the one after adversarial "
        "training: the change of r + gamma V(s') for one step, and how far it moved the predicted "
        "next state (in standard deviations of the data), on the data and off it. Medians over "
        "rows of the data, in the mean over runs; by run in `adversary_effect.png`."
    )
    columns = [
        "data set", "method", "lambda", "runs", "value: at the data's actions", "the policy's",
        "random ones", "next state: at the data's actions", "the policy's", "random ones",
    ]  # fmt: skip
    return markdown(columns, rows, intro)


@drawing.styled(grid="x")
def draw_effects(effects: Sequence[Effect], path: Path) -> bool:
    """Two panels a data set, a line a run: the value of a step, and where its next state lies.

    Args:
        effects: of the report's runs.
        path: the PNG to write.

    Returns:
        Whether there was anything to draw; without there is no file.
    """
    if not effects:
        return False
    datasets = sorted({effect.configuration.dataset for effect in effects})
    groups = [[e for e in effects if e.configuration.dataset == name] for name in datasets]
    heights = [1.1 + 0.62 * len(group) for group in groups]
    figure = Figure(figsize=(13, sum(heights)))
    panels = figure.subplots(len(groups), 2, squeeze=False, height_ratios=heights, sharey="row")
    for (value, moved), group, dataset in zip(panels, groups, datasets, strict=True):
        value.axvline(0, color=drawing.GREY, linewidth=1)
        _draw_spreads(value, [effect.value for effect in group])
        value.set_title(drawing.literal(f"{dataset}: value of a step"))
        value.set_xlabel("change of r + gamma V(s')")
        value.set_yticks(range(len(group)), [drawing.literal(_label(effect)) for effect in group])
        value.set_ylim(len(group) - 0.45, -0.55)  # the first run above
        _draw_spreads(moved, [effect.moved for effect in group])
        for row, effect in enumerate(group):
            if effect.error is not None:
                label = "the fitted model's error on the data"
                moved.plot(effect.error, row, "|", color=drawing.GREY, markersize=16, label=label)
        moved.tick_params(axis="y", length=0)
        moved.set_title("predicted next state")
        moved.set_xlabel("moved by [standard deviations of the data]")
        if any(effect.moved for effect in group):
            moved.set_xscale("log")
            drawing.plain_log_ticks(moved.xaxis)
        else:
            moved.set_xticks([])
    what = "what the adversary did to the model: median and quartiles over rows of the data"
    drawing.add_legend(figure, what)
    figure.savefig(path)
    return True


def _draw_spreads(axes: Axes, rows: Sequence[Sequence[Spread] | None]) -> None:
    for row, spreads in enumerate(rows):
        if spreads is None:
            transform = axes.get_yaxis_transform()
            axes.text(0.02, row, "not measured", transform=transform, va="center")
            continue
        for place, (_, _, color, label) in enumerate(_SPOTS):
            (median, low, high), y = spreads[place], row + 0.22 * (place - 1)
            axes.plot([low, high], [y, y], color=color, linewidth=2, alpha=0.45)
            axes.plot(median, y, "o", color=color, markersize=6, label=label)


def _label(effect: Effect) -> str:
    """Method, lambda and seed; the epoch where the run continued afterwards."""
    configuration, results = effect.configuration, effect.run.results
    label = f"{configuration.name}\n"
    if "adversarial_weight" not in configuration.differs:
        label += f"lambda = {effect.adversarial_weight:g}, "
    label += f"seed {results['seed']}"
    if effect.epoch != results["epochs"]:
        label += f", epoch {effect.epoch}"
    return label


@drawing.styled(grid="both")
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
        _draw_points(panels["E"], points, color=drawing.BLUE, linewidth=2, marker=marker)
        panels["E"].set(title="during training: what the policy achieves", ylabel=label)
    for name in course:  # side by side, both over the whole training
        panels[name].set(xlim=(0, rows[-1]["epoch"] + 1), xlabel="epoch")
    for name in ("C", *course):
        panels[name].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels.values():
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left" if axes in (panels["A"], panels["B"]) else "best")
    figure.suptitle(
        f"{drawing.literal(effect['dataset'])}, lambda = {effect['adversarial_weight']:g}, "
        f"seed {effect['seed']}, after {effect['epoch']} epochs",
        x=0.01, ha="left", weight="bold",
    )  # fmt: skip
    figure.savefig(path)


def _draw_promise(axes: Axes, effect: Mapping[str, Any]) -> None:
    axes.axhline(0, color=drawing.GREY, linewidth=1)
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
        axes.plot([], [], color=drawing.GREY, lw=1.3, ls=style, label=label)
    axes.set_yscale("log")
    drawing.plain_log_ticks(axes.yaxis)
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
    for name, color in (
        ("fitted", drawing.ORANGE),
        ("adversarial", drawing.BLUE),
        ("real", drawing.BLACK),
    ):
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
        _draw_points(axes, _column(rows, "mean_q"), color=drawing.BLUE, linewidth=2)
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
    _draw_points(axes, promised, color=drawing.BLUE, linewidth=2, label=label)
    label = "with the entropy that SAC counts"
    _draw_points(axes, counted, color=drawing.BLUE, linewidth=1, ls=":", label=label)
    true, label = _column(rows, "discounted_return_mean"), "what the environment gives"
    if true:
        _draw_points(axes, true, color=drawing.BLACK, linewidth=1.4, marker="o", label=label)
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
