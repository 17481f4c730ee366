"""What was written is on the disk, and the names it got are: one system call for many files, where there is one.

An fsync of each of 10,000 small files costs eight times what writing them does.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from sandd import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sandd._core.files.roots import Root

_NO_SYNC: Final = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems say that have nothing to sync to."""
ONE_BY_ONE: Final = 4
"""So few files are synced each by itself: syncfs(2) waits for what all other programs wrote, too."""

EARLY_BYTES: Final = 16 * wire.MIB
"""Of one file, written since the disk was last told to take them: at 500 MB/s it needs 30 ms for that."""


def _find_syncfs() -> Any:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


_syncfs: Any = _find_syncfs()
_fdatasync: Any = getattr(os, "fdatasync", None)


class Unsynced:
    """Descriptors of files that were written and aren't yet synced; it closes them."""

    def __init__(self) -> None:
        self._locked: list[int] = []
        self._few: list[int] = []
        self._devices: dict[int, int] = {}
        """One descriptor for each file system, once there are more than a few files."""
        self._latest_folder: bytes | None = None

    @property
    def locked(self) -> int:
        """How many files are locked until `release`: each takes a descriptor."""
        return len(self._locked)

    def add(self, descriptor: int, folder: bytes, *, is_locked: bool = False) -> None:
        """A file in that directory is complete. The descriptor is ours from now on.

        One that `is_locked` stays so until `release`, but on Windows: what is open there can't be renamed.
        """
        if is_locked and sys.platform != "win32":
            self._locked.append(descriptor)
            descriptor = os.dup(descriptor)
        if _syncfs is None:
            _sync_and_close(descriptor)
        elif self._devices:
            if folder == self._latest_folder:
                os.close(descriptor)  # of the same file system as the one before
            else:
                self._keep_one(descriptor)
                self._latest_folder = folder
        else:
            self._few.append(descriptor)
            if len(self._few) > ONE_BY_ONE:
                few, self._few = self._few, []
                for each in few:
                    self._keep_one(each)

    def sync(self) -> None:
        """All of them are on the disk, or an OSError says why not; either way all but the locked are closed."""
        try:
            for each in self._few:
                os.fsync(each)
            for each in self._devices.values():
                _sync_file_system(each)
        finally:
            self._forget()

    def release(self) -> None:
        """What was locked has its name, or is gone."""
        while self._locked:
            os.close(self._locked.pop())

    def close(self) -> None:
        """Forget them all."""
        self._forget()
        self.release()

    def _forget(self) -> None:
        for each in (*self._few, *self._devices.values()):
            os.close(each)
        self._few, self._devices = [], {}
        self._latest_folder = None

    def _keep_one(self, descriptor: int) -> None:
        kept = self._devices.setdefault(os.fstat(descriptor).st_dev, descriptor)
        if kept != descriptor:
            os.close(descriptor)


class Background:
    """Waits for the disk in a thread of its own, for one thing at a time, while others go on."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    @property
    def is_busy(self) -> bool:
        """What was begun isn't done."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, work: Callable[[], None]) -> None:
        """Have `work` done, when what was begun before is done; an OSError is about that."""
        self.wait()

        def do() -> None:
            try:
                work()
            except OSError as error:
                self._error = error

        thread = threading.Thread(target=do, name="sandd disk", daemon=True)
        thread.start()
        self._thread = thread

    def wait(self) -> None:
        """What was begun is done, or an OSError says why not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait, whatever became of it."""
        with contextlib.suppress(OSError):
            self.wait()


class EarlySync:
    """Has the disk take what is written of a file while more of it comes: at the end little is left to wait for.

    What goes wrong there the system tells once, and to whoever asks first: so a file is safe when `wait`, and a
    sync after it, have raised nothing.
    """

    def __init__(self) -> None:
        self._disk = Background()
        self._unsynced_bytes = 0

    def wrote(self, descriptor: int, count: int) -> None:
        """So many bytes were written there; an OSError is about those before."""
        self._unsynced_bytes += count
        if self._unsynced_bytes < EARLY_BYTES or _fdatasync is None or self._disk.is_busy:
            return
        self.wait()
        # Its own: the file may be closed before the disk is done.
        own = os.dup(descriptor)
        self._disk.begin(lambda: _sync_early(own))

    def wait(self) -> None:
        """What was begun is done, or an OSError says why not."""
        self._unsynced_bytes = 0
        self._disk.wait()

    def close(self) -> None:
        """Wait, whatever became of it."""
        self._disk.close()


def _sync_early(descriptor: int) -> None:
    try:
        _fdatasync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_folders(root: Root, paths: Iterable[bytes]) -> None:
    """The names in these directories are on the disk."""
    if sys.platform == "win32":
        return  # it has no such call; its file systems keep names in a journal
    paths = list(paths)
    done = set()
    for path in paths:
        try:
            descriptor = root.open(path or b".", os.O_RDONLY | os.O_DIRECTORY)
        except PermissionError:
            continue  # it may be written and not read
        try:
            if _syncfs is None or len(paths) <= ONE_BY_ONE:
                sync(descriptor)
            elif (device := os.fstat(descriptor).st_dev) not in done:
                done.add(device)
                _sync_file_system(descriptor)
        finally:
            os.close(descriptor)


def sync(descriptor: int) -> None:
    """What was written there is on the disk; some file systems don't know how that is done for directories."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _sync_and_close(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file_system(descriptor: int) -> None:
    if _syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
