"""Figures of a run, drawn from its metrics without a display."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, MaxNLocator, SymmetricalLogLocator

from rambo_trl.runtime.drawing import literal
from rambo_trl.runtime.places import expand_home

__all__ = ["format_value", "plot_learning_curve", "smoothed"]

# Okabe and Ito's palette, told apart with every common colour blindness.
_BLUE = "#0072B2"
_VERMILION = "#D55E00"
_PURPLE = "#AA4499"
_BLACK = "#222222"
_GREY = "#666666"

_LEADER_INCHES = 0.28  # from an axes' right edge to the label that belongs to it
_LABEL_GAP = 1.12  # least distance of two labels' centres, in heights of a label


@dataclass(frozen=True)
class _EdgeLabel:
    """A label beside the right edge of an axes, tied to a height on the y axis."""

    y: float
    text: str
    color: str
    bold: bool = False


def plot_learning_curve(
    rows: Sequence[Mapping[str, float | int | None]],
    path: str | os.PathLike[str],
    *,
    title: str,
    behaviour_mean: float | None,
    behaviour_best: float | None,
    cloned: float | None = None,
    logged_mean: float | None = None,
    logged_best: float | None = None,
    y_label: str = "normalised score",
    x_label: str = "epoch",
    policy_label: str = "policy",
    num_final: int = 10,
    dpi: int = 130,
) -> Path | None:
    """Draw a run's evaluations against its data, and beneath them the critic's mean Q.

    Of a run that was never evaluated it shows what there is: the value that the critics give the
    start states against the logged discounted returns, mean Q, and the model's error.

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
        x_label: what an epoch is.
        policy_label: what to call the learnt policy.
        num_final: the final score is the mean of the last so many evaluations (10 in the paper,
            sec. 6), or of all where there are fewer; it is drawn as a bar across them.
        dpi: resolution; the figure is 8 x 5.6 inches.

    Returns:
        The path written; None, and no file, where the rows hold nothing to draw.

    Raises:
        ValueError: if ``num_final`` is below 1.
    """
    if num_final < 1:
        raise ValueError(f"num_final must be at least 1, got {num_final}")
    epoch = _column(rows, "epoch")
    main = next((key for key in ("score", "start_value") if _has_values(rows, key)), None)
    small = ("mean_q",) if main == "score" else ("mean_q", "model_error")
    keys = [*([main] if main else ()), *(key for key in small if _has_values(rows, key))]
    if not keys:
        return None
    figure = Figure(figsize=(8, 5.6), dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    ratios = [3.2 if key == main else 1.0 for key in keys]
    subplots = figure.subplots(len(keys), 1, sharex=True, height_ratios=ratios, squeeze=False)
    panels = dict(zip(keys, subplots[:, 0], strict=True))

    labels: list[_EdgeLabel] = []
    verdict = "the policy was not evaluated"
    if main == "score":
        if behaviour_mean is not None and behaviour_best is not None:
            references = ("data's mean", behaviour_mean), ("data's best episode", behaviour_best)
            labels += _draw_references(panels[main], *references)
        if cloned is not None and np.isfinite(cloned):
            style = (0, (6, 2, 1.5, 2))
            panels[main].axhline(cloned, color=_VERMILION, linewidth=1.4, linestyle=style)
            name = f"behaviour cloning\n{format_value(cloned)}"
            labels.append(_EdgeLabel(cloned, name, _VERMILION))
        score = _column(rows, "score")
        evaluated = np.isfinite(score) & np.isfinite(epoch)
        x, y = epoch[evaluated], score[evaluated]
        num_final = min(num_final, len(y))
        final = float(y[-num_final:].mean())
        _draw_evaluations(panels[main], x, y, _column(rows, "score_std")[evaluated])
        panels[main].plot(x[[-num_final, -1]], [final, final], color=_BLUE, linewidth=4.5, zorder=4)
        name = f"{literal(policy_label)}\n{format_value(final)}"
        labels.append(_EdgeLabel(final, name, _BLUE, bold=True))
        verdict = _describe(final, num_final, behaviour_mean, behaviour_best)
        panels[main].set_ylabel(y_label, size=11)
    elif main == "start_value":
        if logged_mean is not None and logged_best is not None:
            references = ("logged mean", logged_mean), ("best logged\nepisode", logged_best)
            labels += _draw_references(panels[main], *references)
            verdict += ": what it expects, beside the logged episodes (discounted returns)"
        value = _column(rows, "start_value")
        _draw_series(panels[main], epoch, value, color=_BLUE)
        final = float(value[np.isfinite(value)][-1])
        name = f"expected by\nthe agent\n{format_value(final)}"
        labels.append(_EdgeLabel(final, name, _BLUE, bold=True))
        panels[main].set_ylabel("value at the start", size=11)
    for key, color, name in (("mean_q", _PURPLE, "mean Q"), ("model_error", _GREY, "model error")):
        if key in panels:
            _draw_series(panels[key], epoch, _column(rows, key), color=color)
            panels[key].set_ylabel(name, size=11)

    known = epoch[np.isfinite(epoch)]
    first, last = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    pad = 0.02 * (last - first) or 0.5
    bottom = panels[keys[-1]]
    bottom.set_xlim(first - pad, last + pad)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))
    bottom.set_xlabel(x_label, size=11)
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=_GREY, alpha=0.18, linewidth=0.8)
        axes.tick_params(labelsize=10)
        axes.yaxis.set_label_coords(-0.12, 0.5)

    figure.subplots_adjust(left=0.125, right=0.8, top=0.87, bottom=0.095, hspace=0.1)
    left = figure.subplotpars.left
    heading = figure.text(left, 0.945, literal(title), size=13, weight="bold", color=_BLACK)
    subtitle = figure.text(left, 0.898, verdict, size=10.5, color=_GREY)
    for text in (heading, subtitle):
        _shrink_to_fit(text, figure, canvas)
    if main is not None:
        _draw_edge_labels(panels[main], labels, figure, canvas)

    path = expand_home(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def format_value(value: float, decimals: int = 1) -> str:
    """A number in units that nobody knows beforehand, short: ``-1238.2``, ``0.0004213``."""
    return f"{value:.{decimals}f}" if value == 0 or 1 <= abs(value) < 1e6 else f"{value:.4g}"


def _has_values(rows: Sequence[Mapping[str, float | int | None]], key: str) -> bool:
    return bool((np.isfinite(_column(rows, key)) & np.isfinite(_column(rows, "epoch"))).any())


def _draw_references(
    axes: Axes, mean: tuple[str, float], best: tuple[str, float]
) -> list[_EdgeLabel]:
    """The data's mean and best as lines, the range between them shaded; the labels for them."""
    axes.axhspan(mean[1], best[1], color=_GREY, alpha=0.10, linewidth=0)
    axes.axhline(best[1], color=_GREY, linewidth=1.4, linestyle=(0, (2, 2)))
    axes.axhline(mean[1], color=_BLACK, linewidth=1.6, linestyle=(0, (6, 3)))
    return [
        _EdgeLabel(value, f"{name}\n{format_value(value)}", color)
        for (name, value), color in ((best, _GREY), (mean, _BLACK))
    ]


