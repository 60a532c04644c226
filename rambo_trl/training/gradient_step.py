"""What every gradient step shares: compile, backward, optimise, collect metrics on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import SoftUpdate

from rambo_trl.runtime.compiling import compile_like_eager
from rambo_trl.runtime.progress import ProgressBar

__all__ = [
    "FlatSoftUpdate",
    "GradientStep",
    "MetricMeans",
    "ProgressBar",
    "adam",
    "cosine_decay",
    "set_rates",
]


class MetricMeans:
    """Means of scalars, summed on their device and read once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add one update's scalars; no synchronisation takes place."""
        names = list(metrics)
        values = [metrics[name].detach() for name in names]
        if names and self._sums.keys() == metrics.keys():  # in one call
            torch._foreach_add_([self._sums[name] for name in names], values)
        else:
            for name, value in zip(names, values, strict=True):
                total = self._sums.get(name)
                # the first is copied, because the next update may overwrite it in place
                self._sums[name] = value.clone() if total is None else total.add_(value)
        self._count += 1

    def read(self) -> dict[str, float]:
        """The means as plain numbers."""
        return {name: float(total) / self._count for name, total in self._sums.items()}


def _laid_out_like(grad: Tensor | None, parameter: Tensor) -> Tensor | None:
    # the fused optimisers walk through both by memory: a transposed gradient would update the
    # wrong weights
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
        passed_on: entries of that TensorDict to return besides the scalars.
        compile: compile the losses and their gradients as one graph.
        name: what the log calls the step when it is compiled, such as ``"the agent's update"``.
    """

    def __init__(
        self,
        losses: Callable[..., TensorDictBase],
        optimizer: torch.optim.Optimizer,
        *,
        passed_on: Collection[str] = (),
        compile: bool = False,
        name: str = "an update",
    ) -> None:
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for lazy in ("in_keys", "target_entropy"):  # which TorchRL else sets inside the graph
            getattr(losses, lazy, None)

        def gradients(
            *batches: TensorDictBase | Tensor,
        ) -> tuple[dict[str, Tensor], tuple[Tensor | None, ...]]:
            # losses may write into their input: copies keep that out of the graph
            out = losses(*(b.copy() if isinstance(b, TensorDictBase) else b for b in batches))
            terms = {str(k): v for k, v in out.items() if isinstance(v, Tensor)}
            total = torch.stack([v for k, v in terms.items() if k.startswith("loss_")]).sum()
            grads = torch.autograd.grad(total, self._parameters, allow_unused=True)
            kept = {k: v.detach() for k, v in terms.items() if v.ndim == 0 or k in passed_on}
            return kept, grads

        self._gradients = compile_like_eager(gradients, compile, name=name)
        self.optimizer = optimizer

    def __call__(self, *batches: TensorDictBase | Tensor) -> dict[str, Tensor]:
        """Take the step; returns the detached scalars and what is passed on."""
        metrics, grads = self._gradients(*batches)
        for parameter, grad in zip(self._parameters, grads, strict=True):
            parameter.grad = _laid_out_like(grad, parameter)
        self.optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None
        return metrics


class FlatSoftUpdate(SoftUpdate):
    """TorchRL's soft update, leaf by leaf: the same numbers in a quarter of the time.

    TorchRL (0.14.1) builds TensorDicts of the networks' data at every step, which takes 6 % of an
    iteration of the quick schedule (one CPU thread, measured in turns).
    """

    @torch.no_grad()
    def _step(self, p_source: TensorDictBase, p_target: TensorDictBase) -> None:
        sources, targets = (
            parameters.values(include_nested=True, leaves_only=True, sort=True)
            for parameters in (p_source, p_target)
        )
        for source, target in zip(sources, targets, strict=True):
            target.lerp_(source, 1 - self.eps)


def adam(*groups: tuple[Iterable[nn.Parameter], float]) -> torch.optim.Adam:
    """Adam as one fused kernel per group, which a CUDA graph may hold.

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


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float | None]) -> None:
    """Set the learning rate of each parameter group that is given one.

    Args:
        optimizer: :func:`adam`'s.
        rates: by group.
    """
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        if lr is None:
            continue
        if group["capturable"]:  # a captured graph reads it from the same place
            if not isinstance(group["lr"], Tensor):
                group["lr"] = torch.tensor(lr, device=group["params"][0].device)
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def cosine_decay(num_updates: int) -> Callable[[int], float]:
    """A factor on the learning rate that falls from 1 to 0 along half a cosine.

    Args:
        num_updates: number of updates after which it is 0.
    """
    return lambda n: 0.5 * (1 + math.cos(math.pi * min(n / num_updates, 1)))
