"""How all figures look: one style, one legend, and names drawn as they stand."""

from __future__ import annotations

from contextlib import _GeneratorContextManager
from textwrap import fill
from typing import Any, Literal

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

__all__ = [
    "COLORS", "DASHED", "DASH_DOTTED", "DOTTED", "GREY", "add_legend", "eng_ticks", "literal",
    "plain_log_ticks", "styled",
]  # fmt: skip

#: Okabe and Ito's palette, told apart with every common colour blindness, with brown in place of
#: its yellow, which is faint on white
COLORS = BLUE, ORANGE, GREEN, PINK, AMBER, SKY, BLACK, BROWN = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#8C564B",
)  # fmt: skip
GREY = "#666666"
DASHED, DOTTED, DASH_DOTTED = (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2))

_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "grid.alpha": 0.3,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.title_fontsize": 9,
    "savefig.dpi": "figure",
}
_CHARACTERS_PER_INCH = 13  # of a legend's letters
_HANDLE = 10  # characters that a legend's line and the gap after it take


def styled(*, grid: Literal["x", "y", "both"] = "y") -> _GeneratorContextManager[None]:
    """The style of all figures, as a context manager or a decorator.

    Keyword Args:
        grid: axes that have grid lines.
    """
    return matplotlib.rc_context({**_STYLE, "axes.grid.axis": grid})


def literal(text: object) -> str:
    r"""A text that Matplotlib draws as it is: ``$`` would begin a formula, and fail on most names.

    Examples:
        >>> print(literal("runs/$x_^$"))
        runs/\$x_^\$
    """
    drawn = str(text).encode("utf-8", "replace").decode()  # no font has half a character
    return drawn.replace("$", r"\$")


def add_legend(figure: Figure, title: str | None = None, *, grow: bool = True) -> None:
    """One legend below the panels, with an entry for each label however many panels have it.

    Args:
        figure: with all of its panels drawn.
        title: what the marks mean.

    Keyword Args:
        grow: make the figure as much higher as the legend is, so that the panels keep their height.
    """
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    width, height = figure.get_size_inches()
    room = int(_CHARACTERS_PER_INCH * width)
    labels = [literal(fill(label, room - _HANDLE)) for label in handles]
    widest = max((len(line) for label in labels for line in label.splitlines()), default=0)
    legend = figure.legend(
        list(handles.values()),
        labels,
        loc="outside lower left",
        ncols=max(1, min(3, room // (widest + _HANDLE))),
        title=title,
        alignment="left",
    )
    if grow:
        figure.set_size_inches(width, height + legend.get_window_extent().height / figure.dpi)


def eng_ticks(axis: Axis, above: float = 1e4) -> None:
    """Write large numbers as 1.5M, so that tick labels do not overlap; others as they are."""
    if max(map(abs, axis.get_view_interval())) >= above:
        axis.set_major_formatter(EngFormatter(sep=""))


def plain_log_ticks(axis: Axis) -> None:
    """Mark 1, 2 and 5 of each power of ten on a logarithmic axis, in plain digits."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())
