"""Noticing that a run has diverged, from quantities that training computes anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor

from rambo_trl.modules.statistics import mean_and_std

__all__ = ["DivergenceMonitor", "model_error_bound"]

#: times the fitted model's error that a model without any knowledge of the data must have too,
#: and that are too many in any case
_WORSE, _FAR_WORSE = 2.0, 100.0


def model_error_bound(transitions: TensorDictBase, holdout_mse: Sequence[float]) -> float:
    """The mean squared error on the data beyond which a model no longer describes it.

    A model that knows nothing but means (the mean step, the mean reward) has the variance of the
    steps and rewards as its error. One that does worse is lost, if the fitted one did not do as
    badly: the bound is that variance, but at least twice and at most a hundred times the
    fitted model's error.

    Args:
        transitions: the data [N], with ``"observation"``, ``("next", "observation")`` and
            ``("next", "reward")`` in the model's units.
        holdout_mse: of each member after the fit.
    """

    def known(start: int, stop: int) -> Tensor:
        rows = transitions[start:stop]
        step = rows["next", "observation"] - rows["observation"]
        return torch.cat([step, rows["next", "reward"]], dim=-1)

    _, std = mean_and_std(known, transitions.shape[0])
    variance = float(std.square().mean())
    fitted = max(holdout_mse)
    if not math.isfinite(fitted):  # nothing to compare with
        return variance
    return min(max(variance, _WORSE * fitted), _FAR_WORSE * fitted)


class DivergenceMonitor:
    r"""Says when a run's metrics leave what the data's rewards allow.

    No discounted return can exceed :math:`\max |r| / (1 - \gamma)`; with a margin for rewards
    that the model predicts beyond the data's, a mean Q outside of that bound means that the
    critics have diverged. So does any metric that is not finite. Even published
    configurations sometimes diverge; the paper scores such runs 0.

    SAC's critics also hold the policy's entropy, alpha times which adds to each reward. Where a
    row of metrics has ``"alpha"`` and ``"entropy"``, the largest product so far is allowed as
    well: the critics lag behind the temperature.

    The adversary is to move the model where the data says nothing, not on the data. A weight
    too large shows there first, many epochs before the critics follow.

    Args:
        max_abs_reward: the largest absolute reward in the data.
        gamma: discount factor.
        margin: factor on the bound.
        max_model_error: bound on ``"model_error"``, such as :func:`model_error_bound`; None for
            no bound.

    Raises:
        ValueError: if the discount factor is not below 1 or the reward is not finite.
    """

    def __init__(
        self,
        max_abs_reward: float,
        gamma: float,
        margin: float = 2.0,
        max_model_error: float | None = None,
    ) -> None:
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma must lie in [0, 1), got {gamma}")
        if not math.isfinite(max_abs_reward):
            raise ValueError(f"max_abs_reward must be finite, got {max_abs_reward}")
        self.max_abs_reward, self.gamma, self.margin = max_abs_reward, gamma, margin
        self.max_model_error = max_model_error
        self.entropy_bonus = 0.0

    @property
    def q_bound(self) -> float:
        """What a mean Q may be at most, in magnitude."""
        return self.margin * (self.max_abs_reward + self.entropy_bonus) / (1 - self.gamma)

    def check(self, metrics: Mapping[str, float | int | None]) -> str | None:
        """Look at one epoch's means.

        Args:
            metrics: with ``"mean_q"`` and ``"model_error"`` where there are; None entries are
                skipped.

        Returns:
            None, or one sentence on what has gone wrong.
        """
        broken = [k for k, v in metrics.items() if v is not None and not math.isfinite(v)]
        if broken:
            return f"not finite: {', '.join(broken)}"
        alpha, entropy = metrics.get("alpha"), metrics.get("entropy")
        if alpha is not None and entropy is not None:
            self.entropy_bonus = max(self.entropy_bonus, abs(alpha * entropy))
        mean_q = metrics.get("mean_q")
        if mean_q is not None and abs(mean_q) > self.q_bound:
            return (
                f"mean Q {mean_q:.4g} is beyond {self.q_bound:.4g}, more than the data's "
                "rewards and the policy's entropy allow"
            )
        error, bound = metrics.get("model_error"), self.max_model_error
        if error is not None and bound is not None and error > bound:
            return (
                f"the model's error on the data, {error:.4g}, is beyond {bound:.4g}: it no longer "
                "describes the data"
            )
        return None
