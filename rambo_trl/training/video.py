"""Deprecated alias of :mod:`rambo_trl.experiment.video`."""

import warnings
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    value = getattr(import_module("rambo_trl.experiment.video"), name)
    warnings.warn("use rambo_trl.experiment.video instead", DeprecationWarning, stacklevel=2)
    return value
