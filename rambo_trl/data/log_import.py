"""From CSV and Parquet logs to a Minari data set, with an account of what was kept and why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torchrl.data import Bounded

from rambo_trl.data.checks import step_intervals
from rambo_trl.data.columns import listed
from rambo_trl.data.log_expression import LogExpression
from rambo_trl.data.log_files import (
    LogTable,
    find_logs,
    log_columns,
    read_logs,
)
from rambo_trl.data.log_report import FILLED, OUTSIDE, describe_import
from rambo_trl.data.log_rows import LogRows, order_rows
from rambo_trl.data.log_settings import LogImport, check_settings
from rambo_trl.data.log_steps import Steps, cut_steps
from rambo_trl.data.offline_dataset import OfflineDataset

__all__ = ["ImportedLog", "import_logs"]


@dataclass(frozen=True)
class ImportedLog:
    """Episodes of a log.

    Attributes:
        episodes: in Minari's layout, each with ``is_piece``.
        observation_names: of the entries.
        action_names: likewise.
        action_low: float64 [act], bounds of the actions.
        action_high: likewise.
        intervals: mean, std, min, median and max of the time that a step takes; empty without
            times.
        dataset: the same as a data set, whose checks have passed.
        report: an account in lines.
        settings: what the columns mean, by name.
    """

    episodes: list[dict[str, Any]]
    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: np.ndarray
    action_high: np.ndarray
    intervals: dict[str, float]
    remarks: tuple[str, ...]
    dataset: OfflineDataset
    report: str
    settings: dict[str, Any]


def import_logs(
    patterns: Sequence[str | os.PathLike[str]],
    settings: LogImport,
    *,
    name: str = "log",
    env_id: str | None = None,
) -> ImportedLog:
    """Read logs as episodes.

    Args:
        patterns: CSV and Parquet files, or patterns of their names.
        settings: what the columns mean.
        name: what messages call the data set.
        env_id: Gymnasium id of a simulator, if there is one.

    Raises:
        ValueError: naming the column or option, and what to change.
    """
    files = find_logs(patterns)
    reading = {key: getattr(settings, key) for key in ("separator", "encoding", "skip")}
    known = log_columns(files[0], **reading)
    check_settings(settings, known, str(files[0]))
    reward = LogExpression(settings.reward, known, "--reward")
    flags = {
        key: LogExpression(text, known, f"--{key}")
        for key in ("terminal", "truncated")
        if (text := getattr(settings, key)) is not None
    }
    asked = [column for each in (reward, *flags.values()) for column in each.columns]
    table = read_logs(
        files,
        [*settings.observation, *settings.action, *asked],
        [column for column in (settings.episode, settings.time) if column is not None],
        decimal=settings.decimal,
        missing=settings.missing,
        **reading,
    )
    if not len(table):
        raise ValueError(f"{listed([str(file) for file in files])}: there is no row")
    outside = _apply_ranges(table, settings)
    rows = order_rows(
        table,
        episode=settings.episode,
        time=settings.time,
        time_format=settings.time_format,
        per_file=settings.per_file,
        max_gap=settings.max_gap,
    )
    filled = _fill(rows, settings.fill)
    names, observations = _observations(rows, settings.observation)
    actions = _actions(rows, settings.action)
    follows = np.append(~rows.starts[1:], False)
    rewards = _rounded(reward(rows.columns, follows))
    ended = {key: _flag(each(rows.columns, follows), each) for key, each in flags.items()}
    if settings.end_in is None:
        _check_end_side(rows, ended, actions)
    if settings.action_in == "to":
        actions = np.append(actions[1:], np.full((1, actions.shape[1]), np.nan), axis=0)
        actions[~follows] = np.nan
    read = np.isfinite(observations).all(1)
    steps = cut_steps(
        rows.starts,
        rows.group,
        read=read,
        acted=np.isfinite(actions).all(1),
        rewarded=np.isfinite(rewards),
        terminal=ended.get("terminal", np.zeros(len(rows))),
        truncated=ended.get("truncated"),
        end_in=settings.end_in or "to",
        bounded=rows.bounded,
    )
    if not len(steps.rows):
        raise ValueError(_nothing_left(steps, rows, settings))
    used = np.zeros(len(rows), bool)
    used[steps.rows] = True
    used[(steps.rows + 1)[~steps.unknown_end]] = True
    kept, constant = _constant(
        names, observations[used], settings.keep_constant or env_id is not None
    )
    kept_actions, constant_actions = _constant(settings.action, actions[steps.rows], False)
    if not len(kept) or not len(kept_actions):
        raise ValueError(
            f"{' and '.join([*constant, *constant_actions])} in all rows: at least one observation "
            "and one action must change"
        )
    names = tuple(names[i] for i in kept)
    action_names = tuple(settings.action[i] for i in kept_actions)
    observations, actions = observations[:, kept], actions[:, kept_actions]
    low, high = _bounds(settings, kept_actions, actions[steps.rows], action_names)
    episodes = _episodes(steps, observations, actions, rewards)
    intervals: dict[str, float] = {}
    remarks: list[str] = []
    if rows.time is not None:
        # one step may be the last row's, without a next one
        after = np.minimum(steps.rows + 1, len(rows) - 1)
        seconds = rows.time[after] - rows.time[steps.rows]
        intervals, remarks = _intervals(seconds[follows[steps.rows]])
    # checked as any data set is
    dataset = OfflineDataset.from_episodes(
        episodes,
        action_spec=_spec(low, high),
        name=name,
        env_id=env_id,
        observation_names=names,
        action_names=action_names,
        step_intervals=intervals,
        remarks=remarks,
    )
    report = describe_import(
        table,
        rows,
        steps,
        dataset,
        {OUTSIDE: outside, FILLED: filled},
        [*constant, *constant_actions],
        np.column_stack([observations, actions]),
        used,
    )
    return ImportedLog(
        episodes,
        names,
        action_names,
        low,
        high,
        intervals,
        tuple(remarks),
        dataset,
        report,
        asdict(settings) | {"files": [str(file) for file in files]},
    )


def _apply_ranges(table: LogTable, settings: LogImport) -> dict[str, int]:
    """Make readings outside their range missing; return how many of each column."""
    counts = {}
    for name, (low, high) in settings.ranges.items():
        column = table.columns[name]
        if column.words is not None:
            raise ValueError(f"--range: column {name!r} is text ({', '.join(column.words)})")
        outside = (column.values < low) | (column.values > high)
        column.values[outside] = np.nan
        counts[name] = int(outside.sum())
    return counts


def _fill(rows: LogRows, limit: int) -> dict[str, int]:
    """Let missing readings be those before, in place; return how many of each column."""
    if limit <= 0:
        return {}
    index = np.arange(len(rows))
    begin = np.maximum.accumulate(np.where(rows.starts, index, 0))
    counts = {}
    for name, column in rows.columns.items():
        known = np.isfinite(column.values)
        source = np.maximum.accumulate(np.where(known, index, -1))
        fill = ~known & (source >= begin) & (index - source <= limit)
        column.values[fill] = column.values[source[fill]]
        counts[name] = int(fill.sum())
    return counts


def _observations(rows: LogRows, columns: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The observation entries: columns of numbers, and of text one for each word."""
    entries: dict[str, np.ndarray] = {}
    for name in columns:
        column = rows.columns[name]
        if column.words is None:
            entries[name] = column.values
            continue
        missing = np.isnan(column.values)
        # of two words one entry tells both; of one it is constant
        words = column.words[1:] if len(column.words) == 2 else column.words
        for word in words:
            is_word = (column.values == column.words.index(word)).astype(np.float64)
            entries[f"{name}={word}"] = np.where(missing, np.nan, is_word)
    return tuple(entries), np.stack(list(entries.values()), axis=1)


