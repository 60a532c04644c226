"""What a policy does beside what was logged: its actions, and how far from the data it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rambo_trl.data import OfflineDataset
from rambo_trl.data.blocks import EpisodeBlocks
from rambo_trl.data.transitions import draw_rows
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.experiment.policy_path import imagined_steps
from rambo_trl.modules import EnsembleWorldModel

__all__ = ["action_use", "distance_from_data", "nearest"]

#: maps normalised states [B, observation_size] to actions [B, action_size] in [-1, 1]
Act = Callable[[Tensor], Tensor]

#: rows whose actions are compared; logged rows that a distance is measured to, rows whose own
#: distance says what is usual, and rollouts
ROWS, LOGGED, OWN, ROLLOUTS = 100_000, 20_000, 2000, 100
#: states of the rollouts whose distance is measured at most
VISITED = 4000
#: share of the held-out rows that is nearer than what counts as far
USUAL = 0.99
#: an action is at its limit within this share of the range
_AT_LIMIT = 0.005
#: rows at once
_CHUNK = 128


def action_use(data: OfflineDataset, act: Act, pieces: np.ndarray) -> dict[str, Any]:
    """How a policy uses its actions, beside the logged controller in the same states.

    Args:
        data: the data.
        act: the policy's mode.
        pieces: int64 [P, 2], rows of the episodes in whose states it is asked.

    Returns:
        By action, in the data's units: ``names``; ``low`` and ``high``, its bounds;
        ``logged_low`` and ``logged_high``, the range of the data; the share of the policy's actions
        ``outside`` of that range and ``rare``, beyond the 1st and 99th percentile; the shares
        ``at_limit`` and ``logged_at_limit``; the mean absolute ``change`` a step and that of the
        log, ``logged_change``; and the mean absolute ``difference``. Of the figure the values
        ``policy`` and ``logged`` [rows, act].
    """
    # a log is often in the order of its controllers
    shuffled = np.random.default_rng(0).permutation(pieces)
    rows = _rows_of(shuffled)[:ROWS]
    some = data.transitions[rows]
    policy = data.denormalize_action(act(some["observation"])).double()
    logged = data.denormalize_action(some["action"]).double()
    every = data.denormalize_action(data.transitions["action"]).double()
    low, high = data.action_low.double(), data.action_high.double()
    logged_low, logged_high = every.amin(0), every.amax(0)
    rounding = 1e-5 * (high - low)
    edges = torch.from_numpy(np.quantile(every.numpy(), [0.01, 0.99], axis=0))
    # float32's rounding is not a step beyond
    follows = torch.from_numpy(np.diff(rows.numpy()) == 1) & ~some["next", "done"][:-1].flatten()

    def share(which: Tensor) -> list[float]:
        return which.double().mean(dim=0).tolist()

    def beyond(least: Tensor, most: Tensor) -> list[float]:
        return share((policy < least - rounding) | (policy > most + rounding))

    def at_limit(actions: Tensor) -> list[float]:
        margin = _AT_LIMIT * (high - low)
        return share((actions <= low + margin) | (actions >= high - margin))

    def change(actions: Tensor) -> list[float]:
        return actions.diff(dim=0)[follows].abs().mean(dim=0).tolist()

    return {
        "names": list(data.action_names),
        "rows": len(rows),
        "low": low.tolist(),
        "high": high.tolist(),
        "logged_low": logged_low.tolist(),
        "logged_high": logged_high.tolist(),
        "outside": beyond(logged_low, logged_high),
        "rare": beyond(*edges),
        "at_limit": at_limit(policy),
        "logged_at_limit": at_limit(logged),
        "change": change(policy),
        "logged_change": change(logged),
        "difference": (policy - logged).abs().mean(dim=0).tolist(),
        "policy": policy.numpy(),
        "logged": logged.numpy(),
    }


def _rows_of(pieces: np.ndarray) -> Tensor:
    """The rows of pieces [P, 2], one after another."""
    return torch.from_numpy(np.concatenate([np.arange(a, b) for a, b in pieces]))


def nearest(points: Tensor, logged: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of the logged points, by trying all of them.

    Args:
        points: [B, D].
        logged: [N, D].

    Returns:
        Distances, root mean square over the D entries, and row numbers, each [B].
    """
    half = logged.square().sum(dim=-1) / 2
    rows = torch.cat([(half - x @ logged.T).argmin(dim=-1) for x in points.split(_CHUNK)])
    return (points - logged[rows]).square().mean(dim=-1).sqrt(), rows


