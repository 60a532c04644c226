"""Termination rules of the Gymnasium environments, and a user's own.

A rule is a plain function of (observation, action, next_observation) [*, size] in the
environment's units, not normalised, and returns a boolean [*]: whether the next
observation ends the episode.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDictBase
from torch import Tensor
from torchrl._utils import logger as torchrl_logger

from rambo_trl.data.environment import arguments_of, environment_id, is_maze, known_family
from rambo_trl.data.scaling import denormalize_action
from rambo_trl.data.transitions import draw_rows
from rambo_trl.modules.modes import evaluating
from rambo_trl.modules.world_models import TransitionKeys
from rambo_trl.runtime.importing import import_user_module

__all__ = [
    "TerminationRule",
    "ant",
    "check_rule",
    "choose_rule",
    "hopper",
    "import_rule",
    "inverted_double_pendulum",
    "never",
    "rule_for",
    "simglucose",
    "walker2d",
]

TerminationRule = Callable[[Tensor, Tensor, Tensor], Tensor]


def never(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """No state [*, size] ends an episode (HalfCheetah, Swimmer): false, [*]."""
    return torch.zeros(next_observation.shape[:-1], dtype=torch.bool, device=observation.device)


def hopper(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Hopper ends unless its height is above 0.7 m, its torso within 0.2 rad, the rest within 100.

    States are [*, 11], the result is [*].
    """
    height, angle = next_observation[..., 0], next_observation[..., 1]
    healthy = (
        next_observation.isfinite().all(dim=-1)
        & (next_observation[..., 1:].abs() < 100).all(dim=-1)
        & (height > 0.7)
        & (angle.abs() < 0.2)
    )
    return ~healthy


