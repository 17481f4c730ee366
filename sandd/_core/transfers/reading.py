"""One file as records, with its hash; and again if it was written to while it was read. All of it blocks."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from typing import TYPE_CHECKING, Final

from attrs import define

from sandd import wire
from sandd._core._errors import transfer_error
from sandd._core.transfers.records import PIECE_BYTES, message_bytes, piece_record

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from sandd._core.files.roots import Root
    from sandd._core.transfers.agenda import Question

TRIES: Final = 3
"""A file that is written to all the time is read so often in vain."""
READ_BYTES: Final = 2 * PIECE_BYTES
"""Read and hashed in one go: for each, another thread may have the interpreter meanwhile, and has to give it back."""
ZEROS: Final = bytes(wire.MIB)

_OPEN_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_NOT_A_FILE_NOW: Final = (
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EOPNOTSUPP),
)
"""Of opening what was a file when it was found."""
_KINDS: Final = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def special_file_error(mode: int, path: bytes) -> OSError:
    """What to raise for something that is no regular file."""
    if stat.S_ISDIR(mode):
        return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if stat.S_ISLNK(mode):
        return OSError(errno.ELOOP, "it is a symbolic link", path)
    what = _KINDS.get(stat.S_IFMT(mode), "no regular file")
    return OSError(errno.EOPNOTSUPP, f"it is {what}, and only files are copied", path)


class naming:  # noqa: N801 - as contextlib's own; a generator would take ten times as long, for each file
    """An OSError is about this path: system calls on descriptors name none, and a file in the making has another."""

    __slots__ = ("_path",)

    def __init__(self, path: bytes) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError):
            error.filename, error.filename2 = self._path, None


def open_source(root: Root, path: bytes, *, follow: bool) -> tuple[int, os.stat_result]:
    """A descriptor of a regular file; an OSError for anything else, and at once for a named pipe."""
    descriptor = root.open(path, _OPEN_FLAGS | (0 if follow else NOFOLLOW))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise special_file_error(status.st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def read_small(root: Root, path: bytes, *, follow: bool) -> tuple[os.stat_result, bytes | None]:
    """All of a small file, as it was at one moment; None if it is none.

    Its size is what could be read: what the system makes up for a reader, as in /proc, claims to have none.
    """
    for _ in range(TRIES):
        descriptor, status = open_source(root, path, follow=follow)
        try:
            if status.st_size > wire.SMALL_FILE_BYTES:
                return status, None
            with naming(path):
                data = _read_all(descriptor, status.st_size, wire.SMALL_FILE_BYTES + 1)
            if _is_same(status, os.fstat(descriptor)) and len(data) <= wire.SMALL_FILE_BYTES:
                return status, data
        finally:
            os.close(descriptor)
    raise _restless(path)


def _read_all(descriptor: int, size: int, bound: int) -> bytes:
    """What there is, `bound` bytes at most; mostly `size`, which takes a single call."""
    data = os.read(descriptor, size + 1)
    if len(data) == size:
        return data  # there would have been more, if it didn't end here
    while data and len(data) < bound and (more := os.read(descriptor, bound - len(data))):
        data += more
    return data


def _is_same(before: os.stat_result, after: os.stat_result) -> bool:
    return before.st_size == after.st_size and before.st_mtime_ns == after.st_mtime_ns


def _restless(path: bytes) -> Exception:
    return transfer_error(
        "ESTALE", f"it changed each of the {TRIES} times it was read", os.fsdecode(path)
    )


@define(eq=False)
class Source:
    """A file that the receiver wants."""

    root: Root
    path: bytes
    question: Question
    check: Callable[[], None]
    """Raises where it is of no use to go on."""
    moved: int = 0
    """Bytes in the records so far."""
    resumed: int = 0
    done: int = 0
    """Bytes of the file that need not be sent any more."""
    size: int = 0
    sha256: bytes = b""
    is_same: bool = False
    """The receiver had it."""
    is_gone: bool = False

    def records(self) -> Generator[bytes, None, None]:
        """Its records. What was begun has to be iterated to its end, or closed."""
        self.size = self.question.size
        try:
            descriptor, status = open_source(self.root, self.path, follow=not self.question.path)
        except OSError as error:
            if not self.question.path or error.errno not in _NOT_A_FILE_NOW:
                raise
            self.is_gone = True
            yield message_bytes(wire.VanishedRecord(self.question.number))
            return
        try:
            with naming(self.path):
                yield from self._records(descriptor, status)
        finally:
            os.close(descriptor)

    def _records(self, descriptor: int, status: os.stat_result) -> Iterator[bytes]:
        digest, offset = self._check_prefix(descriptor, status)
        yield message_bytes(wire.ContentRecord(self.question.number, offset))
        size = self.question.size
        for attempt in range(TRIES):
            if attempt or size != status.st_size:
                status = os.fstat(descriptor)
                self.size = size = status.st_size
                self.is_same, self.resumed = False, 0
                yield message_bytes(
                    wire.ChangedRecord(size, stat.S_IMODE(status.st_mode), status.st_mtime_ns)
                )
                digest, offset = hashlib.sha256(), 0
            self.done = offset
            os.lseek(descriptor, offset, os.SEEK_SET)
            yield from self._content(descriptor, status, offset, digest)
            if (
                self.done == size
                and not os.read(descriptor, 1)
                and _is_same(status, os.fstat(descriptor))
            ):
                self.sha256 = digest.digest()
                yield message_bytes(wire.CompleteRecord(self.sha256))
                return
        raise _restless(self.path)

    def _check_prefix(self, descriptor: int, status: os.stat_result) -> tuple[hashlib._Hash, int]:
        """What the receiver has is the beginning of this file, or it begins anew."""
        answer = self.question.answer
        assert answer is not None
        digest = hashlib.sha256()
        if not answer.offset or status.st_size != self.question.size:
            return digest, 0
        left = answer.offset
        while left and (data := os.read(descriptor, min(left, wire.MAX_PIECE_BYTES))):
            digest.update(data)
            left -= len(data)
            self.check()
        if left or digest.digest() != answer.sha256:
            return hashlib.sha256(), 0
        self.is_same = answer.whole
        self.resumed = 0 if answer.whole else answer.offset
        return digest, answer.offset

    def _content(
        self, descriptor: int, status: os.stat_result, position: int, digest: hashlib._Hash
    ) -> Iterator[bytes]:
        size = status.st_size
        extent_end = position if _may_have_holes(status) else size
        # Read into again and again: new memory would be faulted in page by page.
        buffer = memoryview(bytearray(min(size - position, READ_BYTES)))
        while position < size:
            if position == extent_end:
                start, extent_end = _next_extent(descriptor, position, size)
                while position < start:
                    count = min(start - position, wire.MAX_ZEROS)
                    hash_zeros(digest, count)
                    position += count
                    self.done += count
                    yield message_bytes(wire.ZerosRecord(count))
                continue
            count = read_into(descriptor, buffer[: extent_end - position])
            if not count:
                return  # it is shorter now
            digest.update(buffer[:count])
            position += count
            for start in range(0, count, PIECE_BYTES):
                piece = buffer[start : min(start + PIECE_BYTES, count)]
                self.done += len(piece)
                self.moved += len(piece)
                yield piece_record(piece)


def read_into(descriptor: int, buffer: memoryview) -> int:
    """Read from where the descriptor stands; how much that was, 0 at the end."""
    if sys.platform != "win32":
        return os.readv(descriptor, [buffer])
    data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def _may_have_holes(status: os.stat_result) -> bool:
    # st_blocks counts 512 bytes each, whatever the file system's blocks are.
    blocks: int = getattr(status, "st_blocks", status.st_size)
    return hasattr(os, "SEEK_DATA") and blocks * 512 < status.st_size


def _next_extent(descriptor: int, position: int, size: int) -> tuple[int, int]:
    """Where the next data begins and where it ends; at `size`, both, if only a hole is left.

    The descriptor stands at the beginning.
    """
    if sys.platform == "win32":
        return position, size
    try:
        start = min(os.lseek(descriptor, position, os.SEEK_DATA), size)
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
    except OSError as error:
        # Nothing but a hole; or a file system that doesn't tell, and then all of it is data.
        start, end = (size, size) if error.errno == errno.ENXIO else (position, size)
    os.lseek(descriptor, start, os.SEEK_SET)
    return start, end


def hash_zeros(digest: hashlib._Hash, count: int) -> None:
    """Hash so many zero bytes."""
    zeros = memoryview(ZEROS)
    while count:
        part = zeros[:count]
        digest.update(part)
        count -= len(part)
