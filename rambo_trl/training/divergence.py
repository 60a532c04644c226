"""Noticing that a run has diverged, from quantities that training computes anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["DivergenceMonitor"]


class DivergenceMonitor:
    r"""Says when a run's metrics leave what the data's rewards allow.

    No discounted return can exceed :math:`\max |r| / (1 - \gamma)`; with a margin for rewards
    that the model predicts beyond the data's, a mean Q outside of that bound means that the
    critics have diverged. So does any metric that is not finite. Even published
    configurations sometimes diverge; the paper scores such runs 0.

    The adversary moves the model where the data says nothing, not on the data: a model error
    there of many times the fitted model's is a sign as well.

    Args:
        max_abs_reward: the largest absolute reward in the data.
        gamma: discount factor.
        margin: factor on the bound.
        max_model_error: bound on ``"model_error"``; None for no bound.

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
        self.q_bound = margin * max_abs_reward / (1 - gamma)
        self.max_model_error = max_model_error

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
        mean_q = metrics.get("mean_q")
        if mean_q is not None and abs(mean_q) > self.q_bound:
            return (
                f"mean Q {mean_q:.4g} is beyond {self.q_bound:.4g}, more than the data's "
                "rewards allow"
            )
        error, bound = metrics.get("model_error"), self.max_model_error
        if error is not None and bound is not None and error > bound:
            return (
                f"the model's error on the data, {error:.4g}, is beyond {bound:.4g}, many times "
                "what it was after the fit"
            )
        return None
