"""Why a file cannot be read, told apart: it is rarely damaged."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence

__all__ = ["why_unreadable"]

_AGAIN = "copy it again from where it came from"
_LOCKED = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EBUSY}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}

# h5py and safetensors tell some of the system's errors in their text only.
_ERRNO = re.compile(r"(?:errno = |os error )(\d+)")
_OPEN_FOR_WRITING = "file is already open for write"


def why_unreadable(
    error: BaseException, *, damaged: str = "is damaged or of another kind", remedy: str = _AGAIN
) -> str:
    """Say what keeps a file from being read and what to do, to follow the file's name.

    Nothing is advised that would lose the file.

    Args:
        error: what reading it has raised.
        damaged: what is said where its content cannot be made sense of.
        remedy: what to do then.
    """
    text = " ".join(str(error).split())
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    found = _ERRNO.search(text)
    number = getattr(error, "errno", None) or (int(found[1]) if found else None)
    locked = "lock" in text and number in _LOCKED
    causes: Sequence[tuple[bool, Callable[[], str]]] = (
        (
            locked or isinstance(error, BlockingIOError),
            lambda: f"is open in another program: close it there, or wait for it ({named})",
        ),
        (
            _OPEN_FOR_WRITING in text,
            lambda: (
                "is open for writing in another program, or was when that was killed: close it "
                f"there; of a file left so, a copy can be repaired with h5clear -s ({named})"
            ),
        ),
        (
            "lock" in text and number in _NO_LOCKS,
            lambda: (
                "lies where files cannot be locked: set the environment variable "
                f"HDF5_USE_FILE_LOCKING=FALSE, or copy it to a local disk ({named})"
            ),
        ),
        (
            isinstance(error, PermissionError) or number in (errno.EACCES, errno.EPERM),
            lambda: f"is not readable for this user: change its permissions ({named})",
        ),
        (
            isinstance(error, MemoryError) or number == errno.ENOMEM,
            lambda: f"does not fit into memory ({named})",
        ),
        (
            isinstance(error, ImportError),
            lambda: f"needs a package that is not installed ({named})",
        ),
        (
            number not in (None, errno.ENOENT),
            lambda: f"cannot be read from where it lies ({named})",
        ),
        (
            isinstance(error, TypeError | AttributeError | AssertionError | NotImplementedError),
            lambda: f"cannot be read here ({named})",
        ),
    )
    reasons = (say() for holds, say in causes if holds)
    return next(reasons, f"{damaged} ({named}): {remedy}")
