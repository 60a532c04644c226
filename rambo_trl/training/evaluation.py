"""Deprecated alias of :mod:`rambo_trl.experiment.evaluation`."""

import warnings
from typing import Any

from rambo_trl.experiment import evaluation


def __getattr__(name: str) -> Any:
    value = getattr(evaluation, name)
    warnings.warn("use rambo_trl.experiment.evaluation instead", DeprecationWarning, stacklevel=2)
    return value
