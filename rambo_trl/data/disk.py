"""Room on a disk, made sure of before anything is written."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["check_space"]


def check_space(folder: Path, size: int) -> None:
    """Refuse a write that a disk has no room for, before it begins.

    A full disk kills a process that writes to mapped memory (SIGBUS), and HDF5 crashes on it, so
    there is no error to be caught later. The room is taken and given back at once: quotas and
    limits count like a disk that is full.

    Args:
        folder: a folder on that disk, which can be written to.
        size: bytes to be written.

    Raises:
        OSError: if they do not fit, or the folder cannot be written to.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".space-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        except (AttributeError, OSError) as error:  # not on every system, nor file system
            cannot = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
            if isinstance(error, OSError) and error.errno not in cannot:
                raise
            if shutil.disk_usage(folder).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
