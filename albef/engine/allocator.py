"""How a training run treats the memory of its machine."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST, LARGEST_OF_OLDER = 2**30, 2**25  # an older glibc maps no later than at 32 MiB


def keep_freed_memory() -> bool:
    """Has this process keep what it frees, for its next step; False where the C library has no such setting.

    glibc hands large tensors back to the system, which gives zeroed pages in their place when the next step asks for
    the same again: a tenth of a step of the base model on two cores (docs/performance.md). The highest use of memory
    stays what it was.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; Windows has no default one
        return False
    # Setting either ends glibc's own adapting of both: never the trimming's alone.
    kept = mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_THRESHOLD, LARGEST_OF_OLDER)
    return bool(kept and mallopt(TRIM_THRESHOLD, LARGEST))
