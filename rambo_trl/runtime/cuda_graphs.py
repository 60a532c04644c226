"""Replay a hot path on a GPU as one CUDA graph, launched at once."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor

__all__ = ["capture_on_gpu", "is_capturing"]

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


def _leaves(args: tuple[Any, ...]) -> list[Tensor]:
    """All tensors of positional arguments, in a fixed order."""
    leaves: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            leaves.append(arg)
        elif isinstance(arg, TensorDictBase):
            keys = sorted(arg.keys(include_nested=True, leaves_only=True), key=str)
            leaves += [arg.get(key) for key in keys]
        else:
            raise TypeError(f"expected tensors and TensorDicts, got {type(arg).__name__}")
    return leaves


def _on_gpu(leaves: list[Tensor]) -> bool:
    return all(leaf.is_cuda for leaf in leaves)


def _kind(leaves: list[Tensor]) -> tuple[Any, ...]:
    """What must stay the same for a graph to be replayed: the tensors' shapes and types."""
    return tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves)


def capture_on_gpu(
    function: Callable[P, R], enabled: bool = True, *, warmups: int = 3, name: str | None = None
) -> Callable[P, R]:
    """Capture a function of CUDA tensors into a CUDA graph and replay it at every later call.

    The first calls run as usual, on a stream of their own: compilation and the optimisers'
    state happen there. The next call is captured: from then on the host launches one graph.
    What the function reads besides its arguments (parameters, buffers, optimiser states) must
    stay in the same memory, so load a checkpoint before the first call; numbers on the host, such
    as a learning rate, keep the value of the capture. Random numbers continue along the device's
    generator. Arguments of other shapes than the captured ones run uncaptured, as does everything
    on a CPU.

    TensorDict's ``CudaGraphModule`` does the same, but waits for the device at every call (0.14).

    Args:
        function: takes tensors and TensorDicts [...] by position, and returns tensors.
        enabled: with False the function is returned as it is.

    Keyword Args:
        warmups: calls before the capture.
        name: what errors call it.

    Returns:
        A function with the same results. Those of a replay are overwritten by the next call.

    Raises:
        RuntimeError: when called, if the function can't be captured: it waits for the device,
            say, or memory runs out. PyTorch's random numbers and memory are unreliable in that
            process afterwards, hence nothing continues uncaptured.
    """
    if not enabled:
        return function
    name = name or function.__qualname__.replace(".<locals>", "")
    calls, elsewhere = 0, False
    side: Any = None
    graph: Any = None
    kind: tuple[Any, ...] = ()
    inputs: list[Tensor] = []
    by_dtype: list[list[int]] = []  # positions of the inputs of each dtype
    output: Any = None

    def warm_up(args: tuple[Any, ...]) -> Any:
        nonlocal side
        if side is None:  # one stream for all calls: cuBLAS keeps working memory for each
            side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            out = function(*args)  # type: ignore[call-arg]
        torch.cuda.current_stream().wait_stream(side)
        return out

    def capture(args: tuple[Any, ...]) -> None:
        nonlocal graph, kind, inputs, by_dtype, output
        fixed = tuple(arg.clone() for arg in args)
        torch.cuda.synchronize()
        new = torch.cuda.CUDAGraph()
        # A stream of this device: the default one belongs to the first capture's device. What
        # other threads do with the device meanwhile is neither captured nor an error.
        recording = torch.cuda.graph(
            new, stream=torch.cuda.Stream(), capture_error_mode="thread_local"
        )
        try:
            with _without_collection(), recording:
                output = function(*fixed)  # type: ignore[call-arg]
        except RuntimeError as error:
            raise RuntimeError(
                f"{name} can't be captured into a CUDA graph ({_first_line(error)}): nothing in it "
                "may wait for the device, as .item(), a tensor in an if, or a mask as an index do; "
                "with compile=False it runs as it is"
            ) from error
        inputs = _leaves(fixed)
        dtypes = {leaf.dtype for leaf in inputs}
        by_dtype = [[i for i, leaf in enumerate(inputs) if leaf.dtype == d] for d in dtypes]
        graph, kind = new, _kind(inputs)
        log.debug("captured %s", name)

    def on_gpu(args: tuple[Any, ...], leaves: list[Tensor]) -> Any:
        nonlocal calls
        calls += 1
        if calls <= warmups:
            return warm_up(args)
        if graph is None:
            capture(args)
        if _kind(leaves) != kind:
            return function(*args)  # type: ignore[call-arg]
        for same in by_dtype:  # the copies of one dtype are one kernel
            torch._foreach_copy_([inputs[i] for i in same], [leaves[i] for i in same])
        graph.replay()
        return output

    @wraps(function)
    def call(*args: Any) -> Any:
        nonlocal elsewhere
        if elsewhere:
            return function(*args)  # type: ignore[call-arg]
        leaves = _leaves(args)
        if not calls and not _on_gpu(leaves):
            elsewhere = True  # for good: a function's arguments stay on their device
            return function(*args)  # type: ignore[call-arg]
        with torch.cuda.device(leaves[0].device):
            return on_gpu(args, leaves)

    return cast("Callable[P, R]", call)


def is_capturing() -> bool:
    """Whether operations are being captured into a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _without_collection() -> Iterator[None]:
    """Suspend garbage collection: freeing an older CUDA graph would spoil the capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
