"""Updates on the data alone: what a model-free method does in an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch.optim.lr_scheduler import LambdaLR
from torchrl.objectives.utils import TargetNetUpdater

from rambo_trl.experiment.checkpoint import load_optimizer
from rambo_trl.training.gradient_step import GradientStep, MetricMeans, ProgressBar

__all__ = ["OfflinePhase", "Player", "cosine_decay"]


def cosine_decay(num_updates: int) -> Callable[[int], float]:
    """A learning rate's factor that falls from 1 to 0 along half a cosine, and stays there.

    Args:
        num_updates: after how many updates it is 0.
    """
    return lambda n: 0.5 * (1 + math.cos(math.pi * min(n / num_updates, 1)))


@dataclass
class Player:
    """Parameters with the losses that they are trained on.

    Args:
        losses: computes a TensorDict with ``loss_*`` terms and scalar metrics from a batch.
        optimizer: owns the parameters.
        every: one step in so many updates.
        lr_factor: update to the factor on the learning rates; one for all of the optimiser's
            groups, or one for each.
        name: what to call its steps where they are compiled.
    """

    losses: Callable[[TensorDictBase], TensorDictBase]
    optimizer: torch.optim.Optimizer
    every: int = 1
    lr_factor: Callable[[int], float] | Sequence[Callable[[int], float]] | None = None
    name: str = "the agent's update"


class OfflinePhase:
    """Gradient steps on batches of the data, each player at its own pace.

    In every update the players that are due take their steps, in the given order, each on its
    own evaluation of its losses; then the target networks follow.

    Args:
        players: who learns.
        target_update: TorchRL's updater of the loss's target networks, if it has any.

    Keyword Args:
        target_every: one update of the targets in so many.
        compile: compile the losses.

    Raises:
        ValueError: if a pace is smaller than 1.
    """

    def __init__(
        self,
        players: Sequence[Player],
        target_update: TargetNetUpdater | None = None,
        *,
        target_every: int = 1,
        compile: bool = False,
    ) -> None:
        if min(target_every, *(p.every for p in players)) < 1:
            raise ValueError("every player and the targets need a pace of at least 1 update")
        self.players = list(players)
        self.target_update, self.target_every = target_update, target_every
        self.updates = 0
        self._steps = [
            GradientStep(p.losses, p.optimizer, compile=compile, name=p.name) for p in players
        ]
        self._schedules = [
            None if p.lr_factor is None else LambdaLR(p.optimizer, p.lr_factor)  # type: ignore[arg-type]
            for p in players
        ]

    def run(
        self, batches: Iterable[TensorDictBase], bar: ProgressBar | None = None
    ) -> dict[str, float]:
        """Take one update per batch; returns the mean metrics of the steps taken."""
        means = [MetricMeans() for _ in self.players]
        for batch in batches:
            self.updates += 1
            for player, step, schedule, mean in zip(
                self.players, self._steps, self._schedules, means, strict=True
            ):
                if self.updates % player.every == 0:
                    mean.add(step(batch))
                    if schedule is not None:
                        schedule.step()
            if self.target_update is not None and self.updates % self.target_every == 0:
                self.target_update.step()
            if bar is not None:
                bar.update(1)
        return {name: value for mean in means for name, value in mean.read().items()}

    def state_dict(self) -> dict[str, Any]:
        """The optimisers' and schedules' states and the number of updates."""
        return {
            "updates": self.updates,
            "optimizers": [player.optimizer.state_dict() for player in self.players],
            "schedules": [None if s is None else s.last_epoch for s in self._schedules],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.updates = int(state_dict["updates"])
        for player, state in zip(self.players, state_dict["optimizers"], strict=True):
            load_optimizer(player.optimizer, state)
        for schedule, last in zip(self._schedules, state_dict["schedules"], strict=True):
            if schedule is not None:
                schedule.last_epoch = int(last)
