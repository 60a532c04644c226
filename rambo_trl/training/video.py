"""Deprecated alias of :mod:`rambo_trl.experiment.video`."""

import warnings

from rambo_trl.experiment.video import *  # noqa: F403

warnings.warn("use rambo_trl.experiment.video instead", DeprecationWarning, stacklevel=2)
