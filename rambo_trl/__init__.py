"""RAMBO-RL, robust adversarial model-based offline reinforcement learning, as TorchRL pieces."""

from rambo_trl.places import ensure_home

ensure_home()  # before anything is imported that looks for one

from rambo_trl.training.policy_file import Policy, load_policy  # noqa: E402

__version__ = "0.1.0"

__all__ = ["Policy", "__version__", "load_policy"]
