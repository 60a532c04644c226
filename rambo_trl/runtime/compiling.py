"""How every hot path of the library is compiled."""

from __future__ import annotations

import inspect
import logging
import time
import types
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch._dynamo
from torch._dynamo.exc import TorchDynamoException

__all__ = ["compile_like_eager"]

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

#: separate graphs for functions with the same code, such as the steps of two losses
_OWN_GRAPHS: dict[str, Any] = (
    {"isolate_recompiles": True}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters
    else {}
)

_warned = False


#: kinds of guards on a plain value (a number, a flag, a string or None) or a function
_VALUES = ("CONSTANT_MATCH", "EQUALS_MATCH", "CLOSURE_MATCH")


def _guards_to_check(guards: Sequence[Any]) -> list[bool]:
    """Keep the guards on what a call is given, and on plain values that modules have.

    These are shapes, the caller's attributes, and modules' modes, coefficients and rules. The
    others on globals and on modules are 86 % or more of several thousand. Checking them all takes
    13 % of an iteration of the quick schedule (torch 2.13, one CPU thread, measured in turns), and
    one on the size of a cache of tensordict's, which grows while a program starts, would compile
    everything anew.
    """
    checks = (
        torch.compiler.skip_guard_on_globals_unsafe(guards),
        torch.compiler.skip_guard_on_all_nn_modules_unsafe(guards),
    )
    return [
        all(kept) or (guard.guard_type in _VALUES and not guard.is_global)
        for guard, *kept in zip(guards, *checks, strict=True)
    ]


def _autograd_in_graph() -> AbstractContextManager[Any]:
    """Trace ``torch.autograd.grad`` into the graph that calls it, instead of splitting it there.

    The agent's update of the quick schedule takes 4 ms instead of 8, the adversarial one 14 instead
    of 16 (torch 2.13, one thread). It has no public name up to 2.13; needless once default.
    """
    config = torch._dynamo.config
    if not hasattr(config, "trace_autograd_ops"):
        return nullcontext()
    context: AbstractContextManager[Any] = config.patch(trace_autograd_ops=True)
    return context


def _with_own_code(function: Callable[P, R]) -> Callable[P, R]:
    """Copy a function, or bound method, with its code: torch before 2.13 keeps graphs by code."""
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, types.FunctionType):
        return function  # a module, say
    copy = types.FunctionType(
        plain.__code__.replace(),
        plain.__globals__,
        plain.__name__,
        plain.__defaults__,
        plain.__closure__,
    )
    copy.__kwdefaults__ = plain.__kwdefaults__
    owner = getattr(function, "__self__", None)
    return copy if owner is None else types.MethodType(copy, owner)


def compile_like_eager(
    function: Callable[P, R], enabled: bool = True, *, name: str | None = None
) -> Callable[P, R]:
    """Compile a function for fixed shapes, with eager's random numbers inside the graph.

    Compiled or not, the same seed then gives the same results, up to rounding (from torch 2.13 on;
    earlier versions may draw a graph's random numbers in another order). Where the function can't
    be compiled (no C++ compiler, for instance), it runs uncompiled from then on, with one warning
    for all such functions.

    Args:
        function: called often with inputs of the same shapes. Parameters and buffers are read at
            every call; where a module's mode or one of its numbers, flags, strings or
            functions has changed, it is compiled anew. Other attributes of modules, and globals
            such as TorchRL's exploration type, are those of the first call, so set them before or
            inside.
        enabled: with False the function is returned unchanged.

    Keyword Args:
        name: what to call it in the log, which announces the first call with arguments of new
            shapes, when it is compiled, and its end; the records have ``compiling``, a text or
            None, for programs that show it in another way.
    """
    if not enabled:
        return function
    name = name or function.__qualname__.replace(".<locals>", "")
    compiled: Callable[P, R] | None = torch.compile(
        function if _OWN_GRAPHS else _with_own_code(function),
        dynamic=False,
        options={"fallback_random": True, "guard_filter_fn": _guards_to_check},
        **_OWN_GRAPHS,
    )
    seen: set[tuple[Any, ...]] = set()

    def run(compiled: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        shapes = tuple(getattr(arg, "shape", None) for arg in args)
        with _autograd_in_graph():
            if shapes in seen:
                return compiled(*args, **kwargs)
            begin = time.perf_counter()
            log.info(
                "compiling %s: seconds to a minute, less where it was done before",
                name,
                extra={"compiling": f"compiling {name}"},
            )
            try:
                out = compiled(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - begin
                log.debug("compiled %s in %.0f s", name, seconds, extra={"compiling": None})
            seen.add(shapes)
            return out

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal compiled
        if compiled is None:
            return function(*args, **kwargs)
        try:
            return run(compiled, *args, **kwargs)
        except TorchDynamoException as error:
            out = function(*args, **kwargs)  # which raises errors of its own
            compiled = None
            _warn(name, error)
            return out

    return call


def _warn(name: str, error: Exception) -> None:
    global _warned
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if _warned:
        log.info("%s is not compiled either: %s", name, reason)
        return
    _warned = True
    warnings.warn(
        f"{name} can't be compiled and runs uncompiled, slower but with the same results "
        f"(compile=false says so from the start): {reason}",
        stacklevel=3,
    )
