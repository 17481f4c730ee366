"""A daemon's ``--root``: no path that a peer names leads out of that directory.

Paths keep their meaning: an absolute one has to lie in the directory, a relative one starts there. Links
inside that stay inside work; a new link may say anything, since we don't follow it out either.

It protects from paths and from links, whoever makes them and when. It does not protect from what else the
peer may do: a command runs outside, unless the daemon was started so that it can't; a directory that is
moved out while we work in it is still the one that was named; and mount points and hard links lead where
whoever made them wanted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TYPE_CHECKING, Final, TypeVar

from sandd._core.files.beneath import (
    MAX_LINKS,
    SEARCH,
    is_link,
    kernel_walk,
    link_at,
    outside,
    walk,
)
from sandd._core.files.realpath_roots import RealpathRoot
from sandd._core.files.roots import AnyFile, as_ourselves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sandd._core.files.beneath import Walk
    from sandd._core.files.roots import Root

T = TypeVar("T")

_O_PATH: Final[int | None] = getattr(os, "O_PATH", None)
_O_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_O_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)


@contextlib.contextmanager
def open_root(directory: bytes | None) -> Iterator[Root]:
    """What is beneath a directory; all there is, if there is none.

    Raises:
        OSError: there is no such directory, or it can't be read.
    """
    if directory is None:
        yield AnyFile()
    elif sys.platform == "win32":
        yield RealpathRoot(directory)
    else:
        with ConfinedRoot(directory, kernel_walk() or walk) as root:
            yield root


class ConfinedRoot:
    """A `Root` of what is beneath a directory, for systems with openat(2). It holds a descriptor, until `close`."""

    def __init__(self, directory: bytes, find_directory: Walk) -> None:
        # As it is called, and as it is: a peer has seen either. Relative names would change with the program's.
        self._real = os.path.realpath(directory)
        names = {os.path.abspath(directory), self._real}
        self._names = [_components(name) for name in names]
        self._find_directory = find_directory
        self._descriptor = os.open(directory, SEARCH)

    def __enter__(self) -> ConfinedRoot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """No path is found any more."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    @property
    def is_gone(self) -> bool:
        """Whether the directory was removed; another of its name may be there."""
        return os.fstat(self._descriptor).st_nlink == 0

    # -- as in `Root`

    def open(self, path: bytes, flags: int, mode: int = 0o666) -> int:
        exclusive = os.O_CREAT | os.O_EXCL
        follow = not flags & _O_NOFOLLOW and flags & exclusive != exclusive

        def act(directory: int, name: bytes) -> int:
            try:
                return os.open(name, flags | _O_NOFOLLOW, mode, dir_fd=directory)
            except OSError as error:
                if follow and error.errno in (errno.ELOOP, errno.EMLINK):
                    raise _LinkMeanwhileError from None
                raise

        return self._at(path, act, follow=follow)

    def stat(self, path: bytes, *, follow_symlinks: bool = True) -> os.stat_result:
        follow = follow_symlinks or path.endswith(b"/")

        def act(directory: int, name: bytes) -> os.stat_result:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if follow and is_link(status):
                raise _LinkMeanwhileError
            return status

        return self._at(path, act, follow=follow)

    def locate(self, path: bytes) -> bytes:
        self.stat(path)
        found = os.path.realpath(os.path.join(self._real, self._beneath(path)))
        if not os.path.join(found, b"").startswith(os.path.join(self._real, b"")):
            raise outside(path)  # since we looked
        return found

    def scan(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        descriptor = self.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    with contextlib.suppress(FileNotFoundError):
                        yield name, os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        finally:
            os.close(descriptor)

    def readlink(self, path: bytes) -> bytes:
        return self._at(path, lambda directory, name: os.readlink(name, dir_fd=directory))

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        self._at(path, lambda directory, name: os.mkdir(name, mode, dir_fd=directory))

    def symlink(self, target: bytes, path: bytes) -> None:
        self._at(path, lambda directory, name: os.symlink(target, name, dir_fd=directory))

    def rename(self, source: bytes, target: bytes) -> None:
        self._at_both(
            source,
            target,
            lambda old_directory, old, directory, name: os.replace(
                old, name, src_dir_fd=old_directory, dst_dir_fd=directory
            ),
        )

    def link(self, source: bytes, target: bytes) -> None:
        self._at_both(
            source,
            target,
            lambda old_directory, old, directory, name: os.link(
                old, name, src_dir_fd=old_directory, dst_dir_fd=directory, follow_symlinks=False
            ),
        )

    def unlink(self, path: bytes) -> None:
        self._at(
            path,
            lambda directory, name: os.unlink(name, dir_fd=directory),
            follow=path.endswith(b"/"),  # a directory, if anything
        )

    def rmdir(self, path: bytes) -> None:
        self._at(path, lambda directory, name: os.rmdir(name, dir_fd=directory))

    def chmod(self, path: bytes, mode: int) -> None:
        self._at(path, lambda directory, name: _chmod(directory, name, mode), follow=True)

    def utime(
        self, path: bytes, ns: tuple[int, int] | None, *, follow_symlinks: bool = True
    ) -> None:
        def act(directory: int, name: bytes) -> None:
            if ns is None:
                os.utime(name, dir_fd=directory, follow_symlinks=False)
            else:
                os.utime(name, ns=ns, dir_fd=directory, follow_symlinks=False)

        self._at(path, act, follow=follow_symlinks)

    def as_owner(self) -> AbstractContextManager[int]:
        return as_ourselves()

    # -- from a path to a directory and a name in it

    def _at(self, path: bytes, act: Callable[[int, bytes], T], *, follow: bool = False) -> T:
        """What `act` returns for a directory's descriptor and a name in it, which is no link if we `follow`.

        The name is one component, or ``.`` for the directory itself, and `act` must not follow it either.
        """
        try:
            rest = self._beneath(path)
            for _ in range(MAX_LINKS + 1):
                above, name = _split(rest, follow=follow)
                directory = self._find_directory(self._descriptor, above)
                try:
                    link = link_at(directory, name) if follow else None
                    if link is None:
                        with contextlib.suppress(_LinkMeanwhileError):
                            return act(directory, name)
                        continue
                finally:
                    os.close(directory)
                if link.startswith(b"/"):
                    raise outside(path)
                rest = b"%s/%s" % (above, link)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        except OSError as error:
            error.filename = path  # not the component, nor what was left of the path
            raise

    def _at_both(
        self, source: bytes, target: bytes, act: Callable[[int, bytes, int, bytes], None]
    ) -> None:
        try:
            self._at(
                source,
                lambda old_directory, old: self._at(
                    target, lambda directory, name: act(old_directory, old, directory, name)
                ),
            )
        except OSError as error:
            error.filename2 = target
            raise

    def _beneath(self, path: bytes) -> bytes:
        if b"\0" in path:
            raise ValueError("embedded null byte")  # as the functions of `os` do
        if not path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not path.startswith(b"/"):
            return path
        given = _components(path)
        for name in self._names:
            if given[: len(name)] == name:
                return b"/".join([b".", *given[len(name) :], *([b""] if path[-1:] == b"/" else [])])
        raise outside(path)


class _LinkMeanwhileError(Exception):
    """There is a link where there was none a moment ago: look again."""


def _components(path: bytes) -> list[bytes]:
    return [each for each in path.split(b"/") if each not in (b"", b".")]


def _split(path: bytes, *, follow: bool) -> tuple[bytes, bytes]:
    """The directory that a path's last component is in, and that component.

    ``.`` and ``..`` are nothing that a directory holds: then it is the directory itself, by the name ``.``, to which
    the system allows nothing that would change an entry. With `follow`, so it is behind a closing slash.
    """
    shorn = path.rstrip(b"/")
    above, _, name = shorn.rpartition(b"/")
    if name in (b"", b".", b"..") or (follow and shorn != path):
        return path or b".", b"."
    return above or b".", name


def _chmod(directory: int, name: bytes, mode: int) -> None:
    if _O_PATH is None:
        os.chmod(name, mode, dir_fd=directory, follow_symlinks=False)
        return
    # Linux can't change the mode of what is not opened without following it, nor of what is opened by O_PATH, but
    # for this door. It needs no permission to read the file.
    descriptor = os.open(name, _O_PATH | _O_NOFOLLOW, dir_fd=directory)
    try:
        if is_link(os.fstat(descriptor)):
            raise _LinkMeanwhileError
        try:
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
        except FileNotFoundError:  # no /proc
            readable = os.open(name, os.O_RDONLY | _O_NONBLOCK | _O_NOFOLLOW, dir_fd=directory)
            try:
                os.chmod(readable, mode)
            finally:
                os.close(readable)
    finally:
        os.close(descriptor)
