"""Deprecated alias of :mod:`rambo_trl.experiment.evaluation`."""

import warnings

from rambo_trl.experiment.evaluation import *  # noqa: F403

warnings.warn(
    "rambo_trl.training.evaluation is now rambo_trl.experiment.evaluation",
    DeprecationWarning,
    stacklevel=2,
)
