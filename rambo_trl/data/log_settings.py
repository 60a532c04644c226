"""What the columns of a log mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rambo_trl.data.columns import listed
from rambo_trl.data.log_files import check_names
from rambo_trl.data.log_steps import Side

__all__ = ["LogImport", "check_settings"]


@dataclass(frozen=True)
class LogImport:
    """What a log's columns mean, and how it is read.

    Args:
        observation: columns of the observation, in order.
        action: columns of the action, in order.
        reward: a column or a :class:`~rambo_trl.data.log_expression.LogExpression` in the row that
            a step starts from; ``next.`` asks for the row that it leads to.
        episode: column with the episodes' numbers or names; where None, episodes are cut at gaps.
        time: column with times; rows are taken in the file's order where None.
        terminal: a column of 0 and 1, or a comparison: the episode ended by itself.
        truncated: likewise: it was cut off, by the clock; the last row of each episode where None.
        action_in: the row of a step in which its action stands: the one that it starts from, where
            the action was then taken, or the one that it leads to.
        end_in: likewise of ``terminal`` and ``truncated``; None for ``"to"``, refused where the
            rows look like the other.
        max_gap: see :func:`~rambo_trl.data.log_rows.order_rows`.
        per_file: likewise.
        fill: over how many rows in turn a missing reading is the one before.
        missing: cells that stand for no reading, besides the usual ones.
        ranges: by column, (lowest, highest) possible reading; others are missing.
        action_low: bounds of the actions, one a column; the data's where None.
        action_high: likewise.
        keep_constant: keep observation columns that never change, as a simulator's always are.
        separator: of CSV files, found out where None, as the next three.
        decimal: point or comma.
        encoding: of text files.
        skip: lines before the one with the names.
        time_format: of dates, as ``strptime`` takes it.
    """

    observation: Sequence[str]
    action: Sequence[str]
    reward: str
    episode: str | None = None
    time: str | None = None
    terminal: str | None = None
    truncated: str | None = None
    action_in: Side = "from"
    end_in: Side | None = None
    max_gap: float | None = None
    per_file: bool = False
    fill: int = 0
    missing: Sequence[str] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    action_low: Sequence[float] | None = None
    action_high: Sequence[float] | None = None
    keep_constant: bool = False
    separator: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    skip: int = 0
    time_format: str | None = None


def check_settings(settings: LogImport, known: Sequence[str], where: str) -> None:
    """Refuse columns that are not there and options that do not fit each other.

    Args:
        settings: what is asked for.
        known: the names of the columns.
        where: the file's name.

    Raises:
        ValueError: naming the option and what to change.
    """
    for option in ("observation", "action"):
        names = getattr(settings, option)
        check_names(names, known, where, f"--{option}")
        twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
        if twice or not names:
            raise ValueError(f"--{option}: give each column once, got {listed(twice) or 'none'}")
    both = [name for name in settings.observation if name in settings.action]
    if both and settings.action_in == "from":
        raise ValueError(
            f"{listed(both)} is an observation and an action of the same row: the policy would be "
            "told what it is to choose. Take it out of --observation; or give --action-in to, if "
            "rows hold the action that led to them"
        )
    for option in ("episode", "time"):
        if (column := getattr(settings, option)) is not None:
            check_names([column], known, where, f"--{option}")
    used = [*settings.observation, *settings.action]
    check_names(list(settings.ranges), known, where, "--range")
    if unused := [column for column in settings.ranges if column not in used]:
        raise ValueError(f"--range: {listed(unused)} is no observation and no action")
    for option, column in (("max_gap", settings.max_gap), ("time_format", settings.time_format)):
        if column is not None and settings.time is None:
            raise ValueError(f"--{option.replace('_', '-')} needs --time, the column of the times")
    if settings.max_gap is not None and not settings.max_gap > 0:
        raise ValueError(f"--max-gap must be positive, got {settings.max_gap:g}")
    if settings.end_in is not None and settings.terminal is None and settings.truncated is None:
        raise ValueError("--end-in says where --terminal and --truncated stand: give one of them")
    for end in ("low", "high"):
        bounds = getattr(settings, f"action_{end}")
        if bounds is not None and len(bounds) != len(settings.action):
            raise ValueError(
                f"--action-{end} has {len(bounds)} numbers, and there are {len(settings.action)} "
                f"actions, {', '.join(settings.action)}"
            )
