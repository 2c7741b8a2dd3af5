"""The memory of a helper's own: it runs in dom0, which has little, and several run at once."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
"""Parameters of mallopt(3)."""
_LARGE = 128 << 10
"""glibc's own threshold, until the first large block is freed."""


def keep_small() -> None:
    """Have threads share one arena of malloc's, and large blocks go back to the kernel when they
    are freed. To be called before there are threads. Whoever has set malloc's variables in the
    environment is left alone, and another C library than glibc."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
