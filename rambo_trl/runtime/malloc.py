"""Tune glibc malloc to reuse freed buffers."""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

# parameters of mallopt, from <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_USER_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(megabytes: int = 512) -> bool:
    """Have glibc keep freed memory for the next update instead of returning it to the system.

    An adversarial update allocates and frees some 20 MB of activations and gradients. By default
    glibc returns such amounts to the system, which clears every page before it hands it out again:
    thousands of page faults per update, up to a third of its time. This concerns the CPU's memory
    and holds for the whole process from here on.

    Args:
        megabytes: how much free memory to keep at the end of the heap, in MiB.

    Returns:
        Whether it was set: False with another C library, or where the user has set glibc's
        ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_`` or ``GLIBC_TUNABLES``.
    """
    if any(name in os.environ for name in _USER_SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not on musl, macOS or Windows
        return False
    # glibc's maximum is 32 MiB; larger blocks go back to the system as before
    return bool(
        mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TRIM_THRESHOLD, megabytes << 20)
    )
