"""Files and disks: enough space, why a file cannot be read, Minari's root."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_space", "minari_root", "move_into_place", "staging", "why_unreadable"]

_LOCKED = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EBUSY}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_ERRNO = re.compile(r"(?:errno = |os error )(\d+)")  # h5py and safetensors: in the text only

_ROOT_VARIABLE = "MINARI_DATASETS_PATH"
_one_thread = threading.RLock()  # the variable belongs to the whole process


def why_unreadable(
    error: BaseException,
    *,
    damaged: str = "is damaged or of another kind",
    remedy: str = "copy it again from where it came from",
) -> str:
    """Say what keeps a file from being read and what to do, as the predicate of its name.

    No message advises anything that would lose the file.

    Args:
        error: the exception that reading it raised.
        damaged: the words for content that makes no sense.
        remedy: what to do about such content.
    """
    text = " ".join(str(error).split())
    match = _ERRNO.search(text)
    number = getattr(error, "errno", None) or (int(match[1]) if match else None)
    named = f"({type(error).__name__}: {text})" if text else f"({type(error).__name__})"
    if isinstance(error, BlockingIOError) or ("lock" in text and number in _LOCKED):
        return f"is open in another program: close it there, or wait for it {named}"
    if "file is already open for write" in text:
        return (
            "is open for writing in another program, or was when that was killed: close it there; "
            f"a copy of a file left in this state can be repaired with h5clear -s {named}"
        )
    if "lock" in text and number in _NO_LOCKS:
        return (
            "lies where files cannot be locked: set the environment variable "
            f"HDF5_USE_FILE_LOCKING=FALSE, or copy it to a local disk {named}"
        )
    if isinstance(error, PermissionError) or number in (errno.EACCES, errno.EPERM):
        return f"is not readable for this user: change its permissions {named}"
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return f"does not fit into memory {named}"
    if isinstance(error, ImportError):
        return f"needs a package that is not installed {named}"
    if number not in (None, errno.ENOENT):
        return f"cannot be read from where it lies {named}"
    if isinstance(error, TypeError | AttributeError | AssertionError | NotImplementedError):
        return f"cannot be read here {named}"
    return f"{damaged} {named}: {remedy}"


def check_space(folder: Path, size: int) -> None:
    """Refuse a write of so many bytes to a folder whose disk has no space for it.

    A full disk kills a process that writes to mapped memory (SIGBUS), and crashes HDF5, so there is
    no error to catch later. The space is allocated and released at once, so that quotas and limits
    count like a full disk.

    Raises:
        OSError: if they do not fit, or the folder cannot be written to.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".space-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        except (AttributeError, OSError) as error:  # not on every system, nor file system
            unsupported = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
            if isinstance(error, OSError) and error.errno not in unsupported:
                raise
            if shutil.disk_usage(folder).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


@contextmanager
def minari_root(root: str | os.PathLike[str]) -> Iterator[None]:
    """Point Minari to another root folder; it reads the environment variable at each call.

    Threads that call this wait for each other; others that ask Minari for its root meanwhile get
    this one.
    """
    with _one_thread:
        before = os.environ.get(_ROOT_VARIABLE)
        os.environ[_ROOT_VARIABLE] = os.fspath(root)
        try:
            yield
        finally:
            if before is None:
                del os.environ[_ROOT_VARIABLE]
            else:
                os.environ[_ROOT_VARIABLE] = before


@contextmanager
def staging(parent: Path, failure: str) -> Iterator[Path]:
    """Yield a hidden folder to build something in, which is gone afterwards.

    Args:
        parent: where it is, on the disk of the final place; made if need be.
        failure: a sentence for errors of the disk, with ``{}`` for the reason.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=parent) as scratch:
            yield Path(scratch)
    except OSError as error:
        raise OSError(failure.format(error)) from error


def move_into_place(source: Path, target: Path) -> bool:
    """Rename a complete Minari set or file; of two processes at once the first to finish stays.

    Returns:
        Whether it was moved.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not target.exists():
            source.rename(target)
            return True
    except OSError:  # a folder that is not empty
        if not (target / "data/metadata.json").is_file():
            raise
    return False
