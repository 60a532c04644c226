"""Flat transitions: one layout, checked values, statistics, and some of many rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey

from rambo_trl.data.columns import listed, where_missing
from rambo_trl.data.scaling import coinciding, is_constant, needs_double
from rambo_trl.data.spaces import as_flags, as_rows

__all__ = [
    "ActionsOutsideError",
    "canonical_transitions",
    "check_values",
    "coarse_entries",
    "draw_rows",
    "narrow",
    "observation_statistics",
]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
#: share of an entry's distinct values that may become one in float32, and the steps of float32
#: that a standard deviation must have, before it is told
_COINCIDE, _STEPS = 0.2, 100


class ActionsOutsideError(ValueError):
    """Actions leave their bounds.

    Attributes:
        finding: how many, which bounds and where; the remedy depends on where the bounds come from.
    """

    def __init__(
        self, finding: str, remedy: str = "correct the action_spec or clip the actions"
    ) -> None:
        super().__init__(f"{finding}: {remedy}")
        self.finding = finding


def canonical_transitions(transitions: TensorDict, name: str, *, copy: bool = True) -> TensorDict:
    """Bring transitions into the common layout: keys, [N, size] shapes, dtypes, done.

    Observations and actions become float32, or float64 where float32 would lose what matters. With
    ``copy`` the observations share no memory with the given ones.
    """
    if transitions.ndim != 1:
        raise ValueError(
            f"{name}: transitions must have one batch dimension, got {transitions.batch_size}"
        )
    size = transitions.batch_size[0]
    if size == 0:
        raise ValueError(f"{name} is empty: at least one transition is needed")
    keys = ["observation", "action"] + [
        ("next", k) for k in ("observation", "reward", "terminated")
    ]
    missing = [key for key in keys if transitions.get(key, None) is None]
    if missing:
        raise ValueError(f"{name}: transitions lack the keys {missing}")

    def rows(key: NestedKey, kind: str) -> torch.Tensor:
        values = as_rows(transitions[key].detach().cpu().numpy(), kind, name)
        return torch.from_numpy(values.reshape(size, -1))

    def flags(key: str) -> torch.Tensor:
        values = transitions["next", key].detach().cpu().numpy()
        return torch.from_numpy(as_flags(values, f"{('next', key)}", name)).unsqueeze(-1)

    observation, next_observation = narrow(
        rows("observation", "observations"), rows(("next", "observation"), "observations")
    )
    if copy:  # normalisation writes in place
        observation, next_observation = observation.clone(), next_observation.clone()
    elif np.may_share_memory(observation.numpy(), next_observation.numpy()):
        next_observation = next_observation.clone()  # else it would be normalised twice
    if observation.shape != next_observation.shape:
        raise ValueError(
            f"{name}: observation {tuple(observation.shape)} and next observation "
            f"{tuple(next_observation.shape)} must have the same shape"
        )
    terminated = flags("terminated")
    truncated = torch.zeros_like(terminated)
    for key in ("truncated", "done"):  # an end that is not terminal is a truncation
        if transitions.get(("next", key), None) is not None:
            truncated |= flags(key) & ~terminated
    columns: dict[str, Any] = {
        "observation": observation,
        "action": narrow(rows("action", "actions"))[0],
        "next": {
            "observation": next_observation,
            "reward": rows(("next", "reward"), "rewards"),
            "terminated": terminated,
            "truncated": truncated,
            "done": terminated | truncated,
        },
    }
    return TensorDict(columns, batch_size=[size])


def narrow(*values: torch.Tensor) -> list[torch.Tensor]:
    """Make rows [N, size] of one kind float32 where that keeps what matters of all of them."""
    double = any(v.dtype == torch.float64 for v in values)
    if double and any(bool(v.isfinite().all()) and needs_double(v.double()) for v in values):
        return [v.double() for v in values]
    return [v.float() for v in values]


def check_values(
    transitions: TensorDict,
    low: torch.Tensor,
    high: torch.Tensor,
    name: str,
    observation_names: Sequence[str],
    action_names: Sequence[str],
) -> None:
    """Refuse values that are not finite and actions that do not fit their bounds [act].

    Raises:
        ActionsOutsideError: if actions leave their bounds.
        ValueError: for all else.
    """
    problems = []
    for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
        # NumPy's test needs no float copy of the values, unlike torch's.
        values = transitions[key].numpy()
        bad = ~np.isfinite(values)
        if values.dtype == np.float64:
            bad |= np.abs(values) > _FLOAT32_MAX
        if bad.any():
            rows = bad.any(-1).nonzero()[0]
            label = key if isinstance(key, str) else " ".join(key)
            names = {"action": action_names, ("next", "reward"): ()}.get(key, observation_names)
            problems.append(
                f"{int(bad.sum())} in {label} ({len(rows)} rows, the first is "
                f"{_place(transitions, int(rows[0]))}){where_missing(bad, names)}"
            )
    if problems:
        raise ValueError(
            f"{name} holds values that are not finite in float32: {'; '.join(problems)}. "
            "Repair them; or leave these rows out, and end the episode before them or give "
            "next_observations, so that the rows around do not become neighbours"
        )
    action = transitions["action"]
    if action.shape[-1:] != low.shape:
        raise ValueError(
            f"{name}: actions of size {action.shape[-1]} do not fit the action_spec of shape "
            f"{tuple(low.shape)}"
        )
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise ValueError(
            f"{name}: the action_spec must have finite bounds, got {low.tolist()} to "
            f"{high.tolist()}"
        )
    if not (low < high).all():
        raise ValueError(
            f"{name}: the action_spec's lower bounds must lie below the upper ones, got "
            f"{low.tolist()} to {high.tolist()} for {', '.join(action_names)}: leave out an action "
            "entry that never changes"
        )
    margin = 1e-4 * (high - low)
    beyond = (action < low - margin) | (action > high + margin)
    outside = beyond.any(-1)
    if outside.any():
        entries = [n for n, out in zip(action_names, beyond.any(0).tolist(), strict=True) if out]
        raise ActionsOutsideError(
            f"{name}: {int(outside.sum())} actions leave their bounds {low.tolist()} to "
            f"{high.tolist()} in {listed(entries)}, the first in "
            f"{_place(transitions, int(outside.nonzero()[0]))}"
        )


def _place(transitions: TensorDict, row: int) -> str:
    """A row's number, and where it is within its episode, both counted from 0."""
    ends = transitions["next", "done"][:row].reshape(-1).nonzero()
    step = row - (int(ends[-1]) + 1 if len(ends) else 0)
    return f"row {row}, which is step {step} of episode {len(ends)}"


