"""Our side of ``learning.py``: the recipe ``rambo.py`` with a clock; takes the recipe's settings.

The rows of its ``metrics.csv`` have what :func:`clock_columns` tells. All that is compiled is
compiled in this process, so that it is counted: no second process does so beside the model's fit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import _recipes  # noqa: F401  # for the launcher
import launcher.launch
import rambo
from omegaconf import DictConfig

from rambo_trl.data import OfflineDataset
from rambo_trl.experiment.epoch import Epoch, Stopwatch
from rambo_trl.experiment.run import Run

#: phases before the first epoch, and those that are not training
BEFORE = frozenset({"model_fit", "cloning", "critics"})
APART = frozenset({"evaluation", "checkpoint"})


def cpu_seconds() -> float:
    """Processor seconds, user's and system's, of this process and its children that have ended."""
    return sum(os.times()[:4])


class CpuStopwatch(Stopwatch):
    """Processor seconds per phase, beside those that pass.

    Args:
        progress: a run's; ``seconds`` and ``cpu_seconds`` in it are added to.
    """

    def __init__(self, progress: dict[str, Any]) -> None:
        super().__init__(progress.setdefault("seconds", {}))
        self.cpu: dict[str, float] = progress.setdefault("cpu_seconds", {})

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the block's duration to a phase."""
        started = cpu_seconds()
        with super().__call__(phase):
            yield
        self.cpu[phase] = self.cpu.get(phase, 0.0) + cpu_seconds() - started


def clock_columns(progress: Mapping[str, Any]) -> dict[str, float | None]:
    """What training has taken so far, without evaluations and checkpoints, and the clone's score.

    Args:
        progress: a run's, with a :class:`CpuStopwatch`.

    Returns:
        ``wall_seconds`` and ``cpu_seconds``, and of them ``wall_pretraining`` and
        ``cpu_pretraining``, which were before the first epoch; ``cloned_score``.
    """
    columns: dict[str, float | None] = {"cloned_score": progress["cloned"].get("score")}
    for clock, key in (("wall", "seconds"), ("cpu", "cpu_seconds")):
        spent = {phase: s for phase, s in progress[key].items() if phase not in APART}
        columns[f"{clock}_seconds"] = sum(spent.values())
        columns[f"{clock}_pretraining"] = sum(s for phase, s in spent.items() if phase in BEFORE)
    return columns


def train(run: Run, cfg: DictConfig, data: OfflineDataset) -> dict[str, Any]:
    """The recipe's training, whose epochs log the clock before they are evaluated."""
    track, epochs, parent = run.track, run.epochs, os.getppid()

    def track_with_clock(**parts: Any) -> None:
        track(**parts)
        run.watch = CpuStopwatch(run.progress)

    def epochs_with_clock(**settings: Any) -> Iterator[Epoch]:
        for epoch in epochs(**settings):
            if os.getppid() != parent:
                raise SystemExit("who started this run has ended")
            yield epoch
            epoch.log(clock_columns(run.progress))

    run.track, run.epochs = track_with_clock, epochs_with_clock  # type: ignore[method-assign]
    return rambo.train(run, cfg, data)


if __name__ == "__main__":
    launcher.launch.rehearse = lambda *_: None
    launcher.launch.launch("rambo", train)
