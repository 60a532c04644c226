"""How every hot path of the library is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["compile_like_eager"]

P = ParamSpec("P")
R = TypeVar("R")


def compile_like_eager(function: Callable[P, R], enabled: bool = True) -> Callable[P, R]:
    """Compile a function for fixed shapes, with eager's random numbers inside the graph.

    Compiled or not, the same seed then gives the same results, up to rounding.

    Args:
        function: what is called often with inputs of the same shapes.
        enabled: with False the function is returned as it is.
    """
    if not enabled:
        return function
    return torch.compile(function, dynamic=False, options={"fallback_random": True})
