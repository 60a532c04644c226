"""Whether what a run expects is plausible: Q against the rewards, the start against the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rambo_trl.data import OfflineDataset
from rambo_trl.runtime.numbers import format_value as text

Row = Mapping[str, float | int | None]

#: share of the distance from the mean to the best logged return by which the agent may expect
#: more than the best, and share of the best itself
_MARGINS = 0.1, 0.01


def discounted_returns(dataset: OfflineDataset, gamma: float) -> np.ndarray:
    """The discounted return of each whole episode, as the critics count it.

    Of an episode that did not end in a terminal state only the first T steps were logged, where
    the critics look beyond them. It counts as if it had gone on as it was: its discounted mean
    reward forever, which is its discounted return over 1 - gamma^T.

    Args:
        dataset: the data; rewards count with their shift, in the data's units.
        gamma: discount factor, below 1.

    Returns:
        [whole episodes], float64.
    """
    rows = dataset.transitions
    reward = _rewards(dataset)
    starts, stops = dataset.whole_episodes.T
    if not len(starts):
        return np.empty(0)
    lengths = stops - starts
    row = np.repeat(starts, lengths) + _count_up(lengths)
    weighted = reward[row] * gamma ** _count_up(lengths)
    returns = np.add.reduceat(weighted, np.cumsum(lengths) - lengths)
    terminal = rows["next", "terminated"].squeeze(-1).numpy()[stops - 1]
    return np.where(terminal, returns, returns / (1 - gamma**lengths))


def _rewards(dataset: OfflineDataset) -> np.ndarray:
    reward = dataset.transitions["next", "reward"].squeeze(-1).double().numpy()
    return reward * dataset.reward_scale


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for each of some lengths, joined."""
    first = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) - np.repeat(first, lengths)


def value_range(
    dataset: OfflineDataset, gamma: float, rows: Sequence[Row], *, penalty: float = 0.0
) -> tuple[float, float]:
    """The values that the data's rewards allow, r_min / (1 - gamma) to r_max / (1 - gamma).

    Where episodes end in the data, a single reward may be all. SAC's critics add alpha times the
    entropy to every reward but the first: the least and the most of it in training is allowed as
    well, since the critics lag behind.

    Args:
        dataset: the data.
        gamma: discount factor, below 1.
        rows: of ``metrics.csv``.
        penalty: what the method takes off a reward at most.
    """
    reward = _rewards(dataset)
    low, high = float(reward.min()) - penalty, float(reward.max())
    least, most = low / (1 - gamma), high / (1 - gamma)
    if bool(dataset.transitions["next", "terminated"].any()):
        least, most = min(least, low), max(most, high)
    bonus = [0.0, *(_entropy_bonus(row, gamma) for row in rows)]
    return least + min(bonus), most + max(bonus)


def _entropy_bonus(row: Row, gamma: float) -> float:
    """What SAC's critics count beyond rewards, as if the entropy were the same for ever."""
    alpha, entropy = row.get("alpha"), row.get("entropy")
    bonus = 0.0 if alpha is None or entropy is None else float(alpha * entropy)
    return gamma / (1 - gamma) * bonus if np.isfinite(bonus) else 0.0


def check_sanity(
    rows: Sequence[Row],
    dataset: OfflineDataset,
    gamma: float | None,
    *,
    penalty: float = 0.0,
    adversary: Mapping[str, Any] | None = None,
    path: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What ``results.json`` holds under ``sanity``.

    Args:
        rows: of ``metrics.csv``.
        dataset: the data.
        gamma: discount factor; None for a method without critics.
        penalty: what the method takes off a reward at most.
        adversary: RAMBO's, what ``reporting.adversary_verdict.adversary_effect`` returns.
        path: a model-based method's, the numbers of :class:`.policy_path.PolicyPath`.

    Returns:
        ``mean_q`` and ``start_value`` of the last epoch that has one (None without), with the
        ``q_range`` that the rewards allow and the mean and the best ``logged_discounted_return``;
        ``adversary``; and ``lines``, the same as sentences, of which those that are to be taken as
        warnings are among the ``warnings`` as well.
    """
    lines: list[str] = []
    warnings: list[str] = []
    result: dict[str, Any] = {"adversary": adversary, "lines": lines, "warnings": warnings}
    if gamma is not None:
        _, mean_q = _last(rows, "mean_q")
        row, value = _last(rows, "start_value")
        low, high = value_range(dataset, gamma, rows, penalty=penalty)
        returns = discounted_returns(dataset, gamma)
        logged = None
        if len(returns):
            logged = {"mean": float(returns.mean()), "best": float(returns.max())}
        result |= {
            "mean_q": mean_q, "q_range": [low, high],
            "start_value": value, "logged_discounted_return": logged,
        }  # fmt: skip
        if mean_q is not None and not low <= mean_q <= high:
            least, most = f"below {text(low)}, the least", f"above {text(high)}, the most"
            warnings.append(
                f"mean Q {text(mean_q)} is {least if mean_q < low else most} that the data's "
                "rewards allow: distrust the critics"
            )
        lines += warnings
        if value is not None and len(returns):
            ends = dataset.whole_episodes[:, 1] - 1
            cut = not bool(dataset.transitions["next", "terminated"][ends].all())
            how = "discounted, truncated episodes as if they went on" if cut else "discounted"
            bonus = max(0.0, _entropy_bonus(row, gamma))
            line, plausible = _describe_start(value, bonus, returns, how)
            lines.append(line)
            warnings += [] if plausible else [line]
    if path is not None and path["line"]:
        lines.append(path["line"])
        warnings += [path["line"]] if path["distrust"] else []
    if adversary is not None:
        lines.append(adversary["line"])
    return result


def _last(rows: Sequence[Row], key: str) -> tuple[Row, float | None]:
    """The last row that has a value, and the value."""
    for row in reversed(rows):
        if (value := row.get(key)) is not None:
            return row, float(value)
    return {}, None


def most_plausible(returns: np.ndarray) -> float:
    """The most that may be expected where logged episodes gave these returns."""
    mean, best = returns.mean(), returns.max()
    return float(best + _MARGINS[0] * (best - mean) + _MARGINS[1] * abs(best))


def _describe_start(value: float, bonus: float, returns: np.ndarray, how: str) -> tuple[str, bool]:
    """The start's value beside the logged returns, as a sentence, and whether it is plausible."""
    worst, mean, best = returns.min(), returns.mean(), returns.max()
    without, said = value - bonus, f"the agent expects {text(value)} from the start"
    if bonus > 0.05 * abs(value):
        said += f" ({text(without)} without SAC's entropy bonus)"
    most = most_plausible(returns)
    if not value <= most:
        line = (
            f"{said} where the best logged episode gave {text(best)} (mean {text(mean)}, "
            f"{how}): distrust it"
        )
        if without <= most:  # an estimate: critics that have learnt little hold less of it
            line += ", unless the bonus explains the difference"
        return line, False
    line = f"{said}, logged episodes gave {text(mean)} in the mean and {text(best)} at best ({how})"
    if value < worst:
        line += ": less than any of them, so the critics or the policy have learnt too little"
    return line, True
