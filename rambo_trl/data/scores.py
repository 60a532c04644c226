"""Normalised scores: returns on the scale from a random (0) to an expert policy (100)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rambo_trl.data.environment import is_scored_by_success

__all__ = ["D4RL_REFERENCE_SCORES", "normalized_score", "reference_scores_for"]

#: Returns of D4RL's random and expert policies by environment family, whatever its version
#: (Fu et al. 2020, https://arxiv.org/abs/2004.07219).
D4RL_REFERENCE_SCORES: Mapping[str, tuple[float, float]] = {
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
}


def reference_scores_for(env_id: str | None) -> tuple[float, float] | None:
    """Look up D4RL's (minimum, maximum) reference return of an environment.

    Args:
        env_id: a Gymnasium id such as ``"Hopper-v5"``; namespace and version do not matter.
            Every sparse AntMaze is one family; a sparse PointMaze is scored like it.

    Returns:
        The two returns, or None where D4RL has none.
    """
    if env_id is None:
        return None
    if is_scored_by_success(env_id):
        return D4RL_REFERENCE_SCORES["antmaze"]
    family = re.sub(r"-v\d+$", "", env_id.rsplit("/", 1)[-1]).lower()
    return D4RL_REFERENCE_SCORES.get(family)


def normalized_score(episode_return: float, reference_scores: tuple[float, float]) -> float:
    """Map an undiscounted return to ``100 * (return - min) / (max - min)``."""
    low, high = reference_scores
    return 100.0 * (episode_return - low) / (high - low)
