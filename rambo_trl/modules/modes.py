"""Networks that are asked, not trained: in evaluation mode for as long as it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating", "in_mode", "training_modules"]


def training_modules(*modules: object) -> list[nn.Module]:
    """All submodules in training mode, of whatever has ``modules()``; others have none."""
    found = (module.modules() for module in modules if hasattr(module, "modules"))
    return [module for own in found for module in own if module.training]


@contextmanager
def in_mode(modules: Iterable[nn.Module], training: bool) -> Iterator[None]:
    """Set modules, without their submodules, to a mode that they are not in; then back again."""
    for module in modules:
        module.training = training
    try:
        yield
    finally:
        for module in modules:
            module.training = not training


@contextmanager
def evaluating(*modules: object) -> Iterator[None]:
    """Put modules and their submodules in evaluation mode, and each back where it was after.

    Batch normalisation then uses its running statistics without changing them, and dropout is the
    identity. ``train()`` and ``eval()`` cannot do this: they set all submodules alike, and a
    TorchRL loss's do not reach its networks, which are no submodules of it.

    Inside of what is compiled this is traced, without a break. What is in evaluation mode already
    costs nothing there.

    Args:
        *modules: modules, or whatever else has ``modules()``; anything else, such as a plain
            function or None, is passed over.
    """
    with in_mode(training_modules(*modules), training=False):
        yield
