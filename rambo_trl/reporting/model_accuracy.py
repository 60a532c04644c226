"""How well a world model predicts the log, column by column, and whether it knows its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from rambo_trl.data import OfflineDataset
from rambo_trl.data.transitions import draw_rows
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.objectives import EnsembleModelLoss
from rambo_trl.training.pretraining import draw_split

__all__ = ["HeldOut", "calibration", "find_held_out", "k_step_error", "one_step_error"]

#: rows and pieces of an episode that are judged at most, and pieces needed
ROWS, WINDOWS, ENOUGH = 5000, 1000, 30
#: steps ahead
STEPS = (1, 2, 5, 10, 20, 50)
#: nominal shares of the intervals whose coverage is counted, and groups of rows by their spread
LEVELS, BINS = (0.5, 0.8, 0.9, 0.95), 10
#: sampled rollouts of each piece: so many that nine tenths of the possible ranks are a whole number
_SAMPLES, _SAMPLED_WINDOWS = 39, 100


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows and pieces of episodes on which a model is judged.

    Attributes:
        rows: TensorDict [N], normalised, for one step.
        previous_reward: of the step before each row [N, 1], NaN where there is none.
        rows_unseen: whether the model's fit has not learnt from the rows.
        table: the rows [M] that the pieces are of.
        pieces: int64 [P, 2], each one's first row in the table and the one after its last.
        pieces_unseen: whether the fit has not learnt from the pieces.
        where: what the rows are, as a sentence.
    """

    rows: TensorDict
    previous_reward: Tensor
    rows_unseen: bool
    table: TensorDict
    pieces: np.ndarray
    pieces_unseen: bool
    where: str


def find_held_out(
    data: OfflineDataset,
    model: EnsembleWorldModel,
    pieces: np.ndarray,
    *,
    holdout_mse: Sequence[float] | None = None,
    random_state: Tensor | None = None,
) -> HeldOut:
    """Find what a model's fit has not seen.

    Where a data set has validation rows they are it, whole episodes of them. Otherwise a fit
    holds out single rows, which can be found again: they are drawn first of all from the random
    state before it, and the model's error on them is the one that the fit has recorded. Whole
    pieces of the data are then judged as well, of which the fit has seen most rows.

    Args:
        data: the data.
        model: as it was fitted.
        pieces: int64 [P, 2], rows of the data's episodes, for steps ahead.

    Keyword Args:
        holdout_mse: every member's error on held-out rows, as the fit recorded it.
        random_state: of the CPU's generator before the fit.
    """
    if data.holdout is not None:
        done = data.holdout["next", "done"].flatten().numpy().copy()
        done[-1] = True
        ends = done.nonzero()[0] + 1
        pieces = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
        numbers = draw_rows(len(data.holdout), ROWS)
        where = "of the data set's own validation episodes, from which the fit did not learn"
        table, seen = data.holdout, False
    else:
        table = data.transitions
        found = _held_out_numbers(data, model, holdout_mse, random_state)
        seen = found is None
        numbers = draw_rows(len(data), ROWS) if found is None else found
        where = "that the fit held out: single rows, drawn from all episodes"
        if seen:
            where = (
                "drawn from all of the data: which rows the fit held out is not known, so it has "
                "learnt from most of these"
            )
    before = (numbers - 1).clamp_min(0)
    joined = (numbers > 0) & _goes_on(table)[before]
    reward = table["next", "reward"][before]
    return HeldOut(
        rows=table[numbers],
        previous_reward=torch.where(joined[:, None], reward, torch.nan),
        rows_unseen=not seen,
        table=table,
        pieces=pieces,
        pieces_unseen=data.holdout is not None,
        where=f"{len(numbers)} rows {where}",
    )


def _held_out_numbers(
    data: OfflineDataset,
    model: EnsembleWorldModel,
    holdout_mse: Sequence[float] | None,
    random_state: Tensor | None,
) -> Tensor | None:
    """The rows that a fit held out, ascending; None where they cannot be told."""
    if holdout_mse is None or random_state is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_state)
        drawn = draw_split(len(data))[0].sort().values
    error = EnsembleModelLoss(model).member_mse(data.transitions[drawn])
    return drawn if torch.allclose(error, error.new_tensor(holdout_mse), rtol=1e-3) else None


