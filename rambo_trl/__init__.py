"""RAMBO-RL, robust adversarial model-based offline reinforcement learning, as TorchRL pieces."""

from rambo_trl.runtime.places import ensure_home

ensure_home()  # before anything is imported that looks for one

from rambo_trl.experiment.policy import Policy, load_policy  # noqa: E402

__version__ = "0.1.0"

__all__ = ["Policy", "__version__", "load_policy"]
