"""Normalised scores: returns on the scale from a random (0) to an expert policy (100)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gymnasium.envs.registration import EnvSpec

from rambo_trl.data.environment import is_scored_by_success, known_family, particulars

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


#: arguments that returns do not depend on
_OF_OBSERVATIONS = re.compile(r"(in|ex)clude_\w+_(in|from)_observation")


def reference_scores_for(environment: str | EnvSpec | None) -> tuple[float, float] | None:
    """Look up D4RL's (minimum, maximum) reference return of an environment.

    Args:
        environment: a Gymnasium id such as ``"Hopper-v5"``, of any version, or a specification. One
            with arguments, a time limit or wrappers of its own has other returns, and one with a
            namespace is another environment. Every sparse AntMaze is one family; a sparse
            PointMaze is scored like it.

    Returns:
        The two returns, or None where D4RL has none.
    """
    if is_scored_by_success(environment):
        return D4RL_REFERENCE_SCORES["antmaze"]
    if not all(map(_OF_OBSERVATIONS.fullmatch, particulars(environment))):
        return None
    return D4RL_REFERENCE_SCORES.get((known_family(environment) or "").lower())


def normalized_score(episode_return: float, reference_scores: tuple[float, float]) -> float:
    """Map an undiscounted return to ``100 * (return - min) / (max - min)``."""
    low, high = reference_scores
    return 100.0 * (episode_return - low) / (high - low)
