"""What there is to send, as records, found while it is sent: a tree of any size takes no memory. It blocks."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandd import wire
from sandd._core.transfers.agenda import Question
from sandd._core.transfers.arrivals import OWN_NAMES
from sandd._core.transfers.reading import read_small, special_file_error
from sandd._core.transfers.records import message_bytes, piece_head

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from sandd._core.files.roots import Root
    from sandd._core.transfers.filters import Filter

BATCH_ENTRIES: Final = 256
BATCH_BYTES: Final = 2 * wire.MIB
"""So much is found, or read, in one go: 5 ms."""
OPEN_SCANS: Final = 64
"""Directories within each other that are read as they are walked: each takes a descriptor. Deeper ones are listed."""
COUNTED_AT_ONCE: Final = 4096
"""Entries that are counted before a thread says that it is still there: 10 ms."""
_RACES: Final = 3
"""So often something may be another kind of thing when it is opened than it was when it was found."""
_NAMED_BYTES: Final = 32 * wire.KIB
"""Of names of what is left out, together: they go into one record."""


@define
class Found:
    """What one go came to."""

    records: list[bytes] = field(factory=list)
    questions: list[Question] = field(factory=list)
    question_bytes: int = 0
    """Of their paths."""
    moved: int = 0
    """Bytes of the files in `records`."""
    size: int = 0
    """Bytes of all files that were found."""
    files: int = 0
    is_last: bool = False


@define(eq=False)
class _Level:
    """A directory that is being walked."""

    name: bytes
    path: bytes
    status: os.stat_result
    entries: Iterator[tuple[bytes, os.stat_result]]
    is_said: bool = False


class Walk:
    """One pass through a file, or a tree and what of it `chosen` takes."""

    def __init__(self, root: Root, top: bytes, chosen: Filter, *, asks: bool) -> None:
        self._root = root
        self._top = top
        self._prefix = os.path.join(top, b"")
        self._chosen = chosen
        self._asks = asks
        """Nothing is sent unasked."""
        self._levels: list[_Level] = []
        self._asked = 0
        self._has_begun = False
        self.is_tree = False
        self.unsupported = 0
        self.unsupported_names: list[bytes] = []
        self._named_bytes = 0
        self.sha256: bytes | None = None
        """Of a single file that was sent unasked."""

    def close(self) -> None:
        """Let go of the directories."""
        while self._levels:
            _close(self._levels.pop().entries)

    def full_path(self, path: bytes) -> bytes:
        """Where something of the tree is on this machine."""
        return self._prefix + path if path else self._top

    def find(self, room: int, room_bytes: int) -> Found:
        """What comes next. It asks about `room` files at most, and until their paths are `room_bytes`."""
        found = Found()
        if not self._has_begun:
            self._has_begun = True
            self._begin(found)
        seen = 0
        while (
            self._levels
            and seen < BATCH_ENTRIES
            and found.moved < BATCH_BYTES
            and len(found.questions) < room
            and found.question_bytes < room_bytes
        ):
            seen += 1
            self._next(found)
        found.is_last = not self._levels
        return found

    def _begin(self, found: Found) -> None:
        status = self._root.stat(self._top)
        if stat.S_ISDIR(status.st_mode):
            self.is_tree = True
            self._push(b"", b"", status)
            self._say_levels(found)
        elif stat.S_ISREG(status.st_mode):
            self._file(found, b"", b"", status)
        else:
            raise special_file_error(status.st_mode, self._top)

    def _push(self, name: bytes, path: bytes, status: os.stat_result) -> None:
        full_path = self.full_path(path)
        if len(self._levels) >= wire.MAX_DEPTH:
            raise OSError(errno.ENAMETOOLONG, "directories too deep within each other", full_path)
        entries = self._root.scan(full_path)
        if len(self._levels) >= OPEN_SCANS:
            entries = _listed(entries)
        self._levels.append(_Level(name, path, status, entries))

    def _next(self, found: Found) -> None:
        level = self._levels[-1]
        try:
            name, status = next(level.entries)
        except StopIteration:
            self._pop(found)
            return
        except (FileNotFoundError, NotADirectoryError):
            if len(self._levels) == 1:
                raise
            self._pop(found)  # it was removed since it was found: there is nothing in it
            return
        if name[:1] == b"." and OWN_NAMES.fullmatch(name):
            return
        path = level.path + b"/" + name if level.path else name
        for _ in range(_RACES):
            try:
                self._entry(found, name, path, status)
                return
            except FileNotFoundError:
                return  # it was removed since it was found
            except OSError:
                kind = stat.S_IFMT(status.st_mode)
                status = self._root.stat(self.full_path(path), follow_symlinks=False)
                if stat.S_IFMT(status.st_mode) == kind:
                    raise

    def _pop(self, found: Found) -> None:
        level = self._levels.pop()
        _close(level.entries)
        if level.is_said:
            found.records.append(_LEAVE)

    def _say_levels(self, found: Found) -> None:
        """Say the directories that had nothing in them yet that is sent."""
        for level in self._levels:
            if not level.is_said:
                level.is_said = True
                found.records.append(
                    message_bytes(
                        wire.EnterRecord(
                            level.name, stat.S_IMODE(level.status.st_mode), level.status.st_mtime_ns
                        )
                    )
                )

    def _entry(self, found: Found, name: bytes, path: bytes, status: os.stat_result) -> None:
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            if self._chosen.enters(path):
                self._push(name, path, status)
                if not self._chosen.chooses:
                    self._say_levels(found)
        elif not self._chosen.takes_file(path):
            pass
        elif stat.S_ISREG(mode):
            self._file(found, name, path, status)
        elif stat.S_ISLNK(mode):
            target = self._root.readlink(self.full_path(path))
            self._say_levels(found)
            record = wire.LinkRecord(name, target, status.st_mtime_ns)
            found.records.append(message_bytes(record))
        else:
            self.unsupported += 1
            self._named_bytes += len(path)
            if (
                len(self.unsupported_names) < wire.MAX_UNSUPPORTED
                and self._named_bytes <= _NAMED_BYTES
            ):
                self.unsupported_names.append(path)

    def _file(self, found: Found, name: bytes, path: bytes, status: os.stat_result) -> None:
        data = None
        if not self._asks and status.st_size <= wire.SMALL_FILE_BYTES:
            status, data = read_small(self._root, self.full_path(path), follow=not path)
        self._say_levels(found)
        mode, mtime = stat.S_IMODE(status.st_mode), status.st_mtime_ns
        found.files += 1
        if data is None:
            size = status.st_size
            found.records.append(message_bytes(wire.AskRecord(name, size, mode, mtime)))
            found.questions.append(Question(self._asked, path, size))
            found.question_bytes += len(path)
            self._asked += 1
        else:
            size = len(data)
            sha256 = hashlib.sha256(data).digest()
            record = wire.FileRecord(name, size, mode, mtime, sha256)
            found.records.append(message_bytes(record))
            if data:
                found.records += (piece_head(size), data)
            found.moved += size
            if not path:
                self.sha256 = sha256
        found.size += size


_LEAVE: Final = message_bytes(wire.LeaveRecord())


def _listed(
    entries: Iterator[tuple[bytes, os.stat_result]],
) -> Iterator[tuple[bytes, os.stat_result]]:
    yield from list(entries)


def _close(entries: Iterator[tuple[bytes, os.stat_result]]) -> None:
    close = getattr(entries, "close", None)
    if close is not None:
        close()


def count(root: Root, top: bytes, chosen: Filter) -> Generator[tuple[int, int], None, None]:
    """Bytes and files of what a `Walk` would find; now and then what was counted until then."""
    status = root.stat(top)
    if not stat.S_ISDIR(status.st_mode):
        yield status.st_size, 1
        return
    size = files = seen = 0
    levels = [(b"", root.scan(top))]
    try:
        while levels:
            folder, entries = levels[-1]
            try:
                name, status = next(entries)
            except (StopIteration, FileNotFoundError, NotADirectoryError) as error:
                if len(levels) == 1 and isinstance(error, OSError):
                    raise
                levels.pop()
                continue
            path = folder + b"/" + name if folder else name
            if stat.S_ISDIR(status.st_mode):
                if chosen.enters(path):
                    entries = root.scan(os.path.join(top, path))
                    levels.append(
                        (path, _listed(entries) if len(levels) >= OPEN_SCANS else entries)
                    )
            elif (
                stat.S_ISREG(status.st_mode)
                and not OWN_NAMES.fullmatch(name)
                and chosen.takes_file(path)
            ):
                size += status.st_size
                files += 1
            seen += 1
            if seen % COUNTED_AT_ONCE == 0:
                yield size, files
    finally:
        for _, entries in levels:
            _close(entries)
    yield size, files
