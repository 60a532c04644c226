"""What every gradient step shares: compile, backward, optimise, gather metrics on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from rambo_trl.modules.compiling import compile_like_eager

__all__ = ["GradientStep", "MetricMeans", "ProgressBar", "adam"]


class ProgressBar(Protocol):
    """Anything with tqdm's ``update``."""

    def update(self, n: int = 1) -> object:
        """Advance by ``n`` steps."""
        ...


class MetricMeans:
    """Running means of scalars, summed on their device and read once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add one update's scalars; no synchronisation takes place."""
        for name, value in metrics.items():
            total = self._sums.get(name)
            value = value.detach()
            # the first value is copied, because the next update may overwrite it in place
            self._sums[name] = value.clone() if total is None else total.add_(value)
        self._count += 1

    def read(self) -> dict[str, float]:
        """The means as plain numbers."""
        return {name: float(total) / self._count for name, total in self._sums.items()}


class GradientStep:
    """One optimisation step on the sum of a loss module's ``loss_*`` terms.

    Args:
        losses: computes a TensorDict with ``loss_*`` terms and scalar metrics from the
            batches that it is called with.
        optimizer: owns the parameters that are to change.

    Keyword Args:
        compile: compile the losses' forward and backward.
    """

    def __init__(
        self,
        losses: Callable[..., TensorDictBase],
        optimizer: torch.optim.Optimizer,
        *,
        compile: bool = False,
    ) -> None:
        def objective(*batches: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
            out = losses(*batches)
            terms = {str(k): v for k, v in out.items() if isinstance(v, Tensor)}
            total = torch.stack([v for k, v in terms.items() if k.startswith("loss_")]).sum()
            return total, {k: v.detach() for k, v in terms.items() if v.ndim == 0}

        self._objective = compile_like_eager(objective, compile)
        self.optimizer = optimizer

    def __call__(self, *batches: TensorDictBase) -> dict[str, Tensor]:
        """Take the step; returns the detached scalar terms and metrics."""
        total, metrics = self._objective(*batches)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return metrics


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Adam:
    """Adam as one fused kernel a step."""
    return torch.optim.Adam(list(parameters), lr=lr, fused=True)
