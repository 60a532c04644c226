"""Evaluation mode for networks that are used but not trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating", "in_mode", "training_modules"]


def training_modules(*modules: object) -> list[nn.Module]:
    """All submodules in training mode, of everything that has ``modules()``."""
    trees = (module.modules() for module in modules if hasattr(module, "modules"))
    return [module for tree in trees for module in tree if module.training]


@contextmanager
def in_mode(modules: Iterable[nn.Module], training: bool) -> Iterator[None]:
    """Switch modules, without their submodules, to the other mode, and back at the end."""
    for module in modules:
        module.training = training
    try:
        yield
    finally:
        for module in modules:
            module.training = not training


@contextmanager
def evaluating(*modules: object) -> Iterator[None]:
    """Put modules and their submodules in evaluation mode, and restore each one's mode after.

    Batch normalisation then uses its running statistics without changing them, and dropout is the
    identity. ``train()`` and ``eval()`` cannot do this: they set all submodules alike, and on a
    TorchRL loss they do not reach its networks, which are no submodules of it.

    Inside a compiled region this is traced without a graph break, and costs nothing for what is in
    evaluation mode already.

    Args:
        *modules: modules, or anything else with ``modules()``; what has none, such as a plain
            function or None, is ignored.
    """
    with in_mode(training_modules(*modules), training=False):
        yield
