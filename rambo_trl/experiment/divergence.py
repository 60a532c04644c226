"""Noticing that a run has diverged, from quantities that training computes anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

__all__ = ["DivergenceMonitor", "ModelErrorBound", "model_error_bound"]

#: times the fitted model's error that are allowed in any case; that are too many once a share of
#: the variance is no longer explained; that share; and the share of the observations' mean variance
#: that counts as an entry's own where it hardly varies
_WORSE, _FAR_WORSE, _UNEXPLAINED, _LEAST = 2.0, 100.0, 0.1, 0.01


@dataclass(frozen=True)
class ModelErrorBound:
    """The squared errors beyond which a model no longer fits the data, entry by entry.

    Attributes:
        bound: [D], for each entry that the model predicts.
        fitted: what the fitted model's were, [D].
        names: of the entries.
    """

    bound: Tensor
    fitted: Tensor
    names: tuple[str, ...]

    def check(self, error: Tensor) -> str | None:
        """Compare errors [D]; one sentence on the entry that is furthest beyond, or None."""
        error = error.to(self.bound)
        beyond = error > self.bound
        if not beyond.any():
            return None
        worst = int(torch.where(beyond, error / self.bound, -1.0).argmax())
        others = int(beyond.sum()) - 1
        more = f" (and {others} more of its {len(error)} entries left)" if others else ""
        return (
            f"the model's error in {self.names[worst]} is {float(error[worst]):.3g}"
            f" ({float(self.fitted[worst]):.3g} after the fit, {float(self.bound[worst]):.3g} at "
            f"most): the model no longer fits the data{more}"
        )


def model_error_bound(
    transitions: TensorDictBase,
    fitted: Tensor,
    *,
    scale: Tensor | None = None,
    names: tuple[str, ...] | None = None,
) -> ModelErrorBound:
    """The mean squared errors on some rows of the data beyond which a model has left them.

    A model that knows nothing but means (the mean step, the mean reward) has the variance of each
    entry's steps, and of the rewards, as its error. One that does worse than that in an entry, and
    more than twice as badly as the fitted one did on the same rows, is lost. So is one whose error
    is a hundred times the fitted one's, once it is more than a tenth of the variance. Entries are
    looked at one by one: one that nobody can predict allows the others nothing. Where one hardly
    varies, a hundredth of the observations' mean variance stands for its own.

    Args:
        transitions: rows [N], with ``"observation"``, ``("next", "observation")`` and
            ``("next", "reward")``.
        fitted: the model's error in each entry on these rows after the fit, [D], such as
            :meth:`~rambo_trl.objectives.EnsembleModelLoss.entry_mse`; entries that are not finite
            are not compared with.
        scale: units [D] that errors are measured in, the model's
            :attr:`~rambo_trl.modules.EnsembleWorldModel.output_scale`; 1 where None.
        names: of the entries; numbered observations and the reward where None.
    """
    step = transitions["next", "observation"] - transitions["observation"]
    known = torch.cat([step, transitions["next", "reward"]], dim=-1)
    known = known if scale is None else known / scale
    variance = known.var(dim=0, correction=0)
    variance = variance.maximum(_LEAST * variance[:-1].mean())
    fitted = fitted.to(variance)
    before = torch.where(fitted.isfinite(), fitted, 0.0)
    far = torch.where(fitted.isfinite(), _FAR_WORSE * before, math.inf)
    bound = variance.minimum(far.maximum(_UNEXPLAINED * variance)).maximum(_WORSE * before)
    if names is None:
        names = (*(f"observation {i}" for i in range(len(bound) - 1)), "reward")
    return ModelErrorBound(bound, fitted, names)


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
        max_model_error: bound on ``"model_error"``; None for no bound.

    Raises:
        ValueError: if the discount factor is not below 1 or the reward is not finite.
    """

    def __init__(
        self,
        max_abs_reward: float,
        gamma: float,
        margin: float = 2.0,
        max_model_error: ModelErrorBound | None = None,
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

    def check(self, metrics: Mapping[str, float | int | Tensor | None]) -> str | None:
        """Look at one epoch's means.

        Args:
            metrics: with ``"mean_q"`` and ``"model_error"`` where there are; None entries are
                skipped. A metric may be a tensor, of one value an entry; a model error without
                its entries, as of a row read back, is not compared with their bound.

        Returns:
            None, or one sentence on what has gone wrong.
        """
        known = {k: torch.as_tensor(v) for k, v in metrics.items() if v is not None}
        broken = [key for key, value in known.items() if not value.isfinite().all()]
        if broken:
            return f"not finite: {', '.join(broken)}"
        alpha, entropy = metrics.get("alpha"), metrics.get("entropy")
        if alpha is not None and entropy is not None:
            self.entropy_bonus = max(self.entropy_bonus, abs(float(alpha * entropy)))
        mean_q = metrics.get("mean_q")
        if mean_q is not None and abs(float(mean_q)) > self.q_bound:
            return (
                f"mean Q {mean_q:.4g} is beyond {self.q_bound:.4g}, more than the data's "
                "rewards and the policy's entropy allow"
            )
        error, bound = metrics.get("model_error"), self.max_model_error
        return bound.check(error) if bound is not None and isinstance(error, Tensor) else None