def observation_statistics(observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per dimension, summed in float64, in the observations' dtype.

    A dimension that is constant but for rounding keeps its unit, so that a value off the data
    stays of order one.
    """
    # One column at a time, in the same memory: a float64 copy of all rows would double what is in
    # use, and so would copies of the columns, whose memory the allocator keeps.
    values = torch.empty(len(observation), dtype=torch.float64)
    columns = [torch.std_mean(values.copy_(c), correction=0) for c in observation.unbind(-1)]
    std, mean = (torch.stack(v) for v in zip(*columns, strict=True))
    std = torch.where(is_constant(std, mean, observation.dtype), torch.ones_like(std), std)
    return mean.to(observation.dtype), std.to(observation.dtype)


def coarse_entries(
    rows: torch.Tensor, offset: torch.Tensor, scale: torch.Tensor, names: Sequence[str]
) -> list[str]:
    """Tell of entries of which distinct values coincide in float32, in a sentence each.

    Args:
        rows: [N, size], before ``(rows - offset) / scale`` is taken and made float32.
        offset: [size].
        scale: [size].
        names: of the entries.
    """
    found = []
    for i, column in enumerate(rows.unbind(-1)):
        if column.dtype == torch.float64:
            lost = coinciding(column, ((column - offset[i]) / scale[i]).float())
            if lost > _COINCIDE:
                found.append(
                    f"{100 * lost:.0f} % of the distinct values of {names[i]} coincide in float32: "
                    "take a constant out of them, or split the entry in two"
                )
            continue
        low, high = float(column.min()), float(column.max())
        step = torch.finfo(torch.float32).eps * max(abs(low), abs(high))
        spread = float(column.double().std(correction=0))
        if low < high and spread < _STEPS * step:
            found.append(
                f"{names[i]} is spread by {spread:.2g} only, at {high:g}, where float32 has steps "
                f"of {step:.2g}: distinct values may have become one before they came here, so "
                "give them as float64, or take a constant out of them"
            )
    return found


def draw_rows(num_rows: int, max_rows: int, *, seed: int = 0) -> torch.Tensor:
    """Draw row numbers without replacement: the same ones every time, and in ascending order.

    Every n-th row would not do: where the data have a period, all of them may be first steps. No
    global generator is used, so that a measurement leaves a run's random numbers alone.

    Args:
        num_rows: rows to choose from.
        max_rows: how many to draw at most.
        seed: of the draw.

    Returns:
        int64 [min(num_rows, max_rows)].

    Examples:
        >>> from rambo_trl.data.transitions import draw_rows
        >>> draw_rows(3, 10)
        tensor([0, 1, 2])
        >>> draw_rows(10**12, 5).shape  # takes memory for the drawn ones only
        torch.Size([5])
    """
    if num_rows <= max_rows:
        return torch.arange(num_rows)
    generator = np.random.default_rng(seed)
    drawn = generator.choice(num_rows, max_rows, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(drawn.astype(np.int64)))
