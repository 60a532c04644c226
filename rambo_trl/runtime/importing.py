"""Import modules that a user names on the command line."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

__all__ = ["import_user_module", "imported_user_modules"]

_imported: dict[str, None] = {}  # in order


def import_user_module(name: str) -> ModuleType:
    """Import a module, looking in the working folder first.

    Raises:
        Exception: whatever importing it raises: a user's module may fail in any way.
    """
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(name)
    finally:
        sys.path.remove(folder)
    _imported[name] = None
    return module


def imported_user_modules() -> tuple[str, ...]:
    """The modules that the user has named so far, for other processes to import too."""
    return tuple(_imported)
