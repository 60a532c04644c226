"""Figures over many runs: scores, learning curves, what critics believe beside what is achieved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import cycle, product
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rambo_trl.experiment.learning_curve import smoothed
from rambo_trl.reporting.runs import Configuration, Record
from rambo_trl.reporting.tables import RETURN_KEYS, SCORE_KEYS, formatter
from rambo_trl.runtime import drawing

#: points and values of each run
Curves = Sequence[tuple[Sequence[float], Sequence[float]]]
#: a configuration and how its lines are drawn
Member = tuple[Configuration, dict[str, Any]]
#: draws configurations of a data set, smoothed or not, into a panel; returns the panel's title, or
#: None where there was nothing to draw
Drawer = Callable[[Axes, Sequence[Member], bool], str | None]

_CROWD = 4  # as many configurations of a data set can be told apart with all their runs
_ROW, _LINE, _AROUND = 0.34, 0.15, 1.15  # inches of a row, of each further line, around them
_WIDEST = 36  # characters of a label's line


def achieved(run: Record) -> tuple[list[float], list[float]]:
    """A run's evaluations by updates: scores, or returns where there are none.

    Of a run that diverged the scores continue as the 0 that it is scored; its returns end there.
    """
    x, y = run.series("score")
    if not run.scored:
        x, y = run.series("return_mean")
    if run.diverged:
        at = diverged_at(run)
        end = run.updates_per_epoch * float(run.settings.get("epochs") or run.results["epochs"])
        kept = [(a, b) for a, b in zip(x, y, strict=True) if a < at]
        if run.scored:
            kept += [(at, 0.0), (end, 0.0)] if end > at else [(at, 0.0)]
        x, y = [a for a, _ in kept], [b for _, b in kept]
    return x, y


def diverged_at(run: Record) -> float:
    """The update at which a run was seen to have diverged."""
    divergence = run.results.get("divergence") or {}
    return run.updates_per_epoch * float(divergence.get("epoch") or run.results["epochs"])


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


def draw_learning_curves(configurations: Sequence[Configuration], path: Path) -> bool:
    """One panel a data set: each configuration's mean over seeds, a deviation to both sides.

    Where one has more than four configurations, smoothed means alone can be told apart. Data sets
    without an evaluation are left out.

    Args:
        configurations: those of the report.
        path: the PNG to write.

    Returns:
        Whether there was anything to draw; without there is no file.
    """
    datasets = {c.dataset for c in configurations if any(map(_is_evaluated, c.runs))}
    return _draw(configurations, sorted(datasets), [_draw_scores_and_data], path)


def draw_q_and_return(configurations: Sequence[Configuration], path: Path) -> bool:
    """One column a data set: above what the policies achieve, below what their critics believe.

    Where nothing was evaluated, the values that the critics give the start states stand above,
    beside the discounted returns of the logged episodes. Data sets of which no run has critics are
    left out.

    Args:
        configurations: those of the report.
        path: the PNG to write.

    Returns:
        Whether there was anything to draw; without there is no file.
    """
    datasets = {c.dataset for c in configurations for run in c.runs if run.series("mean_q")[0]}
    return _draw(configurations, sorted(datasets), [_draw_result, _draw_mean_q], path)


@drawing.styled()
def _draw(
    configurations: Sequence[Configuration],
    datasets: Sequence[str],
    drawers: Sequence[Drawer],
    path: Path,
) -> bool:
    """Columns of panels, one a data set with a panel for each drawer, at most three abreast."""
    if not datasets:
        return False
    rows, width = len(drawers), min(len(datasets), 3)
    blocks = -(-len(datasets) // width)
    figure = Figure(figsize=(max(7.2, 5.6 * width), (1.0 + 3.2 * rows) * blocks))
    grid = figure.subplots(rows * blocks, width, squeeze=False)
    columns = grid.reshape(blocks, rows, width).swapaxes(1, 2).reshape(-1, rows)
    styles = styles_of(configurations)
    crowded = max(Counter(c.dataset for c in configurations).values()) > _CROWD
    crossed = False
    for dataset, column in zip(datasets, columns, strict=False):
        members = [(c, styles[c.name]) for c in configurations if c.dataset == dataset]
        for axes, draw in zip(column, drawers, strict=True):
            if axes is not column[-1]:
                axes.sharex(column[-1])
            title = draw(axes, members, crowded)
            if title is None:
                axes.remove()
                continue
            axes.set_title(drawing.literal(f"{dataset}{title}"))
            crossed |= any(line.get_marker() == "X" for line in axes.lines)
            drawing.eng_ticks(axes.xaxis, above=0)
            drawing.eng_ticks(axes.yaxis)
        column[-1].set_xlim(left=0)
        column[-1].set_xlabel("agent updates")
    for axes in columns[len(datasets) :].flat:
        axes.remove()
    note = "line and band: mean and standard deviation over seeds; thin: each run"
    note = "line: mean over seeds, smoothed" if crowded else note
    drawing.add_legend(figure, f"{note}; X: diverged" if crossed else note)
    figure.savefig(path)
    return True


def _is_evaluated(run: Record) -> bool:
    return bool(achieved(run)[0])


def styles_of(configurations: Sequence[Configuration]) -> dict[str, dict[str, Any]]:
    """Label, colour and line of each configuration by its name, the same in every panel."""
    looks = cycle(product(("-", (0, (5, 2)), (0, (1, 1.2))), drawing.COLORS))
    return {
        name: {"label": name, "color": color, "linestyle": style}
        for name, (style, color) in zip(
            dict.fromkeys(c.name for c in configurations), looks, strict=False
        )
    }


def _draw_achieved(axes: Axes, members: Sequence[Member], crowded: bool) -> str:
    for configuration, style in members:
        _draw_mean(axes, [achieved(run) for run in configuration.runs], style, crowded)
        for run in filter(lambda run: run.diverged, configuration.runs):
            # without a score there is no height to put it at: the panel's lower edge
            axes.plot(
                diverged_at(run), 0.0, "X", color=style["color"], markersize=9, zorder=5,
                transform=axes.transData if run.scored else axes.get_xaxis_transform(),
                clip_on=run.scored,
            )  # fmt: skip
    axes.set_ylabel("normalised score" if any(c.scored for c, _ in members) else "return")
    return ": achieved"


def _draw_scores_and_data(axes: Axes, members: Sequence[Member], crowded: bool) -> str:
    _draw_achieved(axes, members, crowded)
    draw_data(axes.axhline, [c for c, _ in members])
    return ""


def _draw_result(axes: Axes, members: Sequence[Member], crowded: bool) -> str | None:
    """What the policies achieve or, not evaluated, what the critics expect of the start states."""
    runs = [run for c, _ in members for run in c.runs]
    if any(map(_is_evaluated, runs)):
        return _draw_achieved(axes, members, crowded)
    if not any(run.series("start_value")[0] for run in runs):
        return None
    for configuration, style in members:
        curves = [run.series("start_value") for run in configuration.runs]
        if any(points for points, _ in curves):  # cloning has no critics
            _draw_mean(axes, curves, style, crowded)
    sanity = [run.results.get("sanity") or {} for run in runs]
    logged: dict[str, float] = next(
        filter(None, (known.get("logged_discounted_return") for known in sanity)), {}
    )
    for key, line in (("best", drawing.DOTTED), ("mean", drawing.DASHED)):
        draw_reference(axes.axhline, logged.get(key), line, f"{key} logged episode, discounted")
    axes.set_ylabel("value at the start")
    return ": expected, not evaluated"


def _draw_mean(axes: Axes, curves: Curves, style: dict[str, Any], crowded: bool) -> None:
    """The mean over seeds: smoothed, or with a deviation to both sides and each run."""
    points, mean, std = mean_curve(curves)
    if crowded and len(points) > 2:
        points, mean = smoothed(points, mean, 0.05)  # over a twentieth of the range
    elif not crowded:
        color = style["color"]
        axes.fill_between(points, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
        for x, y in curves if len(curves) > 1 else ():
            axes.plot(x, y, color=color, alpha=0.35, linewidth=0.8)
    axes.plot(points, mean, **style, linewidth=2.4, marker="o" if len(points) == 1 else None)


def draw_data(line: Callable[..., Any], configurations: Sequence[Configuration]) -> None:
    """The data's best and mean episode, and its cloned policy, as lines.

    Args:
        line: ``axhline`` or ``axvline`` of the panel.
        configurations: the data set's.
    """
    runs = [run for c in configurations for run in c.runs]
    mean, best, cloned = SCORE_KEYS if any(run.scored for run in runs) else RETURN_KEYS
    for key, style, label in (
        (best, drawing.DOTTED, "data's best episode"),
        (mean, drawing.DASHED, "data's mean episode"),
        (cloned, drawing.DASH_DOTTED, "behaviour cloning alone"),
    ):
        values = [run.results[key] for run in runs if run.results.get(key) is not None]
        draw_reference(line, float(np.mean(values)) if values else None, style, label)


def draw_reference(
    line: Callable[..., Any], value: float | None, style: Any, label: str | None
) -> None:
    """A grey line at a value, if there is one."""
    if value is not None:
        line(value, color=drawing.GREY, linestyle=style, linewidth=1.3, label=label, zorder=1)


def _draw_mean_q(axes: Axes, members: Sequence[Member], crowded: bool) -> str:
    """Mean Q; runs that diverged are thin lines, outside of the means, that leave the panel."""
    known: list[float] = []
    bounds: set[float] = set()
    for configuration, style in members:
        curves, has_critics = [], False
        for run in configuration.runs:
            x, y = run.series("mean_q")
            if not x:
                continue
            has_critics = True
            if run.results.get("q_bound"):
                bounds.add(run.results["q_bound"])
            if run.diverged:
                axes.plot(x, y, color=style["color"], linewidth=1.2, alpha=0.7)
            else:
                curves.append((x, y))
                known += y
        if has_critics:
            _draw_mean(axes, curves, style, crowded)
    axes.set_ylabel("mean Q in training")
    if known:
        low, high = min(0.0, *known), max(0.0, *known)
        room = 0.15 * (high - low) or 1.0
        axes.set_ylim(low - room if low < 0 else -0.3 * room, high + 2 * room)
        # methods with bounds of their own have no line in common
        for bound in bounds if len(bounds) == 1 else ():
            label = "mean Q at which a run counts as diverged"
            visible = bound < high + 2 * room
            draw_reference(axes.axhline, bound, drawing.DOTTED, label if visible else None)
    return ": believed by the critics"


@drawing.styled(grid="x")
def draw_scores(configurations: Sequence[Configuration], path: Path) -> bool:
    """One panel a data set, the best configuration first: its mean, and each seed as a dot.

    A mean score is a bar from 0, which is a random policy's. A return of 0 means nothing: the mean
    is a mark there.

    Args:
        configurations: those of the report.
        path: the PNG to write.

    Returns:
        Whether there was anything to draw; without there is no file.
    """
    datasets = sorted({c.dataset for c in configurations if c.values})
    if not datasets:
        return False
    groups = [[c for c in configurations if c.dataset == dataset] for dataset in datasets]
    heights = [sum(map(_row_height, group)) + _AROUND for group in groups]
    figure = Figure(figsize=(7.6, sum(heights)))
    panels = figure.subplots(len(datasets), 1, squeeze=False, height_ratios=heights)[:, 0]
    colors = {name: style["color"] for name, style in styles_of(configurations).items()}
    for axes, dataset, group in zip(panels, datasets, groups, strict=True):
        _draw_panel(axes, group, colors)
        axes.set_title(drawing.literal(dataset))
    drawn = [c for group in groups for c in group]
    marks = {c.scored: "bar" if c.scored else "upright line" for c in drawn}
    title = f"{' or '.join(sorted(marks.values()))}: mean over seeds; dot: a run"
    if any(run.diverged and run.scored for c in drawn for run in c.runs):
        title += "; X: diverged"
    drawing.add_legend(figure, title)
    figure.savefig(path)
    return True


def _label(configuration: Configuration) -> str:
    return drawing.literal(fill(configuration.name, _WIDEST))


def _row_height(configuration: Configuration) -> float:
    """Room for the label, in inches."""
    return _ROW + _LINE * _label(configuration).count("\n")


def _mean(configuration: Configuration) -> float:
    return float(np.mean(configuration.values)) if configuration.values else -np.inf


def _draw_panel(axes: Axes, members: Sequence[Configuration], colors: dict[str, str]) -> None:
    ranked = sorted(members, key=_mean, reverse=True)
    scored = any(c.scored for c in ranked)
    edges = np.cumsum([0.0, *map(_row_height, ranked)])
    rows, half = (edges[:-1] + edges[1:]) / 2, 0.31 * _ROW
    for row, configuration in zip(rows, ranked, strict=True):
        color, mean = colors[configuration.name], _mean(configuration)
        text = formatter(configuration)(mean) if configuration.values else "no value"
        if configuration.values and scored:
            axes.barh(row, mean, height=2 * half, color=color, alpha=0.35, linewidth=0)
        elif configuration.values:
            axes.plot([mean] * 2, [row - half, row + half], color=color, linewidth=4, alpha=0.6)
        for value, run in zip(configuration.by_run, configuration.runs, strict=True):
            if value is not None:
                marker = "X" if run.diverged else "o"
                axes.plot(value, row, marker, color=color, markersize=6, zorder=4)
        count, diverged = len(configuration.runs), sum(run.diverged for run in configuration.runs)
        text += f"   {count} seed{'s' if count > 1 else ''}, "
        text += f"{diverged} diverged, " if diverged else ""
        text += f"{configuration.epochs} epochs"
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    draw_data(axes.axvline, members)
    axes.set_yticks(rows, [_label(c) for c in ranked], fontsize=9)
    axes.set_ylim(edges[-1], 0)
    axes.set_xlabel("normalised score" if scored else "return")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    drawing.eng_ticks(axes.xaxis)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
