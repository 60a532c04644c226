"""The log-density of a recorded transition under any world model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from rambo_trl.modules.world_models import DrawsByMember

__all__ = ["check_density", "check_draws", "device_of", "member_log_prob", "transition_log_prob"]


def device_of(module: nn.Module) -> torch.device | None:
    """Where a module's parameters live; None where it has none.

    A loss's coefficients belong there too: a captured CUDA graph reads them at each replay.
    """
    parameter = next(module.parameters(), None)
    return None if parameter is None else parameter.device


def check_density(world_model: object) -> None:
    """Check that a world model has a density.

    Raises:
        TypeError: if the module has neither ``log_prob`` nor ``get_dist``.
    """
    if not any(callable(getattr(world_model, name, None)) for name in ("log_prob", "get_dist")):
        raise TypeError(
            "world_model must have a method log_prob(tensordict) or get_dist(tensordict), "
            f"{type(world_model).__name__} has neither"
        )


def check_draws(world_model: object) -> None:
    """Check that a world model can say which of its members drew.

    Raises:
        TypeError: if it cannot.
    """
    if not isinstance(world_model, DrawsByMember):
        raise TypeError(
            "density='member' needs a world model with the methods draw(tensordict) and "
            f"member_log_prob(tensordict), see docs/world_models.md; {type(world_model).__name__} "
            "lacks them: use density='mixture'"
        )


def member_log_prob(world_model: DrawsByMember, tensordict: TensorDictBase) -> Tensor:
    """The log-density of each drawn transition under the member that drew it.

    Args:
        world_model: see :class:`~rambo_trl.modules.world_models.DrawsByMember`.
        tensordict: the transitions [*B] as its ``draw`` wrote them; left unchanged.

    Returns:
        [*B]

    Raises:
        ValueError: as :func:`transition_log_prob`.
    """
    return _by_row(world_model.member_log_prob(tensordict.copy()), tensordict.batch_size)


def transition_log_prob(
    world_model: TensorDictModuleBase, tensordict: TensorDictBase, value_keys: Sequence[NestedKey]
) -> Tensor:
    r"""The joint log-density :math:`\log T(s', r | s, a)` of each recorded transition.

    Args:
        world_model: a module with ``log_prob(tensordict)``, which returns a tensor, or, as
            TorchRL's composite distributions do, a TensorDict of the parts' log-densities;
            or with ``get_dist(tensordict)`` alone, a distribution over the concatenated
            ``value_keys``. Trailing dimensions and several entries are taken as independent
            and summed.
        tensordict: the transitions [*B]; left unchanged.
        value_keys: the predicted entries, the reward last.

    Returns:
        [*B]

    Raises:
        ValueError: if the density's leading shape is not [*B], because broadcasting would
            silently mix rows.
    """
    if callable(getattr(world_model, "log_prob", None)):
        log_prob = world_model.log_prob(tensordict.copy())
    else:
        values = [tensordict.get(key) for key in value_keys]
        dims = tensordict.batch_dims  # a reward [*B] becomes a column
        value = torch.cat([x.unsqueeze(-1) if x.ndim == dims else x for x in values], dim=-1)
        log_prob = world_model.get_dist(tensordict.copy()).log_prob(value)
    return _by_row(log_prob, tensordict.batch_size)


def _by_row(log_prob: Any, shape: torch.Size) -> Tensor:
    """Log-densities of rows [*B], summed over trailing dimensions and entries; else an error."""
    joint = isinstance(log_prob, TensorDictBase)
    parts = list(log_prob.values(True, True)) if joint else [log_prob]
    for part in parts:
        if part.shape[: len(shape)] != shape:
            raise ValueError(
                f"the world model's log-density has shape {list(part.shape)}, expected "
                f"{list(shape)}, one value for each transition"
            )
    return torch.stack([part.reshape(*shape, -1).sum(dim=-1) for part in parts]).sum(dim=0)
