"""From a receiver's steps to files: at every moment each one is what it was before, or the complete new one.

Files are written under other names beside their targets. Every now and then all that are complete are
synced, get their names, and the directories are synced. All of it blocks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from sandd import wire
from sandd._core._errors import transfer_error
from sandd._core.files.operations import write_all
from sandd._core.transfers import arrivals
from sandd._core.transfers.partials import (
    beside,
    open_partial,
    partial_name,
    remove_old_in,
)
from sandd._core.transfers.reading import NOFOLLOW, hash_zeros, naming, special_file_error
from sandd._core.transfers.syncing import Background, EarlySync, Unsynced, sync_folders
from sandd.wire import Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sandd._core.files.roots import Root
    from sandd._core.transfers.arrivals import Folder, Incoming, Step
    from sandd._core.transfers.partials import Journal

SETTLE_FILES: Final = 1024
SETTLE_BYTES: Final = 64 * wire.MIB
SETTLE_LOCKED: Final = 64
"""Of files that another call may go on with: each of them holds a descriptor until it has its name."""
SETTLE_SECONDS: Final = 1.0
"""After so much, files get their names: what is lost with a power failure is no more than that."""
SAME_TIME: Final = 1000
"""Nanoseconds between two times of modification that count as equal: not every file system keeps all digits."""
BLOCK: Final = 4096
"""Bytes, aligned, that make a hole if all are zero: a block of most file systems."""
_SEPARATORS: Final = b"/\\" if sys.platform == "win32" else b"/"
_MAX_LINKS: Final = 40
"""Symbolic links one behind the other, as on Linux."""
_PERMISSIONS: Final = 0o777
"""What is taken over of a mode: no sender makes programs that run as somebody else."""


@define
class _Written:
    """A file, or a link, that is complete but has not got its name."""

    temporary: bytes
    target: bytes
    stays: bool
    """Another call may go on with it."""


@define(eq=False)
class _Named:
    """What got names that are not yet on the disk."""

    touched: set[bytes] = field(factory=set)
    """Directories with new names in them."""
    finished: list[Folder] = field(factory=list)
    """Directories in which all is written, in this order."""


@define(eq=False)
class _Batch:
    """Files that are complete, and get their names together."""

    written: deque[_Written] = field(factory=deque)
    size: int = 0
    since: float = 0.0
    """When the first of them was complete."""
    unsynced: Unsynced = field(factory=Unsynced)
    named: _Named = field(factory=_Named)
    """What there is to be done when they have them."""


@frozen
class _Known:
    """What there is of a file that was asked about."""

    digest: hashlib._Hash
    status: os.stat_result
    """When it was hashed: what another program writes to it changes that."""


@define(eq=False)
class _Open:
    """The file whose bytes are coming."""

    file: Incoming
    target: bytes
    temporary: bytes = b""
    stays: bool = False
    descriptor: int = -1
    position: int = 0
    before: os.stat_result | None = None
    """Of what is gone on with, when it was hashed."""
    is_same: bool = False
    """It was there before, and nothing has to be written."""
    digest: hashlib._Hash = field(factory=hashlib.sha256)


class Writer:
    """What one transfer writes. One thread at a time."""

    def __init__(
        self,
        root: Root,
        top: bytes,
        *,
        tenant: str,
        update: Update,
        journal: Journal,
        check: Callable[[], None],
    ) -> None:
        self._root = root
        self._top = top
        self._tenant = tenant
        self._update = update
        self._journal = journal
        self._check = check
        """Raises where it is of no use to go on."""
        self._known: dict[int, _Known] = {}
        self._open: _Open | None = None
        self._batch = _Batch()
        self._named = _Named()
        """Of the batches before it."""
        self._syncing: tuple[_Batch, _Named] | None = None
        """The batch before it, and the names of those before that, which the disk takes while this one is written."""
        self._disk = Background()
        self._early = EarlySync()
        """Of the file whose bytes are coming."""
        self._released: list[bytes] = []
        """Partials that another transfer may have now."""
        self._is_tree = False
        self._is_folder = False
        """The target was named as a directory is, with a slash behind it."""
        self.sha256: bytes | None = None
        """Of a single file."""
        self.is_done = False

    # -- from outside

    def partial(self, file: Incoming) -> bytes | None:
        """What the file in the making is called that another call may have left; None for a small one. Blocks not."""
        if file.size <= wire.SMALL_FILE_BYTES:
            return None
        target = self._target(file.path)
        return beside(target, partial_name(self._tenant, target, file.size, file.mtime))

    def resolve(self) -> None:
        """A link in place of what is to be written is followed, once and for all."""
        if not self._top:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._top)
        path = self._top.rstrip(_SEPARATORS)
        if not os.path.basename(path):
            path = self._top  # the root of a file system
        self._is_folder = path != self._top
        for _ in range(_MAX_LINKS):
            try:
                status = self._root.stat(path, follow_symlinks=False)
            except FileNotFoundError:
                self._check_folder(path)
                break
            if not stat.S_ISLNK(status.st_mode):
                break
            path = beside(path, self._root.readlink(path))
        else:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self._top)
        self._top = path

    def _check_folder(self, path: bytes) -> None:
        """FileNotFoundError that says what is missing, rather than what is to be made, before anything is sent."""
        folder = os.path.dirname(path)
        try:
            if folder:
                self._root.stat(folder)
        except FileNotFoundError as error:
            text = f"there is no directory {os.fsdecode(folder)!r} to make it in"
            raise FileNotFoundError(errno.ENOENT, text, self._top) from error

    def do(self, steps: Iterable[Step]) -> list[tuple[Incoming, wire.SkipRecord | wire.WantRecord]]:
        """Take the steps. The answers to what is asked in them."""
        answers = []
        for step in steps:
            match step:
                case arrivals.Append():
                    self._append(step.pieces)
                case arrivals.PutFile():
                    self._put(step)
                case arrivals.Ask():
                    self._check()
                    self._one_more(step.file.folder)
                    answers.append((step.file, self._answer(step.file)))
                case arrivals.Begin():
                    self._begin(step)
                case arrivals.AppendZeros():
                    self._append_zeros(step.count)
                case arrivals.Complete():
                    self._complete(step.sha256)
                case arrivals.StartAgain():
                    self._start_again()
                case arrivals.MakeFolder():
                    self._make_folder(step.folder)
                case arrivals.LeaveFolder():
                    self._one_less(step.folder)
                case arrivals.MakeLink():
                    self._make_link(step)
                case arrivals.Drop():
                    self._drop(step.file)
                case arrivals.Finish():
                    self.settle()
                    if not self._is_tree and not self._journal.writes:
                        remove_old_in(self._root, os.path.dirname(self._top))
                    self.is_done = True
            # Not only behind them all: as many may have come at once as a slow disk leaves waiting.
            if self.is_due:
                self._begin_settling()
        if self._syncing is not None and not self._disk.is_busy:
            self._end_settling()
        return answers

    @property
    def has_unsettled(self) -> bool:
        """Something is complete, and hasn't its name."""
        return bool(self._batch.written or self._syncing or self._named.touched)

    @property
    def is_due(self) -> bool:
        """It is time to settle."""
        batch = self._batch
        return (
            len(batch.written) + len(batch.named.finished) >= SETTLE_FILES
            or batch.size >= SETTLE_BYTES
            or batch.unsynced.locked >= SETTLE_LOCKED
            or (bool(batch.written) and time.monotonic() - batch.since >= SETTLE_SECONDS)
        )

    def take_released(self) -> list[bytes]:
        """Partials that are none of this transfer's any more."""
        released, self._released = self._released, []
        return released

    def settle(self) -> None:
        """What is complete is on the disk, under its name."""
        self._end_settling()
        self._batch.unsynced.sync()
        self._name(self._batch)
        named, self._named = self._named, _Named()
        self._finish(named)

    def _begin_settling(self) -> None:
        """Have the disk take what is complete, while more is written; what it was given before gets its names first."""
        self._end_settling()
        batch, self._batch = self._batch, _Batch()
        named, self._named = self._named, _Named()

        def sync() -> None:
            batch.unsynced.sync()
            sync_folders(self._root, named.touched)
            named.touched.clear()

        self._syncing = batch, named
        self._disk.begin(sync)

    def _end_settling(self) -> None:
        """What the disk was given has its names. It has yet to take those."""
        if self._syncing is not None:
            self._disk.wait()
            batch, named = self._syncing
            self._name(batch)
            self._syncing = None
            self._finish(named)

    def _name(self, batch: _Batch) -> None:
        """Give files that are on the disk their names."""
        while batch.written:
            each = batch.written[0]
            try:
                self._root.rename(each.temporary, each.target)
            except OSError as error:
                error.filename, error.filename2 = each.target, None
                raise
            batch.written.popleft()
            if each.stays:
                self._released.append(each.temporary)
        batch.unsynced.release()
        batch.size = 0
        self._named.touched |= batch.named.touched
        self._named.finished += batch.named.finished
        batch.named = _Named()

    def _finish(self, named: _Named) -> None:
        """Its names are on the disk, and its directories as they shall be: before, they may not have let us in."""
        if named.touched:
            sync_folders(self._root, named.touched)
        for folder in named.finished:
            self._set_folder(folder)

    def close(self, *, keep: bool) -> bool:
        """Remove what is not complete; with `keep` what another call may go on with stays. Whether anything did."""
        batches = [self._batch] if self._syncing is None else [self._syncing[0], self._batch]
        left = [(each.temporary, each.stays) for batch in batches for each in batch.written]
        if self._open is not None and self._open.descriptor >= 0:
            left.append((self._open.temporary, self._open.stays))
        if sys.platform == "win32":
            self._close_descriptors()  # what is open there can't be removed
        stays = False
        try:
            for path, may_stay in left:
                if keep and may_stay:
                    stays = True
                else:
                    with contextlib.suppress(FileNotFoundError):
                        self._root.unlink(path)
        finally:
            self._close_descriptors()  # and elsewhere with them the locks: nobody takes over what we remove
        return stays

    def _close_descriptors(self) -> None:
        self._early.close()
        self._disk.close()
        if self._syncing is not None:
            self._syncing[0].unsynced.close()
        self._batch.unsynced.close()
        if self._open is not None and self._open.descriptor >= 0:
            os.close(self._open.descriptor)
        self._open = None

    # -- what is asked

    def _answer(self, file: Incoming) -> wire.SkipRecord | wire.WantRecord:
        target = self._target(file.path)
        status = self._look(target)
        if status is not None and stat.S_ISREG(status.st_mode) and status.st_size == file.size:
            if self._update is Update.TIME and abs(status.st_mtime_ns - file.mtime) < SAME_TIME:
                self._one_less(file.folder)
                self._release(file)
                return wire.SkipRecord()
            if self._update is Update.HASH and not file.size:
                self._touch_up(target, file)
                self._one_less(file.folder)
                return wire.SkipRecord()
            if self._update is Update.HASH:
                with naming(target):
                    known, size = self._hash_existing(target, file.size)
                if known is not None and size == file.size:
                    self._known[file.number] = known
                    return wire.WantRecord(size, known.digest.digest(), whole=True)
        if file.partial is None:
            return wire.WantRecord()
        with naming(target):
            known, size = self._hash_partial(file.partial, file.size)
        if known is None or not size:
            return wire.WantRecord()
        self._known[file.number] = known
        return wire.WantRecord(size, known.digest.digest())

    def _hash_existing(self, target: bytes, bound: int) -> tuple[_Known | None, int]:
        """Its first bytes, and how many they are.

        None if it can't be read: then it is written anew, for which it need not be readable.
        """
        try:
            descriptor = self._root.open(target, os.O_RDONLY | NOFOLLOW | _NONBLOCK)
        except PermissionError:
            return None, 0
        try:
            return self._hash(descriptor, bound)
        finally:
            os.close(descriptor)

    def _hash_partial(self, partial: bytes, bound: int) -> tuple[_Known | None, int]:
        try:
            descriptor = open_partial(self._root, partial, create=False)
        except FileNotFoundError:
            descriptor = None
        if descriptor is None:
            return None, 0
        try:
            return self._hash(descriptor, bound)
        finally:
            os.close(descriptor)

    def _hash(self, descriptor: int, bound: int) -> tuple[_Known, int]:
        digest, size = hashlib.sha256(), 0
        buffer = memoryview(bytearray(wire.MIB))
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            while size < bound and (count := file.readinto(buffer[: bound - size])):
                digest.update(buffer[:count])
                size += count
                self._check()
        return _Known(digest, os.fstat(descriptor)), size

    # -- files

    def _target(self, path: bytes) -> bytes:
        return os.path.join(self._top, path) if path else self._top

    def _look(self, target: bytes) -> os.stat_result | None:
        """What is there, if anything; an OSError if it is nothing that a file may take the place of."""
        if target is self._top and self._is_folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
        try:
            status = self._root.stat(target, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
            raise special_file_error(status.st_mode, target)
        return status

    def _new(self, place: bytes) -> tuple[bytes, int]:
        """A new file in a directory, with a name of its own."""
        path = self._new_name(place)
        return path, self._root.open(path, _WRITE_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)

    def _new_name(self, place: bytes) -> bytes:
        self._journal.note(b"d", place)
        name = self._journal.new_name()
        return (
            place + b"/" + name if place and sys.platform != "win32" else os.path.join(place, name)
        )

    def _put(self, step: arrivals.PutFile) -> None:
        # Once for each of very many files: what need not be done here, isn't.
        folder, said = step.folder, step.said
        if folder is None:
            target, place = self._top, os.path.dirname(self._top)
            self._look(target)
        else:
            place = folder.place
            target = place + b"/" + said.name
            if folder.was_there:
                self._look(target)
        if hashlib.sha256(step.content).digest() != said.sha256:
            raise damaged(target)
        with naming(target):
            temporary, descriptor = self._new(place)
            try:
                write_all(descriptor, step.content)
                self._set_attributes(descriptor, temporary, said.mode, said.mtime)
            except BaseException:
                os.close(descriptor)
                with contextlib.suppress(OSError):
                    self._root.unlink(temporary)
                raise
            self._add_written(_Written(temporary, target, stays=False), place, said.size)
            self._batch.unsynced.add(descriptor, place)
        if folder is None:
            self.sha256 = said.sha256

    def _add_written(self, written: _Written, place: bytes, size: int) -> None:
        batch = self._batch
        if not batch.written:
            batch.since = time.monotonic()
        batch.written.append(written)
        batch.size += size
        batch.named.touched.add(place)

    def _begin(self, step: arrivals.Begin) -> None:
        file, offset = step.file, step.offset
        target = self._target(file.path)
        known = self._known.pop(file.number, None)
        self._open = current = _Open(file, target)
        if offset:
            assert known is not None
            current.digest, current.position, current.before = known.digest, offset, known.status
        if offset and file.is_whole:
            current.is_same = True
        else:
            self._open_to_write(current)

    def _open_to_write(self, current: _Open) -> None:
        """Open the file in the making, at its position."""
        partial = current.file.partial
        if partial is not None:
            self._journal.note(b"f", partial)
            with naming(current.target):
                descriptor = open_partial(self._root, partial, create=True)
            if descriptor is not None:
                current.temporary, current.descriptor, current.stays = partial, descriptor, True
                if current.position:
                    self._check_same(descriptor, current)
                os.ftruncate(descriptor, current.position)
                os.lseek(descriptor, current.position, os.SEEK_SET)
                return
        if current.position:
            raise _meddled(current.target)
        with naming(current.target):
            place = os.path.dirname(current.target)
            current.temporary, current.descriptor = self._new(place)

    @staticmethod
    def _check_same(descriptor: int, current: _Open) -> None:
        """What was hashed is what we go on with: nobody had it in between, which was not locked."""
        before, now = current.before, os.fstat(descriptor)
        assert before is not None
        if not (os.path.samestat(before, now) and _stamp(before) == _stamp(now)):
            raise _meddled(current.target)

    def _append(self, pieces: list[memoryview]) -> None:
        current = self._opened
        if current.is_same:
            raise damaged(current.target)
        with naming(current.target):
            for piece in pieces:
                current.digest.update(piece)
            write_sparse(current.descriptor, current.position, pieces)
            size = sum(map(len, pieces))
            current.position += size
            self._early.wrote(current.descriptor, size)
        self._check()

    def _append_zeros(self, count: int) -> None:
        current = self._opened
        if current.is_same:
            raise damaged(current.target)
        hash_zeros(current.digest, count)
        current.position += count
        os.lseek(current.descriptor, current.position, os.SEEK_SET)
        self._check()

    def _start_again(self) -> None:
        current = self._opened
        current.digest, current.position = hashlib.sha256(), 0
        if current.is_same:
            current.is_same = False
            self._open_to_write(current)
        else:
            os.ftruncate(current.descriptor, 0)
            os.lseek(current.descriptor, 0, os.SEEK_SET)

    def _complete(self, sha256: bytes) -> None:
        current = self._opened
        file = current.file
        if current.digest.digest() != sha256:
            current.stays = False  # whatever is wrong with it, nobody shall go on with it
            raise damaged(current.target)
        if current.is_same:
            self._touch_up(current.target, file)
            self._release(file)
        else:
            with naming(current.target):
                self._early.wait()
                os.ftruncate(current.descriptor, current.position)
                self._set_attributes(current.descriptor, current.temporary, file.mode, file.mtime)
            written = _Written(current.temporary, current.target, current.stays)
            place = os.path.dirname(current.target)
            self._open = None
            self._add_written(written, place, file.size)
            with naming(current.target):
                self._batch.unsynced.add(current.descriptor, place, is_locked=current.stays)
        self._open = None
        if file.folder is None:
            self.sha256 = sha256
        self._one_less(file.folder)

    def _touch_up(self, target: bytes, file: Incoming) -> None:
        """What is the same has the same mode and time, too, where we may see to that."""
        with contextlib.suppress(PermissionError), naming(target):
            self._root.chmod(target, file.mode & _PERMISSIONS)
            self._root.utime(target, (file.mtime, file.mtime))

    def _release(self, file: Incoming) -> None:
        if file.partial is not None:
            self._released.append(file.partial)

    def _drop(self, file: Incoming) -> None:
        self._release(file)
        if self._known.pop(file.number, None) is not None and not file.is_whole:
            assert file.partial is not None
            with contextlib.suppress(FileNotFoundError):
                self._root.unlink(file.partial)  # nobody will ask for it again
        self._one_less(file.folder)

    @property
    def _opened(self) -> _Open:
        assert self._open is not None
        return self._open

    def _set_attributes(self, descriptor: int, path: bytes, mode: int, mtime: int) -> None:
        if sys.platform == "win32":
            self._root.utime(path, (mtime, mtime))
            self._root.chmod(path, mode & _PERMISSIONS)
        else:
            os.fchmod(descriptor, mode & _PERMISSIONS)
            os.utime(descriptor, ns=(mtime, mtime))

    # -- directories and links

    def _make_folder(self, folder: Folder) -> None:
        self._one_more(folder.parent)
        path = folder.place = self._target(folder.path)
        self._is_tree = True
        try:
            # For us it has to be writable until everything is in it.
            self._root.mkdir(path, (folder.mode & _PERMISSIONS) | stat.S_IRWXU)
        except FileExistsError:
            folder.was_there = True
            status = self._root.stat(path, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
            is_open = status.st_mode & stat.S_IRWXU == stat.S_IRWXU
            if not is_open and folder.parent is not None:
                with contextlib.suppress(OSError):
                    self._root.chmod(path, stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
            if not self._journal.writes:
                remove_old_in(self._root, path)
        else:
            self._batch.named.touched.add(os.path.dirname(path))

    @staticmethod
    def _one_more(folder: Folder | None) -> None:
        """Something is in it that will be finished later."""
        if folder is not None:
            folder.waits_for += 1

    def _one_less(self, folder: Folder | None) -> None:
        """Something in it is finished; with the last it is, too."""
        while folder is not None:
            folder.waits_for -= 1
            if folder.waits_for:
                return
            self._batch.named.finished.append(folder)
            folder = folder.parent

    def _set_folder(self, folder: Folder) -> None:
        if folder.parent is None and folder.was_there:
            return  # it is whoever made it who decides: not all in it is ours
        path = folder.place
        try:
            self._root.chmod(path, folder.mode & _PERMISSIONS)
            self._root.utime(path, (folder.mtime, folder.mtime))
        except PermissionError:
            if not folder.was_there:
                raise
            # Somebody else's, who lets us write in it: that is all we need.

    def _make_link(self, step: arrivals.MakeLink) -> None:
        target, place = self._target(step.path), step.folder.place
        self._look(target)
        temporary = self._new_name(place)
        with naming(target):
            self._root.symlink(step.target, temporary)
        self._add_written(_Written(temporary, target, stays=False), place, 0)
        with contextlib.suppress(OSError, NotImplementedError):  # not every system can
            self._root.utime(temporary, (step.mtime, step.mtime), follow_symlinks=False)


# ---- bytes --------------------------------------------------------------------------------------

_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)
_WRITE_FLAGS: Final = os.O_WRONLY | NOFOLLOW
_ZERO_BLOCK: Final = bytes(BLOCK)


def damaged(target: bytes) -> Exception:
    """What arrived isn't what was sent, or the sender doesn't say the truth."""
    return transfer_error(
        "EBADMSG", "what arrived has another hash than what was sent", os.fsdecode(target)
    )


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _meddled(target: bytes) -> Exception:
    return transfer_error("EBUSY", "somebody else wrote to its first part", os.fsdecode(target))


def write_sparse(descriptor: int, position: int, pieces: Iterable[memoryview]) -> None:
    """Write them at `position`, where the descriptor stands; it moves behind blocks of zeros, and writes none.

    Beyond the position the file has nothing. Not all in one writev(2): on ext4 that costs twice as much while the
    disk takes what was written before (m).
    """
    for piece in pieces:
        first = -position % BLOCK
        # Where a block's first byte isn't zero, the others needn't be looked at.
        if 0 not in piece[first::BLOCK]:
            write_all(descriptor, piece)
        else:
            _write_blocks(descriptor, position, piece, first)
        position += len(piece)


def _write_blocks(descriptor: int, position: int, data: memoryview, first: int) -> None:
    """The same for one piece, whose first block begins at `first`."""
    begin = 0
    """Of what is to be written."""
    for start in range(first, len(data) - BLOCK + 1, BLOCK):
        if data[start] == 0 and data[start : start + BLOCK].tobytes() == _ZERO_BLOCK:
            write_all(descriptor, data[begin:start])
            begin = start + BLOCK
            os.lseek(descriptor, position + begin, os.SEEK_SET)
    write_all(descriptor, data[begin:])
