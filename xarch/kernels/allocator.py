"""Keep freed memory in the process, so that the next step does not fault its pages in again."""

from __future__ import annotations

import ctypes
from functools import cache

LARGEST, KEPT = 128 << 20, 512 << 20
"""Maximum bytes of one retained block, and of all retained memory."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""


@cache
def keep_freed_memory() -> bool:
    """Make glibc's allocator retain blocks; return whether it is supported (other allocators lack the call).

    By default every block of some megabytes is a separate mapping, whose pages are zeroed on each first write: a third
    of a training step of a small network, two thirds of one of dense voxels, and half of the time of kernels at 8192
    tokens. The process then holds up to half a gibibyte that it does not need at the moment, so loops ask for it:
    conversions, and trainings of teachers.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
