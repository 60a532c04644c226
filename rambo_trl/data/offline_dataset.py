"""Offline data by name, from a file, a folder or memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import minari
from gymnasium.envs.registration import EnvSpec
from torchrl._utils import logger as torchrl_logger
from torchrl.data import Bounded

from rambo_trl.data import minari_source
from rambo_trl.data.columns import names_of
from rambo_trl.data.d4rl_source import (
    UnknownTerminalStates,
    default_bounds,
    flat_source,
    is_d4rl_file,
    read_d4rl_file,
)
from rambo_trl.data.environment import keep_specification, time_limit, with_time_limit
from rambo_trl.data.episodes import Episode, flatten_episodes
from rambo_trl.data.memmap import check_options, is_memmap_folder, read_memmap, write_memmap
from rambo_trl.data.names import parse_d4rl_name
from rambo_trl.data.neorl2_source import NEORL2_TASKS, NeoRL2Files, find_neorl2
from rambo_trl.data.scaling import RewardScale
from rambo_trl.data.spaces import ObservationLayout
from rambo_trl.data.transition_data import TransitionData, warn_of_other_simulator
from rambo_trl.data.transitions import ActionsOutsideError
from rambo_trl.runtime.places import expand_home
from rambo_trl.runtime.progress import busy

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["OfflineDataset"]

#: what data sets without a name are called: arrays, episodes and transitions in memory
_UNNAMED = ("arrays", "episodes", "transitions")


class _LoadOptions(TypedDict, total=False):
    """Arguments of the constructor that all ways to a data set take."""

    env_id: str | None
    reference_scores: tuple[float, float] | None
    normalize: bool
    reward_shift: float
    reward_scale: RewardScale


class _Options(_LoadOptions, total=False):
    """Those that data in memory take besides."""

    name: str | None
    env_spec: EnvSpec | None
    observation_names: Sequence[str] | None
    action_names: Sequence[str] | None


class OfflineDataset(TransitionData):
    """Transitions of a fixed data set, ready for training (paper sec. 5.2).

    Use :meth:`load` for a named data set or a file, :meth:`from_episodes` and
    :meth:`from_arrays` for data in memory in the layouts of Minari and D4RL, or the constructor
    for a TensorDict of transitions. Its arguments and attributes are those of
    :class:`TransitionData`.

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

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        action_spec: Bounded | None = None,
        observation_keys: Sequence[str] | None = None,
        max_episode_steps: int | None = None,
        unknown_terminal_states: UnknownTerminalStates = "hold",
        progress: bool = True,
        **options: Unpack[_LoadOptions],
    ) -> OfflineDataset:
        """Load a data set by name or from a file.

        Args:
            name_or_path: a folder written by :meth:`memmap`, a bundled name such as
                ``"bundled/hopper/medium-replay-v1"`` (built on first use), the id of a Minari data
                set (local, else Minari's own downloader is tried) or the folder of one, a
                D4RL-format HDF5 file (see :meth:`from_arrays` for its rules), or a NeoRL-2 set,
                ``"neorl2/DMSD"`` or a file or folder of one (local, else its published download is
                tried), whose validation rows become :attr:`holdout`.
            action_spec: bounds of the actions, instead of the data set's. A D4RL file has none:
                where None, the environment's if it is installed, else [-1, 1] as in D4RL.
            observation_keys: entries of a goal environment's observations to join; see
                :meth:`rambo_trl.data.ObservationLayout.of`.
            max_episode_steps: for D4RL files and NeoRL-2's; see :meth:`from_arrays`.
            unknown_terminal_states: likewise.
            progress: whether a build and the reading show their progress.
            **options: the constructor's ``env_id``, ``reference_scores``, ``normalize``,
                ``reward_shift`` and ``reward_scale``. The first two replace what the data set says
                of itself or a D4RL file's name means (``hopper_medium_replay-v2.hdf5``: Hopper-v5);
                the recorded arguments, time limit and wrappers stay where ``env_id`` is the
                recorded id, with or without ``MODULE:``.

        Raises:
            ValueError: if there is no such data set, or it cannot be used; the message says
                what to do instead.
        """
        name, path = os.fspath(name_or_path), expand_home(name_or_path)
        if is_memmap_folder(path):
            return cls._open_memmap(
                path,
                action_spec=action_spec,
                observation_keys=observation_keys,
                max_episode_steps=max_episode_steps,
                **options,
            )
        files = find_neorl2(name, progress=progress)
        if observation_keys is not None and (files is not None or is_d4rl_file(path)):
            raise ValueError(f"{name} has plain observations: leave out observation_keys")
        if files is not None:
            return cls._from_neorl2(
                files,
                name=name,
                action_spec=action_spec,
                max_episode_steps=max_episode_steps,
                **options,
            )
        if is_d4rl_file(path):
            known = parse_d4rl_name(path)
            if known is not None and options.get("env_id") is None:
                options["env_id"] = known.env_id
                if max_episode_steps is None:
                    max_episode_steps = known.max_episode_steps
                warn_of_other_simulator(name, known.recorded_env_id)
            with busy(f"reading {name}", disable=not progress):
                arrays, names = read_d4rl_file(path)
            return cls.from_arrays(
                arrays,
                action_spec=action_spec,
                name=name,
                max_episode_steps=max_episode_steps,
                unknown_terminal_states=unknown_terminal_states,
                copy=False,
                observation_names=names["observation_names"],
                action_names=names["action_names"],
                **options,
            )
        if max_episode_steps is not None:
            raise ValueError(
                f"{name} is a Minari set, whose episodes are marked: leave out max_episode_steps"
            )
        env_id = options.get("env_id")
        source = minari_source.open_minari(
            name, env_id=env_id, observation_keys=observation_keys, progress=progress
        )
        return cls._from_minari(source, action_spec=action_spec, **options)

    @classmethod
    def _from_neorl2(
        cls, files: NeoRL2Files, *, action_spec: Bounded | None, **options: Any
    ) -> OfflineDataset:
        """Build the data set from NeoRL-2's files, the validation rows set aside."""
        files.warn()
        options["env_id"] = options.get("env_id") or files.env_id
        options["reference_scores"] = options.get("reference_scores") or files.scores
        arrays = files.read("train")
        if action_spec is None and files.task in NEORL2_TASKS:  # in the same units in all of them
            action_spec = Bounded(-1.0, 1.0, arrays["actions"].shape[1:])
        dataset = cls.from_arrays(arrays, action_spec=action_spec, copy=False, **options)
        if files.val is not None:
            dataset.hold_out(flat_source(files.read("val"), dataset.name)[0])
        return dataset

    @classmethod
    def _from_minari(cls, source: minari_source.Source, **given: Any) -> OfflineDataset:
        """Build the data set from an open Minari set; what is given replaces what it says."""
        episodes, described = source
        given = {key: value for key, value in given.items() if value is not None}
        return cls.from_episodes(episodes, **(described | given))

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any],
        *,
        action_spec: Bounded | None = None,
        max_episode_steps: int | None = None,
        unknown_terminal_states: UnknownTerminalStates = "hold",
        copy: bool = True,
        **options: Unpack[_Options],
    ) -> OfflineDataset:
        """Build the data set from flat arrays in D4RL's layout.

        An episode ends after a terminal or a timeout and, with ``next_observations``, wherever
        these are not the following row's observation. Without ``next_observations`` and
        timeouts, an episode is cut at the environment's time limit.

        Without ``next_observations`` the last row of a truncated or unfinished episode has no
        successor and is left out. A terminal row's successor is unknown as well, but its reward
        and its end may not be lost: its own observation stands in, as it does for a terminal row
        with NaN in ``next_observations``.

        An episode is whole, and has a return, if its end and that of the one before it have a flag
        or lie at the time limit.

        Args:
            arrays: ``observations`` [N, *], ``actions`` [N, *], ``rewards`` and ``terminals``
                [N], and optionally ``timeouts`` [N], ``next_observations`` [N, *] and
                ``timestamps`` [N], numbers or dates. Observations and actions may be tables, of
                which the columns' names are kept: data frames, Arrow tables, structured NumPy
                arrays or mappings of columns [N].
            action_spec: bounds of the actions, of shape [act]; where None the environment's if it
                is installed, else [-1, 1].
            max_episode_steps: the time limit, with which policies are evaluated as well; where
                None that of ``env_spec`` or the registered one of ``env_id``.
            unknown_terminal_states: ``"drop"`` leaves terminal rows without a known successor out.
            copy: False lets normalisation write into the given arrays.
            **options: the constructor's ``name`` (``"arrays"`` where None), ``env_id``,
                ``env_spec``, ``reference_scores``, ``observation_names``, ``action_names``,
                ``normalize``, ``reward_shift`` and ``reward_scale``.

        Raises:
            ValueError: as the constructor, and if arrays are missing, differ in length, or do
                not say where episodes end, or the environment's actions are discrete.
        """
        name = options["name"] = options.get("name") or _UNNAMED[0]
        env_id = options.get("env_id")
        env_spec, dropped = keep_specification(env_id, options.get("env_spec"))
        limit = time_limit(env_spec or env_id)
        if max_episode_steps is None:
            max_episode_steps = limit
        elif max_episode_steps != limit:
            env_spec = with_time_limit(env_spec or env_id, max_episode_steps) or env_spec
        options["env_spec"] = env_spec
        columns = {key: names_of(arrays.get(key)) for key in ("observations", "actions")}
        options["observation_names"] = options.get("observation_names") or columns["observations"]
        options["action_names"] = options.get("action_names") or columns["actions"]
        transitions, described = flat_source(
            arrays,
            name,
            max_episode_steps=max_episode_steps,
            unknown_terminal_states=unknown_terminal_states,
        )
        described["remarks"] += dropped
        remedy = None
        if action_spec is None:
            actions = transitions["action"].numpy()
            action_spec, remedy, warned = default_bounds(
                env_spec or env_id, actions, name, options["action_names"]
            )
            described["remarks"] += warned
        try:
            return cls(transitions, action_spec=action_spec, copy=copy, **described, **options)
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
        observation_layout: ObservationLayout | None = None,
        step_intervals: Mapping[str, float] | None = None,
        remarks: Sequence[str] = (),
        **options: Unpack[_Options],
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
            observation_layout: how the environment's observations became these.
            step_intervals: the constructor's.
            remarks: likewise.
            **options: as for :meth:`from_arrays`; the name is ``"episodes"`` where None.

        Raises:
            ValueError: as the constructor, and if arrays of an episode are missing or differ in
                length.
        """
        if isinstance(episodes, minari.MinariDataset):
            name = options.get("name") or episodes.id
            source = minari_source.describe(name, episodes, env_id=options.get("env_id"))
            return cls._from_minari(
                source, action_spec=action_spec, observation_layout=observation_layout, **options
            )
        name = options["name"] = options.get("name") or _UNNAMED[1]
        if action_spec is None:
            raise ValueError(f"{name}: give action_spec=, the bounds of the actions")
        limit = time_limit(options.get("env_spec") or options.get("env_id"))
        transitions, logged, found = flatten_episodes(episodes, name, max_episode_steps=limit)
        return cls(
            transitions,
            action_spec=action_spec,
            episodes=logged,
            observation_layout=observation_layout,
            step_intervals=step_intervals,
            remarks=(*remarks, *found),
            copy=False,  # the episodes were copied when they were joined
            **options,
        )

    @classmethod
    def _open_memmap(cls, folder: Path, **options: Any) -> OfflineDataset:
        """Open a folder written by :meth:`memmap`; what it was made with stays."""
        dataset = cls.__new__(cls)
        vars(dataset).update(read_memmap(folder))
        if dataset.name in _UNNAMED:
            dataset.name = os.fspath(folder)
        env_id, reward_scale = options.get("env_id"), options.pop("reward_scale", 1.0)
        dataset.has_simulator, dataset._env_id_given = True, env_id is not None
        options["normalized"] = None if options.pop("normalize", True) else False
        check_options(folder, vars(dataset), options)
        dataset.env_id = env_id or dataset.env_id  # which may say what to import
        for remark in dataset.remarks:
            torchrl_logger.warning(f"{dataset.name}: {remark}")
        dataset._set_reward_scale(reward_scale)
        return dataset

    def memmap(self, folder: str | os.PathLike[str]) -> OfflineDataset:
        """Write the data set to a folder of memory-mapped files and open it from there.

        :meth:`load` opens the folder at once, however large it is: rows are read from the disk as
        batches are drawn. What is written into ``transitions`` in place is written to the files,
        for every later reader; nothing in the library does so.

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
