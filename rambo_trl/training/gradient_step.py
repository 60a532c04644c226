"""What every gradient step shares: compile, backward, optimise, gather metrics on the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import SoftUpdate

from rambo_trl.runtime.compiling import compile_like_eager
from rambo_trl.runtime.cuda_graphs import is_capturing
from rambo_trl.runtime.progress import ProgressBar

__all__ = [
    "FusedAdam",
    "FusedSoftUpdate",
    "GradientStep",
    "MetricMeans",
    "ProgressBar",
    "adam",
]

#: entries of a parameter that one block of threads of a GPU's fused Adam is given
_PIECE = 8192
_CUT_ON = ("cuda",)


class MetricMeans:
    """Running means of scalars, summed on their device and read once."""

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
        name: what to call the step where it is compiled, such as ``"the agent's update"``.
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
        getattr(losses, "in_keys", None)  # else TorchRL sets them in the first call: two graphs

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

        self._gradients = compile_like_eager(gradients, compile, name=name)
        self.optimizer = optimizer

    def __call__(self, *batches: TensorDictBase | Tensor) -> dict[str, Tensor]:
        """Take the step; returns the detached scalars, and what is passed on."""
        metrics, found = self._gradients(*batches)
        grads = [_laid_out_like(g, p) for g, p in zip(found, self._parameters, strict=True)]
        if isinstance(self.optimizer, FusedAdam):
            self.optimizer.step_with(grads)
        else:
            _step_with(self.optimizer, self._parameters, grads)
        return metrics


def _step_with(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> None:
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class FusedAdam(torch.optim.Adam):
    """Torch's fused Adam, with a step that costs little more than its kernel.

    :meth:`step_with` gives the same numbers as ``step``. On a CPU it takes half the time on
    networks of this library's size: torch gathers each parameter's state anew at every step, and
    counts the steps of each one by one. On a GPU one block of the kernel's threads takes 65,536
    entries of a parameter, so that small networks leave most of the card idle; here parameters are
    handed over in smaller pieces. The two can be mixed, and the state is Adam's; hooks are called
    by ``step`` alone. It needs ``fused=True``, and is ``step`` otherwise.
    """

    _gathered: list[dict[str, Any]] | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch."""
        super().add_param_group(param_group)
        self._gathered = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Where a state is loaded, what was gathered of the one before is forgotten."""
        super().__setstate__(state)
        self._gathered = None

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but where there is a state already its memory is kept.

        What was captured as a CUDA graph so goes on from what is loaded.
        """
        old, gathered = dict(self.state), self._gathered
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        pairs = [(old.get(p, {}), self.state.get(p, {})) for p in parameters]
        if not all(_are_alike(mine, loaded) for mine, loaded in pairs):
            return
        for mine, loaded in pairs:
            for name, value in loaded.items():
                mine[name].copy_(value)
        self.state.update(old)
        self._gathered = gathered

    @torch.no_grad()
    def step_with(self, grads: Sequence[Tensor | None]) -> None:
        """Take one step.

        Args:
            grads: of each parameter in the order of ``param_groups``, laid out in memory as it
                is; None leaves a parameter as it is.
        """
        gathered = self._gathered
        if gathered is not None and not self._is_current(gathered):
            gathered = None
        given = [g for g in grads if g is not None]
        if gathered is None or len(given) < len(grads):
            # torch's own way, which also begins the state of a parameter at its first gradient
            _step_with(self, [p for group in self.param_groups for p in group["params"]], grads)
            # not within a CUDA graph, which would count in tensors that only it knows
            if gathered is None and not is_capturing():
                self._gathered = self._gather()
            return
        done = 0
        for group, kept in zip(self.param_groups, gathered, strict=True):
            count = len(kept["sizes"])
            if count == 0:
                continue
            kept["steps"].add_(1)
            torch._fused_adam_(
                kept["params"],
                _pieces(given[done : done + count], kept["sizes"]),
                kept["exp_avg"],
                kept["exp_avg_sq"],
                kept["max_exp_avg_sq"],
                kept["step"],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=group["amsgrad"],
                maximize=group["maximize"],
            )
            done += count

    def _is_plain(self, group: dict[str, Any]) -> bool:
        """Whether this class's own step can take a group's."""
        params = group["params"]
        states = [self.state.get(p, {}) for p in params]
        return (
            bool(group["fused"])
            and not group.get("decoupled_weight_decay")  # AdamW, which has a kernel of its own
            and len({p.device for p in params}) <= 1
            and all(p.dtype == torch.float32 for p in params)
            and all("step" in s for s in states)
            and all(s["step"].device == p.device for p, s in zip(params, states, strict=True))
        )

    def _gather(self) -> list[dict[str, Any]] | None:
        """Each group's parameters and state as lists; None where torch's own step is needed."""
        if not all(self._is_plain(group) for group in self.param_groups):
            return None
        gathered: list[dict[str, Any]] = []
        for group in self.param_groups:
            params = list(group["params"])
            states = [self.state[p] for p in params]
            # one tensor of all counts, each parameter's a view of it: counted up in one call
            steps = torch.stack([s["step"] for s in states]) if states else None
            for i, state in enumerate(states):
                state["step"] = steps[i]  # type: ignore[index]
            sizes = [_piece_sizes(p) for p in params]
            lists = {
                name: _pieces([s[name] for s in states if name in s], sizes)
                for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
            }
            counts = [[s["step"]] * len(z or (0,)) for s, z in zip(states, sizes, strict=True)]
            gathered.append(
                {
                    "first": (params[0], states[0]) if params else None,
                    "cut": [(p, p.data_ptr()) for p, z in zip(params, sizes, strict=True) if z],
                    "params": _pieces(params, sizes),
                    "sizes": sizes,
                    "steps": steps,
                    "step": list(itertools.chain.from_iterable(counts)),
                    **lists,
                }
            )
        return gathered

    def _is_current(self, gathered: list[dict[str, Any]]) -> bool:
        """Whether states and pieces are still those that were gathered."""
        firsts = [kept["first"] for kept in gathered if kept["first"]]
        cut = itertools.chain.from_iterable(kept["cut"] for kept in gathered)
        return all(self.state.get(parameter) is state for parameter, state in firsts) and all(
            parameter.data_ptr() == pointer for parameter, pointer in cut
        )


