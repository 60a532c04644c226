"""What the C library does with the memory that an update has done with."""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

# parameters of mallopt, of <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_USER_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(megabytes: int = 512) -> bool:
    """Have glibc keep freed memory for the next update, instead of giving it back at once.

    An adversarial update takes and frees some 20 MB of activations and gradients. glibc hands
    such amounts back to the system, which then clears every page before it lends it out again:
    thousands of page faults an update, up to a third of its time. Only the CPU's memory is
    meant; for all of the process, from here on.

    Args:
        megabytes: how much free memory at the end of the heap is kept, in MiB.

    Returns:
        Whether it was set: false where the C library is another one, or where the user has set
        glibc's ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_`` or ``GLIBC_TUNABLES``.
    """
    if any(name in os.environ for name in _USER_SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not on musl, macOS or Windows
        return False
    # 32 MiB is the most that glibc takes; what is larger goes back to the system as before
    return bool(
        mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TRIM_THRESHOLD, megabytes << 20)
    )
