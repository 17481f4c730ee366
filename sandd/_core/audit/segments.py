"""The log's files: lines are on the disk when they are said to be, and what a crash left is mended and said.

A directory holds *segments*, ``000001.jsonl`` and so on, and ``head``, the latest checkpoint. The first line of a
segment names the log, the number and the public key, and is chained to the last line of the segment before it, a
checkpoint. Everything here blocks, and is called by one thread at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sys
import time
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any, Final

from attrs import define, frozen

from sandd._core._errors import ConfigurationError
from sandd._core.audit.chain import BadLine, Chain, Position, read_line, stamped
from sandd._core.audit.escaping import canonical
from sandd._core.audit.records import Record, RecordType
from sandd._core.audit.redaction import without_given
from sandd._core.logs import get_logger
from sandd._core.state_directory import lock_directory, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from typing import Self

    from sandd._core.audit.keys import SigningKey
    from sandd._core.audit.redaction import Redactor

log = get_logger("audit")

HEAD_FILE: Final = "head"
"""In the log's directory: the latest checkpoint, and where it ends."""
SUFFIX: Final = ".jsonl"
CHECKPOINT_RECORDS: Final = 1000
"""Lines between two signatures at most: a signature costs as much as five lines."""
CHECKPOINT_SECONDS: Final = 10.0
"""The same in time: what was written since can be cut off without a trace."""
_BINARY: Final[int] = getattr(os, "O_BINARY", 0)
"""Windows would make two bytes of each newline."""
MAX_HEAD_BYTES: Final = 64 * 1024
"""Far more than what we write."""


@frozen
class Stamped:
    """A record, and when it was made."""

    record: Record
    at: float
    """Wall clock, in seconds since 1970: for people, who compare it with other systems'."""
    mono: float
    """A clock that nobody sets."""


@frozen
class Lines:
    """Lines that are to be written."""

    lines: list[bytes]
    before: Position
    """Where the chain stands if they can't be."""


@frozen
class Head:
    """What the file of that name says."""

    segment: str
    """Name of the file that the checkpoint is in."""
    end: int
    """Where it ends there, its newline included."""
    line: bytes
    """The checkpoint, without its newline."""

    @classmethod
    def read(cls, directory: Path) -> Head | None:
        """The head; None if there is none. BadLine if it says nothing, OSError if it can't be read."""
        try:
            with (directory / HEAD_FILE).open("rb") as file:
                content = file.read(MAX_HEAD_BYTES)
        except FileNotFoundError:
            return None
        return cls.parse(content)

    @classmethod
    def parse(cls, content: bytes) -> Head:
        """What the content of such a file says; BadLine if it says nothing."""
        try:
            said = json.loads(content)
            segment, end, line = said["segment"], said["end"], said["line"].encode("ascii")
            if not (type(segment) is str and type(end) is int and end > 0):
                raise ValueError("its fields are of other types")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadLine(f"the head says nothing: {error}") from error
        return cls(segment, end, line)

    @property
    def content(self) -> bytes:
        """What the file holds."""
        fields = {"segment": self.segment, "end": self.end, "line": self.line.decode("ascii")}
        return canonical(fields) + b"\n"


def segments_in(directory: Path) -> list[Path]:
    """The segments, the oldest first."""
    return sorted(
        path
        for path in directory.glob(f"*{SUFFIX}")
        if path.stem.isascii() and path.stem.isdecimal()
    )


