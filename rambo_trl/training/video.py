"""Deprecated alias of :mod:`rambo_trl.experiment.video`."""

import warnings
from typing import Any

from rambo_trl.experiment import video


def __getattr__(name: str) -> Any:
    value = getattr(video, name)
    warnings.warn("use rambo_trl.experiment.video instead", DeprecationWarning, stacklevel=2)
    return value
