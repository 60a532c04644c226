"""Updates on the data alone: the epochs of the model-free methods."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch.optim.lr_scheduler import LambdaLR
from torchrl.objectives.utils import TargetNetUpdater

from rambo_trl.runtime.optimizers import load_optimizer
from rambo_trl.training.gradient_step import GradientStep, MetricMeans, ProgressBar, cosine_decay

__all__ = ["OfflinePhase", "UpdateStep", "cosine_decay"]


@dataclass
class UpdateStep:
    """Losses and the optimiser of the parameters that are trained on them.

    Args:
        losses: computes a TensorDict with ``loss_*`` terms and scalar metrics from a batch.
        optimizer: owns the parameters.
        every: take the step once in this many updates.
        lr_factor: function of the number of steps to a factor on the learning rates; one for all
            of the optimiser's groups, or one for each.
        name: of the step, in messages about its compilation.
    """

    losses: Callable[[TensorDictBase], TensorDictBase]
    optimizer: torch.optim.Optimizer
    every: int = 1
    lr_factor: Callable[[int], float] | Sequence[Callable[[int], float]] | None = None
    name: str = "the agent's update"


class OfflinePhase:
    """Gradient steps on batches of the data, each at its own interval.

    In every update the steps that are due are taken in the given order, each after evaluating
    its losses; then the target networks are updated.

    Args:
        steps: the steps.
        target_update: TorchRL's updater of the loss's target networks, if it has any.

    Keyword Args:
        target_every: update the targets once in this many updates.
        compile: compile the losses.

    Raises:
        ValueError: if an interval is smaller than 1.
    """

    def __init__(
        self,
        steps: Sequence[UpdateStep],
        target_update: TargetNetUpdater | None = None,
        *,
        target_every: int = 1,
        compile: bool = False,
    ) -> None:
        if min(target_every, *(s.every for s in steps)) < 1:
            raise ValueError("steps and target updates need an interval of at least 1 update")
        self.steps = list(steps)
        self.target_update, self.target_every = target_update, target_every
        self.updates = 0
        self._take = [
            GradientStep(s.losses, s.optimizer, compile=compile, name=s.name) for s in steps
        ]
        self._schedules = [
            None if s.lr_factor is None else LambdaLR(s.optimizer, s.lr_factor)  # type: ignore[arg-type]
            for s in steps
        ]

    def run(
        self, batches: Iterable[TensorDictBase], bar: ProgressBar | None = None
    ) -> dict[str, float]:
        """Take one update per batch; returns the mean metrics of the steps taken."""
        means = [MetricMeans() for _ in self.steps]
        for batch in batches:
            self.updates += 1
            for step, take, schedule, mean in zip(
                self.steps, self._take, self._schedules, means, strict=True
            ):
                if self.updates % step.every == 0:
                    mean.add(take(batch))
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
            "optimizers": [step.optimizer.state_dict() for step in self.steps],
            "schedules": [None if s is None else s.last_epoch for s in self._schedules],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.updates = int(state_dict["updates"])
        for step, state in zip(self.steps, state_dict["optimizers"], strict=True):
            load_optimizer(step.optimizer, state)
        for schedule, last in zip(self._schedules, state_dict["schedules"], strict=True):
            if schedule is not None:
                schedule.last_epoch = int(last)


def __getattr__(name: str) -> Any:
    if name == "Player":
        warnings.warn("Player is now UpdateStep", DeprecationWarning, stacklevel=2)
        return UpdateStep
    raise AttributeError(name)
