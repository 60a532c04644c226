"""How every hot path of the library is compiled."""

from __future__ import annotations

import inspect
import itertools
import logging
import re
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch._dynamo
from torch._dynamo.callback import callback_handler
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

__all__ = ["compile_like_eager"]

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

#: what an installed library defines at import, and what of it is a mode that a caller may set
_OF_A_LIBRARY = re.compile(r"G\['__import_(torch|torchrl|tensordict)_dot_")
_MODE = re.compile(r"\b_?(mode|state|enabled)\b")

#: what a class or function is made of, wherever it is met
_OF_A_DEFINITION = re.compile(r"dict\(type\(|__mro__|__defaults__|__kwdefaults__|__closure__")
#: kinds that ask for a module's hooks, and for a method in the place of its class's
_OF_OVERRIDES = {"CLOSURE_MATCH", "EMPTY_NN_MODULE_HOOKS_DICT", "NOT_PRESENT_IN_GENERIC_DICT"}

#: a function that an object has been given as its own, such as a termination rule
_OF_AN_OBJECT = re.compile(r"(L\['\w+'\]|(?!G\b)\w+)(\.\w+)+")

#: kinds that ask whether a name still stands for the function, class or module that it stood for
_OF_A_NAME = {"BUILTIN_MATCH", "CLASS_MATCH", "HASATTR", "MODULE_MATCH"}

#: functions made from the same lines of code each have graphs of their own, where torch can
_OWN_GRAPHS: dict[str, Any] = (
    {"isolate_recompiles": True}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters
    else {}
)


class _DrawsInOrder(CustomGraphPass):
    """Random numbers of a graph are drawn in the order in which the function draws them."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        from torch._inductor.fx_passes.control_dependencies import preserve_node_ordering
        from torch.utils._ordered_set import OrderedSet

        seeded = torch.Tag.nondeterministic_seeded
        draws = [node for node in graph.nodes if seeded in getattr(node.target, "tags", ())]
        after = {node: OrderedSet([before]) for before, node in itertools.pairwise(draws)}
        if after:
            preserve_node_ordering(graph, after)

    def uuid(self) -> bytes:
        """Part of the key of what inductor keeps between runs: changes with this file."""
        return get_hash_for_files((__file__,))


@cache
def _eagers_order() -> dict[str, Any]:
    """Options with which a graph draws in that order; newer versions of torch see to it."""
    from torch._inductor.fx_passes import post_grad

    if hasattr(post_grad, "_chain_random_ops_for_ordering"):
        return {}
    return {"post_grad_custom_post_pass": _DrawsInOrder(), "reorder_for_locality": False}


_warned = False

#: the function that is being called, and since when it is being compiled
_called: str | None = None
_since = 0.0


def _begun(_: object) -> None:
    global _since
    _since = time.perf_counter()
    if _called is not None:
        log.info(
            "compiling %s: seconds to a minute, less where it was done before",
            _called,
            extra={"compiling": f"compiling {_called}"},
        )


def _ended(_: object) -> None:
    if _called is not None:
        seconds = time.perf_counter() - _since
        log.debug("compiled %s in %.0f s", _called, seconds, extra={"compiling": None})


@contextmanager
def _announced(name: str) -> Iterator[None]:
    """A block that says so in the log where it compiles, the first time or anew."""
    global _called
    if _begun not in callback_handler.start_callbacks:  # torch's reset forgets them
        callback_handler.register_start_callback(_begun)
        callback_handler.register_end_callback(_ended)
    before, _called = _called, name
    try:
        yield
    finally:
        _called = before


def _worth_checking(guards: Sequence[Any]) -> list[bool]:
    """Which guards to check before each call.

    Thousands of guards would ask at every call whether functions, classes and methods are still
    the ones that were compiled, for longer than some graphs run; one asks for the size of a cache
    that grows while the program starts, and compiles all anew. Those are left out: a hook or a
    method that is put on a module after the first call goes unseen. Shapes, own attributes
    (functions among them) and the libraries' modes (exploration type) are checked.
    """
    return [_is_worth_checking(guard) for guard in guards]


def _is_worth_checking(guard: Any) -> bool:
    if _OF_A_LIBRARY.search(guard.name):
        return bool(_MODE.search(guard.name))
    if guard.guard_type in _OF_A_NAME and guard.name.startswith("G["):
        return False
    if guard.guard_type == "CLOSURE_MATCH" and _OF_AN_OBJECT.fullmatch(guard.name):
        return True
    return guard.guard_type not in _OF_OVERRIDES and not _OF_A_DEFINITION.search(guard.name)


def _one_graph() -> AbstractContextManager[Any]:
    """Gradients taken inside a function belong to its graph.

    Nothing is then saved between a forward and a backward graph, and what both need is
    computed once.
    """
    config = torch._dynamo.config
    if not hasattr(config, "trace_autograd_ops"):
        return nullcontext()
    context: AbstractContextManager[Any] = config.patch(trace_autograd_ops=True)
    return context


def _own_code(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, or bound method, from code of its own: graphs are kept by code."""
    plain = getattr(function, "__func__", function)
    if not isinstance(plain, types.FunctionType):
        return function  # a module, say
    own = types.FunctionType(
        plain.__code__.replace(),
        plain.__globals__,
        plain.__name__,
        plain.__defaults__,
        plain.__closure__,
    )
    own.__kwdefaults__ = plain.__kwdefaults__
    bound_to = getattr(function, "__self__", None)
    return own if bound_to is None else types.MethodType(own, bound_to)


def compile_like_eager(
    function: Callable[P, R], enabled: bool = True, *, name: str | None = None
) -> Callable[P, R]:
    """Compile a function for fixed shapes, with eager's random numbers inside the graph.

    Compiled or not, the same seed then gives the same results, up to rounding. Where it can't
    be compiled (no C++ compiler, for instance), the function runs as it is from then on, with
    one warning for all such functions.

    Args:
        function: what is called often with inputs of the same shapes.
        enabled: with False the function is returned as it is.

    Keyword Args:
        name: what to call it in the log, which says when it is compiled and when that is done;
            records have ``compiling``, a text or None, for those who show it in another way.
    """
    if not enabled:
        return function
    name = name or function.__qualname__.replace(".<locals>", "")
    compiled: Callable[P, R] | None = torch.compile(
        function if _OWN_GRAPHS else _own_code(function),
        dynamic=False,
        options={"fallback_random": True, "guard_filter_fn": _worth_checking, **_eagers_order()},
        **_OWN_GRAPHS,
    )

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal compiled
        if compiled is None:
            return function(*args, **kwargs)
        try:
            with _one_graph(), _announced(name):
                return compiled(*args, **kwargs)
        except TorchDynamoException as error:
            out = function(*args, **kwargs)  # which raises what is its own fault
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
