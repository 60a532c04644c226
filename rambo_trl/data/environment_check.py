"""Whether a data set and the environment that it names fit together."""

from __future__ import annotations

import math

import torch
from gymnasium import spaces
from torchrl._utils import logger as torchrl_logger

from rambo_trl.data.environment import action_bounds, environment_id, environment_spaces
from rambo_trl.data.offline_dataset import OfflineDataset
from rambo_trl.data.spaces import ObservationLayout

__all__ = ["bounds_that_differ", "check_environment"]


def check_environment(dataset: OfflineDataset) -> None:
    """Check that a data set's environment is installed and fits its data, before any long work.

    Raises:
        ValueError: if the data set names no environment, the environment is not installed, or
            observations or actions have other sizes there than in the data.
    """
    environment = dataset.environment
    if environment is None:
        raise ValueError(f"data set {dataset.name} names no environment to evaluate in")
    env_id = environment_id(environment)
    observation_space, action_space = environment_spaces(environment)
    layout = dataset.observation_layout or ObservationLayout.of(
        observation_space, name=env_id, env_id=env_id
    )
    try:
        size = layout.flatten(observation_space.sample()).shape[-1]
    except ValueError as error:
        raise ValueError(
            f"data set {dataset.name} does not fit {env_id}: {error}; give another env_id, or "
            "env_id=none to go without one"
        ) from None
    actions: object = action_space  # of another kind: it differs
    if isinstance(action_space, spaces.Box):
        actions = math.prod(action_space.shape)  # the data's are flattened as well
    for kind, in_env, in_data in (
        ("observations", size, dataset.observation_size),
        ("actions", actions, dataset.action_size),
    ):
        if in_env != in_data:
            raise ValueError(
                f"data set {dataset.name} does not fit {env_id}: {kind} of size {in_data} "
                f"in the data and {in_env} in the environment; give the env_id they come from, or "
                "env_id=none to go without one"
            )
    for remark in bounds_that_differ(dataset):
        torchrl_logger.warning(f"{dataset.name}: {remark}")


def bounds_that_differ(dataset: OfflineDataset) -> list[str]:
    """Tell where the policy may not do what the environment allows; one sentence or none."""
    if dataset.env_id is None:
        return []
    low, high = dataset.action_low, dataset.action_high
    other = action_bounds(dataset.env_id, dataset.action_size).space
    if torch.allclose(low.to(other.low), other.low) and torch.allclose(
        high.to(other.high), other.high
    ):
        return []
    return [
        f"actions lie between {low.tolist()} and {high.tolist()} in the data and between "
        f"{other.low.tolist()} and {other.high.tolist()} in {dataset.env_id}: a policy keeps to "
        "the data's bounds, so scale the data's actions if they are in other units"
    ]
