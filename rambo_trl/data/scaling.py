"""The units that learning takes place in: actions in [-1, 1], rewards of size 1, float32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "RewardScale",
    "denormalize_action",
    "flat_bounds",
    "needs_double",
    "normalize_action",
    "reward_scale_of",
]

RewardScale = float | Literal["auto"]

# A column whose values are so many of its standard deviations away from zero is always kept in
# double precision, and one closer by where rounding to float32 makes distinct values coincide.
_FAR, _NEAR = 2000.0, 50.0
#: share of the distinct values that may coincide
_MAY_COINCIDE = 0.01


def normalize_action(action: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Map actions [*, act] from their bounds to [-1, 1]; bounds of -1 and 1 change no bit."""
    low, high = low.to(action.device), high.to(action.device)
    return (action - (low + high) / 2) / ((high - low) / 2)


def denormalize_action(action: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Map actions [*, act] from [-1, 1] back to their bounds, which rounding does not exceed."""
    low, high = low.to(action.device), high.to(action.device)
    return ((low + high) / 2 + action * ((high - low) / 2)).clamp(low, high)


def flat_bounds(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The lower and the upper bounds of actions of any shape as vectors [act] on the CPU.

    They are float32 unless that cannot tell them well apart, as 1e9 and 1e9 + 1.
    """
    low, high = (v.detach().cpu().reshape(-1).double() for v in (low, high))
    largest = torch.maximum(low.abs(), high.abs())
    if bool((largest > _FAR * (high - low)).any()):
        return low, high
    return low.float(), high.float()


def needs_double(values: Tensor) -> bool:
    """Whether rows [N, size] in float64 lose what matters when they become float32.

    So do time stamps and map coordinates: what changes in them is small beside their offset.
    """
    for column in values.unbind(-1):
        std, mean = torch.std_mean(column, correction=0)
        largest = max(abs(float(column.min())), abs(float(column.max())))
        if not is_constant(std, mean, values.dtype) and largest > _NEAR * float(std):
            if largest > _FAR * float(std):
                return True
            if coinciding(column, column.float()) > _MAY_COINCIDE:
                return True
    return False


def is_constant(std: Tensor, mean: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether columns do not change but for rounding in a dtype."""
    resolution = 1e-12 if dtype == torch.float64 else 1e-6
    return (std <= resolution * mean.abs()) | (std < 1e-30)


def coinciding(before: Tensor, after: Tensor) -> float:
    """The share of a column's distinct values that are no longer distinct afterwards."""
    distinct = before.unique().numel()
    return 1 - after.unique().numel() / distinct


def reward_scale_of(reward: Tensor, wanted: RewardScale) -> float:
    """What rewards are divided by: their root mean square, or a given number.

    Raises:
        ValueError: if a given number is not positive and finite.
    """
    if wanted == "auto":
        size = float(reward.double().square().mean().sqrt())
        return size if size > 0 else 1.0
    if not (isinstance(wanted, (int, float)) and 0 < wanted < float("inf")):
        raise ValueError(f"reward_scale must be auto or a positive number, got {wanted}")
    return float(wanted)
