"""A scripted player of gymnasium-robotics' PointMaze, from which its bundled data is made."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch

from rambo_trl.data.environment import make_environment

__all__ = ["PointMazeWaypoints"]

Cell = tuple[int, int]


class PointMazeWaypoints:
    """Drives the point along the shortest way of free cells to the goal, with noisy forces.

    The force is a proportional-derivative controller's towards the centre of the next cell, or
    towards the goal itself once the point is in its cell, plus Gaussian noise. Noise comes from
    torch's global generator.

    Args:
        env_id: a PointMaze environment.
        gain: force per distance.
        damping: force per velocity, against it.
        noise: standard deviation of the noise on each force.

    Raises:
        ValueError: if the environment is not installed.
    """

    def __init__(
        self, env_id: str, *, gain: float = 10.0, damping: float = 1.0, noise: float = 0.5
    ) -> None:
        self.gain, self.damping, self.noise = gain, damping, noise
        env = make_environment(env_id)
        env.close()
        unwrapped: Any = env.unwrapped
        self._maze = unwrapped.maze
        self._next = _next_cells(self._maze.maze_map)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Choose forces [B, 2] in [-1, 1] from positions, velocities and goals [B, 6]."""
        position, velocity, goal = np.split(observation, (2, 4), axis=-1)
        target = np.stack([self.waypoint(*pair) for pair in zip(position, goal, strict=True)])
        force = self.gain * (target - position) - self.damping * velocity
        force += self.noise * torch.randn(force.shape).numpy()
        return force.clip(-1, 1).astype(np.float32)

    def waypoint(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return the place [2] to make for: the next cell's centre or the goal."""
        here, there = self._cell(position), self._cell(goal)
        following = self._next.get((here, there), there)
        if following == there:
            return goal
        return self._maze.cell_rowcol_to_xy(np.array(following))

    def _cell(self, place: np.ndarray) -> Cell:
        row, column = self._maze.cell_xy_to_rowcol(place)
        return int(row), int(column)


def _next_cells(maze_map: list[list[int | str]]) -> dict[tuple[Cell, Cell], Cell]:
    """Find the next cell on a shortest way for each pair of (here, there)."""
    free = {(i, j) for i, row in enumerate(maze_map) for j, entry in enumerate(row) if entry != 1}
    table = {}
    for there in free:
        queue, seen = deque([there]), {there}
        while queue:  # breadth first, backwards from the goal
            cell = queue.popleft()
            for step in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                neighbour = (cell[0] + step[0], cell[1] + step[1])
                if neighbour in free and neighbour not in seen:
                    seen.add(neighbour)
                    table[neighbour, there] = cell
                    queue.append(neighbour)
    return table
