"""Episodes as the units of resampling: some to fit an estimate on, others to judge it on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rambo_trl.data.transition_data import TransitionData

__all__ = ["EpisodeBlocks"]

#: whole episodes below which longer ones are cut into blocks, and how many blocks that gives
_FEW, _WANTED = 20, 100


@dataclass(frozen=True, eq=False)
class EpisodeBlocks:
    """A data set's episodes, some of them held out.

    Rows of one episode depend on each other, so that an interval means something only where whole
    episodes are resampled. A log of a few endless episodes is cut into blocks of consecutive rows
    (Künsch 1989, "The jackknife and the bootstrap for general stationary observations").

    Attributes:
        rows: int64 [E, 2], each one's first row and the one after its last.
        held_out: bool [E].
        starts: bool [E], whether its first row is a state that evaluations begin in: the start of a
            whole episode, or of any block where there are few of these.
        cut: whether episodes were cut into blocks.
    """

    rows: np.ndarray
    held_out: np.ndarray
    starts: np.ndarray
    cut: bool

    @classmethod
    def of(
        cls, data: TransitionData, *, gamma: float, share: float = 0.25, seed: int = 0
    ) -> EpisodeBlocks:
        """Hold out a share of the episodes.

        Args:
            data: the data.

        Keyword Args:
            gamma: discount factor in [0, 1); blocks are at least 2 / (1 - gamma) rows long.
            share: of the episodes, in (0, 1).
            seed: of the choice.

        Raises:
            ValueError: if the data have fewer than four episodes or blocks.
        """
        if not 0 < share < 1:
            raise ValueError(f"the share of held-out episodes must lie in (0, 1), got {share}")
        done = data.transitions["next", "done"].flatten().numpy().copy()
        done[-1] = True
        ends = done.nonzero()[0] + 1
        rows = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
        starts = np.isin(rows[:, 0], data.whole_episodes[:, 0])
        if cut := int(starts.sum()) < _FEW:
            length = max(math.ceil(2 / (1 - gamma)), math.ceil(len(data) / _WANTED))
            pieces = [
                np.linspace(a, b, max(1, (b - a) // length) + 1).astype(np.int64) for a, b in rows
            ]
            rows = np.concatenate([np.stack([p[:-1], p[1:]], axis=1) for p in pieces])
            starts = np.ones(len(rows), dtype=bool)
        which = starts.nonzero()[0]
        if len(which) < 4:
            raise ValueError(
                f"{data.name} has {len(which)} episodes, or blocks of {math.ceil(2 / (1 - gamma))} "
                "rows: an interval needs at least 4, better 30; record more episodes"
            )
        number = min(max(2, round(share * len(which))), len(which) - 2)
        held_out = np.zeros(len(rows), dtype=bool)
        held_out[np.random.default_rng(seed).choice(which, number, replace=False)] = True
        return cls(rows, held_out, starts, cut)

    @property
    def training_rows(self) -> np.ndarray:
        """The episodes that are not held out, as ``rows`` [T, 2]."""
        return self.rows[~self.held_out]

    @property
    def held_out_rows(self) -> np.ndarray:
        """Those that are held out, [H, 2]; each begins in a start state."""
        return self.rows[self.held_out]
