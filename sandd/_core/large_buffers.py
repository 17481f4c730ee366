"""Has the C library keep the memory of large buffers between one and the next.

A message, and each step that it takes, is a new object of some 100 KiB. glibc mostly gives such memory back to the
kernel when it is freed, and the next one is mapped, faulted in page by page and zeroed again: half of what bulk output
cost a daemon (m). Whether it does follows from what happened to lie above it, so it differed from run to run.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import Final

KEPT_BYTES: Final = 16 * 1024 * 1024
"""Free memory at the end of the heap that is not given back: what a transfer has under way, taken in, and read.

With half of that a receiver met 50 page faults for each MB: a twentieth of what a copy costs, and a tenth over TLS (m).
"""
MAPPED_BYTES: Final = 4 * 1024 * 1024
"""From here on memory is mapped by itself, and given back: larger than a message may be, and than what moves files."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""mallopt(3)'s numbers, of glibc's <malloc.h>."""


@functools.cache
def keep_large_buffers() -> None:
    """Do so in this process, from now on; nothing where the C library has no such choice."""
    if sys.platform != "linux":
        return
    import ctypes  # 3 ms, for those who connect to nothing to save

    with contextlib.suppress(OSError, AttributeError):  # musl, which has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
