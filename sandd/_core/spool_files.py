"""The spool's files: output of jobs that nobody is attached to, in the daemon's state directory.

Blocking; the `Spooler` calls this in threads. A file is open only while it is written or read: so jobs
cost no descriptors, and a thread that was abandoned in the middle can't write to what is another file
by then. No file outlives its daemon: whoever holds the state directory next has no use for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandd._core.logs import get_logger
from sandd._core.spool import Delete, Fetch, Spill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandd._core.spool import DiskTask

log = get_logger("spool")

DIRECTORY_NAME: Final = "spool"
# Output may be secret, and whoever can write here must not make us write elsewhere.
_FLAGS: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_FILE_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o700


class SpoolLost(Exception):
    """What was written is not there any more: somebody took the file away, or cut it short."""


@define(eq=False)
class SpoolFiles:
    """The files of one daemon, in a directory that is made with the first of them."""

    directory: Path
    _is_closed: bool = False
    _begins: dict[str, int] = field(factory=dict)
    """Of files that were too short for what was written next, its position: what stands before it reads as
    zeros. Mostly nothing ever did; or somebody took away, or emptied, the file that it was in."""

    def perform(self, task: DiskTask) -> bytes:
        """Do it; the bytes read, for a `Fetch`.

        Raises:
            OSError: the disk is full, broken or forbidden. A write may have been done in part; it can
                be repeated whole.
            SpoolLost: what was to be read is gone for good.
        """
        match task:
            case Spill():
                self._write(task)
            case Fetch():
                return self._read(task)
            case Delete():
                self._delete(task)
        return b""

    def _write(self, task: Spill) -> None:
        descriptor = self._open_to_write(task.file)
        try:
            if os.fstat(descriptor).st_size < task.position:
                self._begins[task.file] = task.position
            os.lseek(descriptor, task.position, os.SEEK_SET)
            rest = memoryview(task.data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)

    def _open_to_write(self, file: str) -> int:
        path = self.directory / file
        flags = os.O_WRONLY | os.O_CREAT | _FLAGS
        try:
            return os.open(path, flags, _FILE_MODE)
        except FileNotFoundError:
            if self._is_closed:
                raise
            self.directory.mkdir(_DIRECTORY_MODE, parents=True, exist_ok=True)
            return os.open(path, flags, _FILE_MODE)

    def _read(self, task: Fetch) -> bytes:
        try:
            descriptor = os.open(self.directory / task.file, os.O_RDONLY | _FLAGS)
        except FileNotFoundError as error:
            raise SpoolLost(f"{task.file} is gone") from error
        try:
            if task.position < self._begins.get(task.file, 0):
                raise SpoolLost(f"{task.file} was taken away, or emptied, and written on")
            os.lseek(descriptor, task.position, os.SEEK_SET)
            data = b""
            while len(data) < task.size:
                chunk = os.read(descriptor, task.size - len(data))
                if not chunk:
                    raise SpoolLost(f"{task.file} is shorter than what was written")
                data += chunk
            return data
        finally:
            os.close(descriptor)

    def _delete(self, task: Delete) -> None:
        for file in task.files:
            self._begins.pop(file, None)
            try:
                (self.directory / file).unlink(missing_ok=True)
            except OSError as error:
                # It goes with the directory, at the latest when the next daemon starts here.
                log.warning("spool_file_not_deleted", file=file, reason=str(error))


@contextlib.contextmanager
def open_spool_files(state_dir: Path) -> Iterator[SpoolFiles]:
    """A spool in a state directory that nobody else uses; what is left of an earlier one is removed first.

    At the end of the block its files are gone.
    """
    directory = state_dir / DIRECTORY_NAME
    stale = _remove(directory)
    if stale:
        log.warning("stale_spool_removed", files=stale)
    files = SpoolFiles(directory)
    try:
        yield files
    finally:
        files._is_closed = True  # a thread that was abandoned makes no new directory
        _remove(directory)


def _remove(directory: Path) -> int:
    """Remove the directory with its files; returns how many there were. Never an error: it is only tidying."""
    try:
        if directory.is_symlink():
            directory.unlink()
            return 0
        count = sum(1 for _ in directory.iterdir())
        shutil.rmtree(directory)
    except FileNotFoundError:
        return 0
    except OSError as error:
        log.warning("spool_not_removed", path=str(directory), reason=str(error))
        return 0
    return count