def _column(rows: Sequence[Mapping[str, float | int | None]], key: str) -> np.ndarray:
    """A column as floats [rows]; NaN where a row has none."""
    values = [row.get(key) for row in rows]
    return np.array([np.nan if value is None else float(value) for value in values], dtype=float)


def _describe(
    final: float, num_final: int, behaviour_mean: float | None, behaviour_best: float | None
) -> str:
    """One line: how the final score stands to the data's."""
    what = "last evaluation" if num_final == 1 else f"mean of the last {num_final} evaluations"
    if behaviour_mean is None or behaviour_best is None:
        return f"{what}: {format_value(final)}; no episode of the data is whole"
    gap = final - behaviour_mean
    line = f"{what}: {format_value(final)}, {format_value(abs(gap))} "
    line += f"{'above' if gap >= 0 else 'below'} the data's mean"
    return f"{line} and above its best episode" if final > behaviour_best else line


def _draw_evaluations(axes: Axes, x: np.ndarray, y: np.ndarray, spread: np.ndarray) -> None:
    """Every evaluation as a point, its spread as a band, and a smoothed line through them."""
    if np.isfinite(spread).any():
        half = np.nan_to_num(spread)
        axes.fill_between(x, y - half, y + half, color=_BLUE, alpha=0.15, linewidth=0)
    axes.plot(x, y, "o", color=_BLUE, markersize=4.5, alpha=0.5, markeredgewidth=0)
    if len(x) > 2:
        axes.plot(*smoothed(x, y, 0.03), color=_BLUE, linewidth=2)


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


