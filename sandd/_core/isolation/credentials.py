"""Being another user in one thread, for what is done to files there. Blocking; Linux only.

The kernel keeps, for each thread, whom it is in the eyes of a file system (setfsuid(2)). So what a tenant asks for is
looked up, opened and made as its user, and belongs to it; what it may not do fails as it would for its commands.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_SETGROUPS: Final = {"x86_64": 116, "aarch64": 159}
"""The system call: the C library's function is about all threads (nptl(7))."""
_WHO: Final = -1
"""Of no user: then these calls change nothing, and say who it is now."""


def unavailable() -> str | None:
    """Why that can't be done here; None: it can."""
    if sys.platform != "linux":
        return f"not on {sys.platform}"
    if platform.machine() not in _SETGROUPS or sys.maxsize < 2**32:
        return f"it is not known for {platform.machine()}"
    return None


@contextlib.contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """In this thread, and meanwhile, files are reached as that user, who has no other groups. For root."""
    libc = _libc()
    groups, old_uid, old_gid = os.getgroups(), libc.setfsuid(_WHO), libc.setfsgid(_WHO)
    try:
        _set_groups([])
        libc.setfsgid(gid)
        libc.setfsuid(uid)  # last: behind it nothing of this may be changed, but back
        if (libc.setfsuid(_WHO), libc.setfsgid(_WHO)) != (uid, gid):
            raise PermissionError(f"can't reach files as uid {uid}")
        yield
    finally:
        libc.setfsuid(old_uid)
        libc.setfsgid(old_gid)
        _set_groups(groups)


def _set_groups(groups: list[int]) -> None:
    import ctypes

    number = _SETGROUPS[platform.machine()]
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if _libc().syscall(ctypes.c_long(number), ctypes.c_long(len(groups)), array) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@functools.cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)
