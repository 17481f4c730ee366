"""Whether an audit log is what was written: the first place that isn't, and what was done there.

A chain that is whole says that no line was changed, removed, put in or moved. That none is missing at the end only the
signed head says, and whose signature it is only a public key from elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from attrs import define, field, frozen

from sandd._core.audit.chain import (
    NOTHING_BEFORE,
    BadLine,
    Position,
    read_line,
    signature_of,
    signed_part,
)
from sandd._core.audit.keys import PublicKey
from sandd._core.audit.records import RecordType
from sandd._core.audit.segments import Head, segments_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
"""Of one line: a command line of a megabyte, each byte of it as six characters, and some."""


@frozen
class Line:
    """One line, and where it stands."""

    segment: str
    number: int
    """In its file, from 1."""
    text: bytes
    """Without its newline."""
    is_whole: bool = True
    """It has one."""

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.segment}:{self.number}"


@frozen(kw_only=True)
class Verdict:
    """What was found."""

    fault: str | None = None
    """The first place that isn't as it was written, and what was done there; None: all is."""
    place: str | None = None
    """Of the fault: FILE:LINE."""
    lines: int = 0
    """Looked at, up to the fault."""
    segments: int = 0
    checkpoints: int = 0
    """Signatures that hold."""
    unsigned: int = 0
    """Lines behind the last signature: they may have been cut off without a trace, and soon can't any more."""
    key: str | None = None
    """Public key that the signatures were checked by."""
    key_is_given: bool = False
    """It came from elsewhere, and not from the log, where whoever changes that could have put his own."""


def verify_log(
    directory: Path,
    public_key: PublicKey | None = None,
    *,
    first_segment: int = 1,
    head: Head | None = None,
) -> Verdict:
    """Look at all of a log.

    Args:
        directory: where its files are.
        public_key: whose log it is; None: that which its first line names.
        first_segment: earlier ones were moved away, and may be missing.
        head: an earlier head that was kept elsewhere; it, too, must be in the log.

    Raises:
        OSError: it can't be read.
    """
    return _Reader(directory, public_key, first_segment, head).read()


