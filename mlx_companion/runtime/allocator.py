"""Keeps the memory that MLX frees on Linux, instead of handing every buffer back to the system.

MLX's CPU backend allocates results with `malloc` and keeps only 32 MB of freed ones. The C library
of most Linux systems (glibc) maps large blocks afresh and unmaps them when freed, so that every
operation on a few megabytes first takes thousands of page faults: a seventh of a whole training
step, measured. `keep_freed_memory()` makes glibc serve them from one heap that it does not shrink,
where freed neighbours join; `return_freed_memory()` shrinks it once, after a piece of work.
(A larger cache in MLX helps less and costs memory: it looks for buffers of nearly the same size.)
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3), from <malloc.h>.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Serve this process's allocations from one heap that keeps what is freed.

    It may be called again and again; the effect lasts until the process ends.

    Returns:
        Whether it took effect: False on systems without glibc, where nothing is changed.
    """
    libc = _glibc()
    if libc is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)


def return_freed_memory() -> bool:
    """Give free heap memory back to the system now; False without glibc."""
    libc = _glibc()
    if libc is None:
        return False
    libc.malloc_trim(0)
    return True


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    process = ctypes.CDLL(None)
    return process if hasattr(process, "gnu_get_libc_version") else None
