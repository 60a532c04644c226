"""Two masses between springs and dampers, to be pushed to targets: NeoRL-2's DMSD."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

__all__ = ["DMSDEnv"]

_SECONDS = 0.2
_MASS, _STIFFNESS, _DAMPING = 20.0, 2.0, 4.0
_FORCE = 30.0
#: steps until a mass that has a second target gets it
_CHANGE = 50
_TARGET, _POSITION, _VELOCITY = 1.5, 0.25, 0.1

# Wall - spring - mass 1 - spring - mass 2 - spring - wall, a damper beside every spring: what the
# positions, or the velocities, of the two masses pull with.
_CHAIN = np.array([[-2.0, 1.0], [1.0, -2.0]])


class DMSDEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Double mass-spring-damper: two coupled masses are pushed to a target position each.

    The task DMSD of NeoRL-2 (Gao et al. 2025, https://arxiv.org/abs/2503.19267), a system of Char
    and Schneider (2023, https://arxiv.org/abs/2307.05891): masses of 20 in a row between two walls,
    springs of stiffness 2 and dampers of 4 between all of them, integrated by Euler's explicit
    method in steps of 0.2. It is ``rambo_trl/DMSD-v0``, with 100 steps per episode.

    Observations [6] are the two positions, velocities and targets. Actions [2] in [-1, 1] are the
    forces on the masses in units of 30. The reward is the sum over the masses of
    ``-log(|position - target| + 0.01)`` after the step.

    An episode starts with positions within 0.25 and velocities within 0.1 of zero and targets
    within 1.5, all uniform. Each mass keeps its target or, with probability 1/2, is given another
    one at step 50. Which, and when, is not observed: everything else is Markov in the observation,
    and without noise.

    ``reset(options=...)`` takes ``"state"`` [4], positions and velocities, and ``"targets"``
    [2, 2], those of the masses in the first and in the second half.
    """

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (6,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._state, self._targets, self._steps = np.zeros(4), np.zeros((2, 2)), 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw targets and the masses' state."""
        super().reset(seed=seed)
        draw, options = self.np_random, options or {}
        targets = [draw.uniform(-_TARGET, _TARGET, draw.integers(1, 3)) for _ in range(2)]
        state = np.append(
            draw.uniform(-_POSITION, _POSITION, 2), draw.uniform(-_VELOCITY, _VELOCITY, 2)
        )
        drawn = np.array([(own[0], own[-1]) for own in targets]).T
        self._targets = np.array(options.get("targets", drawn), dtype=np.float64)
        self._state = np.array(options.get("state", state), dtype=np.float64)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Push the masses for 0.2 seconds; no state ends an episode."""
        position, velocity = self._state[:2], self._state[2:]
        force = _FORCE * np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        force = force + _CHAIN @ (_STIFFNESS * position + _DAMPING * velocity)
        self._state = np.append(position + _SECONDS * velocity, velocity + _SECONDS / _MASS * force)
        self._steps += 1
        error = np.abs(self._state[:2] - self._target())
        return self._observation(), float(-np.log(error + 0.01).sum()), False, False, {}

    def _target(self) -> np.ndarray:
        return self._targets[int(self._steps >= _CHANGE)]

    def _observation(self) -> np.ndarray:
        return np.append(self._state, self._target()).astype(np.float32)