def _draw_series(axes: Axes, epoch: np.ndarray, values: np.ndarray, *, color: str) -> None:
    """Values by epoch; the first epoch at which one is infinite is marked as divergence."""
    finite = np.isfinite(values) & np.isfinite(epoch)
    style = "-" if finite.sum() > 1 else "o"
    axes.plot(epoch[finite], values[finite], style, color=color, linewidth=1.8)
    size = np.abs(values[finite])
    if size.max() > 1e3 * (size.min() + 1):
        axes.set_yscale("symlog")
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1))
        decades = np.log10(size.max())
        ticks = np.array([10 ** (decades // 2), 10 ** (decades // 1)])
        signs = [s for s in (-1, 1) if (s * values[finite]).max() > 1]
        axes.set_yticks([0, *(s * tick for s in signs for tick in ticks)])
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    if size.max() >= 1e4:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    diverged = np.isinf(values)
    if diverged.any():
        first = epoch[diverged][0]
        axes.axvline(first, color=_VERMILION, linewidth=1.6)
        axes.annotate(
            "not finite",
            xy=(first, 0.08),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-4, 0),
            textcoords="offset points",
            color=_VERMILION,
            size=10,
            ha="right",
        )


def _shrink_to_fit(text: Text, figure: Figure, canvas: FigureCanvasAgg) -> None:
    """Reduce a text's size until it ends inside the figure."""
    extent = text.get_window_extent(canvas.get_renderer())
    room = figure.bbox.width * 0.985 - extent.x0
    if extent.width > room:
        text.set_fontsize(text.get_fontsize() * room / extent.width)


def _draw_edge_labels(
    axes: Axes, labels: Sequence[_EdgeLabel], figure: Figure, canvas: FigureCanvasAgg
) -> None:
    """Write the labels beside the right edge, each at its height, moved apart where they meet.

    The subplots' right margin is set to what the labels need.
    """
    if not labels:
        return
    renderer = canvas.get_renderer()
    axes.set_ylim(axes.get_ylim())  # from here on nothing may rescale the axes
    ordered = sorted(labels, key=lambda label: label.y)
    texts = [
        axes.text(
            1.0,
            0.5,
            label.text,
            color=label.color,
            size=10,
            weight="bold" if label.bold else "normal",
            linespacing=1.05,
            va="center",
            transform=axes.transAxes,
        )
        for label in ordered
    ]
    extents = [text.get_window_extent(renderer) for text in texts]
    leader = _LEADER_INCHES * figure.dpi
    margin = leader + 1.1 * max(extent.width for extent in extents)
    figure.subplots_adjust(right=1 - margin / figure.bbox.width)

    box = axes.get_window_extent(renderer)
    wanted = np.array([axes.transData.transform((0, label.y))[1] for label in ordered])
    gap = _LABEL_GAP * max(extent.height for extent in extents)
    placed = (_move_apart(wanted, gap, box.y0, box.y1) - box.y0) / box.height
    end = 1 + leader / box.width
    for text, label, at, height in zip(
        texts, ordered, placed, (wanted - box.y0) / box.height, strict=True
    ):
        text.set_position((end + 0.15 * (end - 1), at))
        axes.plot(
            [1.0, end],
            [height, at],
            color=label.color,
            linewidth=0.9,
            clip_on=False,
            transform=axes.transAxes,
        )


def _move_apart(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Positions near the wanted ones with at least a gap between neighbours.

    Args:
        wanted: ascending positions, [n].
        gap: least distance of neighbours; reduced where the room is too small for it.
        low: lower end of the room.
        high: upper end of the room.

    Returns:
        Ascending positions, [n], within the room. Neighbours that meet form a group that is
        evenly spaced around the mean of what they wanted.
    """
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    groups: list[tuple[float, int]] = []  # sum of the wanted positions, number of members

    def centre(group: tuple[float, int]) -> float:
        half = (group[1] - 1) * gap / 2
        return min(max(group[0] / group[1], low + half), high - half)

    for position in wanted:
        group = (float(position), 1)
        while groups and centre(group) - centre(groups[-1]) < gap * (group[1] + groups[-1][1]) / 2:
            before = groups.pop()
            group = (before[0] + group[0], before[1] + group[1])
        groups.append(group)
    return np.concatenate(
        [centre(group) + gap * (np.arange(group[1]) - (group[1] - 1) / 2) for group in groups]
    )
