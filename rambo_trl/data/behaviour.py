"""Behaviour policies, learnt and scripted, and their rollouts in Gymnasium."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from minari.data_collector import EpisodeBuffer
from safetensors import SafetensorError, safe_open
from torch import nn
from torchrl.modules import MLP, NormalParamExtractor, TanhNormal

from rambo_trl.data.environment import make_environment
from rambo_trl.data.spaces import ObservationLayout
from rambo_trl.data.storage import why_unreadable

__all__ = ["PointMazeWaypoints", "PolicyBundle", "collect_episodes", "uniform_random_actions"]

Act = Callable[[np.ndarray], np.ndarray]
Cell = tuple[int, int]

# Where the layers stand in the actor that recipes/behaviour.py trains.
_ACTOR_PREFIX = "module.0.module."


class PolicyBundle:
    """Snapshots of one behaviour policy along its training.

    Args:
        path: a safetensors file written by ``recipes/behaviour.py``: half-precision actor weights
            under ``NN/<key>`` and a JSON header with the environment, the widths, and each
            snapshot's step and mean return.

    Attributes:
        env_id: the environment that the policies were trained in.
        snapshots: step, mean return and more of every snapshot, in training order.
        medium: index of this snapshot.
        sha256: hash of the file.

    Raises:
        ValueError: if there is no such file, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(
                f"no behaviour policies at {path}: train them with "
                f"`python recipes/behaviour.py env={path.stem}` and put the bundle there"
            )
        try:
            with safe_open(path, "pt") as file:
                self.header: dict[str, Any] = json.loads((file.metadata() or {})["behaviour"])
                self._weights = {
                    key: file.get_tensor(key).float()
                    for key in file.keys()  # noqa: SIM118
                }
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            why = why_unreadable(error, damaged="is no bundle of behaviour policies")
            raise ValueError(f"{path} {why}") from error
        self.env_id: str = self.header["env_id"]
        self.snapshots: list[dict[str, float]] = self.header["snapshots"]
        self.medium: int = self.header["medium"]
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def __len__(self) -> int:
        """Return the number of snapshots."""
        return len(self.snapshots)

    @property
    def expert(self) -> int:
        """Index of the expert snapshot; ValueError where the snapshots end with the medium one."""
        if self.header["expert"] is None:
            raise ValueError(f"these policies of {self.env_id} end with the medium one")
        return int(self.header["expert"])

    def act(self, index: int, observation_size: int, action_space: gymnasium.spaces.Box) -> Act:
        """Build a snapshot's stochastic policy, from observations [B, obs] to actions [B, act].

        Its noise comes from torch's global generator.
        """
        low, high = _bounds(action_space)
        network = nn.Sequential(
            MLP(
                in_features=observation_size,
                out_features=2 * low.shape[-1],
                num_cells=list(self.header["hidden_sizes"]),
                activation_class=nn.ReLU,
            ),
            NormalParamExtractor(),
        )
        prefix = f"{index:02d}/{_ACTOR_PREFIX}"
        weights = {
            k.removeprefix(prefix): v for k, v in self._weights.items() if k.startswith(prefix)
        }
        if set(weights) != {name for name, _ in network.named_parameters()}:
            raise ValueError(f"snapshot {index} of {self.env_id} does not fit the actor's layers")
        network.load_state_dict(weights, strict=False)

        def act(observation: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                loc, scale = network(torch.as_tensor(observation, dtype=torch.float32))
                return TanhNormal(loc, scale, low=low, high=high, tanh_loc=False).rsample().numpy()

        return act


def _bounds(space: gymnasium.spaces.Box) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(bound)) for bound in (space.low, space.high)]


def uniform_random_actions(action_space: gymnasium.spaces.Box) -> Act:
    """Build the uniform random policy; its noise comes from torch's global generator."""
    low, high = _bounds(action_space)

    def act(observation: np.ndarray) -> np.ndarray:
        return (low + (high - low) * torch.rand(len(observation), *low.shape)).numpy()

    return act


