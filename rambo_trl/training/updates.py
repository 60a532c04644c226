"""What every gradient step shares: compile, backward, optimise, gather metrics on the device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import SoftUpdate

from rambo_trl.modules.compiling import compile_like_eager

__all__ = ["FusedSoftUpdate", "GradientStep", "MetricMeans", "ProgressBar", "adam"]


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


def _laid_out_like(grad: Tensor | None, parameter: Tensor) -> Tensor | None:
    # the fused optimisers walk both by memory: a transposed gradient would go to the wrong weights
    if grad is None or grad.stride() == parameter.stride():
        return grad
    return torch.empty_like(parameter).copy_(grad)


class GradientStep:
    """One optimisation step on the sum of a loss module's ``loss_*`` terms.

    Args:
        losses: computes a TensorDict with ``loss_*`` terms and scalar metrics from the
            batches that it is called with.
        optimizer: owns the parameters that are to change.

    Keyword Args:
        passed_on: entries of that TensorDict that are returned besides the scalars.
        compile: compile the losses and their gradients as one graph.
    """

    def __init__(
        self,
        losses: Callable[..., TensorDictBase],
        optimizer: torch.optim.Optimizer,
        *,
        passed_on: Collection[str] = (),
        compile: bool = False,
    ) -> None:
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

        def gradients(
            *batches: TensorDictBase | Tensor,
        ) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
            # losses may write into their input: copies keep that out of the graph
            out = losses(*(b.copy() if isinstance(b, TensorDictBase) else b for b in batches))
            terms = {str(k): v for k, v in out.items() if isinstance(v, Tensor)}
            total = torch.stack([v for k, v in terms.items() if k.startswith("loss_")]).sum()
            grads = torch.autograd.grad(total, self._parameters, allow_unused=True)
            found = {k: v.detach() for k, v in terms.items() if v.ndim == 0 or k in passed_on}
            return found, grads

        owner = getattr(losses, "__self__", losses)
        self._gradients = compile_like_eager(
            gradients, compile, name=f"the update of {type(owner).__name__}"
        )
        self.optimizer = optimizer

    def __call__(self, *batches: TensorDictBase | Tensor) -> dict[str, Tensor]:
        """Take the step; returns the detached scalars, and what is passed on."""
        metrics, grads = self._gradients(*batches)
        for parameter, grad in zip(self._parameters, grads, strict=True):
            parameter.grad = _laid_out_like(grad, parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return metrics


class FusedSoftUpdate(SoftUpdate):
    """TorchRL's soft update, a network in one call: the same numbers in a quarter of the time."""

    @torch.no_grad()
    def _step(self, p_source: TensorDictBase, p_target: TensorDictBase) -> None:
        sources, targets = (
            list(parameters.values(include_nested=True, leaves_only=True, sort=True))
            for parameters in (p_source, p_target)
        )
        torch._foreach_lerp_(targets, sources, 1 - self.eps)


def adam(*groups: tuple[Iterable[nn.Parameter], float]) -> torch.optim.Adam:
    """Adam as one fused kernel a step, which a CUDA graph may hold.

    Args:
        *groups: parameters and their learning rate.
    """
    listed = [(list(parameters), lr) for parameters, lr in groups]
    on_gpu = all(p.is_cuda for parameters, _ in listed for p in parameters)
    return torch.optim.Adam(
        [{"params": parameters, "lr": lr} for parameters, lr in listed],
        fused=True,
        capturable=on_gpu,
    )
