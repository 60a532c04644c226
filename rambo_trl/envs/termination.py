"""Termination rules of the Gymnasium environments, each written once.

A rule is a plain function of (observation, action, next_observation) [*, size] in the
environment's own units, not normalised, and returns a boolean [*]: whether the next
observation ends the episode.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "TerminationRule",
    "ant",
    "hopper",
    "inverted_double_pendulum",
    "never",
    "rule_for",
    "walker2d",
]

TerminationRule = Callable[[Tensor, Tensor, Tensor], Tensor]


def never(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """No state ends an episode (HalfCheetah, Swimmer)."""
    return torch.zeros(next_observation.shape[:-1], dtype=torch.bool, device=observation.device)


def hopper(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Height above 0.7, torso angle within 0.2 rad, every entry but the height within 100."""
    height, angle = next_observation[..., 0], next_observation[..., 1]
    healthy = (
        next_observation.isfinite().all(dim=-1)
        & (next_observation[..., 1:].abs() < 100).all(dim=-1)
        & (height > 0.7)
        & (angle.abs() < 0.2)
    )
    return ~healthy


def walker2d(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Height between 0.8 and 2, torso angle within 1 rad."""
    height, angle = next_observation[..., 0], next_observation[..., 1]
    healthy = (height > 0.8) & (height < 2.0) & (angle > -1.0) & (angle < 1.0)
    return ~healthy


def inverted_double_pendulum(
    observation: Tensor, action: Tensor, next_observation: Tensor
) -> Tensor:
    """Height of the tip above 1, from the sines and cosines of the two joint angles.

    The two poles are 0.6 long and the second angle is relative to the first.
    """
    sin1, sin2, cos1, cos2 = (next_observation[..., i] for i in (1, 2, 3, 4))
    tip = 0.6 * (cos1 + cos1 * cos2 - sin1 * sin2)
    return ~(tip > 1.0)


def ant(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Height between 0.2 and 1, every entry finite."""
    height = next_observation[..., 0]
    healthy = next_observation.isfinite().all(dim=-1) & (height >= 0.2) & (height <= 1.0)
    return ~healthy


_RULES: dict[str, TerminationRule] = {
    "Ant": ant,
    "HalfCheetah": never,
    "Hopper": hopper,
    "InvertedDoublePendulum": inverted_double_pendulum,
    "Pusher": never,
    "Reacher": never,
    "Swimmer": never,
    "Walker2d": walker2d,
}


def rule_for(env_id: str) -> TerminationRule:
    """Look up the rule of a Gymnasium MuJoCo environment by its id, of any version.

    Args:
        env_id: such as ``"Hopper-v5"``, the ``env.spec.id``.

    Raises:
        KeyError: if no rule is known; the message says how to give one.
    """
    family = env_id.split("/")[-1].rsplit("-v", 1)[0]
    try:
        return _RULES[family]
    except KeyError:
        raise KeyError(
            f"no termination rule is known for {env_id!r} (known: {', '.join(_RULES)}); pass "
            "termination=, a function of (observation, action, next_observation), or "
            "rambo_trl.envs.termination.never"
        ) from None
