"""Offline data as TensorDict transitions: checked, float32, scaled, with its statistics."""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TypedDict

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDict
from torch import Tensor
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded

from rambo_trl.data.checks import DataWarning, constants, data_warnings, ends_of_both_kinds
from rambo_trl.data.columns import DataDescription, entry_names
from rambo_trl.data.environment import (
    is_scored_by_success,
    keep_specification,
    registered_id,
    registered_spec,
    shown_particulars,
    time_limit,
)
from rambo_trl.data.episodes import LoggedEpisodes, episodes_of_transitions, hold_unknown_ends
from rambo_trl.data.scaling import (
    RewardScale,
    denormalize_action,
    flat_bounds,
    normalize_action,
    reward_scale_of,
)
from rambo_trl.data.scores import normalized_score, reference_scores_for
from rambo_trl.data.spaces import ObservationLayout
from rambo_trl.data.support import describe
from rambo_trl.data.transitions import (
    canonical_transitions,
    check_values,
    coarse_entries,
    observation_statistics,
)

__all__ = ["Statistics", "TransitionData", "warn_of_other_simulator"]


class Statistics(TypedDict):
    """The statistics of :class:`TransitionData`, as keyword arguments."""

    observation_mean: Tensor
    observation_std: Tensor
    action_low: Tensor
    action_high: Tensor