class PointMazeWaypoints:
    """Drives the point along the shortest path of free cells to the goal, with noisy forces.

    The force is a proportional-derivative controller's towards the centre of the next cell, or
    towards the goal itself once the point is in its cell, plus Gaussian noise from torch's global
    generator.

    Args:
        env_id: a PointMaze environment.
        gain: force per distance.
        damping: force per velocity, against it.
        noise: standard deviation of the noise on each force.
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
        """Return the position [2] to head for: the next cell's centre or the goal."""
        here, there = self._cell(position), self._cell(goal)
        cell = self._next.get((here, there), there)
        return goal if cell == there else self._maze.cell_rowcol_to_xy(np.array(cell))

    def _cell(self, place: np.ndarray) -> Cell:
        row, column = self._maze.cell_xy_to_rowcol(place)
        return int(row), int(column)


def _next_cells(maze_map: list[list[int | str]]) -> dict[tuple[Cell, Cell], Cell]:
    """Find the next cell on a shortest path for each pair of (here, there)."""
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


@dataclass
class _Recording:
    """One episode while it is played."""

    seed: int
    observations: list[Any]
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False

    def buffer(self) -> EpisodeBuffer:
        rows: Any = self.observations
        by_key = isinstance(rows[0], Mapping)
        last = np.arange(len(self.rewards)) == len(self.rewards) - 1
        return EpisodeBuffer(
            seed=self.seed,
            observations={k: np.stack([row[k] for row in rows]) for k in rows[0]}
            if by_key
            else np.stack(rows),
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards),
            terminations=last & self.terminated,
            truncations=last & self.truncated,
        )


def collect_episodes(
    act: Act,
    env_id: str,
    *,
    num_steps: int,
    seed: int,
    num_copies: int = 32,
    on_steps: Callable[[int], object] = lambda steps: None,
) -> list[EpisodeBuffer]:
    """Play whole episodes until they hold ``num_steps`` steps, in several copies at once.

    Kept is the shortest run of consecutively started episodes with enough steps, as if one copy had
    played them in turn: keeping the first to end would favour short ones.

    Args:
        act: maps observations [B, obs] to actions [B, act]; a goal environment's dictionaries are
            joined for it (:meth:`~rambo_trl.data.ObservationLayout.of`) and recorded as they are.
        env_id: a registered Gymnasium id; its time limit truncates.
        num_steps: least number of steps, exceeded by less than one episode.
        seed: seed of the first episode; each further one takes the next seed.
        num_copies: at most so many environments play together.
        on_steps: called with the number of steps made since its last call, until ``num_steps`` are
            made; the last episodes are then played to their ends.
    """
    started: list[_Recording] = []
    total = 0
    with ExitStack() as stack:

        def make() -> gymnasium.Env:
            env = make_environment(env_id)
            stack.callback(env.close)
            return env

        envs = [make()]
        layout = ObservationLayout.of(envs[0].observation_space, name=env_id, env_id=env_id)
        limit = envs[0].spec.max_episode_steps if envs[0].spec is not None else None
        if limit is not None:  # full-length episodes then leave nothing to throw away
            num_copies = max(1, min(num_copies, num_steps // limit))
        envs += [make() for _ in range(num_copies - 1)]

        def start(env: gymnasium.Env) -> tuple[gymnasium.Env, _Recording]:
            episode_seed = seed + len(started)
            observation, _ = env.reset(seed=episode_seed)
            started.append(_Recording(episode_seed, [copy.deepcopy(observation)]))
            return env, started[-1]

        playing = [start(env) for env in envs]
        while playing:
            actions = act(
                np.stack([layout.flatten(episode.observations[-1]) for _, episode in playing])
            )
            for (env, episode), action in zip(playing, actions, strict=True):
                observation, reward, episode.terminated, episode.truncated, _ = env.step(action)
                episode.observations.append(copy.deepcopy(observation))
                episode.actions.append(action)
                episode.rewards.append(np.asarray(reward, dtype=np.float64).item())
            on_steps(min(len(playing), max(0, num_steps - total)))
            total += len(playing)
            still = []
            for env, episode in playing:
                if not (episode.terminated or episode.truncated):
                    still.append((env, episode))
                elif total < num_steps:
                    still.append(start(env))
            if total >= num_steps:
                needed = {id(episode) for episode in _prefix(started, num_steps)}
                still = [(env, episode) for env, episode in still if id(episode) in needed]
            playing = still
    return [episode.buffer() for episode in _prefix(started, num_steps)]


def _prefix(episodes: list[_Recording], num_steps: int) -> list[_Recording]:
    """Return the first episodes that together have ``num_steps`` steps."""
    steps = np.cumsum([len(episode.rewards) for episode in episodes])
    return episodes[: int(np.searchsorted(steps, num_steps)) + 1]
