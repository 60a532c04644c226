"""Action bounds for data in D4RL's layout, which have none of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from torchrl.data import Bounded

from rambo_trl.data.checks import Oddity
from rambo_trl.data.environment import bounds_of, environment_id, environment_spaces
from rambo_trl.data.spaces import check_action_space

__all__ = ["default_bounds", "one_sided_actions"]

_GIVE_SPEC = (
    "action_spec (--action-low and --action-high of python -m rambo_trl.data, with --memmap)"
)


def default_bounds(
    environment: str | EnvSpec | None, size: int, name: str
) -> tuple[Bounded, str, bool]:
    """The environment's action bounds where it is installed and fits, else D4RL's [-1, 1].

    Args:
        environment: its Gymnasium id or specification, if any.
        size: number of action entries in the data.
        name: how messages call the data set.

    Returns:
        The bounds; what to do where actions leave them: where they come from, for one; and
        whether they are assumed.

    Raises:
        ValueError: if the environment's actions are no real numbers.
    """
    space, assumed = None, True
    if environment is None:
        remedy = (
            "the bounds are assumed, because no environment is named; give env_id (recipes: "
            f"env_id=...), or {_GIVE_SPEC}"
        )
    else:
        env_id = environment_id(environment)
        try:
            space = environment_spaces(environment)[1]
        except ValueError as error:  # not registered, or what it needs is not installed
            remedy = f"the bounds are assumed, because {error}; or give {_GIVE_SPEC}"
        else:
            check_action_space(space, f"{name}: environment {env_id}")
            assert isinstance(space, spaces.Box)
            given = math.prod(space.shape)
            assumed = given != size
            remedy = f"give the env_id that the data come from, or {_GIVE_SPEC}"
            if assumed:
                remedy = (
                    f"the bounds are assumed, because {env_id} has actions of another size "
                    f"({given}, not {size}); {remedy}"
                )
            else:
                remedy = f"the bounds are those of {env_id}; {remedy}, or clip the actions"
    return bounds_of(space, size), remedy, assumed


def one_sided_actions(
    actions: np.ndarray, remedy: str, names: Sequence[str] | None = None
) -> list[Oddity]:
    """Tell of actions that hardly mean the assumed bounds [-1, 1], a valve's for one.

    Args:
        actions: the data's, [N, act].
        remedy: why the bounds are assumed, and what to give instead.
        names: of the entries, where they have some.

    Returns:
        An oddity where an entry that changes is never negative, or never positive; else nothing.
    """
    low, high = actions.min(axis=0), actions.max(axis=0)
    found = np.flatnonzero((low < high) & ((low >= 0) | (high <= 0)))
    if len(found) == 0:
        return []
    entry = int(found[0])
    label = f"action entry {entry}"
    if names is not None and len(names) == len(low):  # others are refused later
        label = names[entry]
    return [
        Oddity(
            f"{label} lies between {low[entry]:g} and {high[entry]:g} in the data, "
            f"but is taken to have the bounds -1 and 1, all of which a policy may use: {remedy}"
        )
    ]
