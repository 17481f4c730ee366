"""fork(2) for who executes a program at once: half the time of os.fork, whose care for Python's threads that needs not.

We wait until the child has executed its program, or ended (CLONE_VFORK), and have its memory to ourselves again then:
else each page that either of us writes to meanwhile is copied. The child has a copy of its own, unlike that of
vfork(2). It must not return from where it was forked: to Python it is no new process.

Standard library only; for processes with one thread. Source: clone(2).
"""

from __future__ import annotations

import functools
import os
import signal
import sys

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CLONE_VFORK = 0x4000
_CLONE_PARENT = 0x8000
_SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
"""Numbers of the system call clone(2), whose first argument is its flags on all of these."""


def makes_siblings() -> bool:
    """Whether `fork_sibling` works here."""
    return sys.platform == "linux" and os.uname().machine in _SYS_CLONE


def fork() -> int:
    """As os.fork."""
    return _clone(_CLONE_VFORK) if makes_siblings() else os.fork()


def fork_sibling() -> int:
    """As os.fork, but the child is our parent's: it hears of its end, and we have nothing to reap."""
    return _clone(_CLONE_VFORK | _CLONE_PARENT)


def _clone(flags: int) -> int:
    system_call, get_errno = _system_call()
    pid = system_call(_SYS_CLONE[os.uname().machine], flags | signal.SIGCHLD, 0, 0, 0, 0)
    if pid < 0:
        number = get_errno()
        raise OSError(number, os.strerror(number))
    return pid


@functools.cache
def _system_call() -> tuple[Callable[..., int], Callable[[], int]]:
    import ctypes

    # It keeps the lock of Python's interpreter, which the child has, as it is all that there is of it.
    return ctypes.PyDLL(None, use_errno=True).syscall, ctypes.get_errno
