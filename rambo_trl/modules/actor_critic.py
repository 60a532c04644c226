"""Builders of the agent's networks: a tanh-Gaussian actor and a state-action value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded, TensorSpec
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator

__all__ = ["make_actor", "make_qvalue"]


def action_bounds(action_spec: TensorSpec, what: str) -> tuple[Tensor, Tensor]:
    """The lower and the upper bounds of actions, each of the spec's shape.

    Args:
        action_spec: bounds of the actions.
        what: the part that needs them, for the message.

    Raises:
        TypeError: if the spec is not bounded.
        ValueError: if the bounds are not finite, or a lower one is not below its upper one.
    """
    if not isinstance(action_spec, Bounded):
        raise TypeError(
            f"{what} needs a Bounded action_spec, got {type(action_spec).__name__}: continuous "
            "actions with finite bounds are required"
        )
    low, high = action_spec.space.low, action_spec.space.high
    # bounds whose distance overflows count as infinite
    if not ((low < high) & (high - low).isfinite()).all():
        raise ValueError(
            "continuous actions with finite bounds are required, each lower one below its upper "
            f"one: the action_spec has {low.tolist()} to {high.tolist()}"
        )
    return low, high


def make_actor(
    observation_size: int,
    action_spec: Bounded,
    *,
    hidden_sizes: Sequence[int] = (256, 256),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> ProbabilisticActor:
    """Build SAC's actor: an MLP whose output parametrises a tanh-squashed Gaussian.

    Args:
        observation_size: number of observation entries.
        action_spec: bounds of the actions, of shape ``[action_size]``, which the policy keeps.
        hidden_sizes: widths of the ReLU layers (256 x 256 as in the paper's experiments).
        device: where the parameters are put.
        dtype: of parameters and actions; torch's default by default.

    Returns:
        A TensorDict module reading ``"observation"`` [*, observation_size] and writing
        ``"loc"``, ``"scale"`` and ``"action"`` [*, action_size]. Whether the action is a
        sample or the mode follows TorchRL's exploration type.

    Raises:
        TypeError: if the spec is not bounded.
        ValueError: if its bounds are not finite, or a lower one is not below its upper one.
    """
    # bounds of a wider type would widen the actions
    action_spec = action_spec.to(device).to(dtype or torch.get_default_dtype())
    low, high = action_bounds(action_spec, "make_actor")
    action_size = action_spec.shape[-1]
    net = MLP(
        in_features=observation_size,
        out_features=2 * action_size,
        num_cells=list(hidden_sizes),
        activation_class=nn.ReLU,
        layer_kwargs={"dtype": dtype},
        device=device,
    )
    return ProbabilisticActor(
        TensorDictModule(
            nn.Sequential(net, NormalParamExtractor()), ["observation"], ["loc", "scale"]
        ),
        in_keys=["loc", "scale"],
        spec=action_spec,
        distribution_class=TanhNormal,
        distribution_kwargs={"low": low, "high": high, "tanh_loc": False},
    )


def make_qvalue(
    observation_size: int,
    action_size: int,
    *,
    hidden_sizes: Sequence[int] = (256, 256),
    layer_norm: bool = False,
    device: torch.device | str | None = None,
) -> ValueOperator:
    """Build one state-action value network; a TorchRL loss expands it into an ensemble.

    Args:
        observation_size: number of observation entries.
        action_size: number of action entries.
        hidden_sizes: widths of the ReLU layers (256 x 256 as in the paper's experiments).
        layer_norm: normalise each hidden layer before its ReLU, which keeps the critic from
            promising ever more off the data (Ball et al. 2023, https://arxiv.org/abs/2302.02948,
            sec. 4.2).
        device: where the parameters are put.

    Returns:
        A TensorDict module reading ``"observation"`` and ``"action"`` and writing
        ``"state_action_value"`` [*, 1].
    """
    norm: dict[str, Any] = {}
    if layer_norm:
        shapes = [{"normalized_shape": size} for size in hidden_sizes]
        norm = {"norm_class": nn.LayerNorm, "norm_kwargs": shapes}
    net = MLP(
        in_features=observation_size + action_size,
        out_features=1,
        num_cells=list(hidden_sizes),
        activation_class=nn.ReLU,
        **norm,
        device=device,
    )
    return ValueOperator(net, in_keys=["observation", "action"])