def _actions(rows: LogRows, columns: Sequence[str]) -> np.ndarray:
    for name in columns:
        if words := rows.columns[name].words:
            raise ValueError(
                f"--action: column {name!r} is text ({', '.join(words)}): actions must be numbers"
            )
    return np.stack([rows.columns[name].values for name in columns], axis=1)


def _rounded(rewards: np.ndarray) -> np.ndarray:
    """Take rounding errors out of computed values, so that equal rewards are equal."""
    largest = np.nanmax(np.abs(rewards), initial=0.0)
    return rewards if largest == 0 else np.round(rewards, 12 - int(np.ceil(np.log10(largest))))


def _flag(values: np.ndarray, expression: LogExpression) -> np.ndarray:
    """Check that flags are 0 or 1; where there is no 0, what is missing is 0."""
    wrong = np.unique(values[np.isfinite(values) & (values != 0) & (values != 1)])
    if len(wrong):
        some = listed([f"{value:g}" for value in wrong])
        raise ValueError(
            f"{expression.option}: {expression.text!r} must be 0 or 1, but holds {some} too: give "
            f"a comparison, such as {expression.text} > 0"
        )
    return values if (values == 0).any() else np.where(np.isnan(values), 0.0, values)


def _check_end_side(rows: LogRows, ended: Mapping[str, np.ndarray], actions: np.ndarray) -> None:
    """Refuse ends that are followed by one last row without an action, as in a learner's logs."""
    last = np.append(np.diff(rows.group) != 0, True)
    final = np.append(last[1:], False) & ~np.append(rows.starts[1:], True)
    bare = np.append(np.isnan(actions).any(1)[1:], False)
    flags = sum(np.nan_to_num(values) for values in ended.values()) > 0 if ended else None
    if flags is None or not flags.any():
        return
    if 2 * int((flags & final & bare).sum()) > int(flags.sum()):
        names = " and ".join(f"--{key}" for key in ended)
        raise ValueError(
            f"{names}: most of these rows are followed by one more row of the episode, without an "
            "action: give --end-in from if the flag stands in the row that the last step starts "
            "from, else --end-in to"
        )


