"""Keep freed memory instead of returning it to the kernel after each tensor.

By default glibc maps a large block for each allocation and unmaps it when it is freed. Then every
step of training and every clip through the codec on a CPU pays page faults for its activations
again. By default each thread also has its own arena, and memory that one thread freed cannot be
used by another.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Make this process's malloc reuse freed blocks; does nothing without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 << 20)
    mallopt(_M_ARENA_MAX, 1)
