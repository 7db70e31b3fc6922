"""How a training run treats the memory of its machine."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST, LARGEST_OF_OLDER = 2**30, 2**25  # an older glibc maps no later than at 32 MiB


def keep_freed_memory() -> bool:
    """Makes the process keep the memory it frees for its next step; False where the C library has no such setting.

    Otherwise glibc returns the memory of large tensors to the system, which must fill it with zeros when the next step
    needs it again. That costs a tenth of a step of the base model on two cores (docs/performance.md). The peak of
    memory stays the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; Windows has no default one
        return False
    # Setting one of the two stops glibc from adapting both, so the trimming is never set alone.
    kept = mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_THRESHOLD, LARGEST_OF_OLDER)
    return bool(kept and mallopt(TRIM_THRESHOLD, LARGEST))
