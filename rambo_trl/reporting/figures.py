"""Figures over many runs: learning curves, and what critics believe against what is achieved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, product
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rambo_trl.experiment.learning_curve import smoothed
from rambo_trl.reporting.runs import Configuration, Record
from rambo_trl.runtime.drawing import literal

# Okabe and Ito's palette, told apart with every common colour blindness, brown in the place of
# its yellow, which is faint on white; then other line styles
_COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#8C564B",
)  # fmt: skip
_STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)))
_GREY = "#666666"

#: points and values of each run
Curves = Sequence[tuple[Sequence[float], Sequence[float]]]
_CHARACTERS_PER_INCH = 13  # of the legend's letters
_LEGEND_HEIGHT = 0.6  # inches that a short one takes
_CROWD = 4  # as many configurations of a data set can be told apart with all their runs


def achieved(run: Record) -> tuple[list[float], list[float]]:
    """A run's evaluations by updates: scores, or returns where there are none.

    A run that diverged goes on with the 0 that it is scored; its returns end there.
    """
    x, y = run.series("score")
    if not run.scored:
        x, y = run.series("return_mean")
    if run.results["diverged"]:
        at = diverged_at(run)
        end = run.updates_per_epoch * float(run.settings.get("epochs") or run.results["epochs"])
        kept = [(a, b) for a, b in zip(x, y, strict=True) if a < at]
        if run.scored:
            kept += [(at, 0.0), (end, 0.0)] if end > at else [(at, 0.0)]
        x, y = [a for a, _ in kept], [b for _, b in kept]
    return x, y


def diverged_at(run: Record) -> float:
    """The update at which a run was seen to have diverged."""
    found = run.results.get("divergence") or {}
    return run.updates_per_epoch * float(found.get("epoch") or run.results["epochs"])


def mean_curve(curves: Curves) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation over curves, where all of them have values.

    Curves may be measured at different points: between its own a curve is a straight line.

    Returns:
        Points, mean and standard deviation; empty where the curves have no range in common.
    """
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        return np.empty(0), np.empty(0), np.empty(0)
    first, last = max(min(x) for x, _ in curves), min(max(x) for x, _ in curves)
    points = np.unique(np.concatenate([np.asarray(x, dtype=float) for x, _ in curves]))
    points = points[(points >= first) & (points <= last)]
    values = np.stack([np.interp(points, x, y) for x, y in curves])
    return points, values.mean(axis=0), values.std(axis=0)


def draw_learning_curves(found: Sequence[Configuration], path: Path) -> bool:
    """One panel a data set: each configuration's mean over seeds, a deviation to both sides.

    Where one has more than four configurations, smoothed means alone can be told apart. Data sets
    without an evaluation are left out.

    Args:
        found: the configurations.
        path: the PNG to write.

    Returns:
        Whether there was anything to draw; without there is no file.
    """
    datasets = _datasets_with(found, _is_evaluated)
    if not datasets:
        return False
    figure, (panels,) = _panels(len(datasets), 1)
    styles, crowded = styles_of(found), _is_crowded(found)
    for axes, dataset in zip(panels, datasets, strict=True):
        members = [c for c in found if c.dataset == dataset]
        _draw_achieved(axes, members, styles, crowded=crowded)
        draw_data(axes.axhline, members)
        axes.set_title(literal(dataset), loc="left", fontsize=11)
        axes.set_xlabel("agent updates")
        _finish(axes)
    _save(figure, panels, path, crowded=crowded)
    return True


def draw_q_and_return(found: Sequence[Configuration], path: Path) -> bool:
    """One column a data set: above what the policies achieve, below what their critics believe.

    Where nothing was evaluated, the values that the critics give the start states stand above,
    beside the discounted returns of the logged episodes. Data sets of which no run has critics are
    left out.

    Args:
        found: the configurations.
        path: the PNG to write.

    Returns:
        Whether there was anything to draw; without there is no file.
    """
    datasets = _datasets_with(found, lambda run: bool(run.series("mean_q")[0]))
    if not datasets:
        return False
    figure, (upper, lower) = _panels(len(datasets), 2)
    styles, crowded = styles_of(found), _is_crowded(found)
    shown = []
    for top, bottom, dataset in zip(upper, lower, datasets, strict=True):
        members = [c for c in found if c.dataset == dataset]
        runs = [run for c in members for run in c.runs]
        if any(map(_is_evaluated, runs)):
            _draw_achieved(top, members, styles, crowded=crowded)
            top.set_title(f"{literal(dataset)}: achieved", loc="left", fontsize=11)
            shown.append(top)
        elif any(run.series("start_value")[0] for run in runs):
            _draw_start_value(top, members, styles, crowded=crowded)
            top.set_title(f"{literal(dataset)}: expected, not evaluated", loc="left", fontsize=11)
            shown.append(top)
        else:
            top.set_visible(False)
        _draw_mean_q(bottom, members, styles, crowded=crowded)
        title = (
            "believed by the critics"
            if top in shown
            else f"{literal(dataset)}: believed by the critics"
        )
        bottom.set_title(title, loc="left", fontsize=11)
        bottom.set_xlabel("agent updates")
        shown.append(bottom)
        right = max(axes.get_xlim()[1] for axes in (top, bottom) if axes in shown)
        for axes in (top, bottom):
            axes.set_xlim(0, right)
            _finish(axes)
    _save(figure, shown, path, crowded=crowded)
    return True


