"""Optimisers' states across devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["load_optimizer"]


def load_optimizer(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Load an optimiser's state, but keep its implementation (fused, foreach, capturable).

    Args:
        optimizer: on any device.
        state_dict: of an optimiser of the same parameters, on any device.

    Raises:
        ValueError: if its parameter groups are others.
    """
    implementation, current = ("fused", "foreach", "capturable"), optimizer.param_groups
    groups = list(state_dict["param_groups"])
    if len(groups) == len(current):  # torch refuses others
        groups = [
            {**saved, **{key: group[key] for key in implementation if key in group}}
            for saved, group in zip(groups, current, strict=True)
        ]
    optimizer.load_state_dict({**state_dict, "param_groups": groups})