def walker2d(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """Walker2d ends unless its height is between 0.8 and 2 m and its torso within 1 rad.

    States are [*, 17], the result is [*].
    """
    height, angle = next_observation[..., 0], next_observation[..., 1]
    healthy = (height > 0.8) & (height < 2.0) & (angle > -1.0) & (angle < 1.0)
    return ~healthy


def inverted_double_pendulum(
    observation: Tensor, action: Tensor, next_observation: Tensor
) -> Tensor:
    """The pendulum ends unless its tip is above 1 m, by the sines and cosines of its two angles.

    The two poles are 0.6 m long and the second angle is relative to the first. States are [*, 9],
    the result is [*].
    """
    sin1, sin2, cos1, cos2 = (next_observation[..., i] for i in (1, 2, 3, 4))
    tip = 0.6 * (cos1 + cos1 * cos2 - sin1 * sin2)
    return ~(tip > 1.0)


def ant(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """The ant ends unless its height is between 0.2 and 1 m and every entry is finite.

    States are [*, size], the height first; the result is [*].
    """
    height = next_observation[..., 0]
    healthy = next_observation.isfinite().all(dim=-1) & (height >= 0.2) & (height <= 1.0)
    return ~healthy


def simglucose(observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
    """NeoRL-2's Simglucose ends where the blood glucose leaves 40 to 600 mg/dl.

    By the sensor, the first entry, as in NeoRL-2's own rule for models. The simulator goes by the
    glucose itself, which is not observed: a third of the data's ends are at 40 to 41 by the sensor.
    States are [*, 31], the result is [*].
    """
    glucose = next_observation[..., 0]
    return ~((glucose >= 40.0) & (glucose <= 600.0))


@dataclass(frozen=True)
class _Known:
    """A rule, the observation sizes that it reads, and the env arguments that it is for."""

    rule: TerminationRule
    sizes: tuple[int, ...] = ()
    arguments: Mapping[str, tuple[float, float]] = field(default_factory=dict)


_NEVER = _Known(never)
_RULES: dict[str, _Known] = {
    "Ant": _Known(ant, (27, 105, 111), {"healthy_z_range": (0.2, 1.0)}),
    "HalfCheetah": _NEVER,
    "Hopper": _Known(
        hopper,
        (11,),
        {
            "healthy_state_range": (-100.0, 100.0),
            "healthy_z_range": (0.7, math.inf),
            "healthy_angle_range": (-0.2, 0.2),
        },
    ),
    "InvertedDoublePendulum": _Known(inverted_double_pendulum, (9, 11)),
    "Pusher": _NEVER,
    "Reacher": _NEVER,
    "Swimmer": _NEVER,
    "Walker2d": _Known(
        walker2d, (17,), {"healthy_z_range": (0.8, 2.0), "healthy_angle_range": (-1.0, 1.0)}
    ),
}
_CHOICES = "choose termination=none, termination=learned or termination=MODULE:FUNCTION"


def rule_for(environment: str | EnvSpec, *, observation_size: int | None = None) -> TerminationRule:
    """Look up the rule of an environment, of any version.

    Rules are known for Gymnasium's MuJoCo environments; with ``terminate_when_unhealthy=False``
    no state ends an episode. Neither does one in AntMaze and PointMaze, as in the paper's
    experiments. An id with a namespace, ``"MyLab/Hopper-v0"``, is another environment.

    Args:
        environment: such as ``"Hopper-v5"``, the ``env.spec.id``, or the ``env.spec`` itself.
        observation_size: of the data, if known.

    Raises:
        KeyError: if no rule is known; the message says how to give one.
        ValueError: if the rule is for other arguments or another observation size.
    """
    family = known_family(environment) or ""
    if is_maze(environment):
        return never
    known = _RULES.get(family)
    if known is None:
        raise KeyError(
            f"no termination rule is known for {environment_id(environment)!r} (known: "
            f"{', '.join(_RULES)}, mazes); choose termination=none, learned or MODULE:FUNCTION, or "
            "pass a function of (observation, action, next_observation)"
        )
    if known.rule is never:
        return never
    arguments = arguments_of(environment)
    if arguments.get("terminate_when_unhealthy") is False:
        return never
    for key, usual in known.arguments.items():
        given = arguments.get(key, usual)
        if given is None or tuple(given) != usual:
            raise ValueError(
                f"the termination rule of {environment_id(environment)} is for {key}={usual}, not "
                f"{given}: {_CHOICES}"
            )
    if observation_size is not None and observation_size not in known.sizes:
        raise ValueError(
            f"the termination rule of {environment_id(environment)} reads observations of "
            f"{' or '.join(map(str, known.sizes))} entries, the data's have {observation_size}: "
            f"{_CHOICES}"
        )
    return known.rule


def choose_rule(
    choice: str | TerminationRule = "auto",
    *,
    env_id: str | EnvSpec | None,
    terminated: Tensor,
    observation_size: int | None = None,
) -> TerminationRule | Literal["learned"]:
    """Resolve a user's choice of rule; terminal rows in the data are never silently ignored.

    Args:
        choice: ``"auto"``, the environment's known rule, or no ends if the data have none;
            ``"none"``, no ends; ``"learned"``, see :func:`~rambo_trl.envs.fit_termination`;
            ``"MODULE:FUNCTION"``, a rule to import, also from the working folder; or a rule.
        env_id: the environment, if any: its id or, with its arguments, its specification.
        terminated: boolean [N] or [N, 1], the data's flags.
        observation_size: of the data, to compare with the known rule's.

    Returns:
        The rule, or ``"learned"`` if it is to be fitted.

    Raises:
        ValueError: if the data have terminal rows but no rule is known, the known one is for other
            arguments or another observation size, or a rule cannot be imported.
    """
    if callable(choice):
        return choice
    if choice == "learned":
        return "learned"
    if choice == "none":
        return never
    if choice != "auto":
        return import_rule(choice)
    try:
        return rule_for(env_id or "", observation_size=observation_size)
    except KeyError:
        ends = int(terminated.count_nonzero())
        place = (
            f"environment {environment_id(env_id)}" if env_id else "data that name no environment"
        )
        if ends:
            raise ValueError(
                f"no termination rule is known for {place}, but {ends} of {len(terminated)} "
                "transitions are terminal: choose termination=learned, "
                "termination=MODULE:FUNCTION, or termination=none if the model may continue past "
                f"such states{'' if env_id else '; or name the environment (env_id=)'}"
            ) from None
        torchrl_logger.info(
            f"no termination rule is known for {place} and no transition is terminal: nothing "
            "ends an episode in the model"
        )
        return never


def import_rule(path: str) -> TerminationRule:
    """Import a rule by ``"MODULE:FUNCTION"``; the working folder is searched first.

    Raises:
        ValueError: if the module or the function is missing, or importing it fails.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ValueError(
            f"termination={path} must be auto, none, learned or MODULE:FUNCTION, such as "
            "my_rules:fell_over"
        )
    try:
        rule = getattr(import_user_module(module_name), name)
    except Exception as error:  # a user's module may raise anything, even a SyntaxError
        reason = " ".join(str(error).split())
        if not isinstance(error, (ImportError, AttributeError)):
            reason = f"{type(error).__name__}: {reason}"
        raise ValueError(
            f"termination={path} cannot be imported ({reason}); modules are searched for in "
            f"{os.getcwd()} and in the installed packages"
        ) from error
    if not callable(rule):
        raise ValueError(f"termination={path} is not a function but {type(rule).__name__}")
    return rule


def check_rule(
    rule: TerminationRule,
    transitions: TensorDictBase,
    *,
    observation_mean: Tensor | float = 0.0,
    observation_std: Tensor | float = 1.0,
    action_low: Tensor | None = None,
    action_high: Tensor | None = None,
    max_rows: int = 10_000,
    device: torch.device | str | None = None,
    keys: TransitionKeys | None = None,
) -> tuple[float | None, float | None]:
    """Try a rule on rows of the data and compare it with their flags.

    Args:
        rule: a function of (observation, action, next_observation).
        transitions: the data [N], normalised.
        observation_mean: the data's mean [observation_size].
        observation_std: the data's standard deviation [observation_size].
        action_low: the environment's action [action_size] for -1; by default the data's actions
            are in its units.
        action_high: the environment's action for 1.
        max_rows: largest number of terminal rows, and of other rows, to try.
        device: where to try the rule; by default where the data are.
        keys: of the data's entries; the usual ones by default.

    Returns:
        The share of terminal rows and the share of other rows that the rule ends; None if there
        are no such rows. Terminal rows whose next observation equals their observation are left
        out: it stands in for an unknown one.

    Raises:
        ValueError: if the rule fails or does not return a boolean for each row, on their device.
    """
    keys = keys or TransitionKeys()
    terminated = transitions["next", "terminated"].reshape(-1)
    known = (transitions[keys.next_observation] != transitions[keys.observation]).any(dim=-1)
    shares: list[float | None] = []
    for kind in (terminated & known, ~terminated):
        rows = kind.nonzero().squeeze(-1)
        if len(rows) == 0:
            shares.append(None)
            continue
        some = rows[draw_rows(len(rows), max_rows)]
        batch = transitions[some]
        before, after = (
            (batch[key] * observation_std + observation_mean).to(device)
            for key in (keys.observation, keys.next_observation)
        )
        action = batch[keys.action].to(device)
        if action_low is not None and action_high is not None:
            action = denormalize_action(action, action_low, action_high)
        name = getattr(rule, "__name__", type(rule).__name__)
        try:
            with evaluating(rule):
                ended = rule(before, action, after)
        except Exception as error:  # a user's function may raise anything
            raise ValueError(
                f"the termination rule {name} fails on the data "
                f"({type(error).__name__}: {' '.join(str(error).split())})"
            ) from error
        if (
            not isinstance(ended, Tensor)
            or ended.dtype != torch.bool
            or ended.shape not in ((len(some),), (len(some), 1))
        ):
            got = (
                f"{ended.dtype} {tuple(ended.shape)}"
                if isinstance(ended, Tensor)
                else type(ended).__name__
            )
            raise ValueError(
                f"the termination rule {name} must return a boolean tensor [{len(some)}] for "
                f"{len(some)} rows, got {got}"
            )
        if ended.device != after.device:
            raise ValueError(
                f"the termination rule {name} returns a tensor on {ended.device} for observations "
                f"on {after.device}: make tensors with device=observation.device"
            )
        shares.append(float(ended.float().mean()))
    return shares[0], shares[1]
