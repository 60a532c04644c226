"""All that a report on one run measures apart from values: actions, distance, the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from rambo_trl.data import OfflineDataset
from rambo_trl.data.blocks import EpisodeBlocks
from rambo_trl.envs import EnsembleModelEnv
from rambo_trl.modules import EnsembleWorldModel
from rambo_trl.modules.modes import evaluating
from rambo_trl.reporting.adversary_measures import mode
from rambo_trl.reporting.model_accuracy import (
    calibration,
    find_held_out,
    k_step_error,
    one_step_error,
)
from rambo_trl.reporting.policy_support import action_use, distance_from_data

__all__ = ["measure_run"]


def measure_run(
    data: OfflineDataset,
    actor: TensorDictModuleBase,
    *,
    gamma: float,
    horizon: int,
    env: EnsembleModelEnv | None = None,
    fitted: EnsembleWorldModel | None = None,
    holdout_mse: Sequence[float] | None = None,
    random_state: Tensor | None = None,
) -> dict[str, Any]:
    """Measure a policy, and its model where there is one, on the log.

    The same episodes are set aside as in the estimates of values.

    Args:
        data: what it was trained on.
        actor: the policy, from normalised observations to actions in [-1, 1].

    Keyword Args:
        gamma: discount factor, by which long episodes are cut into blocks.
        horizon: steps of rollouts in the model.
        env: the world model as training left it, with its termination rule.
        fitted: the model as it was fitted; where None, that of ``env`` stands in.
        holdout_mse: every member's error on held-out rows after the fit, if it is recorded.
        random_state: torch's before the fit, from which the held-out rows were drawn.

    Returns:
        ``actions``, ``support`` and ``model`` (None without one), see
        :mod:`~rambo_trl.reporting.policy_support` and :mod:`~rambo_trl.reporting.model_accuracy`.

    Raises:
        ValueError: if the data have too few episodes.
    """
    blocks = EpisodeBlocks.of(data, gamma=gamma)

    def act(observation: Tensor) -> Tensor:
        return mode(actor, observation)

    if env is not None and fitted is None:
        fitted = env.world_model
    with evaluating(actor, *([] if env is None else [env])):
        found: dict[str, Any] = {
            "actions": action_use(data, act, blocks.held_out_rows),
            "support": distance_from_data(
                data, act, blocks, env=env, model=fitted, horizon=horizon
            ),
            "model": None,
        }
        if env is not None and fitted is not None:
            held = find_held_out(
                data,
                fitted,
                blocks.held_out_rows,
                holdout_mse=holdout_mse,
                random_state=random_state,
            )
            found["model"] = {
                "one_step": one_step_error(data, held, fitted, env.world_model),
                "k_step": k_step_error(data, held, fitted),
                "calibration": calibration(data, held, fitted),
            }
    found["support"]["names"] = list(data.observation_names)
    return found
