"""Memory that a CPU run frees is kept for its next step instead of being given back to the system.

A step frees and takes tensors of tens of megabytes.  glibc maps each afresh and gives it back, and the system
then fills it with zeros page by page, which at width 2048 takes longer than the GELU does.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def ask_for_huge_pages() -> None:
    """Let torch take large tensors in huge pages; it reads this once, so call before the first tensor.

    A value that the user has set stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> bool:
    """Make the C library keep what is freed; returns whether it could (glibc only).

    The process then holds its peak until it ends, which a training run does step by step anyway.
    Settings in the environment (MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_) win.
    """
    if any(name in os.environ for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Both, or memory would still go back: by unmapping, or from the top of the heap.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
