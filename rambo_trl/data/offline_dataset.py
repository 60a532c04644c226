"""Offline data as TensorDict transitions: checked, float32, scaled, with its statistics."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDict
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded

from rambo_trl.data import minari_source
from rambo_trl.data.checks import Oddity, constants, ends_of_both_kinds, oddities
from rambo_trl.data.columns import entry_names, file_names, names_of
from rambo_trl.data.d4rl_bounds import default_bounds, one_sided_actions
from rambo_trl.data.d4rl_names import parse_d4rl_name
from rambo_trl.data.d4rl_source import (
    UnknownTerminalStates,
    flat_source,
    is_d4rl_file,
    read_d4rl_file,
)
from rambo_trl.data.description import DataDescription
from rambo_trl.data.environment import (
    registered_spec,
    time_limit,
    with_time_limit,
)
from rambo_trl.data.episodes import Episode, flatten_episodes
from rambo_trl.data.memmap import check_options, is_memmap_folder, read_memmap, write_memmap
from rambo_trl.data.pieces import LoggedEpisodes, episodes_of_transitions, hold_unknown_ends
from rambo_trl.data.scaling import (
    RewardScale,
    denormalize_action,
    flat_bounds,
    normalize_action,
    reward_scale_of,
)
from rambo_trl.data.scores import normalized_score, reference_scores_for
from rambo_trl.data.spaces import ObservationLayout
from rambo_trl.data.specification import (
    is_scored_by_success,
    keep_specification,
    registered_id,
    shown_particulars,
)
from rambo_trl.data.transitions import (
    ActionsOutsideError,
    canonical_transitions,
    check_values,
    coarse_entries,
    observation_statistics,
)
from rambo_trl.runtime.places import expand_home
from rambo_trl.runtime.progress import busy

__all__ = ["OfflineDataset"]

#: what data sets without a name are called: arrays, episodes and transitions in memory
_UNNAMED = ("arrays", "episodes", "transitions")


class OfflineDataset:
    """Transitions of a fixed data set, ready for training (paper sec. 5.2).

    Observations are normalised per dimension by the mean and standard deviation over the data's
    rows, and actions scaled from their bounds to [-1, 1], so that the units of neither change what
    is learnt. Offsets are taken out in double precision, where the data come in it.

    Every row carries its true next observation, at episode ends too: a terminal row the state it
    ended in, a truncated row the state from which values may be bootstrapped.

    Use :meth:`load` for a named data set or a file, :meth:`from_episodes` and
    :meth:`from_arrays` for data in memory in the layouts of Minari and D4RL, or the constructor
    for a TensorDict of transitions.

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
        behaviour_returns: undiscounted return of each episode; summed up between ends where
            None. For AntMaze and PointMaze with sparse rewards any positive return becomes 1:
            the goal was reached, which is all that the score counts.
        episodes: which episodes are whole, with their returns; looked for between ends where None.
        observation_layout: how the environment's observations became these vectors.
        observation_names: what reports and messages call the observation entries, such as
            ``("temp_C", "level_m")``; ``"observation 0"`` and so on where None.
        action_names: likewise of the action entries.
        step_intervals: mean, std, min, median and max of the time that a step takes, by these
            names, where it is known.
        remarks: what is to be told about where the transitions come from; those of the type
            :class:`~rambo_trl.data.checks.Oddity` are oddities.
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
        observation_mean: [obs], float32; float64 where float32 would lose what changes in the
            data beside their offset, as in time stamps.
        observation_std: [obs], of the same dtype, positive.
        action_low: [act], what -1 stands for in the environment's units; float32, or float64 as
            above.
        action_high: [act], what 1 stands for.
        action_spec: ``Bounded`` between -1 and 1, of shape [act], float32: the learner's.
        has_simulator: set it to False where :attr:`environment` cannot be played in.
        behaviour_returns: float64 array with the undiscounted return of each whole episode;
            without the pieces that were cut at gaps or have no end flag, of which it is unknown.
        whole_episodes: int64 [W, 2], the first row of each whole episode in ``transitions`` and
            the one after its last.
        num_cut_episodes: number of pieces.
        observation_names, action_names: tuples of as many names as entries.
        step_intervals: as given; empty where the data have no time stamps.
        env_id, env_spec, name, reference_scores, observation_layout: as given or looked up.
        reward_shift, reward_scale: likewise.
        oddities: what may be a mistake in the data (rewards all equal, episodes that repeat
            others or go on after an end, shuffled rows, ends of both kinds at once, episodes beyond
            the time limit, actions of one sign under assumed bounds), one sentence each. Recipes
            refuse such data unless told to accept it.
        remarks: these, and what was left out or filled in; logged as warnings too.

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
        name: str | None = None,
        env_id: str | None = None,
        env_spec: EnvSpec | None = None,
        reference_scores: tuple[float, float] | None = None,
        behaviour_returns: np.ndarray | None = None,
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
        self.name = name = name or _UNNAMED[2]
        self.env_id = env_spec.id if env_id is None and env_spec is not None else env_id
        self.env_spec, dropped = keep_specification(env_id, env_spec)
        self.has_simulator = True
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
        if behaviour_returns is None:
            behaviour_returns = episodes.returns
        self.behaviour_returns = np.asarray(behaviour_returns, dtype=np.float64)
        if is_scored_by_success(self._named) and reference_scores is None:
            self.behaviour_returns = (self.behaviour_returns > 0).astype(np.float64)

        self.oddities = (
            *(str(remark) for remark in remarks if isinstance(remark, Oddity)),
            *ends_of_both_kinds(transitions),
            *oddities(self.transitions),
        )
        notes = [remark for remark in remarks if not isinstance(remark, Oddity)]
        if self.reference_scores is None and reference_scores_for(self.env_id) is not None:
            own = shown_particulars(self.env_spec) or "a class of another package"
            notes.append(
                f"returns have no score, because D4RL's reference scores are for {self.env_id} "
                f"without {own}"
            )
        told = (*notes, *dropped, *held, *constants(rows, *names))
        self.remarks = (*told, *self._scale(), *self.oddities)
        for remark in self.remarks:
            torchrl_logger.warning(f"{name}: {remark}")
        self._set_reward_scale(reward_scale)
        _warn_of_other_simulator(name, self.env_id)

    def _scale(self) -> list[str]:
        """Bring raw transitions to the learner's units; returns what float32 cannot tell apart."""
        rows = self.transitions
        low, high, reward = self.action_low, self.action_high, rows["next", "reward"]
        reward = reward + self.reward_shift if self.reward_shift else reward
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
        rows["next", "reward"] = reward.float()
        rows["action"] = normalize_action(action, low, high).float()
        for key in ("observation", ("next", "observation")):
            # in place: the raw copies are this object's own and may be large
            rows[key] = rows[key].sub_(self.observation_mean).div_(self.observation_std).float()
        return lost

    def _set_reward_scale(self, wanted: RewardScale) -> None:
        """Divide the rewards by a number, or by their root mean square."""
        reward = self.transitions["next", "reward"]
        self.reward_scale = reward_scale_of(reward, wanted)
        if self.reward_scale != 1:
            self.transitions = self.transitions.copy()  # others may lie on the disk
            self.transitions["next", "reward"] = reward / self.reward_scale

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        env_id: str | None = None,
        reference_scores: tuple[float, float] | None = None,
        action_spec: Bounded | None = None,
        observation_keys: Sequence[str] | None = None,
        max_episode_steps: int | None = None,
        unknown_terminal_states: UnknownTerminalStates = "hold",
        normalize: bool = True,
        reward_shift: float = 0.0,
        reward_scale: RewardScale = 1.0,
        progress: bool = True,
    ) -> OfflineDataset:
        """Load a data set by name or from a file.

        Args:
            name_or_path: a folder written by :meth:`memmap`, a bundled name such as
                ``"bundled/hopper/medium-replay-v0"`` (built on
                first use, found in Minari's root from then on), the id of a Minari data set
                (local, else Minari's own downloader is tried) or the folder of one, or a
                D4RL-format HDF5 file (see :meth:`from_arrays` for its rules).
            env_id: Gymnasium id of the environment, instead of the one that the data set names
                or that a D4RL file's name means (``hopper_medium_replay-v2.hdf5``: Hopper-v5). The
                recorded arguments, time limit and wrappers stay where it is the recorded id, with
                or without ``MODULE:``.
            reference_scores: (minimum, maximum) returns of the score, instead of the data set's.
            action_spec: bounds of the actions, instead of the data set's. A D4RL file has none:
                where None, the environment's if it is installed, else [-1, 1] as in D4RL.
            observation_keys: entries of a goal environment's observations to join; see
                :meth:`rambo_trl.data.ObservationLayout.of`.
            max_episode_steps: time limit of a D4RL file's environment, in which policies are
                evaluated as well; the registered one where None.
            unknown_terminal_states: for D4RL files without ``next_observations``; see
                :meth:`from_arrays`.
            normalize: whether observations are normalised.
            reward_shift: added to every reward of the transitions.
            reward_scale: what they are then divided by, or ``"auto"``; see the constructor.
            progress: whether a build and the reading show their progress.

        Returns:
            The checked data set.

        Raises:
            ValueError: if there is no such data set, or it cannot be used; the message says
                what to do instead.
        """
        name, path = os.fspath(name_or_path), expand_home(name_or_path)
        if is_memmap_folder(path):
            return cls._open_memmap(
                path,
                env_id=env_id,
                reference_scores=reference_scores,
                action_spec=action_spec,
                observation_keys=observation_keys,
                max_episode_steps=max_episode_steps,
                normalized=None if normalize else False,
                reward_shift=reward_shift,
                reward_scale=reward_scale,
            )
        if is_d4rl_file(path):
            if observation_keys is not None:
                raise ValueError(f"{name} has plain observations: leave out observation_keys")
            known = parse_d4rl_name(path)
            if known is not None and env_id is None:
                env_id = known.env_id
                if max_episode_steps is None:
                    max_episode_steps = known.max_episode_steps
                _warn_of_other_simulator(name, known.recorded_env_id)
            with busy(f"reading {name}", disable=not progress):
                arrays = read_d4rl_file(path)
            names = file_names(path)
            return cls.from_arrays(
                arrays,
                action_spec=action_spec,
                name=name,
                env_id=env_id,
                reference_scores=reference_scores,
                max_episode_steps=max_episode_steps,
                unknown_terminal_states=unknown_terminal_states,
                normalize=normalize,
                reward_shift=reward_shift,
                reward_scale=reward_scale,
                copy=False,
                observation_names=names["observation_names"],
                action_names=names["action_names"],
            )
        if max_episode_steps is not None:
            raise ValueError(
                f"{name} is a Minari set, whose episodes are marked: leave out max_episode_steps"
            )
        source = minari_source.open_minari(
            name, env_id=env_id, observation_keys=observation_keys, progress=progress
        )
        return cls.from_episodes(
            source.episodes,
            action_spec=action_spec or source.action_spec,
            name=name,
            env_id=env_id,
            env_spec=source.env_spec,
            reference_scores=reference_scores or source.reference_scores,
            observation_layout=source.observation_layout,
            observation_names=source.observation_names,
            action_names=source.action_names,
            normalize=normalize,
            reward_shift=reward_shift,
            reward_scale=reward_scale,
        )

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any],
        *,
        action_spec: Bounded | None = None,
        name: str | None = None,
        env_id: str | None = None,
        reference_scores: tuple[float, float] | None = None,
        max_episode_steps: int | None = None,
        unknown_terminal_states: UnknownTerminalStates = "hold",
        observation_names: Sequence[str] | None = None,
        action_names: Sequence[str] | None = None,
        normalize: bool = True,
        reward_shift: float = 0.0,
        reward_scale: RewardScale = 1.0,
        copy: bool = True,
        env_spec: EnvSpec | None = None,
    ) -> OfflineDataset:
        """Build the data set from flat arrays in D4RL's layout.

        An episode ends after a terminal or a timeout and, with ``next_observations``, wherever
        these are not the following row's observation. Without ``next_observations`` and
        timeouts, an episode is cut at the environment's time limit.

        Without ``next_observations`` the last row of a truncated or unfinished episode has no
        successor and is left out. A terminal row's successor is unknown as well, but its reward
        and its end may not be lost: its own observation stands in, as it does for a terminal row
        with NaN in ``next_observations``.

        An episode is whole if its end has a flag or lies at the time limit, and so has the one
        before it; returns are those of whole episodes.

        Args:
            arrays: ``observations`` [N, *], ``actions`` [N, *], ``rewards`` and ``terminals``
                [N], and optionally ``timeouts`` [N], ``next_observations`` [N, *] and
                ``timestamps`` [N], numbers or dates. Observations and actions may be tables, of
                which the columns' names are kept: data frames, Arrow tables, structured NumPy
                arrays or mappings of columns [N].
            action_spec: bounds of the actions, of shape [act]; where None the environment's if it
                is installed, else [-1, 1].
            name: how messages and reports call the data set; ``"arrays"`` where None.
            env_id: Gymnasium id of the environment, if any.
            reference_scores: (minimum, maximum) returns of the score.
            max_episode_steps: the time limit, with which policies are evaluated as well; where
                None that of ``env_spec`` or the registered one of ``env_id``.
            unknown_terminal_states: ``"drop"`` leaves terminal rows without a known successor out.
            observation_names: of the observation entries, where these are no table; see the
                constructor.
            action_names: likewise of the action entries.
            normalize: whether observations are normalised.
            reward_shift: added to every reward of the transitions.
            reward_scale: what they are then divided by, or ``"auto"``; see the constructor.
            copy: False lets normalisation write into the given arrays.
            env_spec: the environment's full specification, if any.

        Returns:
            The checked data set.

        Raises:
            ValueError: as the constructor, and if arrays are missing, differ in length, or do
                not say where episodes end, or the environment's actions are discrete.
        """
        name = name or _UNNAMED[0]
        env_spec, dropped = keep_specification(env_id, env_spec)
        limit = time_limit(env_spec or env_id)
        if max_episode_steps is None:
            max_episode_steps = limit
        elif max_episode_steps != limit:
            env_spec = with_time_limit(env_spec or env_id, max_episode_steps) or env_spec
        observation_names = observation_names or names_of(arrays.get("observations"))
        action_names = action_names or names_of(arrays.get("actions"))
        source = flat_source(
            arrays,
            name,
            max_episode_steps=max_episode_steps,
            unknown_terminal_states=unknown_terminal_states,
        )
        remarks, remedy = (*source.remarks, *dropped), None
        if action_spec is None:
            actions = source.transitions["action"].numpy()
            action_spec, remedy, assumed = default_bounds(
                env_spec or env_id, actions.shape[-1], name
            )
            if assumed:
                remarks = (*remarks, *one_sided_actions(actions, remedy, action_names))
        try:
            return cls(
                source.transitions,
                action_spec=action_spec,
                name=name,
                env_id=env_id,
                env_spec=env_spec,
                reference_scores=reference_scores,
                episodes=source.episodes,
                observation_names=observation_names,
                action_names=action_names,
                step_intervals=source.intervals,
                remarks=remarks,
                normalize=normalize,
                reward_shift=reward_shift,
                reward_scale=reward_scale,
                copy=copy,
            )
        except ActionsOutsideError as error:
            if remedy is None:
                raise
            raise ActionsOutsideError(error.finding, remedy) from None

    @classmethod
    def from_episodes(
        cls,
        episodes: minari.MinariDataset | Iterable[Episode],
        *,
        action_spec: Bounded | None = None,
        name: str | None = None,
        env_id: str | None = None,
        reference_scores: tuple[float, float] | None = None,
        observation_layout: ObservationLayout | None = None,
        observation_names: Sequence[str] | None = None,
        action_names: Sequence[str] | None = None,
        normalize: bool = True,
        reward_shift: float = 0.0,
        reward_scale: RewardScale = 1.0,
        env_spec: EnvSpec | None = None,
    ) -> OfflineDataset:
        """Build the data set from whole episodes, each in Minari's layout.

        Args:
            episodes: mappings with ``observations`` [T + 1, *], ``actions`` [T, *],
                ``rewards``, ``terminations`` and ``truncations`` [T], or Minari's ``EpisodeData``
                or ``EpisodeBuffer``. An episode whose last row has no end flag was cut there: its
                last row is truncated, and neither its return nor that of the next one counts,
                unless it lasted as long as the time limit. Or an open Minari set, whose
                description then stands in for what is not given here.
            action_spec: bounds of the actions, of shape [act]; a Minari set has its own.
            name: how messages and reports call the data set; ``"episodes"`` where None.
            env_id: Gymnasium id of the environment, if any.
            reference_scores: (minimum, maximum) returns of the score.
            observation_layout: how the environment's observations became these.
            observation_names: of the observation entries; see the constructor.
            action_names: of the action entries.
            env_spec: the environment's full specification, if any.
            normalize: whether observations are normalised.
            reward_shift: added to every reward of the transitions.
            reward_scale: what they are then divided by, or ``"auto"``; see the constructor.

        Returns:
            The checked data set.

        Raises:
            ValueError: as the constructor, and if arrays of an episode are missing or differ in
                length.
        """
        if isinstance(episodes, minari.MinariDataset):
            name = name or episodes.id
            source = minari_source.describe(name, episodes, env_id=env_id)
            episodes = source.episodes
            action_spec, env_spec = action_spec or source.action_spec, env_spec or source.env_spec
            reference_scores = reference_scores or source.reference_scores
            observation_layout = observation_layout or source.observation_layout
            observation_names = observation_names or source.observation_names
            action_names = action_names or source.action_names
        name = name or _UNNAMED[1]
        if action_spec is None:
            raise ValueError(f"{name}: give action_spec=, the bounds of the actions")
        limit = time_limit(env_spec or env_id)
        transitions, found, remarks = flatten_episodes(episodes, name, max_episode_steps=limit)
        return cls(
            transitions,
            action_spec=action_spec,
            name=name,
            env_id=env_id,
            env_spec=env_spec,
            reference_scores=reference_scores,
            episodes=found,
            observation_layout=observation_layout,
            observation_names=observation_names,
            action_names=action_names,
            remarks=remarks,
            normalize=normalize,
            reward_shift=reward_shift,
            reward_scale=reward_scale,
            copy=False,  # the episodes were copied when they were joined
        )

    @classmethod
    def _open_memmap(cls, folder: Path, **options: Any) -> OfflineDataset:
        """Open a folder written by :meth:`memmap`; what it was made with stays."""
        dataset = cls.__new__(cls)
        vars(dataset).update(read_memmap(folder))
        if dataset.name in _UNNAMED:
            dataset.name = os.fspath(folder)
        dataset.has_simulator = True
        dataset._env_id_given = options["env_id"] is not None
        reward_scale = options.pop("reward_scale")
        check_options(folder, vars(dataset), options)
        dataset.env_id = options["env_id"] or dataset.env_id  # which may say what to import
        for remark in dataset.remarks:
            torchrl_logger.warning(f"{dataset.name}: {remark}")
        dataset._set_reward_scale(reward_scale)
        return dataset

    def memmap(self, folder: str | os.PathLike[str]) -> OfflineDataset:
        """Write the data set to a folder of memory-mapped files and open it from there.

        :meth:`load` opens the folder at once, however large it is: the transitions, checked and
        normalised, are read from the disk as batches are drawn. They are the files: what is
        written into ``transitions`` in place is written to the disk, for every later reader.
        Nothing in the library does so.

        Args:
            folder: a place where there is nothing yet; it appears when it is complete.

        Returns:
            The data set with its transitions on the disk.

        Raises:
            ValueError: if there is something already.
            OSError: if it cannot be written; nothing is left of it.
        """
        write_memmap(expand_home(folder), vars(self))
        env_id = self.env_id if self._env_id_given else None
        return self.load(folder, env_id=env_id, reward_scale=self.reward_scale)

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
    def description(self) -> DataDescription:
        """The entries' names and the range of the observations, for a policy's file."""
        rows = self.transitions["observation"]
        # by way of text, so that 0.8 in float32 is 0.8 and not 0.800000011920929
        low, high = (
            tuple(float(str(x)) for x in self.denormalize(bound).numpy())
            for bound in (rows.amin(0), rows.amax(0))
        )
        return DataDescription(self.observation_names, self.action_names, low, high)

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
        returns = self.behaviour_returns
        return float(returns.mean()) if len(returns) else None

    @property
    def behaviour_return_best(self) -> float | None:
        """Highest return of the whole episodes; None where there are none."""
        returns = self.behaviour_returns
        return float(returns.max()) if len(returns) else None

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


def _warn_of_other_simulator(name: str, env_id: str | None) -> None:
    """Walker2d's right foot has other friction before v5: its data and simulator then differ."""
    match = re.fullmatch(r"Walker2d-v(\d+)", registered_id(env_id or ""))
    if match and int(match.group(1)) < 5:
        torchrl_logger.warning(
            f"{name} was recorded in {env_id}, whose right foot has another friction than in "
            "Walker2d-v5: scores measured in v5 are not comparable exactly"
        )
