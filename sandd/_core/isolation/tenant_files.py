"""A tenant's files, reached as its user: what is made is its own. Blocking; POSIX only."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from itertools import islice
from typing import TYPE_CHECKING, Final

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.files.beneath import kernel_walk, walk
from sandd._core.files.confined_roots import ConfinedRoot
from sandd._core.isolation.allotments import NoUserLeftError
from sandd._core.isolation.credentials import acting_as
from sandd._core.isolation.workspaces import WorkspaceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from sandd._core.files.roots import Root
    from sandd._core.isolation.workspaces import Workspace, Workspaces

_ENTRIES: Final = 64
"""Of a directory that are listed in one go as the user: becoming it takes 5 us."""


class TenantFiles:
    """A `Root` of one tenant's: its workspace, or what a policy grants; in either case as its user.

    It holds a descriptor, until `close`.
    """

    def __init__(self, workspaces: Workspaces, tenant: str, granted: Root | None = None) -> None:
        """With `granted`, the files that a policy grants, instead of the workspace."""
        self._workspaces = workspaces
        self._tenant = tenant
        self._granted = granted
        self._lock = threading.Lock()
        self._opened: tuple[Workspace, Root] | None = None
        self._is_closed = False
        self._to_close: list[ConfinedRoot] = []
        """Also those that were removed under us: others may be about to use their descriptors."""

    def __repr__(self) -> str:
        return f"<TenantFiles of {self._tenant!r}>"

    def close(self) -> None:
        """Nothing is reached any more, by what is under way in a thread that nobody waits for either."""
        with self._lock:
            self._is_closed = True
            self._opened = None
            while self._to_close:
                self._to_close.pop().close()

    @contextlib.contextmanager
    def _acting(self) -> Iterator[Root]:
        workspace, root = self._open()
        with _as_user_of(workspace):
            yield root

    def _open(self) -> tuple[Workspace, Root]:
        """The tenant's workspace, made if need be, and what is reached there."""
        with self._lock:
            if self._is_closed:
                raise OSError(errno.EBADF, "the daemon is being stopped")
            opened = self._opened
            if opened is None or (isinstance(opened[1], ConfinedRoot) and opened[1].is_gone):
                try:
                    workspace = self._workspaces.open(self._tenant)
                except (WorkspaceError, NoUserLeftError) as error:
                    raise PermissionError(errno.EACCES, str(error)) from error
                root = self._granted
                if root is None:
                    root = ConfinedRoot(os.fsencode(workspace.path), kernel_walk() or walk)
                    self._to_close.append(root)
                opened = self._opened = workspace, root
            return opened

    # -- as in `Root`

    @contextlib.contextmanager
    def as_owner(self) -> Iterator[int]:
        workspace, _ = self._open()
        with _as_user_of(workspace):
            yield os.geteuid() if workspace.uid is None else workspace.uid

    def open(self, path: bytes, flags: int, mode: int = 0o666) -> int:
        with self._acting() as root:
            return root.open(path, flags, mode)

    def stat(self, path: bytes, *, follow_symlinks: bool = True) -> os.stat_result:
        with self._acting() as root:
            return root.stat(path, follow_symlinks=follow_symlinks)

    def locate(self, path: bytes) -> bytes:
        with self._acting() as root:
            return root.locate(path)

    def scan(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        workspace, root = self._open()
        entries = root.scan(path)
        while True:
            # Not all of them in one go: between two of them the thread does other things.
            with _as_user_of(workspace):
                some = list(islice(entries, _ENTRIES))
            if not some:
                return
            yield from some

    def readlink(self, path: bytes) -> bytes:
        with self._acting() as root:
            return root.readlink(path)

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        with self._acting() as root:
            root.mkdir(path, mode)

    def symlink(self, target: bytes, path: bytes) -> None:
        with self._acting() as root:
            root.symlink(target, path)

    def rename(self, source: bytes, target: bytes) -> None:
        with self._acting() as root:
            root.rename(source, target)

    def link(self, source: bytes, target: bytes) -> None:
        with self._acting() as root:
            root.link(source, target)

    def unlink(self, path: bytes) -> None:
        with self._acting() as root:
            root.unlink(path)

    def rmdir(self, path: bytes) -> None:
        with self._acting() as root:
            root.rmdir(path)

    def chmod(self, path: bytes, mode: int) -> None:
        with self._acting() as root:
            root.chmod(path, mode)

    def utime(
        self, path: bytes, ns: tuple[int, int] | None, *, follow_symlinks: bool = True
    ) -> None:
        with self._acting() as root:
            root.utime(path, ns, follow_symlinks=follow_symlinks)


def _as_user_of(workspace: Workspace) -> AbstractContextManager[None]:
    if workspace.uid is None:
        return contextlib.nullcontext()
    return acting_as(workspace.uid, workspace.uid)
