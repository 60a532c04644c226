"""What every world model, the library's ensemble or a user's own, is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, unravel_key
from torch import nn

from rambo_trl.modules.ensemble import EnsembleWorldModel

__all__ = [
    "TransitionKeys",
    "check_sampler",
    "keys_read",
    "next_key",
    "place_of",
    "require_ensemble",
    "transition_keys",
    "trying",
]

#: what a world model must not predict, because it is not read
_ENDS = ("terminated", "truncated", "done")


def next_key(key: NestedKey) -> NestedKey:
    """The key of the same entry of the successor, under ``"next"``."""
    return ("next", key) if isinstance(key, str) else ("next", *key)


@dataclass(frozen=True)
class TransitionKeys:
    """The entries of a transition.

    Attributes:
        observation: the state, and under ``"next"`` the successor.
        action: what is done in the state.
        reward: what it is worth, under ``"next"``.
    """

    observation: NestedKey = "observation"
    action: NestedKey = "action"
    reward: NestedKey = "reward"

    @property
    def next_observation(self) -> NestedKey:
        """The successor's whole key."""
        return next_key(self.observation)

    @property
    def next_reward(self) -> NestedKey:
        """The reward's whole key."""
        return next_key(self.reward)


def check_sampler(world_model: object) -> None:
    """Refuse what cannot be called on a TensorDict.

    Raises:
        TypeError: if it is no TensorDict module.
    """
    if not isinstance(world_model, nn.Module) or not all(
        isinstance(getattr(world_model, keys, None), Sequence) for keys in ("in_keys", "out_keys")
    ):
        raise TypeError(
            "the world model must be a TensorDict module, with in_keys and out_keys, got "
            f"{type(world_model).__name__}: wrap it in a TensorDictModule that writes "
            "('next', 'observation') and ('next', 'reward')"
        )


def keys_read(module: Any) -> list[NestedKey]:
    """What a TensorDict module reads, without groups whose entries it writes itself.

    TorchRL's sequences name those too, such as distributions' parameters.
    """
    written = [_parts(unravel_key(key)) for key in getattr(module, "out_keys", ())]
    read = [unravel_key(key) for key in module.in_keys]
    return [k for k in read if not any(w[: len(_parts(k))] == _parts(k) for w in written)]


def transition_keys(world_model: Any) -> TransitionKeys:
    """Find out which entries a world model reads as observation and action, and writes.

    The observation is the entry that is read and, under ``"next"``, written; the action the other
    that is read; the reward the other that is written under ``"next"``, or the one of that name.
    A model's attributes ``observation_key``, ``action_key`` and ``reward_key`` go before.

    Args:
        world_model: a TensorDict module, whose keys may be nested.

    Raises:
        TypeError: if it is no TensorDict module.
        ValueError: if its keys are not those of a world model.
    """
    check_sampler(world_model)
    own = [getattr(world_model, f"{n}_key", None) for n in ("observation", "action", "reward")]
    if all(key is not None for key in own):
        return TransitionKeys(*map(unravel_key, own))
    read, written = keys_read(world_model), [unravel_key(key) for key in world_model.out_keys]
    states = [key for key in read if next_key(key) in written]
    others = [key for key in read if key not in states]
    rewards = [
        unravel_key(key[1:])
        for key in written
        if isinstance(key, tuple) and key[0] == "next" and unravel_key(key[1:]) not in states
    ]
    ends = [key for key in rewards if _parts(key)[-1] in _ENDS]
    named = [key for key in rewards if _parts(key)[-1] == "reward"]
    rewards = named if len(named) == 1 else rewards
    what = f"the world model {type(world_model).__name__} reads {read} and writes {written}"
    if ends:
        raise ValueError(
            f"{what}: {ends} under 'next' would not be read, since a termination rule says where "
            "episodes end; leave them out (select_out_keys)"
        )
    if [len(found) for found in (states, others, rewards)] != [1, 1, 1]:
        raise ValueError(
            f"{what}: expected one observation and one action, and under 'next' that observation "
            "and a reward, such as ['observation', 'action'] and [('next', 'observation'), "
            "('next', 'reward')]"
        )
    return TransitionKeys(states[0], others[0], rewards[0])


def _parts(key: NestedKey) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def place_of(world_model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a model's numbers; the CPU and torch's default where it has none."""
    tensors = itertools.chain(world_model.parameters(), world_model.buffers())
    first = next((t for t in tensors if t.is_floating_point()), None)
    if first is None:
        return torch.device("cpu"), torch.get_default_dtype()
    return first.device, first.dtype


def require_ensemble(world_model: object, what: str) -> None:
    """Refuse another world model where an ensemble's members are needed.

    Raises:
        TypeError: saying what needs them.
    """
    if not isinstance(world_model, EnsembleWorldModel):
        raise TypeError(
            f"{what} needs the members of an EnsembleWorldModel, got "
            f"{type(world_model).__name__}: see docs/reuse.md for what goes with other world models"
        )


@contextmanager
def trying(what: str, device: torch.device) -> Iterator[None]:
    """Try a user's module on a few rows: without gradients, leaving the random state as it was.

    Raises:
        ValueError: if anything goes wrong, saying what.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            yield
        except Exception as error:  # anything may go wrong in a user's module
            reason = " ".join(str(error).split()) or "no reason given"
            raise ValueError(f"{what} ({type(error).__name__}: {reason})") from error
