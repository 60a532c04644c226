"""Where the data are: the ranges, changes and distances that a policy's file carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from rambo_trl.data.columns import DataDescription
from rambo_trl.data.scaling import denormalize_action, is_constant

__all__ = ["describe"]

#: as many rows, evenly spaced, tell quantiles and correlations
_ROWS = 200_000
_CHUNK = 65_536
_QUANTILES = (0.01, 0.99)
#: one row in a thousand is beyond the limit of the distance
_LIMIT_QUANTILE = 0.999
#: of a correlation matrix's eigenvalues: 1 % of an entry's deviation in a direction in which the
#: data never move counts as one deviation
_LEAST_EIGENVALUE = 1e-4
#: rows whose next observation is so close to the following row's, in deviations, are consecutive
_SAME = 1e-3


def describe(
    transitions: TensorDict,
    observation_names: Sequence[str],
    action_names: Sequence[str],
    *,
    observation_mean: Tensor,
    observation_std: Tensor,
    action_low: Tensor,
    action_high: Tensor,
    step_interval: float | None = None,
) -> DataDescription:
    """Measure what a data set covers.

    Args:
        transitions: TensorDict [N] in the learner's units, as
            :class:`~rambo_trl.data.TransitionData` has it.
        observation_names: of the observation entries.
        action_names: of the action entries.
        observation_mean: what observations were normalised by, [obs].
        observation_std: likewise.
        action_low: what an action of -1 stands for, [act].
        action_high: what 1 stands for.
        step_interval: see :class:`~rambo_trl.data.columns.DataDescription`.

    Returns:
        Names, and numbers in the data's own units.
    """
    observation, action = transitions["observation"], transitions["action"]

    def raw(x: Tensor) -> tuple[float, ...]:
        return _told(x * observation_std.to(x.device) + observation_mean.to(x.device))

    some = observation[:: max(1, -(-len(observation) // _ROWS))]
    quantiles = [np.quantile(x.cpu().numpy(), _QUANTILES) for x in some.unbind(-1)]
    p01, p99 = (raw(q) for q in torch.from_numpy(np.array(quantiles)).to(some).unbind(-1))
    deviation = some.double().std(0, correction=0)
    change = _largest_change(transitions, _SAME * deviation + 1e-6)
    return DataDescription(
        tuple(observation_names),
        tuple(action_names),
        raw(observation.amin(0)),
        raw(observation.amax(0)),
        observation_p01=p01,
        observation_p99=p99,
        logged_action_low=_told(denormalize_action(action.amin(0), action_low, action_high)),
        logged_action_high=_told(denormalize_action(action.amax(0), action_low, action_high)),
        logged_action_change=None
        if change is None
        else _told(change * ((action_high - action_low) / 2).to(change.device)),
        step_interval=step_interval,
        **_distance(some.double(), observation_mean, observation_std),
    )


def _told(values: Tensor) -> tuple[float, ...]:
    """As numbers by way of text, so that 0.8 in float32 is 0.8 and not 0.800000011920929."""
    return tuple(float(str(x)) for x in values.cpu().numpy())


def _largest_change(transitions: TensorDict, same: Tensor) -> Tensor | None:
    """Largest change [act] from a step to the next, in [-1, 1]'s unit; None without such steps."""
    largest = None
    for start in range(0, len(transitions) - 1, _CHUNK):
        rows = transitions[start : start + _CHUNK + 1]  # one in common with the next chunk
        observation, action = rows["observation"], rows["action"]
        gap = (rows["next", "observation"][:-1] - observation[1:]).abs()
        follows = (gap <= same).all(-1) & ~rows["next", "done"][:-1].squeeze(-1)
        if bool(follows.any()):
            change = (action[1:] - action[:-1]).abs()[follows].amax(0)
            largest = change if largest is None else torch.maximum(largest, change)
    return largest


def _distance(x: Tensor, mean: Tensor, std: Tensor) -> dict[str, Any]:
    """Centre, matrix and limit of the Mahalanobis distance from normalised rows [N, obs].

    The matrix is the symmetric root of the inverse correlation matrix, over the deviations. Of the
    distance's square, each entry's share is then its own and not negative (Garthwaite and Koch
    2016, "Evaluating the contributions of individual variables to a quadratic form").
    """
    deviation, centre = torch.std_mean(x, 0, correction=0)
    own, offset = deviation * std.to(x), centre * std.to(x) + mean.to(x)
    moving = ~is_constant(own, offset, mean.dtype)
    deviation = torch.where(moving, deviation, 1)
    y = torch.where(moving, (x - centre) / deviation, 0)
    values, directions = torch.linalg.eigh(y.T @ y / len(y))
    root = directions * values.clamp_min(_LEAST_EIGENVALUE).rsqrt() @ directions.T
    root = torch.where(moving, root, 0) * moving[:, None]
    matrix = root / (deviation * std.to(x))
    limit = float(np.quantile((y @ root.T).norm(dim=-1).cpu().numpy(), _LIMIT_QUANTILE))
    return {
        "distance_centre": tuple(offset.tolist()),
        "distance_matrix": tuple(tuple(float(f"{m:.6g}") for m in row) for row in matrix.tolist()),
        "distance_limit": float(f"{limit:.6g}"),
    }
