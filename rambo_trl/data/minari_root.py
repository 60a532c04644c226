"""Minari's root, pointed elsewhere while a set is made that belongs there only as a whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["minari_root"]

_VARIABLE = "MINARI_DATASETS_PATH"
_one_thread = threading.RLock()  # the variable is the whole process's


@contextmanager
def minari_root(root: str | os.PathLike[str]) -> Iterator[None]:
    """Point Minari to another root; it reads the environment variable at each call.

    Threads that ask for it wait for each other. Others that ask Minari for its root meanwhile are
    told this one.

    Args:
        root: the folder.
    """
    with _one_thread:
        before = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = os.fspath(root)
        try:
            yield
        finally:
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before
