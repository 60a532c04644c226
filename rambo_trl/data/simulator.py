"""MuJoCo's own messages, kept from the terminal and from the working folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torchrl._utils import logger as torchrl_logger

__all__ = ["mujoco_messages_logged"]


@contextmanager
def mujoco_messages_logged() -> Iterator[None]:
    """Send MuJoCo's warnings to TorchRL's logger, each text once.

    MuJoCo by itself prints a warning for every model that it compiles from a file with an old
    attribute, HalfCheetah's among them, and appends it to ``MUJOCO_LOG.TXT`` in the working
    folder. Deprecations are logged at level debug, others (an unstable simulation) as warnings.
    Without MuJoCo nothing happens.
    """
    try:
        import mujoco
    except ImportError:
        yield
        return
    seen: set[str] = set()

    def log(message: str) -> None:
        if message not in seen:
            seen.add(message)
            level = logging.DEBUG if "deprecated" in message else logging.WARNING
            torchrl_logger.log(level, f"MuJoCo: {message}")

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(log)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
