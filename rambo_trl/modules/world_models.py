"""The interface of world models: the library's ensemble or a user's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor, nn

from rambo_trl.modules.ensemble import EnsembleWorldModel

__all__ = [
    "DrawsByMember",
    "TransitionKeys",
    "check_sampler",
    "device_and_dtype",
    "keys_read",
    "next_key",
    "require_ensemble",
    "transition_keys",
    "trying",
]

#: entries that a world model must not predict, because they would be ignored
_ENDS = ("terminated", "truncated", "done")


def next_key(key: NestedKey) -> NestedKey:
    """The key of the same entry in the next state, under ``"next"``."""
    return unravel_key(("next", key))


@dataclass(frozen=True)
class TransitionKeys:
    """The entries of a transition.

    Attributes:
        observation: the observation, and under ``"next"`` the next one.
        action: the action.
        reward: the reward, under ``"next"``.
    """

    observation: NestedKey = "observation"
    action: NestedKey = "action"
    reward: NestedKey = "reward"

    @property
    def next_observation(self) -> NestedKey:
        """The next observation's full key."""
        return next_key(self.observation)

    @property
    def next_reward(self) -> NestedKey:
        """The reward's full key."""
        return next_key(self.reward)


@runtime_checkable
class DrawsByMember(Protocol):
    """A world model of several components that can say which of them drew a row.

    :class:`~rambo_trl.modules.EnsembleWorldModel` is one.
    """

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """As calling the model on rows [*B], and write what tells which component drew each row.

        What it writes besides is given to :meth:`member_log_prob`: an index [*B], for example.
        """
        ...

    def member_log_prob(self, tensordict: TensorDictBase) -> Tensor:
        """The joint log-density [*B] of the component that drew and what it drew.

        That is log w_i(s, a) + log T_i(s', r | s, a) of the component i; weights w that are not
        trained, such as an ensemble's uniform ones, may be left out.
        """
        ...


def check_sampler(world_model: object) -> None:
    """Check that a world model can be called on a TensorDict.

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
    """A TensorDict module's input keys, without groups whose entries it writes itself.

    TorchRL's sequences list those too, such as distributions' parameters.
    """
    written = [_parts(unravel_key(key)) for key in getattr(module, "out_keys", ())]
    read = [unravel_key(key) for key in module.in_keys]
    return [k for k in read if not any(w[: len(_parts(k))] == _parts(k) for w in written)]


def transition_keys(world_model: Any) -> TransitionKeys:
    """Infer a world model's keys of observation, action and reward.

    The observation is the entry that is read and, under ``"next"``, written; the action the other
    that is read; the reward the other that is written under ``"next"``, or the one of that name.
    A model's attributes ``observation_key``, ``action_key`` and ``reward_key`` take precedence.

    Args:
        world_model: a TensorDict module, whose keys may be nested.

    Raises:
        TypeError: if it is no TensorDict module.
        ValueError: if its keys are not those of a world model.
    """
    check_sampler(world_model)
    keys = [getattr(world_model, f"{n}_key", None) for n in ("observation", "action", "reward")]
    if all(key is not None for key in keys):
        return TransitionKeys(*map(unravel_key, keys))
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
            f"{what}: {ends} under 'next' would be ignored, since a termination rule says where "
            "episodes end: leave them out (select_out_keys)"
        )
    if not len(states) == len(others) == len(rewards) == 1:
        raise ValueError(
            f"{what}: expected one observation and one action, and under 'next' that observation "
            "and a reward, such as ['observation', 'action'] and [('next', 'observation'), "
            "('next', 'reward')]"
        )
    return TransitionKeys(states[0], others[0], rewards[0])


def _parts(key: NestedKey) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def device_and_dtype(world_model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a model's floats; the CPU and torch's default where it has none."""
    tensors = itertools.chain(world_model.parameters(), world_model.buffers())
    first = next((t for t in tensors if t.is_floating_point()), None)
    if first is None:
        return torch.device("cpu"), torch.get_default_dtype()
    return first.device, first.dtype


def require_ensemble(world_model: object, what: str) -> None:
    """Check that a world model is an ensemble, for parts that need its members.

    Raises:
        TypeError: naming the part that needs them.
    """
    if not isinstance(world_model, EnsembleWorldModel):
        raise TypeError(
            f"{what} needs the members of an EnsembleWorldModel, got "
            f"{type(world_model).__name__}: see docs/reuse.md for what goes with other world models"
        )


@contextmanager
def trying(what: str, device: torch.device) -> Iterator[None]:
    """Try a user's module on a few rows, without gradients and without advancing the generators.

    Raises:
        ValueError: if anything fails, with ``what`` and the reason.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            yield
        except Exception as error:  # a user's module may raise anything
            reason = " ".join(str(error).split()) or "no reason given"
            raise ValueError(f"{what} ({type(error).__name__}: {reason})") from error
