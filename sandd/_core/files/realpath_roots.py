"""A daemon's ``--root`` where the system has no openat(2): Windows.

Each path is resolved first, with all its links and junctions, and used only if it lies in the directory.
Between the two somebody who can make links there can lead us out: Python has no way to do both in one
there. So it keeps mistakes and made-up paths out, not a program that works against us on the same disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from sandd._core.files.beneath import outside
from sandd._core.files.roots import AnyFile, as_ourselves

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

_O_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_SEPARATORS: Final = os.fsencode(os.sep + (os.altsep or ""))


class RealpathRoot:
    """A `Root` of what is beneath a directory, by looking first. A link's text may be absolute here."""

    def __init__(self, directory: bytes) -> None:
        os.stat(os.path.join(directory, b"."))  # raises where it isn't there, or is no directory
        self._given = os.path.abspath(directory)
        self._real = os.path.realpath(directory)
        self._files = AnyFile()

    # -- as in `Root`

    def open(self, path: bytes, flags: int, mode: int = 0o666) -> int:
        exclusive = os.O_CREAT | os.O_EXCL
        follow = not flags & _O_NOFOLLOW and flags & exclusive != exclusive
        with self._found(path, follow=follow) as found:
            return self._files.open(found, flags, mode)

    def stat(self, path: bytes, *, follow_symlinks: bool = True) -> os.stat_result:
        with self._found(path, follow=follow_symlinks) as found:
            return self._files.stat(found, follow_symlinks=follow_symlinks)

    def locate(self, path: bytes) -> bytes:
        self.stat(path)
        return self._find(path, follow=True)

    def scan(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        with self._found(path, follow=True) as found:
            yield from self._files.scan(found)

    def readlink(self, path: bytes) -> bytes:
        with self._entry(path) as found:
            return self._files.readlink(found)

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        with self._entry(path) as found:
            self._files.mkdir(found, mode)

    def symlink(self, target: bytes, path: bytes) -> None:
        with self._entry(path) as found:
            self._files.symlink(target, found)

    def rename(self, source: bytes, target: bytes) -> None:
        with self._both(source, target) as (old, new):
            self._files.rename(old, new)

    def link(self, source: bytes, target: bytes) -> None:
        with self._both(source, target) as (old, new):
            self._files.link(old, new)

    def unlink(self, path: bytes) -> None:
        with self._entry(path) as found:
            self._files.unlink(found)

    def rmdir(self, path: bytes) -> None:
        with self._entry(path) as found:
            self._files.rmdir(found)

    def chmod(self, path: bytes, mode: int) -> None:
        with self._found(path, follow=True) as found:
            self._files.chmod(found, mode)

    def utime(
        self, path: bytes, ns: tuple[int, int] | None, *, follow_symlinks: bool = True
    ) -> None:
        with self._found(path, follow=follow_symlinks) as found:
            self._files.utime(found, ns, follow_symlinks=follow_symlinks)

    def as_owner(self) -> AbstractContextManager[int]:
        return as_ourselves()

    @contextlib.contextmanager
    def _found(self, path: bytes, *, follow: bool = False) -> Iterator[bytes]:
        """Where a path leads, without links but for the last component's own, unless we `follow` that, too.

        Errors in the block get the path that was asked for.
        """
        try:
            yield self._find(path, follow=follow)
        except OSError as error:
            error.filename = path
            raise

    @contextlib.contextmanager
    def _entry(self, path: bytes) -> Iterator[bytes]:
        """As `_found`, for calls that change an entry of a directory: the root is none of its own."""
        with self._found(path) as found:
            name = os.path.basename(path.rstrip(_SEPARATORS))
            if name in (b".", b"..") or os.path.normcase(found) == os.path.normcase(self._real):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            yield found

    @contextlib.contextmanager
    def _both(self, source: bytes, target: bytes) -> Iterator[tuple[bytes, bytes]]:
        try:
            with self._entry(source) as old, self._entry(target) as new:
                yield old, new
        except OSError as error:
            error.filename, error.filename2 = source, target
            raise

    def _find(self, path: bytes, *, follow: bool) -> bytes:
        if b"\0" in path:
            raise ValueError("embedded null byte")  # as the functions of `os` do
        if not path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        # What joins nothing, such as another drive's name, is a path of its own, and outside.
        named = os.path.join(self._given, path)
        above, name = os.path.split(named.rstrip(_SEPARATORS))
        if follow or name in (b"", b".", b".."):
            found = os.path.realpath(named)
        else:
            found = os.path.join(os.path.realpath(above), name)
        inside = os.path.normcase(self._real).rstrip(_SEPARATORS) + os.fsencode(os.sep)
        if not os.path.join(os.path.normcase(found), b"").startswith(inside):
            raise outside(path)
        return found
