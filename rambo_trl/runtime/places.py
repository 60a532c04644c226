"""The home and the cache folder, also on machines without a home."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path

__all__ = ["cache_folder", "ensure_home", "expand_home"]


def expand_home(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` for the home folder; as it is where there is none."""
    return Path(os.path.expanduser(path))


def ensure_home() -> None:
    """Set ``HOME`` and ``LOGNAME`` for an unknown user without a home, as in a container.

    Without a home folder Matplotlib cannot be imported and other packages make a folder called
    ``~``; some ask for the user's name. The home is then a folder among the temporary files.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(_temporary())
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # depending on the version of Python
        os.environ["LOGNAME"] = _user()


def cache_folder() -> Path:
    """The folder of the library's files that can be made again; it may not exist yet."""
    home = Path.home()
    if os.access(home, os.W_OK | os.X_OK):
        return home / ".cache" / "rambo_trl"
    return _temporary()


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"rambo_trl-{_user()}"


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"
