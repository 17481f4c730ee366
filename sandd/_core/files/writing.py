"""Writes a file: a new one in place of an old one, at once and whole; or more at the end of what there is.

A new file is written beside the old one, under a name of its own, and takes its place by a rename, when
all of it is on the disk: at every moment, also after a crash, there is the old one or the complete new one.
Who dies in between leaves the other name behind; that is written down before, for who comes after.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Final, Protocol

from sandd._core.files.beneath import MAX_LINKS
from sandd._core.files.operations import describe, open_regular, write_all
from sandd._core.transfers.partials import Journal
from sandd._core.transfers.syncing import sync, sync_folders
from sandd.wire import WriteMode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandd._core.files.roots import Root
    from sandd.wire import Buffer, FileInfo

PRIVATE: Final = 0o600
"""Of what will take an old file's place, until it has that one's owner and mode."""
_NO_HARD_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class Writing(Protocol):
    """A file that is being written."""

    def write(self, data: Buffer) -> None:
        """All of `data`, behind what was written."""
        ...

    def commit(self) -> FileInfo:
        """All was written: the file is there, and on the disk. Returns what there is now."""
        ...

    def close(self) -> None:
        """Idempotent; without `commit` nothing has changed, but for what was appended."""
        ...


def open_writing(
    root: Root, path: bytes, how: WriteMode, mode: int = 0o666, journal: Journal | None = None
) -> Writing:
    """Begin to write a file; what stands in the way is told now, where it can be known.

    The journal is for this file alone, and is closed with it; None: nobody comes after us.

    Raises:
        IsADirectoryError, FileExistsError, FileNotFoundError (its directory), PermissionError, ...
        OSError: EINVAL: it is a FIFO, a socket or a device.
    """
    if how is WriteMode.APPEND:
        return _Appended(root, path, mode)
    return _Replacement(
        root, path, mode, journal or Journal(None), exclusive=how is WriteMode.EXCLUSIVE
    )


class _Replacement:
    """What a file will be, beside what it is."""

    def __init__(
        self, root: Root, path: bytes, mode: int, journal: Journal, *, exclusive: bool
    ) -> None:
        self._root = root
        self._journal = journal
        self._path = path
        self._exclusive = exclusive
        self._descriptor = -1
        self._draft = b""
        with self._named_in_errors():
            self._target = path if exclusive else _final_target(root, path)
            directory, name = os.path.split(self._target)
            if name in (b"", b".", b".."):
                number = errno.EISDIR if self._target else errno.ENOENT
                raise OSError(number, os.strerror(number))
            self._directory = directory or b"."
            self._old = self._look_at_old()
            draft = os.path.join(directory, journal.new_name())
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            journal.note(b"d", self._directory)
            try:
                self._descriptor = root.open(draft, flags, mode if self._old is None else PRIVATE)
            except BaseException:
                journal.close(keep=False)
                raise
            self._draft = draft

    def write(self, data: Buffer) -> None:
        with self._named_in_errors():
            write_all(self._descriptor, data)

    def commit(self) -> FileInfo:
        with self._named_in_errors():
            if self._old is not None:
                self._take_after(self._old)
            sync(self._descriptor)
            info = describe(os.fstat(self._descriptor))
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
            if self._exclusive:
                self._claim()
            else:
                self._root.rename(self._draft, self._target)
            self._draft = b""
        sync_folders(self._root, [self._directory])
        return info

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        draft, self._draft = self._draft, b""
        try:
            if descriptor >= 0:
                os.close(descriptor)
        finally:
            stays = bool(draft)
            try:
                if draft:
                    with contextlib.suppress(FileNotFoundError):
                        self._root.unlink(draft)
                    stays = False
            finally:
                self._journal.close(keep=stays)

    def _look_at_old(self) -> os.stat_result | None:
        """What is there, if it may be written; it is not."""
        if self._exclusive:
            try:
                self._root.stat(self._target, follow_symlinks=False)
            except FileNotFoundError:
                return None
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        try:
            descriptor = open_regular(self._root, self._target, os.O_WRONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            if (
                error.errno != errno.ETXTBSY
            ):  # a program that runs keeps its file, and others get the new one
                raise
            return self._root.stat(self._target)
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def _take_after(self, old: os.stat_result) -> None:
        """The new file gets the old one's owner, where we may give it away, and its mode."""
        if sys.platform == "win32":
            return
        with self._root.as_owner():
            with contextlib.suppress(PermissionError):
                os.fchown(self._descriptor, old.st_uid, old.st_gid)
            os.fchmod(
                self._descriptor, stat.S_IMODE(old.st_mode)
            )  # behind fchown, which takes setuid away

    def _claim(self) -> None:
        """Take a name that nobody has."""
        try:
            self._root.link(self._draft, self._target)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
        else:
            self._root.unlink(self._draft)
            return
        # Whoever makes it first has it; what it holds comes a moment later.
        os.close(self._root.open(self._target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE))
        self._root.rename(self._draft, self._target)

    @contextlib.contextmanager
    def _named_in_errors(self) -> Iterator[None]:
        """What fails is what was asked for: nobody knows the other name."""
        try:
            yield
        except OSError as error:
            # A new one, as a second name can't be taken away.
            raise OSError(error.errno or errno.EIO, error.strerror, self._path) from error


class _Appended:
    """A file that gets longer."""

    def __init__(self, root: Root, path: bytes, mode: int) -> None:
        self._path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = open_regular(root, path, flags, mode)

    def write(self, data: Buffer) -> None:
        try:
            write_all(self._descriptor, data)
        except OSError as error:
            error.filename = self._path
            raise

    def commit(self) -> FileInfo:
        sync(self._descriptor)
        info = describe(os.fstat(self._descriptor))
        self.close()
        return info

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _final_target(root: Root, path: bytes) -> bytes:
    """Where writing to a path would write: a link stays, and what it leads to is replaced."""
    for _ in range(MAX_LINKS + 1):
        try:
            link = root.readlink(path)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return path
            raise
        path = os.path.join(os.path.dirname(path), link)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
