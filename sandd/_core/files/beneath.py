"""Finds a directory beneath another one, and never one outside: whatever the path says or anybody changes meanwhile.

Two ways, with the same results. Linux does it in one system call, openat2(2), where that is not forbidden
(kernel 5.6; older container runtimes and gVisor say no). Elsewhere `walk` opens one component after the
other, follows no link unread, and goes up only to where it came from.

What leads outside is EACCES: too many ``..``, a link whose text is absolute or has too many of them, and
the links of /proc that lead anywhere (`magic` ones, such as /proc/self/root).
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import sys
from collections.abc import Callable
from typing import Final, TypeAlias

MAX_LINKS: Final = 40
"""Symbolic links on one path, as in Linux; more are ELOOP."""

Walk: TypeAlias = Callable[[int, bytes], int]
"""A descriptor of the directory that a relative path leads to from the directory of another descriptor; it
is good for looking up names in it, and maybe for nothing else."""

SEARCH: Final = (
    # To look a name up takes less permission than to read the list of them.
    getattr(os, "O_PATH", getattr(os, "O_SEARCH", os.O_RDONLY)) | getattr(os, "O_DIRECTORY", 0)
)
"""Flags that open a directory in order to look names up in it."""

_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
_MAY_BE_A_LINK: Final = {errno.ELOOP, errno.ENOTDIR, errno.EMLINK}
"""What systems say when O_NOFOLLOW, or O_DIRECTORY with it, meets a link; EMLINK: the BSDs."""

# openat2(2); the number is the same on every architecture that Python runs on.
_OPENAT2: Final = 437
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_BENEATH: Final = 0x08
_TRIES: Final = 16
"""How often the kernel may say that somebody renamed something meanwhile, before we look for ourselves."""


def outside(path: bytes) -> PermissionError:
    """The error for a path that leads out of the daemon's root."""
    return PermissionError(errno.EACCES, "outside the daemon's --root", path)


def link_at(directory: int, name: bytes) -> bytes | None:
    """What a symbolic link says; None where there is none, or something else."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise


def identity(descriptor: int) -> tuple[int, int]:
    """What tells an open directory from every other."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def walk(root: int, path: bytes) -> int:
    """As `Walk`, with what every POSIX system has. Holds two descriptors at a time, however long the path.

    A directory that somebody moves while we are in it stays the one that was named, so what is above
    it is looked up, too, but taken only if it is what we came from.
    """
    todo = path.split(b"/")[::-1]
    above: list[tuple[int, int]] = []
    links = 0
    here = os.dup(root)
    try:
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if not above:
                    raise outside(path)
                there = os.open(name, SEARCH, dir_fd=here)
                if identity(there) != above.pop():
                    os.close(there)
                    raise outside(path)  # it was moved, and that way may lead anywhere
            else:
                came_from = identity(here)
                try:
                    there = os.open(name, SEARCH | _NO_LINK, dir_fd=here)
                except OSError as error:
                    target = link_at(here, name) if error.errno in _MAY_BE_A_LINK else None
                    if target is None:
                        raise
                    links += 1
                    if links > MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                    if target.startswith(b"/"):
                        raise outside(path) from None
                    todo += target.split(b"/")[::-1]
                    continue
                above.append(came_from)
            os.close(here)
            here = there
    except BaseException:
        os.close(here)
        raise
    return here


@functools.cache
def kernel_walk() -> Walk | None:
    """As `Walk`, by openat2(2); None where the system has it not, or forbids it."""
    if sys.platform != "linux":
        return None
    import ctypes

    class OpenHow(ctypes.Structure):
        _fields_ = [
            ("flags", ctypes.c_uint64),
            ("mode", ctypes.c_uint64),
            ("resolve", ctypes.c_uint64),
        ]

    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.argtypes = (
        *(ctypes.c_long, ctypes.c_int, ctypes.c_char_p),
        *(ctypes.POINTER(OpenHow), ctypes.c_size_t),
    )
    syscall.restype = ctypes.c_long
    how = OpenHow(SEARCH | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)

    def open_beneath(root: int, path: bytes) -> int:
        for _ in range(_TRIES):
            descriptor = int(syscall(_OPENAT2, root, path, ctypes.byref(how), ctypes.sizeof(how)))
            if descriptor >= 0:
                return descriptor
            number = ctypes.get_errno()
            if number == errno.EXDEV:
                raise outside(path)
            if number not in (errno.EAGAIN, errno.EINTR, errno.ELOOP):
                raise OSError(number, os.strerror(number), path)
            if number == errno.ELOOP:
                break
        # Of a loop and of a magic link the kernel says the same; and it gives no answer at all while somebody
        # keeps renaming.
        return walk(root, path)

    try:
        here = os.open(b".", SEARCH)
        try:
            os.close(open_beneath(here, b"."))
        finally:
            os.close(here)
    except OSError:
        return None
    return open_beneath


def is_link(status: os.stat_result) -> bool:
    """Whether this is a symbolic link."""
    return stat.S_ISLNK(status.st_mode)
