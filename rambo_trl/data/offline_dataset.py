"""Offline data as TensorDict transitions: checked, float32, normalised, with its statistics."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded

from rambo_trl.data import minari_source
from rambo_trl.data.scores import normalized_score, reference_scores_for
from rambo_trl.data.transitions import (
    canonical_transitions,
    check_values,
    observation_statistics,
    returns_between_ends,
)

__all__ = ["OfflineDataset"]

_EPISODE_FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")


class OfflineDataset:
    """Transitions of a fixed data set, ready for training (paper sec. 5.2).

    Observations are normalised per dimension by the mean and standard deviation over the data's
    rows. Every row carries its true next observation, at episode ends too: a terminal row the
    state it ended in, a truncated row the state from which values may be bootstrapped.

    Use :meth:`load` for a named data set, :meth:`from_episodes` for episodes in memory, or the
    constructor for flat transitions.

    Args:
        transitions: TensorDict [N] of raw transitions with keys ``"observation"`` [N, obs],
            ``"action"`` [N, act], ``("next", "observation")`` [N, obs],
            ``("next", "reward")`` and ``("next", "terminated")`` [N] or [N, 1], and optionally
            ``("next", "truncated")``. Rows of an episode follow each other. Where a row is both
            terminated and truncated, it counts as terminated.
        action_spec: bounds of the actions, of shape [act].
        name: how messages and reports call the data set.
        env_id: Gymnasium id of the environment that the data comes from, if any.
        reference_scores: (minimum, maximum) returns of the score; D4RL's constants for the
            environment where None.
        behaviour_returns: undiscounted return of each episode; summed up between ends where
            None.
        normalize: False keeps raw observations (mean 0 and standard deviation 1).

    Attributes:
        transitions: TensorDict [N] in float32 with ``"observation"`` and
            ``("next", "observation")`` normalised, ``"action"``, ``("next", "reward")`` [N, 1]
            and the boolean flags ``("next", "terminated" | "truncated" | "done")`` [N, 1].
        observation_mean: [obs], float32.
        observation_std: [obs], float32, positive.
        action_spec: ``Bounded`` of shape [act], float32.
        behaviour_returns: float64 array with one undiscounted return per episode.
        env_id, name, reference_scores: as given or looked up.

    Raises:
        ValueError: if the data is empty, lengths or shapes disagree, values are not finite or
            actions leave their bounds. The message names what to change.

    Examples:
        >>> import numpy as np, torch
        >>> from torchrl.data import Bounded
        >>> episode = {
        ...     "observations": np.random.randn(4, 2),
        ...     "actions": np.zeros((3, 1)),
        ...     "rewards": np.ones(3),
        ...     "terminations": np.array([False, False, True]),
        ...     "truncations": np.zeros(3, dtype=bool),
        ... }
        >>> data = OfflineDataset.from_episodes([episode], action_spec=Bounded(-1, 1, shape=(1,)))
        >>> len(data), data.num_episodes, data.behaviour_returns
        (3, 1, array([3.]))
    """

    def __init__(
        self,
        transitions: TensorDict,
        *,
        action_spec: Bounded,
        name: str = "unnamed",
        env_id: str | None = None,
        reference_scores: tuple[float, float] | None = None,
        behaviour_returns: np.ndarray | None = None,
        normalize: bool = True,
    ) -> None:
        self.name = name
        self.env_id = env_id
        self.action_spec = action_spec.to(torch.float32)
        self.reference_scores = reference_scores or reference_scores_for(env_id)
        self.transitions = canonical_transitions(transitions, name)
        check_values(self.transitions, self.action_spec, name)
        if behaviour_returns is None:
            behaviour_returns = returns_between_ends(self.transitions)
        self.behaviour_returns = np.asarray(behaviour_returns, dtype=np.float64)

        observation = self.transitions["observation"]
        if normalize:
            self.observation_mean, self.observation_std = observation_statistics(observation)
            # In place: the raw copies are this object's own and may be large.
            for key in ("observation", ("next", "observation")):
                value = self.transitions[key]
                value.sub_(self.observation_mean).div_(self.observation_std)
        else:
            self.observation_mean = torch.zeros(observation.shape[-1])
            self.observation_std = torch.ones(observation.shape[-1])
        _warn_of_other_simulator(name, env_id)

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        normalize: bool = True,
        progress: bool = True,
    ) -> OfflineDataset:
        """Load a data set by name.

        Args:
            name_or_path: a bundled name such as ``"bundled/hopper/medium-replay-v0"`` (built on
                first use, found in Minari's root from then on), the id of a Minari data set
                (local, else Minari's own downloader is tried) or the folder of one.
            normalize: whether observations are normalised.
            progress: whether a build shows its progress bar.

        Returns:
            The checked data set.

        Raises:
            ValueError: if there is no such data set, or it cannot be used; the message says
                what to do instead.
        """
        source = minari_source.open_minari(name_or_path, progress=progress)
        return cls.from_episodes(
            source.episodes,
            action_spec=source.action_spec,
            name=source.name,
            env_id=source.env_id,
            reference_scores=source.reference_scores,
            normalize=normalize,
        )

    @classmethod
    def from_episodes(
        cls,
        episodes: Iterable[Mapping[str, Any]],
        *,
        action_spec: Bounded,
        name: str = "unnamed",
        env_id: str | None = None,
        reference_scores: tuple[float, float] | None = None,
        normalize: bool = True,
    ) -> OfflineDataset:
        """Build the data set from whole episodes, each in Minari's layout.

        Args:
            episodes: mappings with ``observations`` [T + 1, obs], ``actions`` [T, act],
                ``rewards``, ``terminations`` and ``truncations`` [T]. An episode whose last row
                has no end flag was cut there and counts as truncated.
            action_spec: bounds of the actions, of shape [act].
            name: how messages and reports call the data set.
            env_id: Gymnasium id of the environment, if any.
            reference_scores: (minimum, maximum) returns of the score.
            normalize: whether observations are normalised.

        Returns:
            The checked data set.

        Raises:
            ValueError: as the constructor, and if arrays of an episode are missing or differ in
                length.
        """
        columns: dict[str, list[np.ndarray]] = {
            key: []
            for key in (
                "observation",
                "next_observation",
                "action",
                "reward",
                "terminated",
                "truncated",
            )
        }
        returns = []
        for index, episode in enumerate(episodes):
            observations, actions, rewards, terminations, truncations = _episode_arrays(
                episode, f"{name}: episode {index}"
            )
            if len(rewards) == 0:
                continue
            # Summed in the source's own precision, before rewards become float32.
            returns.append(float(np.sum(episode["rewards"], dtype=np.float64)))
            truncations = truncations.copy()
            truncations[-1] |= not terminations[-1]
            columns["observation"].append(observations[:-1])
            columns["next_observation"].append(observations[1:])
            columns["action"].append(actions)
            columns["reward"].append(rewards)
            columns["terminated"].append(terminations)
            columns["truncated"].append(truncations)
        if not returns:
            raise ValueError(f"{name} is empty: give at least one episode with one step")
        try:
            flat = {key: torch.from_numpy(np.concatenate(v)) for key, v in columns.items()}
        except ValueError as error:
            raise ValueError(f"{name}: episodes differ in their arrays' shapes: {error}") from None
        del columns
        transitions = TensorDict(
            {
                "observation": flat["observation"],
                "action": flat["action"],
                "next": {
                    "observation": flat["next_observation"],
                    "reward": flat["reward"],
                    "terminated": flat["terminated"],
                    "truncated": flat["truncated"],
                },
            },
            batch_size=[flat["reward"].shape[0]],
        )
        return cls(
            transitions,
            action_spec=action_spec,
            name=name,
            env_id=env_id,
            reference_scores=reference_scores,
            behaviour_returns=np.array(returns),
            normalize=normalize,
        )

    def __len__(self) -> int:
        """Return the number of transitions."""
        return self.transitions.batch_size[0]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name={self.name!r}, env_id={self.env_id!r}, "
            f"transitions={len(self)}, episodes={self.num_episodes}, "
            f"observation_size={self.observation_size}, action_size={self.action_size})"
        )

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.behaviour_returns)

    @property
    def observation_size(self) -> int:
        """Number of observation entries."""
        return self.transitions["observation"].shape[-1]

    @property
    def action_size(self) -> int:
        """Number of action entries."""
        return self.transitions["action"].shape[-1]

    @property
    def behaviour_score(self) -> float | None:
        """Normalised score of the episodes' mean return; None without reference scores."""
        return self.normalized_score(float(self.behaviour_returns.mean()))

    def normalize(self, observation: torch.Tensor) -> torch.Tensor:
        """Map raw observations [*, obs] to the data's scale."""
        return (observation - self.observation_mean.to(observation)) / self.observation_std.to(
            observation
        )

    def denormalize(self, observation: torch.Tensor) -> torch.Tensor:
        """Map normalised observations [*, obs] back to raw ones."""
        return observation * self.observation_std.to(observation) + self.observation_mean.to(
            observation
        )

    def normalized_score(self, episode_return: float) -> float | None:
        """Score an undiscounted return, 0 as random and 100 as expert; None if unknown."""
        if self.reference_scores is None:
            return None
        return normalized_score(episode_return, self.reference_scores)


def _episode_arrays(episode: Mapping[str, Any], where: str) -> tuple[np.ndarray, ...]:
    """Read an episode's five arrays as float32 and bool, their lengths checked."""
    missing = [field for field in _EPISODE_FIELDS if field not in episode]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}: each of {_EPISODE_FIELDS} is needed")
    for field in ("observations", "actions"):
        if isinstance(episode[field], (dict, tuple)):
            raise ValueError(
                f"{where} has {type(episode[field]).__name__} {field}: give one array of numbers"
            )
    values = [np.asarray(episode[field]) for field in _EPISODE_FIELDS]
    observations, actions, rewards = (v.astype(np.float32) for v in values[:3])
    terminations, truncations = (v.astype(bool) for v in values[3:])
    lengths = {field: len(value) for field, value in zip(_EPISODE_FIELDS, values, strict=True)}
    steps = lengths["rewards"]
    if lengths["observations"] != steps + 1 or any(
        lengths[field] != steps for field in _EPISODE_FIELDS[1:]
    ):
        raise ValueError(
            f"{where} has arrays of lengths {lengths}: T + 1 observations and T of each other "
            "are needed"
        )
    return observations, actions, rewards, terminations, truncations


def _warn_of_other_simulator(name: str, env_id: str | None) -> None:
    """Walker2d's right foot has other friction before v5: its data and simulator then differ."""
    match = re.fullmatch(r"Walker2d-v(\d+)", env_id or "")
    if match and int(match.group(1)) < 5:
        torchrl_logger.warning(
            f"{name} was recorded in {env_id}, whose right foot has another friction than in "
            "Walker2d-v5: scores measured in v5 are not comparable exactly"
        )
