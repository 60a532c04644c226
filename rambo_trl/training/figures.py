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

from rambo_trl.drawing import literal
from rambo_trl.places import expand_home

__all__ = ["plot_learning_curve", "smoothed"]

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
    y_label: str = "normalised score",
    x_label: str = "epoch",
    policy_label: str = "policy",
    num_final: int = 10,
    dpi: int = 130,
) -> Path:
    """Draw a run's evaluations against its data, and beneath them the critic's mean Q.

    Args:
        rows: the rows of ``metrics.csv``: ``epoch``, ``score`` (None where the policy was not
            evaluated), and, where they are there, ``score_std`` and ``mean_q``.
        path: the PNG to write.
        title: the figure's first line; the second says how the policy compares with its data.
        behaviour_mean: mean score of the data's whole episodes; None where there are none.
        behaviour_best: score of the data's best whole episode, if there is one.
        cloned: score of the behaviour-cloned policy, if there is one.
        y_label: what the score is.
        x_label: what an epoch is.
        policy_label: what to call the learnt policy.
        num_final: the final score is the mean of the last so many evaluations (10 in the paper,
            sec. 6), or of all where there are fewer; it is drawn as a bar across them.
        dpi: resolution; the figure is 8 x 5.6 inches.

    Returns:
        The path written.

    Raises:
        ValueError: if ``num_final`` is below 1.
    """
    if num_final < 1:
        raise ValueError(f"num_final must be at least 1, got {num_final}")
    epoch = _column(rows, "epoch")
    score = _column(rows, "score")
    evaluated = np.isfinite(score) & np.isfinite(epoch)
    x, y = epoch[evaluated], score[evaluated]

    figure = Figure(figsize=(8, 5.6), dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])

    labels = []
    if behaviour_mean is not None and behaviour_best is not None:
        top.axhspan(behaviour_mean, behaviour_best, color=_GREY, alpha=0.10, linewidth=0)
        top.axhline(behaviour_best, color=_GREY, linewidth=1.4, linestyle=(0, (2, 2)))
        top.axhline(behaviour_mean, color=_BLACK, linewidth=1.6, linestyle=(0, (6, 3)))
        labels += [
            _EdgeLabel(behaviour_best, f"data's best episode\n{behaviour_best:.1f}", _GREY),
            _EdgeLabel(behaviour_mean, f"data's mean\n{behaviour_mean:.1f}", _BLACK),
        ]
    if cloned is not None and np.isfinite(cloned):
        top.axhline(cloned, color=_VERMILION, linewidth=1.4, linestyle=(0, (6, 2, 1.5, 2)))
        labels.append(_EdgeLabel(cloned, f"behaviour cloning\n{cloned:.1f}", _VERMILION))
    verdict = "the policy was not evaluated"
    if len(y):
        num_final = min(num_final, len(y))
        final = float(y[-num_final:].mean())
        _draw_evaluations(top, x, y, _column(rows, "score_std")[evaluated])
        top.plot(x[[-num_final, -1]], [final, final], color=_BLUE, linewidth=4.5, zorder=4)
        labels.append(_EdgeLabel(final, f"{literal(policy_label)}\n{final:.1f}", _BLUE, bold=True))
        verdict = _describe(final, num_final, behaviour_mean, behaviour_best)
    _draw_mean_q(bottom, epoch, _column(rows, "mean_q"))

    known = epoch[np.isfinite(epoch)]
    first, last = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    pad = 0.02 * (last - first) or 0.5
    bottom.set_xlim(first - pad, last + pad)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, min_n_ticks=1))
    bottom.set_xlabel(x_label, size=11)
    top.set_ylabel(y_label, size=11)
    bottom.set_ylabel("mean Q", size=11)
    for axes in (top, bottom):
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
    _draw_edge_labels(top, labels, figure, canvas)

    path = expand_home(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


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
        return f"{what}: {final:.1f}; no episode of the data is whole"
    gap = final - behaviour_mean
    line = f"{what}: {final:.1f}, {abs(gap):.1f} {'above' if gap >= 0 else 'below'} the data's mean"
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


def _draw_mean_q(axes: Axes, epoch: np.ndarray, mean_q: np.ndarray) -> None:
    """Mean Q by epoch; the first epoch at which it is infinite is marked as divergence."""
    finite = np.isfinite(mean_q) & np.isfinite(epoch)
    if not finite.any():
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center")
        axes.set_yticks([])
        return
    style = "-" if finite.sum() > 1 else "o"
    axes.plot(epoch[finite], mean_q[finite], style, color=_PURPLE, linewidth=1.8)
    size = np.abs(mean_q[finite])
    if size.max() > 1e3 * (size.min() + 1):
        axes.set_yscale("symlog")
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1))
        decades = np.log10(size.max())
        axes.set_yticks([0, 10 ** (decades // 2), 10 ** (decades // 1)])
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    if size.max() >= 1e4:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    diverged = np.isinf(mean_q)
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
