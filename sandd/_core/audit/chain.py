"""Each line names the hash of the one before it, and now and then one is signed: what was changed shows.

Pure. ``prev`` is the SHA-256 of the former line without its newline, so no line can be edited, removed, put in or moved
without the next one telling. A tail that is cut off leaves a chain that is whole; hence the *head*: a copy, kept beside
the files and better elsewhere, too, of the latest checkpoint, a line with a signature.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field, frozen

from sandd._core.audit.escaping import canonical
from sandd._core.audit.records import VERSION, RecordType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandd._core.audit.redaction import Redactor

NOTHING_BEFORE: Final = "0" * 64
"""``prev`` of the very first line."""
_DOMAIN: Final = b"sandd audit checkpoint 1\0"
"""Ahead of what is signed, so that the signature means nothing anywhere else."""


class BadLine(Exception):
    """A line that is none of an audit log's; its text says why."""


@frozen
class Position:
    """Where a chain stands: what its next line has to say."""

    seq: int = 1
    prev: str = NOTHING_BEFORE

    def after(self, line: bytes) -> Position:
        """Behind that line."""
        return Position(self.seq + 1, hashlib.sha256(line).hexdigest())


@define
class Chain:
    """Makes lines of what is to be written."""

    sign: Callable[[bytes], bytes]
    redactor: Redactor
    """What must not be in a line."""
    position: Position = field(factory=Position)

    def add(self, each: Sequence[dict[str, Any]]) -> list[bytes]:
        """The next lines, one for the `stamped` fields of each, without their newlines."""
        lines, position = self._chained(each, canonical)
        if self.redactor.is_in(b"\n".join(lines)):
            lines, position = self._chained(each, self.redactor.line)
        self.position = position
        return lines

    def checkpoint(self, fields: dict[str, Any], *, ts: str, mono: float) -> bytes:
        """The next line, a signature of itself, and so of all before it."""
        place = self.position
        said = {**fields, "type": RecordType.CHECKPOINT.value, "seq": place.seq, "prev": place.prev}
        said = stamped(said, ts=ts, mono=mono)
        signature = self.sign(signed_part(said))
        line = canonical(said | {"signature": base64.b64encode(signature).decode("ascii")})
        self.position = place.after(line)
        return line

    def _chained(
        self, each: Sequence[dict[str, Any]], write: Callable[[dict[str, Any]], bytes]
    ) -> tuple[list[bytes], Position]:
        seq, prev = self.position.seq, self.position.prev
        lines = []
        for fields in each:
            fields["seq"], fields["prev"] = seq, prev
            line = write(fields)
            seq, prev = seq + 1, hashlib.sha256(line).hexdigest()
            lines.append(line)
        return lines, Position(seq, prev)


def stamped(fields: dict[str, Any], *, ts: str, mono: float) -> dict[str, Any]:
    """These fields, with when it was."""
    fields["v"], fields["ts"], fields["mono"] = VERSION, ts, mono
    return fields


def signed_part(fields: dict[str, Any]) -> bytes:
    """What the signature of a checkpoint is made of: the line without it."""
    return _DOMAIN + canonical({name: each for name, each in fields.items() if name != "signature"})


def signature_of(fields: dict[str, Any]) -> bytes:
    """The signature in a checkpoint; BadLine if there is none."""
    try:
        return base64.b64decode(fields["signature"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise BadLine("it is a checkpoint without a signature") from error


def read_line(line: bytes) -> dict[str, Any]:
    """What a line says; BadLine if it is none."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadLine("it is no JSON") from error
    if not isinstance(fields, dict):
        raise BadLine("it is no record")
    if fields.get("v") != VERSION:
        raise BadLine(f"its format is {fields.get('v')!r:.20}, and not {VERSION}")
    for name, kind in (("seq", int), ("prev", str), ("type", str)):
        if type(fields.get(name)) is not kind:
            raise BadLine(f"it has no {name}")
    return fields