def _are_alike(state: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a parameter's state can be copied into another, tensor by tensor."""
    return state.keys() == other.keys() and all(
        isinstance(value, Tensor)
        and isinstance(other[name], Tensor)
        and (value.shape, value.dtype, value.device)
        == (other[name].shape, other[name].dtype, other[name].device)
        for name, value in state.items()
    )


def _piece_sizes(parameter: Tensor) -> list[int] | None:
    """The lengths of the pieces that a parameter is stepped in; None where it is not cut."""
    if parameter.device.type not in _CUT_ON or parameter.numel() <= _PIECE:
        return None
    if not parameter.is_contiguous():
        return None
    whole, rest = divmod(parameter.numel(), _PIECE)
    return [_PIECE] * whole + ([rest] if rest else [])


def _pieces(tensors: Sequence[Tensor], sizes: Sequence[list[int] | None]) -> list[Tensor]:
    """The tensors, those with piece sizes cut into views of that many entries each."""
    found: list[Tensor] = []
    for tensor, size in zip(tensors, sizes, strict=False):
        found += [tensor] if size is None else tensor.view(-1).split(size)
    return found


class FusedSoftUpdate(SoftUpdate):
    """TorchRL's soft update, a network in one call: the same numbers in a quarter of the time."""

    @torch.no_grad()
    def _step(self, p_source: TensorDictBase, p_target: TensorDictBase) -> None:
        sources, targets = (
            list(parameters.values(include_nested=True, leaves_only=True, sort=True))
            for parameters in (p_source, p_target)
        )
        torch._foreach_lerp_(targets, sources, 1 - self.eps)


def adam(*groups: tuple[Iterable[nn.Parameter], float]) -> FusedAdam:
    """Adam as one fused kernel a step, which a CUDA graph may hold.

    Args:
        *groups: parameters and their learning rate.
    """
    listed = [(list(parameters), lr) for parameters, lr in groups]
    on_gpu = all(p.is_cuda for parameters, _ in listed for p in parameters)
    return FusedAdam(
        [{"params": parameters, "lr": lr} for parameters, lr in listed],
        fused=True,
        capturable=on_gpu,
    )