@define(eq=False)
class SegmentedLog:
    """A log that is open for writing; by nobody else, as long as it is."""

    directory: Path
    _key: SigningKey
    _segment_bytes: int
    _chain: Chain
    _lock: IO[str]
    _id: str
    """Of the log: the same in all its segments."""
    _number: int = 0
    """Of the segment that is written to."""
    _file: int = -1
    _size: int = 0
    """Bytes of it that are whole lines, and safe."""
    _signed_seq: int = 0
    """The next number when the latest checkpoint was written."""
    _signed_at: float = 0.0
    _head: Head | None = None
    """What is to be written, if that has not been possible yet."""
    _broken: str | None = None
    """Why nothing can be written any more."""

    @classmethod
    def open(
        cls, directory: Path, key: SigningKey, redactor: Redactor, *, segment_bytes: int
    ) -> Self:
        """Go on with the log in the directory, or begin one.

        Raises:
            ConfigurationError: another program writes to it; or it doesn't end as its head says, so that
                somebody has changed it.
            OSError: the directory can't be used.
        """
        lock = lock_directory(directory)
        if lock is None:
            raise ConfigurationError(f"the audit log in {directory} is another controller's")
        opened = cls(
            directory,
            key,
            segment_bytes,
            Chain(key.sign, redactor),
            lock,
            secrets.token_hex(8),
        )
        try:
            opened._go_on()
        except BaseException:
            opened.let_go()
            raise
        return opened

    def __repr__(self) -> str:
        return f"<SegmentedLog {str(self.directory)!r} at {self._chain.position.seq}>"

    # -- what it is for

    def make_lines(self, records: Iterable[Stamped]) -> Lines:
        """The next lines, to be written before any others are made. Nothing of this blocks."""
        before = self._chain.position
        said = []
        for each in records:
            fields = each.record.fields
            if each.record.secrets:
                fields = without_given(fields, each.record.secrets)
            said.append(_stamped(fields, each.at, each.mono))
        return Lines(self._chain.add(said), before)

    def append(self, made: Lines, *, on_sync: Callable[[], object] = lambda: None) -> None:
        """Write them, all or none; they are on the disk when this returns.

        `on_sync` is called when all that is left is to wait for the disk.
        OSError: none is, and the log is as it was before.
        """
        if self._broken is not None:
            raise OSError(self._broken)
        self._write(made.lines, made.before, on_sync)

    def take_back(self, made: Lines) -> None:
        """They were not written, and no others were made since: the next ones stand in their place."""
        self._chain.position = made.before

    def keep_up(self) -> None:
        """What is due from time to time: a checkpoint, its copy, the next segment. OSError: it is still due."""
        if self._broken is not None:
            return
        unsigned = self._chain.position.seq - self._signed_seq
        now = time.monotonic()
        if unsigned >= CHECKPOINT_RECORDS or (
            unsigned and now - self._signed_at >= CHECKPOINT_SECONDS
        ):
            self.checkpoint()
        self._write_head()
        if self._size >= self._segment_bytes:
            self._rotate()

    def checkpoint(self) -> None:
        """Sign all that was written so far. OSError: nothing has changed."""
        if self._broken is not None or self._chain.position.seq == self._signed_seq:
            return
        before = self._chain.position
        line = self._chain.checkpoint(
            {"log": self._id}, ts=_shown(time.time()), mono=round(time.monotonic(), 6)
        )
        self._write([line], before)
        self._signed_seq = self._chain.position.seq
        self._signed_at = time.monotonic()
        self._head = Head(self._name, self._size, line)
        self._write_head()

    def close(self) -> None:
        """Sign what is left, and let others have it. OSError if the former can't be."""
        try:
            self.checkpoint()
        finally:
            self.let_go()

    # -- lines

    @property
    def _name(self) -> str:
        return f"{self._number:06d}{SUFFIX}"

    def _add_own(self, fields: dict[str, Any]) -> None:
        """A line about the log itself."""
        before = self._chain.position
        self._write(self._chain.add([_stamped(fields, time.time(), time.monotonic())]), before)

    def _write(
        self, lines: list[bytes], before: Position, on_sync: Callable[[], object] = lambda: None
    ) -> None:
        """Append the lines, durably; if that fails the chain stands at `before` again."""
        data = memoryview(b"\n".join([*lines, b""]))
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
            on_sync()
            _sync(self._file)
        except OSError as error:
            self._chain.position = before
            self._cut_off(error)
            raise
        self._size += len(data)

    def _cut_off(self, error: OSError) -> None:
        """The file is as it was before lines that could not be written, or is given up."""
        try:
            # All before it was safe, so whatever the disk has of this is no loss.
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
        except OSError:
            self._broken = f"the audit log can't be written since {error}, nor be mended"

    # -- files

    def _go_on(self) -> None:
        segments = segments_in(self.directory)
        try:
            head = Head.read(self.directory)
        except BadLine as error:
            raise self._damaged(str(error)) from error
        if not segments:
            if head is not None:
                raise self._damaged("its files are gone, and its head is there")
            self._begin(1)
            return
        self._number = int(segments[-1].stem)
        self._reopen(segments, head)

    def _damaged(self, how: str) -> ConfigurationError:
        return ConfigurationError(
            f"the audit log in {self.directory} was changed by somebody: {how}. 'sandd audit verify "
            f"{self.directory}' says more; to begin another log, move that directory away"
        )

    def _reopen(self, segments: list[Path], head: Head | None) -> None:
        """Look at what was written since the latest checkpoint, and at nothing before it."""
        last = segments[-1]
        self._file = os.open(last, os.O_RDWR | _BINARY)
        start = 0
        if head is not None:
            self._check_head(segments, head)
            checkpoint = read_line(head.line)
            self._id = str(checkpoint.get("log", self._id))
            self._chain.position = Position(
                checkpoint["seq"] + 1, hashlib.sha256(head.line).hexdigest()
            )
            self._signed_seq = self._chain.position.seq
            if head.segment == last.name:
                start = head.end
        self._signed_at = time.monotonic()
        end = self._size = self._read_from(start)
        # A log of which only the first lines have been written is all that may have none.
        if head is None and self._chain.position.seq > 3:
            raise self._damaged("its head is gone")
        torn = os.fstat(self._file).st_size - end
        os.lseek(self._file, end, os.SEEK_SET)
        aside = self._mend(last, end) if torn else ""
        if end == 0:
            self._write_header()
        if torn:
            self._add_own(
                {
                    "type": RecordType.REPAIR.value,
                    "outcome": "mended",
                    "reason": f"a run ended in the middle of a line: {torn} bytes behind the last whole one were "
                    f"set aside in {aside}",
                }
            )
            log.warning("audit_log_mended", path=str(last), bytes=torn)
        if head is None:
            self.checkpoint()

    def _check_head(self, segments: list[Path], head: Head) -> None:
        """The checkpoint stands where the head says, and is ours."""
        names = [path.name for path in segments]
        if head.segment not in names[-2:]:
            raise self._damaged(f"its head is in {head.segment}, and that is not its newest file")
        path = segments[names.index(head.segment)]
        with path.open("rb") as file:
            file.seek(max(0, head.end - len(head.line) - 1))
            if file.read(len(head.line) + 1) != head.line + b"\n":
                raise self._damaged(
                    f"{path.name} doesn't have the checkpoint that its head is a copy of"
                )

    def _read_from(self, start: int) -> int:
        """Follow the chain to its last whole line; where that ends. What follows is torn."""
        position = start
        with open(os.dup(self._file), "rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    fields = read_line(line[:-1])
                except BadLine:
                    break
                place = self._chain.position
                if (fields["seq"], fields["prev"]) != (place.seq, place.prev):
                    break
                self._chain.position = place.after(line[:-1])
                position += len(line)
                if fields["type"] == RecordType.SEGMENT.value:
                    self._id = str(fields.get("log", self._id))
        return position

    def _mend(self, path: Path, end: int) -> str:
        """Put what is torn aside, for whoever wants to look at it, and cut it off; the name of the file it is in."""
        os.lseek(self._file, end, os.SEEK_SET)
        aside = path.with_name(f"{path.stem}-{end}.torn")
        with open(os.dup(self._file), "rb") as file:
            replace_file(aside, file.read())
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        return aside.name

    def _begin(self, number: int) -> None:
        """Begin the segment of that number. OSError: none was begun."""
        path = self.directory / f"{number:06d}{SUFFIX}"
        before = (self._number, self._file, self._size, self._chain.position)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
        self._number, self._file, self._size = number, descriptor, 0
        try:
            self._write_header()
            _sync_directory(self.directory)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            self._number, self._file, self._size, self._chain.position = before
            raise
        if before[1] >= 0:
            os.close(before[1])
        else:
            self.checkpoint()

    def _write_header(self) -> None:
        self._add_own(
            {
                "type": RecordType.SEGMENT.value,
                "log": self._id,
                "segment": self._number,
                "key": str(self._key.public),
            }
        )

    def _rotate(self) -> None:
        self.checkpoint()
        self._write_head()
        self._begin(self._number + 1)

    def _write_head(self) -> None:
        head, self._head = self._head, None
        if head is None:
            return
        try:
            replace_file(self.directory / HEAD_FILE, head.content)
        except OSError:
            self._head = head
            raise

    def let_go(self) -> None:
        """Let others have it, as if this program had been killed."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1
        self._broken = "the audit log is closed"
        self._lock.close()


def _stamped(fields: dict[str, Any], at: float, mono: float) -> dict[str, Any]:
    return stamped(fields, ts=_shown(at), mono=round(mono, 6))


def _shown(at: float) -> str:
    """UTC, to the microsecond, in a form in which texts sort as times do."""
    second, microseconds = divmod(round(at * 1_000_000), 1_000_000)
    return f"{_shown_second(second)}.{microseconds:06d}Z"


@lru_cache(maxsize=2)
def _shown_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _sync(descriptor: int) -> None:
    if sys.platform == "linux":
        os.fdatasync(descriptor)  # the size is data, too, as far as it is needed to find that
    else:
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    if sys.platform != "win32":  # directories can't be opened there
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
