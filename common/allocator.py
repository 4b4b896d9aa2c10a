"""Keep freed memory instead of returning it to the kernel after each tensor.

By default glibc maps large blocks anew for each allocation and unmaps them when freed; every step
of training and every clip through the codec on a CPU then pays page faults for its activations all
over again.  By default, too, each thread has an arena of its own, and what one freed another cannot
have.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Have this process's malloc reuse freed blocks; does nothing where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 << 20)
    mallopt(_M_ARENA_MAX, 1)