def _is_evaluated(run: Record) -> bool:
    return bool(achieved(run)[0])


def _datasets_with(found: Sequence[Configuration], has: Callable[[Record], bool]) -> list[str]:
    """The data sets of which a run has something to draw, sorted."""
    return sorted({c.dataset for c in found if any(map(has, c.runs))})


def _panels(count: int, rows: int) -> tuple[Figure, list[list[Axes]]]:
    """A figure of so many columns of panels, at most three beside each other.

    Returns:
        The figure, and for each of the rows of a column the panels.
    """
    width = min(count, 3)
    blocks = -(-count // width)
    size = (max(7.2, 5.6 * width), (1.0 + 3.2 * rows) * blocks + _LEGEND_HEIGHT)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows * blocks, width, squeeze=False)
    ordered = [
        [axes[rows * block + row, column] for block in range(blocks) for column in range(width)]
        for row in range(rows)
    ]
    for unused in (panel for row in ordered for panel in row[count:]):
        unused.set_visible(False)
    return figure, [row[:count] for row in ordered]


def _is_crowded(found: Sequence[Configuration]) -> bool:
    return max(Counter(c.dataset for c in found).values()) > _CROWD


def _save(figure: Figure, panels: Sequence[Axes], path: Path, *, crowded: bool) -> None:
    """One legend below all panels, then the file."""
    handles = legend_entries(panels)
    # a label of all the settings that differ can be wider than the figure
    room = int(_CHARACTERS_PER_INCH * figure.get_size_inches()[0])
    labels = [literal(fill(label, room - 10)) for label in handles]
    widest = max(len(line) for label in labels for line in label.splitlines())
    legend = figure.legend(
        list(handles.values()),
        labels,
        loc="outside lower left",
        ncols=max(1, min(3, room // (widest + 10))),
        frameon=False,
        fontsize=9,
        title=(
            "line: mean over seeds, smoothed"
            if crowded
            else "line and band: mean and standard deviation over seeds; thin: each run"
        )
        + _diverged_note(panels),
        title_fontsize=9,
        alignment="left",
    )
    # the panels keep their height, however long the legend
    width, height = figure.get_size_inches()
    needed = legend.get_window_extent().height / figure.dpi
    figure.set_size_inches(width, height + max(0.0, needed - _LEGEND_HEIGHT))
    figure.savefig(path, dpi=120)


def _diverged_note(panels: Sequence[Axes]) -> str:
    """What the X means, where there is one."""
    crossed = any(line.get_marker() == "X" for axes in panels for line in axes.lines)
    return "; X: diverged" if crossed else ""


Styles = dict[str, dict[str, Any]]


def name_of(configuration: Configuration) -> str:
    """What a configuration is called in a legend."""
    return f"{configuration.label}, {configuration.schedule}"


def styles_of(found: Sequence[Configuration]) -> Styles:
    """Colour and line of each configuration, the same in every panel."""
    pairs = ({"color": c, "linestyle": s} for s, c in cycle(product(_STYLES, _COLORS)))
    return dict(zip(dict.fromkeys(map(name_of, found)), pairs, strict=False))


def _draw_achieved(
    axes: Axes, members: Sequence[Configuration], styles: Styles, *, crowded: bool
) -> None:
    draw = _draw_smoothed if crowded else _draw_band
    for configuration in members:
        style = styles[name_of(configuration)]
        draw(axes, [achieved(run) for run in configuration.runs], style, name_of(configuration))
        for run in configuration.runs:
            if run.results["diverged"]:
                # without a score there is no height to put it at: the panel's lower edge
                axes.plot(
                    diverged_at(run), 0.0, "X", color=style["color"], markersize=9, zorder=5,
                    transform=axes.transData if run.scored else axes.get_xaxis_transform(),
                    clip_on=run.scored,
                )  # fmt: skip
    axes.set_ylabel("normalised score" if any(c.scored for c in members) else "return")


def _draw_start_value(
    axes: Axes, members: Sequence[Configuration], styles: Styles, *, crowded: bool
) -> None:
    """What the critics expect of the start states, and what the logged episodes gave."""
    draw = _draw_smoothed if crowded else _draw_band
    logged: dict[str, Any] = {}
    for configuration in members:
        name = name_of(configuration)
        curves = [run.series("start_value") for run in configuration.runs]
        if any(points for points, _ in curves):  # cloning has no critics
            draw(axes, curves, styles[name], name)
        for run in configuration.runs:
            known = run.results.get("sanity") or {}
            logged = logged or known.get("logged_discounted_return") or {}
    for key, style, label in (
        ("best", (0, (1, 1.5)), "best logged episode, discounted"),
        ("mean", (0, (5, 2)), "mean logged episode, discounted"),
    ):
        if key in logged:
            axes.axhline(
                logged[key], color=_GREY, linestyle=style, linewidth=1.3, label=label, zorder=1
            )
    axes.set_ylabel("value at the start")


def _draw_smoothed(axes: Axes, curves: Curves, style: dict[str, Any], label: str) -> None:
    """The mean over seeds, each point with its neighbours of a twentieth of the range."""
    points, mean, _ = mean_curve(curves)
    if len(points) > 2:
        points, mean = smoothed(points, mean, 0.05)
    marker = "o" if len(points) == 1 else None
    axes.plot(points, mean, **style, linewidth=2.4, marker=marker, label=label)


def _draw_band(axes: Axes, curves: Curves, style: dict[str, Any], label: str) -> None:
    points, mean, std = mean_curve(curves)
    for x, y in curves if len(curves) > 1 else ():
        axes.plot(x, y, color=style["color"], alpha=0.35, linewidth=0.8)
    if not len(points):
        axes.plot([], [], **style, linewidth=2.4, label=label)
        return
    axes.fill_between(points, mean - std, mean + std, color=style["color"], alpha=0.15, linewidth=0)
    marker = "o" if len(points) == 1 else None
    axes.plot(points, mean, **style, linewidth=2.4, marker=marker, label=label)


def draw_data(line: Callable[..., Any], members: Sequence[Configuration]) -> None:
    """The data's best and mean episode, and its cloned policy, as lines.

    Args:
        line: ``axhline`` or ``axvline`` of the panel.
        members: the data set's configurations.
    """
    results = [run.results for c in members for run in c.runs]
    scored = any(run.scored for c in members for run in c.runs)
    best, mean, cloned = (
        ("behaviour_score_best", "behaviour_score", "cloned_score")
        if scored
        else ("behaviour_return_best", "behaviour_return_mean", "cloned_return_mean")
    )
    for key, style, label in (
        (best, (0, (1, 1.5)), "data's best episode"),
        (mean, (0, (5, 2)), "data's mean episode"),
        (cloned, (0, (5, 2, 1, 2)), "behaviour cloning alone"),
    ):
        values = [result[key] for result in results if result.get(key) is not None]
        if values:
            value = float(np.mean(values))
            line(value, color=_GREY, linestyle=style, linewidth=1.3, label=label, zorder=1)


def _draw_mean_q(
    axes: Axes, members: Sequence[Configuration], styles: Styles, *, crowded: bool
) -> None:
    """Mean Q; runs that diverged are thin lines, outside of the means, that leave the panel."""
    largest, bounds = [], set()
    for configuration in members:
        style = styles[name_of(configuration)]
        curves = []
        for run in configuration.runs:
            x, y = run.series("mean_q")
            if run.results["diverged"]:
                axes.plot(x, y, color=style["color"], linewidth=1.2, alpha=0.7)
            elif x:
                curves.append((x, y))
                largest.append((min(y), max(y)))
            if x and run.results.get("q_bound"):  # a method without critics has no use for it
                bounds.add(run.results["q_bound"])
        draw = _draw_smoothed if crowded else _draw_band
        if any(run.series("mean_q")[0] for run in configuration.runs):
            draw(axes, curves, style, name_of(configuration))
    axes.set_ylabel("mean Q in training")
    if not largest:
        return
    low, high = min(0.0, *(a for a, _ in largest)), max(0.0, *(b for _, b in largest))
    room = 0.15 * (high - low) or 1.0
    axes.set_ylim(low - room if low < 0 else -0.3 * room, high + 2 * room)
    # methods with bounds of their own have no line in common
    for bound in bounds if len(bounds) == 1 else ():
        axes.axhline(
            bound, color=_GREY, linestyle=(0, (1, 1.5)), linewidth=1.3,
            label="mean Q at which a run counts as diverged" if bound < high + 2 * room else None,
        )  # fmt: skip


def legend_entries(panels: Iterable[Axes]) -> dict[str, Artist]:
    """What the panels' lines are called, and the first line of each name."""
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return handles


def write_plainly(axis: Axis) -> None:
    """Large numbers as 1.5M, so that the marks of an axis do not meet; others as they are."""
    if max(map(abs, axis.get_view_interval())) >= 1e4:
        axis.set_major_formatter(EngFormatter(sep=""))


def _finish(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    write_plainly(axes.yaxis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
