"""What the import of a log kept and left out, and why."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rambo_trl.data.columns import listed, told_apart
from rambo_trl.data.log_files import LogTable
from rambo_trl.data.log_rows import LogRows
from rambo_trl.data.log_steps import Steps
from rambo_trl.data.offline_dataset import OfflineDataset

__all__ = ["FILLED", "OUTSIDE", "describe_import"]

#: keys of what was done to readings
OUTSIDE, FILLED = "outside their --range", "filled by the reading before"
_WIDTH, _LABEL = 88, 13
#: so many times the range of the middle 98 % beyond it is far
_FAR = 5.0


def describe_import(
    table: LogTable,
    rows: LogRows,
    steps: Steps,
    dataset: OfflineDataset,
    changed: Mapping[str, Mapping[str, int]],
    constant: Sequence[str],
    values: np.ndarray,
    used: np.ndarray,
) -> str:
    """Tell what became of a log's rows, in lines of at most 88 characters.

    Args:
        table: the log as it was read.
        rows: its rows in order.
        steps: what was kept of them.
        dataset: the result.
        changed: what was done to readings, with their number by column.
        constant: sentences about columns that were left out because they never change.
        values: [N, entries], observations and actions of the rows.
        used: bool [N], rows that are part of steps.
    """
    lines: list[str] = []

    def tell(label: str, text: str) -> None:
        lines.extend(
            textwrap.wrap(
                text,
                _WIDTH,
                initial_indent=f"{label:<{_LABEL}}",
                subsequent_indent=" " * _LABEL,
                break_on_hyphens=False,
            )
        )

    layout = f", {'; '.join(table.notes)}" if table.notes else ""
    count = len(table.files)
    files = str(table.files[0]) if count == 1 else f"{count} files"
    tell("log", f"{files}, {len(table):,} rows{layout}")
    for reason, number in rows.left_out.items():
        tell("", f"left out: {number:,} {reason}")
    for note in rows.notes:
        tell("", note)
    for what, counts in changed.items():
        told = [f"{n:,} of {name}" for name, n in counts.items() if n]
        if told:
            tell("readings", f"{what}: {listed(told)}")
    for name, column in table.columns.items():
        if column.unreadable:
            cells = [f"{cell!r} ({n:,})" for cell, n in column.unreadable.items()]
            tell("readings", f"no numbers in {name}, taken as missing: {listed(cells)}")
    missing = {name: int(np.isnan(column.values).sum()) for name, column in rows.columns.items()}
    told = [f"{n:,} of {name}" for name, n in missing.items() if n]
    if told:
        hint = "" if changed.get(FILLED) else "; --fill N takes the reading before, for N rows"
        tell("readings", f"missing: {listed(told)}{hint}")
    _tell_steps(tell, rows, steps)
    whole = int(steps.whole.sum())
    ended = int(steps.terminated.sum())
    pieces = len(steps.first) - whole
    tell(
        "episodes",
        f"{whole:,} whole, {pieces:,} cut pieces; {ended:,} end by themselves",
    )
    if steps.lost_ends:
        tell("", f"{steps.lost_ends:,} ends are lost, because no step leads to them")
    if steps.unknown_end.any():
        tell(
            "",
            f"{int(steps.unknown_end.sum()):,} ends are known without what was observed then",
        )
    if not rows.bounded and pieces:
        tell(
            "",
            "without --episode the beginnings and ends of the log and of gaps are not those of "
            "episodes",
        )
    if dataset.step_intervals:
        low, middle, high = (dataset.step_intervals[k] for k in ("min", "median", "max"))
        tell("interval", f"{middle:g} s, from {low:g} to {high:g}")
    if constant:
        tell("left out", f"{listed(constant)} in all rows: --keep-constant keeps observations")
    lines += ["", *_entries(dataset, steps, values, used), ""]
    returns = dataset.behaviour_returns
    if len(returns):
        numbers = told_apart(returns.min(), returns.mean(), returns.max(), digits=5)
        tell("return", "{} lowest, {} mean, {} highest".format(*numbers))
    for warning in dataset.data_warnings:
        tell("warning", f"{warning} (recipes ask for odd_data=accept)")
    for remark in dataset.remarks:
        # of cut pieces more is told above
        if remark not in dataset.data_warnings and "are cut pieces" not in remark:
            tell("note", remark)
    return "\n".join(lines).rstrip()


def _tell_steps(tell: Callable[[str, str], None], rows: LogRows, steps: Steps) -> None:
    tell("steps", f"{len(steps.rows):,} of {steps.possible:,}, from each row to its next one")
    for reason, number in steps.lost.items():
        tell("", f"left out: {number:,} {reason}")
    if rows.gaps:
        tell("", f"episodes are cut at {rows.gaps:,} gaps of more than {rows.max_gap:g} s")


def _entries(
    dataset: OfflineDataset, steps: Steps, values: np.ndarray, used: np.ndarray
) -> list[str]:
    """A line for each entry: its range, and values far from the rest."""
    names = (*dataset.observation_names, *dataset.action_names, "reward")
    reward = dataset.transitions["next", "reward"].flatten().double().numpy()
    width = max(12, *map(len, names))
    lines = [f"{'':{width}} {'lowest':>12} {'median':>12} {'highest':>12}"]
    size = dataset.observation_size
    for i, name in enumerate(names):
        kind = "action" if size <= i < values.shape[1] else ""
        column = values[steps.rows if kind else used, i] if i < values.shape[1] else reward
        column = column[np.isfinite(column)]
        low, middle, high = column.min(), np.median(column), column.max()
        lines.append(f"{name:{width}} {low:>12.6g} {middle:>12.6g} {high:>12.6g}  {kind}".rstrip())
        if far := _far(column):
            indent = " " * _LABEL
            lines += textwrap.wrap(far, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return lines


def _far(column: np.ndarray) -> str:
    """Tell of values far from the rest."""
    low, high = np.quantile(column, (0.01, 0.99))
    room = _FAR * (high - low)
    far = column[(column < low - room) | (column > high + room)] if room > 0 else column[:0]
    if not len(far):
        return ""
    some = listed([f"{value:g}" for value in np.unique(far)])
    return (
        f"{len(far):,} far from the rest: {some}; if these are errors, leave them out with --range "
        "or --missing"
    )