def _goes_on(rows: TensorDict) -> Tensor:
    """Whether each row [N] is followed by the next step of its episode."""
    same = torch.isclose(rows["next", "observation"][:-1], rows["observation"][1:], atol=1e-4)
    follows = same.all(-1) & ~rows["next", "done"][:-1].flatten()
    return torch.cat([follows, follows.new_zeros(1)])


def units(data: OfflineDataset) -> tuple[Tensor, Tensor]:
    """What 1 in the learner's units is in the data's, and how far the columns vary.

    Returns:
        Both [observation_size + 1], the reward last; the second, the standard deviations over the
        data's rows, in the learner's units.
    """
    unit = torch.cat([data.observation_std.double(), torch.tensor([data.reward_scale]).double()])
    rows = data.transitions
    columns = torch.cat([rows["observation"], rows["next", "reward"]], dim=-1)
    return unit, columns.double().std(dim=0, correction=0)


def _targets(rows: TensorDict) -> Tensor:
    return torch.cat([rows["next", "observation"], rows["next", "reward"]], dim=-1)


def _rms(error: Tensor) -> Tensor:
    """Root mean square over rows [N, D], leaving NaN out."""
    return error.double().square().nanmean(dim=0).sqrt()


def _relative(error: Tensor, std: Tensor) -> list[float]:
    """In standard deviations; NaN for a column that does not vary."""
    return torch.where(std > 1e-6, error / std, torch.nan).tolist()


@torch.no_grad()
def one_step_error(
    data: OfflineDataset, held: HeldOut, fitted: EnsembleWorldModel, trained: EnsembleWorldModel
) -> dict[str, Any]:
    """The error of a step's mean prediction by column, beside the forecast of no change.

    Args:
        data: for units and names.
        held: what is judged on.
        fitted: the model as it was fitted.
        trained: as training left it.

    Returns:
        By column, the reward last: ``columns``, ``std`` and ``error`` (root mean square) in the
        data's units, and in standard deviations ``relative``, that of ``no_change`` and that of
        the model ``after_training``. A column that does not vary has NaN there.
    """
    unit, std = units(data)
    target = _targets(held.rows)
    still = torch.cat([held.rows["observation"], held.previous_reward], dim=-1)
    error, after = (
        _rms(_mean(model, held.rows["observation"], held.rows["action"]) - target)
        for model in (fitted, trained)
    )
    return {
        "columns": [*data.observation_names, "reward"],
        "rows": len(target),
        "unseen": held.rows_unseen,
        "where": held.where,
        "std": (std * unit).tolist(),
        "error": (error * unit).tolist(),
        "relative": _relative(error, std),
        "no_change": _relative(_rms(still - target), std),
        "after_training": _relative(after, std),
    }


def _mean(model: EnsembleWorldModel, observation: Tensor, action: Tensor) -> Tensor:
    """The elites' mean prediction [B, observation_size + 1]."""
    return model.predict(observation, action, model.elites)[0].mean(dim=0)


def windows(table: TensorDict, pieces: np.ndarray) -> tuple[Tensor, int]:
    """Row numbers from which the log goes on for some steps, after at least one step.

    Args:
        table: rows [M].
        pieces: int64 [P, 2].

    Returns:
        Rows [W], and the number of steps: the most of :data:`STEPS` that at least half of the
        pieces have and for which there are enough rows, or 0.
    """
    goes_on = _goes_on(table).numpy()
    broken = np.concatenate([[0], np.cumsum(~goes_on)])
    lengths = pieces[:, 1] - pieces[:, 0]
    for steps in reversed(STEPS):
        if steps + 1 > np.median(lengths):
            continue
        numbers = np.concatenate([np.arange(a + 1, max(a + 1, b - steps + 1)) for a, b in pieces])
        # from the row before to the last but one, each is followed by the next
        numbers = numbers[broken[numbers + steps - 1] == broken[numbers - 1]]
        if len(numbers) >= ENOUGH:
            chosen = draw_rows(len(numbers), WINDOWS)
            return torch.from_numpy(numbers)[chosen], steps
    return torch.empty(0, dtype=torch.int64), 0