def _nothing_left(steps: Steps, rows: LogRows, settings: LogImport) -> str:
    if not steps.possible:
        return (
            f"no row has a next one within its episode, of {len(rows)} rows: "
            + (f"the limit --max-gap is {rows.max_gap:g}; " if rows.max_gap is not None else "")
            + "is --episode the right column?"
        )
    names = dict.fromkeys([*settings.observation, *settings.action])
    empty = [name for name in names if np.isnan(rows.columns[name].values).all()]
    told = f"; {listed(empty)} has no reading at all" if empty else ""
    left = ", ".join(f"{count} {reason}" for reason, count in steps.lost.items())
    return f"no step is left of {steps.possible}: {left}{told}"


def _constant(names: Sequence[str], values: np.ndarray, keep: bool) -> tuple[list[int], list[str]]:
    """Places of the entries that change, or all, and sentences about the others."""
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    changing = [i for i in range(len(names)) if keep or low[i] < high[i]]
    still = [f"{names[i]} is {low[i]:g}" for i in range(len(names)) if i not in changing]
    return changing, still


def _bounds(
    settings: LogImport, kept: Sequence[int], actions: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The actions' bounds, given or those of the data."""
    low, high = actions.min(0), actions.max(0)
    given_low, given_high = settings.action_low, settings.action_high
    if given_low is not None:
        low = np.array([given_low[i] for i in kept], np.float64)
    if given_high is not None:
        high = np.array([given_high[i] for i in kept], np.float64)
    for i, name in enumerate(names):
        outside = int(((actions[:, i] < low[i]) | (actions[:, i] > high[i])).sum())
        if outside:
            raise ValueError(
                f"{outside} actions of {name} leave the bounds {low[i]:g} to {high[i]:g}, they "
                f"reach from {actions[:, i].min():g} to {actions[:, i].max():g}: give wider "
                f"--action-low and --action-high, or --range '{name}={low[i]:g}:{high[i]:g}' to "
                "leave these rows out"
            )
    return low, high


def _spec(low: np.ndarray, high: np.ndarray) -> Bounded:
    bounds = (torch.from_numpy(np.ascontiguousarray(bound)) for bound in (low, high))
    return Bounded(*bounds, shape=low.shape, dtype=torch.float64)


def _episodes(
    steps: Steps, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray
) -> list[dict[str, Any]]:
    """Lay the steps out as Minari has episodes."""
    episodes = []
    ends = np.append(steps.first[1:], len(steps.rows))
    for begin, end, whole in zip(steps.first, ends, steps.whole, strict=True):
        rows = steps.rows[begin:end]
        if steps.unknown_end[end - 1]:
            final = np.full((1, observations.shape[1]), np.nan)
        else:
            final = observations[rows[-1] + 1][None]
        episodes.append(
            {
                "observations": np.concatenate([observations[rows], final]),
                "actions": actions[rows],
                "rewards": rewards[rows],
                "terminations": steps.terminated[begin:end],
                "truncations": steps.truncated[begin:end],
                "is_piece": not whole,
            }
        )
    return episodes


def _intervals(seconds: np.ndarray) -> tuple[dict[str, float], list[str]]:
    """Measure how long steps take."""
    times = np.stack([np.zeros_like(seconds), seconds], axis=1).ravel()
    return step_intervals(times, np.arange(len(times)) % 2 == 1, "log")