@torch.no_grad()
def distance_from_data(
    data: OfflineDataset,
    act: Act,
    blocks: EpisodeBlocks,
    *,
    env: EnsembleModelEnv | None = None,
    model: EnsembleWorldModel | None = None,
    horizon: int = 100,
) -> dict[str, Any]:
    """How many of the policy's actions and states are unlike any that were logged.

    A point's distance is that to the nearest of the logged rows, in standard deviations of the
    columns. It is far where it is larger than that of 99 % of the rows of other episodes, which
    were set aside: so what is usual is measured on the log itself, and 1 % of it counts as far.

    Args:
        data: the data.
        act: the policy's mode.
        blocks: the episodes set aside, and the others.

    Keyword Args:
        env: for its termination rule; without it and the model there are no states of the policy's
            own.
        model: in which it is rolled out.
        horizon: steps of a rollout.

    Returns:
        ``actions``, the share of the states set aside in which the policy's action, taken with the
        state, is far. With a model also ``states``, the share of far states in rollouts from the
        starts of the episodes set aside, and by step ``by_step`` (None where none is left) and
        ``alive``, the share of rollouts that have not ended; ``columns``, the share of each
        observation entry in the squared distance of the far ones.
    """
    rows = data.transitions
    train, own = (
        numbers[draw_rows(len(numbers), most)]
        for numbers, most in (
            (_rows_of(blocks.training_rows), LOGGED),
            (_rows_of(blocks.held_out_rows), OWN),
        )
    )
    states = _Scaled(rows["observation"][train])
    pairs = _Scaled(torch.cat([rows["observation"], rows["action"]], dim=-1)[train])
    observation = rows["observation"][own]
    usual = torch.cat([observation, rows["action"][own]], dim=-1)
    chosen = torch.cat([observation, act(observation)], dim=-1)
    found: dict[str, Any] = {
        "logged": len(train),
        "own": len(own),
        "actions": float(pairs.far(chosen, pairs.limit(usual)).double().mean()),
    }
    if env is None or model is None:
        return found
    first = torch.from_numpy(blocks.held_out_rows[:, 0])
    start = rows["observation"][first[draw_rows(len(first), ROLLOUTS)]]
    repeats = max(1, ROLLOUTS // len(start))
    limit = states.limit(observation)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        steps = list(imagined_steps(model, env, act, start.repeat(repeats, 1), horizon))
    visited = torch.stack([step.observation for step in steps])
    alive = torch.stack([step.alive.squeeze(-1) for step in steps])
    at, which = alive.nonzero(as_tuple=True)
    some = draw_rows(len(at), VISITED)
    at, which = at[some], which[some]
    points = visited[at, which]
    far = states.far(points, limit)
    count = at.bincount(minlength=len(steps))
    by_step = at[far].bincount(minlength=len(steps)).double() / count
    return found | {
        "horizon": len(steps),
        "states": float(far.double().mean()),
        "rollouts": len(start) * repeats,
        "by_step": [float(x) if n else None for x, n in zip(by_step, count, strict=True)],
        "alive": alive.double().mean(dim=1).tolist(),
        "columns": states.blame(points[far]).tolist(),
    }


class _Scaled:
    """Logged points [N, D] in standard deviations of their entries."""

    def __init__(self, logged: Tensor) -> None:
        std = logged.double().std(dim=0, correction=0)
        self.std = torch.where(std > 1e-6, std, torch.ones_like(std))
        self.logged = logged / self.std

    def limit(self, usual: Tensor) -> float:
        """The distance that all but the farthest of the usual points [B, D] are within."""
        return float(nearest(usual / self.std, self.logged)[0].quantile(USUAL))

    def far(self, points: Tensor, limit: float) -> Tensor:
        """Which points [B, D] are farther, or not finite."""
        return ~(nearest(points / self.std, self.logged)[0] <= limit)

    def blame(self, points: Tensor) -> Tensor:
        """Each entry's share [D] in the squared distances of points [B, D]; 0 without any."""
        points = (points / self.std)[points.isfinite().all(dim=-1)]
        if not len(points):
            return torch.zeros(self.logged.shape[-1])
        square = (points - self.logged[nearest(points, self.logged)[1]]).square()
        return (square / square.sum(dim=-1, keepdim=True).clamp_min(1e-12)).mean(dim=0)
