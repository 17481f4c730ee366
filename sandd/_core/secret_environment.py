"""A secret in this process' environment, taken out of it: from Python's copy, and from what others may read.

Whoever runs as our user reads ``/proc/PID/environ``, commands that we start among them. It shows the memory in which
the kernel put the variables, whatever was unset since; so that memory is overwritten.
"""

from __future__ import annotations

import os
import sys


def scrub(name: str) -> None:
    """Forget the variable of that name; nothing where there is none."""
    if name not in os.environ:
        return
    if sys.platform == "linux":
        _overwrite(os.fsencode(name) + b"=")
    os.environ.pop(name)


def _overwrite(beginning: bytes) -> None:
    """Fill what follows this beginning with zeros, in the process' own variables."""
    import ctypes

    pointers = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    number = 0
    while (address := pointers[number]) is not None:
        entry = ctypes.string_at(address)
        if entry.startswith(beginning):
            ctypes.memset(address + len(beginning), 0, len(entry) - len(beginning))
        number += 1