@torch.no_grad()
def k_step_error(
    data: OfflineDataset, held: HeldOut, model: EnsembleWorldModel
) -> dict[str, Any] | None:
    """The error of the model some steps ahead, given the logged actions alone.

    The mean prediction is fed back. Beside it stands the share of columns and rows in which the
    log lies within the interval that holds nine tenths of sampled rollouts.

    Args:
        data: for units.
        held: what is judged on.
        model: as it was fitted.

    Returns:
        ``steps`` [K], and for each by column in standard deviations ``relative`` [K, D] and
        ``no_change`` [K, D]; ``coverage`` [K]; and ``seen_ratio``, the mean squared one-step error
        on held-out rows over that on the pieces, where these were seen by the fit. None where no
        episode is long enough.
    """
    numbers, most = windows(held.table, held.pieces)
    if not most:
        return None
    std, table = units(data)[1], held.table
    state = table["observation"][numbers]
    still = torch.cat([state, table["next", "reward"][numbers - 1]], dim=-1)
    few = draw_rows(len(numbers), _SAMPLED_WINDOWS)
    sampled = state[few].repeat(_SAMPLES, 1)
    found: dict[str, Any] = {"steps": [], "relative": [], "no_change": [], "coverage": []}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(1, most + 1):
            rows = table[numbers + step - 1]
            prediction = _mean(model, state, rows["action"])
            draw = torch.cat(model.sample(sampled, rows["action"][few].repeat(_SAMPLES, 1)), dim=-1)
            if step in STEPS:
                target = _targets(rows)
                found["steps"].append(step)
                found["relative"].append(_relative(_rms(prediction - target), std))
                found["no_change"].append(_relative(_rms(still - target), std))
                below = (draw.view(_SAMPLES, len(few), -1) < target[few]).sum(dim=0)
                tail = (_SAMPLES + 1) // 20
                inside = (below >= tail) & (below <= _SAMPLES - tail)
                found["coverage"].append(float(inside[:, std > 1e-6].double().mean()))
            if step == 1:
                first = (prediction - _targets(rows)).square().mean(dim=0)
            state, sampled = prediction[:, :-1], draw[:, :-1]
    found |= {"pieces": len(numbers), "unseen": held.pieces_unseen, "seen_ratio": None}
    if held.rows_unseen and not held.pieces_unseen:
        error = _mean(model, held.rows["observation"], held.rows["action"]) - _targets(held.rows)
        varies = std > 1e-6
        per_column = error.square().mean(dim=0)[varies] / std[varies].square()
        found["seen_ratio"] = float(
            per_column.mean() / (first[varies] / std[varies].square()).mean()
        )
    return found


@torch.no_grad()
def calibration(data: OfflineDataset, held: HeldOut, model: EnsembleWorldModel) -> dict[str, Any]:
    """Whether the model knows its error: coverage of its intervals, and spread against error.

    The model's forecast of a column is the elites' uniform mixture of Gaussians. A central interval
    holds the logged value where the mixture's distribution function there is within its quantiles
    (the probability integral transform, Gneiting et al. 2007, sec. 3.1,
    https://doi.org/10.1111/j.1467-9868.2007.00587.x).

    Args:
        data: for units.
        held: what is judged on.
        model: as it was fitted.

    Returns:
        ``levels`` [L] and the ``coverage`` [L, D] of the intervals by column; by column in standard
        deviations of the data the ``spread`` [D] (root mean square of the forecasts' deviations)
        and the ``error`` [D]; and of groups of column and row by their spread, from the least to
        the largest, ``group_spread`` and ``group_error``, likewise.
    """
    _, std = units(data)
    mean, log_var = model.predict(held.rows["observation"], held.rows["action"], model.elites)
    mean, var, target = mean.double(), log_var.double().exp(), _targets(held.rows).double()
    place = torch.special.ndtr((target - mean) / var.sqrt()).mean(dim=0)
    varies = std > 1e-6
    coverage = [
        torch.where(varies, ((2 * place - 1).abs() <= level).double().mean(dim=0), torch.nan)
        for level in LEVELS
    ]
    center = mean.mean(dim=0)
    variance = var.mean(dim=0) + (mean - center).square().mean(dim=0)
    error = center - target
    spread, off = ((x / std)[:, varies].flatten() for x in (variance.sqrt(), error))
    order = spread.argsort()
    groups = [(_rms(spread[g]), _rms(off[g])) for g in order.chunk(min(BINS, len(order)))]
    return {
        "levels": list(LEVELS),
        "coverage": [row.tolist() for row in coverage],
        "spread": _relative(variance.mean(dim=0).sqrt(), std),
        "error": _relative(_rms(error), std),
        "group_spread": [float(s) for s, _ in groups],
        "group_error": [float(e) for _, e in groups],
    }