class TransitionData:
    """Transitions of a fixed data set, ready for training (paper sec. 5.2).

    Observations are normalised per dimension by the mean and standard deviation over the data's
    rows, and actions scaled from their bounds to [-1, 1], so that the units of neither change what
    is learnt. Offsets are taken out in double precision, where the data come in it.

    Every row carries its true next observation, at episode ends too: a terminal row the state it
    ended in, a truncated row the state from which values may be bootstrapped.

    :class:`OfflineDataset` adds the ways to load one.

    Args:
        transitions: TensorDict [N] of raw transitions with keys ``"observation"`` [N, obs],
            ``"action"`` [N, act], ``("next", "observation")`` [N, obs] (further dimensions of
            observations and actions are flattened),
            ``("next", "reward")`` and ``("next", "terminated")`` [N] or [N, 1], and optionally
            ``("next", "truncated")`` or ``("next", "done")``. Rows of an episode follow each
            other. Where a row is both terminated and truncated, it counts as terminated.
        action_spec: bounds of the raw actions, of shape [act].
        name: how messages and reports call the data set; ``"transitions"`` where None.
        env_id: Gymnasium id of the environment that the data comes from, if any.
        env_spec: its full specification, where there is one: arguments, time limit and wrappers.
            It is kept where ``env_id`` names the same environment or is None; what is dropped is
            a remark.
        reference_scores: (minimum, maximum) returns of the score; D4RL's constants for the
            environment where None.
        episodes: which episodes are whole, with their returns; looked for between ends where None.
        observation_layout: how the environment's observations became these vectors.
        observation_names: what reports and messages call the observation entries, such as
            ``("temp_C", "level_m")``; ``"observation 0"`` and so on where None.
        action_names: likewise of the action entries.
        step_intervals: mean, std, min, median and max of the time that a step takes, by these
            names, where it is known.
        remarks: on where the transitions come from; those of the type
            :class:`~rambo_trl.data.checks.DataWarning` are data warnings.
        normalize: False keeps raw observations (mean 0 and standard deviation 1).
        reward_shift: added to every reward of the transitions (-1 for AntMaze in the paper's
            experiments); returns and scores stay in the environment's units.
        reward_scale: what the transitions' rewards, shifted, are divided by: ``"auto"`` takes
            their root mean square, so that critics meet values of the same size whatever the
            rewards' unit.
        copy: False lets normalisation write into the given tensors, which saves their memory.

    Attributes:
        transitions: TensorDict [N] in float32 with ``"observation"`` and
            ``("next", "observation")`` normalised, ``"action"`` in [-1, 1],
            ``("next", "reward")`` [N, 1] and the boolean flags
            ``("next", "terminated" | "truncated" | "done")`` [N, 1].
        observation_mean, observation_std: [obs], float32; float64 where float32 would lose what
            changes in the data beside their offset, as in time stamps. The latter is positive.
        action_low, action_high: [act], what -1 and 1 stand for in the environment's units;
            likewise.
        action_spec: ``Bounded`` between -1 and 1, of shape [act], float32: the learner's.
        has_simulator: set it to False where :attr:`environment` cannot be played in.
        behaviour_returns: float64 [W], the undiscounted return of each whole episode;
            without the pieces that were cut at gaps or have no end flag, of which it is unknown.
            For AntMaze and PointMaze with sparse rewards 1 where the goal was reached, else 0.
        whole_episodes: int64 [W, 2], the first row of each whole episode in ``transitions`` and
            the one after its last.
        num_cut_episodes: number of pieces.
        holdout: TensorDict [M] of validation rows, where the data set comes with some: like
            ``transitions``, of which they are no part; see :meth:`hold_out`.
        data_warnings: what may be a mistake in the data, one sentence each, such as rewards that
            are all equal, repeated episodes or shuffled rows. Recipes refuse such data unless told
            to accept it.
        remarks: these, and what was left out or filled in; logged as warnings too.

        All other arguments are attributes too, as given or looked up.

    Raises:
        ValueError: if the data is empty, lengths or shapes disagree, values are not finite or
            actions leave their bounds. The message names what to change.
    """

    def __init__(
        self,
        transitions: TensorDict,
        *,
        action_spec: Bounded,
        name: str | None = None,
        env_id: str | None = None,
        env_spec: EnvSpec | None = None,
        reference_scores: tuple[float, float] | None = None,
        episodes: LoggedEpisodes | None = None,
        observation_layout: ObservationLayout | None = None,
        observation_names: Sequence[str] | None = None,
        action_names: Sequence[str] | None = None,
        step_intervals: Mapping[str, float] | None = None,
        remarks: Sequence[str] = (),
        normalize: bool = True,
        reward_shift: float = 0.0,
        reward_scale: RewardScale = 1.0,
        copy: bool = True,
    ) -> None:
        if not math.isfinite(reward_shift):
            raise ValueError(f"reward_shift must be a finite number, got {reward_shift}")
        self.name = name = name or "transitions"
        self.env_id = env_spec.id if env_id is None and env_spec is not None else env_id
        self.env_spec, dropped = keep_specification(env_id, env_spec)
        self.has_simulator = True
        self.holdout: TensorDict | None = None
        self._env_id_given = env_id is not None
        self.reward_shift = float(reward_shift)
        self.normalized = normalize
        self.observation_layout = observation_layout
        self.action_low, self.action_high = flat_bounds(
            action_spec.space.low, action_spec.space.high
        )
        self.action_spec = Bounded(-1.0, 1.0, shape=self.action_low.shape, dtype=torch.float32)
        self.reference_scores = reference_scores or reference_scores_for(self._named)
        self.transitions = canonical_transitions(transitions, name, copy=copy)
        rows = self.transitions
        self.observation_names, self.action_names = (
            entry_names(given, rows[kind].shape[-1], kind, name)
            for kind, given in (("observation", observation_names), ("action", action_names))
        )
        self.step_intervals = dict(step_intervals or {})
        held = hold_unknown_ends(rows)
        names = (self.observation_names, self.action_names)
        check_values(rows, self.action_low, self.action_high, name, *names)
        if episodes is None:
            episodes = episodes_of_transitions(rows, time_limit(self._named))
            held = (*held, *episodes.remarks)
        self.whole_episodes, self.num_cut_episodes = episodes.rows, episodes.num_cut
        self.behaviour_returns = episodes.returns
        if is_scored_by_success(self._named) and reference_scores is None:
            self.behaviour_returns = (episodes.returns > 0).astype(np.float64)

        self.data_warnings = (
            *(str(remark) for remark in remarks if isinstance(remark, DataWarning)),
            *ends_of_both_kinds(transitions),
            *data_warnings(self.transitions),
        )
        notes = [remark for remark in remarks if not isinstance(remark, DataWarning)]
        if self.reference_scores is None and reference_scores_for(self.env_id) is not None:
            special = shown_particulars(self.env_spec) or "a class of another package"
            notes.append(
                f"returns have no score, because D4RL's reference scores are for {self.env_id} "
                f"without {special}"
            )
        notes += [*dropped, *held, *constants(rows, *names)]
        self.remarks = (*notes, *self._scale(), *self.data_warnings)
        for remark in self.remarks:
            torchrl_logger.warning(f"{name}: {remark}")
        self._set_reward_scale(reward_scale)
        warn_of_other_simulator(name, self.env_id)

    def _scale(self) -> list[str]:
        """Bring raw transitions to the learner's units; returns what float32 cannot tell apart."""
        rows = self.transitions
        low, high, reward = self.action_low, self.action_high, self._shifted_reward(rows)
        observation, action = rows["observation"], rows["action"]
        size = observation.shape[-1]
        if self.normalized:
            self.observation_mean, self.observation_std = observation_statistics(observation)
        else:
            self.observation_mean, self.observation_std = torch.zeros(size), torch.ones(size)
        lost = [
            *coarse_entries(
                observation, self.observation_mean, self.observation_std, self.observation_names
            ),
            *coarse_entries(action, (low + high) / 2, (high - low) / 2, self.action_names),
            *coarse_entries(reward, torch.zeros(1), torch.ones(1), ("reward",)),
        ]
        self._to_own_units(rows)
        return lost

    def _shifted_reward(self, rows: TensorDict) -> Tensor:
        reward: Tensor = rows["next", "reward"]
        return reward + self.reward_shift if self.reward_shift else reward

    def _to_own_units(self, rows: TensorDict) -> None:
        """Bring raw rows to the learner's units, in place, but for the scale of the rewards."""
        rows["next", "reward"] = self._shifted_reward(rows).float()
        rows["action"] = normalize_action(rows["action"], self.action_low, self.action_high).float()
        for key in ("observation", ("next", "observation")):
            # in place: the raw copies are this object's own and may be large
            rows[key] = rows[key].sub_(self.observation_mean).div_(self.observation_std).float()

    def _set_reward_scale(self, wanted: RewardScale) -> None:
        """Divide the rewards by a number, or by their root mean square."""
        self.reward_scale = reward_scale_of(self.transitions["next", "reward"], wanted)
        self.transitions = self._with_scaled_reward(self.transitions)
        if self.holdout is not None:
            self.holdout = self._with_scaled_reward(self.holdout)

    def _with_scaled_reward(self, rows: TensorDict) -> TensorDict:
        if self.reward_scale == 1:
            return rows
        scaled = rows.copy()  # others may lie on the disk
        scaled["next", "reward"] = rows["next", "reward"] / self.reward_scale
        return scaled

    def hold_out(self, transitions: TensorDict) -> None:
        """Keep further raw rows as :attr:`holdout`, for the validation of world models.

        They are scaled by the statistics of the data, and not trained on.

        Args:
            transitions: TensorDict [M], as the constructor's.

        Raises:
            ValueError: as the constructor.
        """
        name = f"{self.name} (validation)"
        rows = canonical_transitions(transitions, name, copy=True)
        sizes = [rows[key].shape[-1] for key in ("observation", "action")]
        if sizes != [self.observation_size, self.action_size]:
            raise ValueError(
                f"{name}: observations and actions have {sizes[0]} and {sizes[1]} entries, those "
                f"of {self.name} {self.observation_size} and {self.action_size}"
            )
        hold_unknown_ends(rows)
        names = (self.observation_names, self.action_names)
        check_values(rows, self.action_low, self.action_high, name, *names)
        self._to_own_units(rows)
        self.holdout = self._with_scaled_reward(rows)

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
    def environment(self) -> str | EnvSpec | None:
        """What policies are evaluated in: the specification or else the id; None without one.

        Raises:
            ValueError: if only a file names it, and would have a module imported.
        """
        if not self.has_simulator or self.env_id is None:
            return None
        module, colon, _ = self.env_id.rpartition(":")
        if colon and not self._env_id_given and module not in sys.modules:
            raise ValueError(
                f"{self.name} names an environment of the module {module}, which is not imported "
                f"because a file says so: give env_id={self.env_id} if you trust it"
            )
        if colon and self._env_id_given and self.env_spec is not None:
            with suppress(gymnasium.error.Error):  # told when one is made
                registered_spec(self.env_id)  # the specification itself does not say what to import
        return self._named

    @property
    def _named(self) -> str | EnvSpec | None:
        """The specification or else the id, whether or not it can be played in."""
        return self.env_spec or self.env_id

    @property
    def statistics(self) -> Statistics:
        """The statistics of observations and actions, to be handed on as ``**data.statistics``."""
        return Statistics(
            observation_mean=self.observation_mean,
            observation_std=self.observation_std,
            action_low=self.action_low,
            action_high=self.action_high,
        )

    @property
    def oddities(self) -> tuple[str, ...]:
        """Deprecated name of :attr:`data_warnings`."""
        warnings.warn("oddities is now called data_warnings", DeprecationWarning, stacklevel=2)
        return self.data_warnings

    @cached_property
    def description(self) -> DataDescription:
        """The entries' names and what the data cover, for a policy's file; measured once."""
        return describe(
            self.transitions,
            self.observation_names,
            self.action_names,
            step_interval=self.step_intervals.get("median"),
            **self.statistics,
        )

    @property
    def num_episodes(self) -> int:
        """Number of episodes, cut pieces among them."""
        return len(self.behaviour_returns) + self.num_cut_episodes

    @property
    def observation_size(self) -> int:
        """Number of observation entries."""
        return self.transitions["observation"].shape[-1]

    @property
    def action_size(self) -> int:
        """Number of action entries."""
        return self.transitions["action"].shape[-1]

    @property
    def behaviour_return_mean(self) -> float | None:
        """Mean return of the whole episodes; None where there are none."""
        return float(self.behaviour_returns.mean()) if len(self.behaviour_returns) else None

    @property
    def behaviour_return_best(self) -> float | None:
        """Highest return of the whole episodes; None where there are none."""
        return float(self.behaviour_returns.max()) if len(self.behaviour_returns) else None

    @property
    def behaviour_score(self) -> float | None:
        """Normalised score of the mean return; None without it or without reference scores."""
        mean = self.behaviour_return_mean
        return None if mean is None else self.normalized_score(mean)

    def normalize(self, observation: torch.Tensor) -> torch.Tensor:
        """Map raw observations [*, obs] to the data's scale."""
        mean, std = self._statistics_for(observation)
        return ((observation - mean) / std).to(observation.dtype)

    def denormalize(self, observation: torch.Tensor) -> torch.Tensor:
        """Map normalised observations [*, obs] back to raw ones, in the statistics' precision."""
        mean, std = self._statistics_for(observation)
        return observation * std + mean

    def _statistics_for(self, observation: torch.Tensor) -> list[torch.Tensor]:
        """Mean and standard deviation in observations' dtype, unless they need double precision."""
        statistics = self.observation_mean, self.observation_std
        double = statistics[0].dtype == torch.float64
        return [v.to(observation.device, None if double else observation.dtype) for v in statistics]

    def normalize_action(self, action: torch.Tensor) -> torch.Tensor:
        """Map raw actions [*, act] to [-1, 1]."""
        return normalize_action(action, self.action_low, self.action_high)

    def denormalize_action(self, action: torch.Tensor) -> torch.Tensor:
        """Map actions [*, act] from [-1, 1] back to the environment's units."""
        return denormalize_action(action, self.action_low, self.action_high)

    def normalized_score(self, episode_return: float) -> float | None:
        """Score an undiscounted return, 0 as random and 100 as expert; None if unknown."""
        if self.reference_scores is None:
            return None
        return normalized_score(episode_return, self.reference_scores)


def warn_of_other_simulator(name: str, env_id: str | None) -> None:
    """Walker2d's right foot has other friction before v5: its data and simulator then differ."""
    match = re.fullmatch(r"Walker2d-v(\d+)", registered_id(env_id or ""))
    if match and int(match.group(1)) < 5:
        torchrl_logger.warning(
            f"{name} was recorded in {env_id}, whose right foot has another friction than in "
            "Walker2d-v5: scores measured in v5 are not comparable exactly"
        )
