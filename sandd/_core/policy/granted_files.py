"""The files that a policy grants, as a `Root`: each call is confined to the grant that its path is in.

A grant is a directory, and what leads out of it by a link is not in it, as with ``--root``: it is the same code that
sees to it. The directory itself is looked up for each call, so that it may come, go and come again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from sandd._core.files.confined_roots import open_root
from sandd._core.files.roots import as_ourselves
from sandd._core.policy.paths import as_text, is_beneath, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from sandd._core.files.roots import Root
    from sandd._core.policy.rules import Policy

_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class GrantedFiles:
    """A `Root` of what may be read, and what may be written."""

    def __init__(self, policy: Policy) -> None:
        self._write = policy.files_write
        self._read = (*policy.files_read, *policy.files_write)

    def _reading(self, *paths: bytes) -> AbstractContextManager[Root]:
        return _granted(self._read, paths)

    def _writing(self, *paths: bytes) -> AbstractContextManager[Root]:
        return _granted(self._write, paths)

    def open(self, path: bytes, flags: int, mode: int = 0o666) -> int:
        with self._writing(path) if flags & _WRITES else self._reading(path) as root:
            return root.open(path, flags, mode)

    def stat(self, path: bytes, *, follow_symlinks: bool = True) -> os.stat_result:
        with self._reading(path) as root:
            return root.stat(path, follow_symlinks=follow_symlinks)

    def locate(self, path: bytes) -> bytes:
        with self._reading(path) as root:
            return root.locate(path)

    def scan(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        with self._reading(path) as root:
            yield from root.scan(path)

    def readlink(self, path: bytes) -> bytes:
        with self._reading(path) as root:
            return root.readlink(path)

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        with self._writing(path) as root:
            root.mkdir(path, mode)

    def symlink(self, target: bytes, path: bytes) -> None:
        with self._writing(path) as root:
            root.symlink(target, path)

    def rename(self, source: bytes, target: bytes) -> None:
        with self._writing(source, target) as root:
            root.rename(source, target)

    def link(self, source: bytes, target: bytes) -> None:
        with self._writing(source, target) as root:
            root.link(source, target)

    def unlink(self, path: bytes) -> None:
        with self._writing(path) as root:
            root.unlink(path)

    def rmdir(self, path: bytes) -> None:
        with self._writing(path) as root:
            root.rmdir(path)

    def chmod(self, path: bytes, mode: int) -> None:
        with self._writing(path) as root:
            root.chmod(path, mode)

    def utime(
        self, path: bytes, ns: tuple[int, int] | None, *, follow_symlinks: bool = True
    ) -> None:
        with self._writing(path) as root:
            root.utime(path, ns, follow_symlinks=follow_symlinks)

    def as_owner(self) -> AbstractContextManager[int]:
        return as_ourselves()


@contextlib.contextmanager
def _granted(grants: tuple[str, ...], paths: tuple[bytes, ...]) -> Iterator[Root]:
    """The root of the first grant that has all of these paths. PermissionError if none has."""
    for grant in grants:
        if all(_is_in(path, grant) for path in paths):
            with open_root(os.fsencode(grant)) as root:
                yield root
            return
    raise PermissionError(errno.EACCES, "its policy does not grant this", paths[-1])


def _is_in(path: bytes, grant: str) -> bool:
    whole = resolve(as_text(path), None)
    return whole is not None and is_beneath(whole, grant)
