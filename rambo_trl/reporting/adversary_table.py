"""What the adversary did to the models of a report's runs, from what ``adversary_effect.py`` wrote.

A run whose folder holds ``adversary_effect.json`` is in the table and in the figure; no model is
read and nothing is measured here.
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

from rambo_trl.reporting.runs import Configuration, Record
from rambo_trl.reporting.tables import markdown, name_cells
from rambo_trl.runtime import drawing

#: what is measured of a run, in its folder
EFFECT_FILE = "adversary_effect.json"
#: where an effect is looked at: actions, first or last point towards them, colour, name
_PLACES = (
    ("policy_actions", 0, drawing.BLACK, "at the data's actions"),
    ("policy_actions", -1, drawing.BLUE, "at the policy's"),
    ("random_actions", -1, drawing.ORANGE, "at random ones"),
)
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
            for way, at in ((ways[name], at) for name, at, _, _ in _PLACES)
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
                *([f"{x:.2g}" for x in np.mean(moved, axis=0)] if moved else "-" * len(_PLACES)),
            ]
        )
    if not rows:
        return []
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
    return ["", intro, "", *markdown(columns, rows)]


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
        for place, (_, _, color, label) in enumerate(_PLACES):
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
