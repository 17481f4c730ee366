"""Which files a peer may reach, and the calls that reach them: one method for each system call.

All of them block, so they belong in a thread, many at a time. Paths are bytes as the system has them;
a relative one starts at the program's working directory. Errors are the system's own OSErrors.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class Root(Protocol):
    """The files that may be reached. A last component that is a symbolic link is followed where `stat` would."""

    def open(self, path: bytes, flags: int, mode: int = 0o666) -> int:
        """As `os.open`, close-on-exec; with ``os.O_NOFOLLOW`` in the flags a link at the end is ELOOP."""
        ...

    def stat(self, path: bytes, *, follow_symlinks: bool = True) -> os.stat_result:
        """As `os.stat`."""
        ...

    def locate(self, path: bytes) -> bytes:
        """The absolute path, without links, for what can't be told by descriptors; by then it may lead elsewhere."""
        ...

    def scan(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        """What is in a directory, in no order: each name with its `lstat`. What vanishes meanwhile is left out."""
        ...

    def readlink(self, path: bytes) -> bytes:
        """What a symbolic link says."""
        ...

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        """As `os.mkdir`."""
        ...

    def symlink(self, target: bytes, path: bytes) -> None:
        """A new symbolic link at `path`; what it says is not looked at."""
        ...

    def rename(self, source: bytes, target: bytes) -> None:
        """As `os.replace`: atomic, and what was at the target is gone."""
        ...

    def link(self, source: bytes, target: bytes) -> None:
        """As `os.link`: another name for a file, which nothing may have; of a link, for the link."""
        ...

    def unlink(self, path: bytes) -> None:
        """As `os.unlink`."""
        ...

    def rmdir(self, path: bytes) -> None:
        """As `os.rmdir`."""
        ...

    def chmod(self, path: bytes, mode: int) -> None:
        """As `os.chmod`; a link is followed."""
        ...

    def utime(
        self, path: bytes, ns: tuple[int, int] | None, *, follow_symlinks: bool = True
    ) -> None:
        """As `os.utime`, in nanoseconds; None: now."""
        ...

    def as_owner(self) -> AbstractContextManager[int]:
        """Meanwhile this thread is who owns what is made here, for what is done by descriptors; its number, or 0."""
        ...


_O_BINARY: Final = getattr(os, "O_BINARY", 0)


class AnyFile:
    """A `Root` without bounds: whatever this process may reach."""

    def open(self, path: bytes, flags: int, mode: int = 0o666) -> int:
        return os.open(path, flags | _O_BINARY, mode)

    def stat(self, path: bytes, *, follow_symlinks: bool = True) -> os.stat_result:
        return os.stat(path, follow_symlinks=follow_symlinks)

    def locate(self, path: bytes) -> bytes:
        return os.path.realpath(path, strict=True)

    def scan(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    # Not the entry's own: on Windows it lacks what `os.stat` has.
                    status = os.stat(entry.path, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield entry.name, status

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(path)

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        os.mkdir(path, mode)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, path)

    def rename(self, source: bytes, target: bytes) -> None:
        os.replace(source, target)

    def link(self, source: bytes, target: bytes) -> None:
        os.link(source, target, follow_symlinks=os.link not in os.supports_follow_symlinks)

    def unlink(self, path: bytes) -> None:
        os.unlink(path)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(path)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(path, mode)

    def utime(
        self, path: bytes, ns: tuple[int, int] | None, *, follow_symlinks: bool = True
    ) -> None:
        if ns is None:
            os.utime(path, follow_symlinks=follow_symlinks)
        else:
            os.utime(path, ns=ns, follow_symlinks=follow_symlinks)

    def as_owner(self) -> AbstractContextManager[int]:
        return as_ourselves()


def as_ourselves() -> AbstractContextManager[int]:
    """`Root.as_owner` where that is whoever this program runs as."""
    if sys.platform == "win32":
        return contextlib.nullcontext(0)
    return contextlib.nullcontext(os.geteuid())