@define(eq=False)
class _Reader:
    """One look at a log."""

    directory: Path
    key: PublicKey | None
    first_segment: int
    kept_head: Head | None
    position: Position = field(factory=Position)
    lines: int = 0
    segments: int = 0
    checkpoints: int = 0
    signed: int = 0
    """Lines up to the last signature."""
    sought: dict[bytes, str] = field(factory=dict)
    """Checkpoints that have to be there, by line, and what is wrong if they aren't."""
    given: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.given = self.key is not None

    def read(self) -> Verdict:
        """All of it."""
        try:
            paths = segments_in(self.directory)
            if not paths:
                raise _Fault(str(self.directory), "there is no audit log here")
            self._expect_heads()
            before: Line | None = None
            for number, path in enumerate(paths, self.first_segment):
                if path.stem != f"{number:06d}":
                    raise _Fault(path.name, f"segment {number} is missing before it")
                before = self._read_segment(path, number, before)
            for what in self.sought.values():
                raise _Fault(paths[-1].name, what)
        except _Fault as fault:
            return self._verdict(fault=fault.what, place=fault.place)
        return self._verdict()

    def _verdict(self, **found: str) -> Verdict:
        return Verdict(
            lines=self.lines,
            segments=self.segments,
            checkpoints=self.checkpoints,
            unsigned=self.lines - self.signed,
            key=None if self.key is None else str(self.key),
            key_is_given=self.given,
            **found,
        )

    def _expect_heads(self) -> None:
        try:
            head = Head.read(self.directory)
        except BadLine as error:
            raise _Fault("head", str(error)) from error
        if head is None:
            raise _Fault("head", "it is gone, so that lines may have been cut off at the end")
        for each, whose in ((head, "its head"), (self.kept_head, "the head that was kept")):
            if each is None:
                continue
            try:
                seq = read_line(each.line)["seq"]
            except BadLine as error:
                raise _Fault("head", f"{whose} is no checkpoint: {error}") from error
            self.sought[each.line] = (
                f"lines were cut off at the end, or changed: {whose} signs record {seq}, which isn't there"
            )

    def _read_segment(self, path: Path, number: int, before: Line | None) -> Line | None:
        lines = list_ahead(read_lines(path))
        for line, following in lines:
            fields = self._read_line(line)
            if line.number == 1:
                self._begin_segment(line, fields, number)
            self._follow(line, fields, before, following)
            if fields["type"] == RecordType.CHECKPOINT.value:
                self._check_signature(line, fields)
            self.position = self.position.after(line.text)
            self.sought.pop(line.text, None)
            before = line
        self.segments += 1
        return before

    def _read_line(self, line: Line) -> dict[str, Any]:
        if not line.is_whole:
            raise _Fault(
                line.place, "it is torn: the controller ended in the middle of it, or it was cut"
            )
        try:
            return read_line(line.text)
        except BadLine as error:
            raise _Fault(line.place, f"it was edited: {error}") from error

    def _begin_segment(self, line: Line, fields: dict[str, Any], number: int) -> None:
        if fields["type"] != RecordType.SEGMENT.value or fields.get("segment") != number:
            raise _Fault(line.place, f"it isn't the first line of segment {number}")
        named = str(fields.get("key"))
        if self.key is None:
            try:
                self.key = PublicKey.parse(named)
            except ValueError as error:
                raise _Fault(line.place, f"it was edited: {error}") from error
        elif named != str(self.key):
            raise _Fault(line.place, f"it is signed by another key: {named}")
        if not self.lines and number == self.first_segment > 1:
            self.position = Position(fields["seq"], fields["prev"])  # whatever went before

    def _follow(
        self, line: Line, fields: dict[str, Any], before: Line | None, following: Line | None
    ) -> None:
        """The line is the one that has to stand here."""
        seq, expected = fields["seq"], self.position.seq
        if seq != expected:
            raise _Fault(line.place, self._misplaced(seq, expected, following))
        if fields["prev"] != self.position.prev:
            if before is None or self.position.prev == NOTHING_BEFORE:
                raise _Fault(line.place, "lines before it were deleted")
            raise _Fault(
                before.place, f"it was edited, or replaced: record {expected} follows another one"
            )
        self.lines += 1

    def _misplaced(self, seq: int, expected: int, following: Line | None) -> str:
        if seq > expected:
            try:
                next_seq = None if following is None else read_line(following.text)["seq"]
            except BadLine:
                next_seq = None
            if next_seq == expected:
                return f"it was swapped: record {seq} stands here, and {expected} behind it"
            missing = (
                f"record {expected}" if seq == expected + 1 else f"records {expected} to {seq - 1}"
            )
            return f"lines were deleted before it: {missing}"
        return f"it was put in, or repeated: record {seq}, where {expected} has to stand"

    def _check_signature(self, line: Line, fields: dict[str, Any]) -> None:
        assert self.key is not None  # the segment's first line has named one
        try:
            holds = self.key.has_signed(signed_part(fields), signature_of(fields))
        except BadLine as error:
            raise _Fault(line.place, f"it was edited: {error}") from error
        if not holds:
            raise _Fault(
                line.place,
                "its signature doesn't hold: it, or lines since the checkpoint before it, were edited",
            )
        self.checkpoints += 1
        self.signed = self.lines


class _Fault(Exception):
    """The first place that isn't as it was written."""

    def __init__(self, place: str, what: str) -> None:
        super().__init__(place, what)
        self.place = place
        self.what = what


def read_lines(path: Path) -> Iterator[Line]:
    """A segment's lines, in order. OSError if it can't be read."""
    with path.open("rb") as file:
        number = 0
        while text := file.readline(MAX_LINE_BYTES):
            number += 1
            yield Line(path.name, number, text.removesuffix(b"\n"), text.endswith(b"\n"))


def list_ahead(lines: Iterator[Line]) -> Iterator[tuple[Line, Line | None]]:
    """Each with the one that follows it."""
    current = next(lines, None)
    while current is not None:
        following = next(lines, None)
        yield current, following
        current = following
