"""The records of a transfer as bytes, and bytes of any cut as records.

A piece of a file is passed on as it comes, a part of what was received, and never gathered: so it is
neither copied nor does it have to be held.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from sandd import wire
from sandd._core._errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD: Final = struct.Struct("!BI")
_MESSAGE: Final = 1
_PIECE: Final = 2
PIECE_BYTES: Final = wire.MAX_DATA_BYTES - 4 * wire.KIB
"""Of a large file in one record, which is one frame then: nobody on its way puts it together or takes it apart. Whole
blocks of a file system, so that the receiver finds those which are all zeros."""


def message_bytes(record: wire.Record) -> bytes:
    """A record that is a message."""
    payload = wire.encode_record(record)
    return _HEAD.pack(_MESSAGE, len(payload)) + payload


def piece_head(size: int) -> bytes:
    """What comes before a piece of a file of so many bytes, of which there may be `wire.MAX_PIECE_BYTES`."""
    return _HEAD.pack(_PIECE, size)


def piece_record(piece: wire.Buffer) -> bytes:
    """The same with the piece."""
    return b"".join((piece_head(len(piece)), piece))


class RecordReader:
    """Takes a stream in pieces of any size, and says what is in it."""

    def __init__(self) -> None:
        self._held = bytearray()
        """A message, or the head of a record, whose rest has not come."""
        self._piece_left = 0
        """Bytes of a file that are still to come of its piece."""

    def feed(self, chunk: wire.Buffer) -> Iterator[wire.Record | wire.Unknown | memoryview]:
        """The messages that are complete now, and what there is of pieces; RemoteProtocolError for all else.

        The pieces borrow the chunk's memory. All of it must be iterated.
        """
        view = memoryview(chunk)
        position, size = 0, len(view)
        while position < size:
            if self._piece_left:
                piece = view[position : position + self._piece_left]
                self._piece_left -= len(piece)
                position += len(piece)
                yield piece
            elif self._held or size - position < _HEAD.size:
                position += self._hold(view[position:])
                if len(self._held) >= _HEAD.size and not self._missing():
                    message, self._held = self._held, bytearray()
                    kind, _ = _HEAD.unpack_from(message)
                    if kind == _MESSAGE:
                        yield wire.decode_record(memoryview(message)[_HEAD.size :])
                    else:
                        _, self._piece_left = _HEAD.unpack_from(message)
            else:
                kind, length = _checked(*_HEAD.unpack_from(view, position))
                end = position + _HEAD.size + length
                if kind == _PIECE:
                    self._piece_left = length
                    position += _HEAD.size
                elif end <= size:
                    yield wire.decode_record(view[position + _HEAD.size : end])
                    position = end
                else:
                    self._held += view[position:]
                    position = size

    def _hold(self, view: memoryview) -> int:
        """Keep as much as belongs to the record that is held; how much that was."""
        taken = 0
        while taken < len(view) and (missing := self._missing()):
            part = view[taken : taken + missing]
            self._held += part
            taken += len(part)
        return taken

    def _missing(self) -> int:
        """How many bytes the record that is held needs before more can be said of it."""
        if len(self._held) < _HEAD.size:
            return _HEAD.size - len(self._held)
        kind, length = _checked(*_HEAD.unpack_from(self._held))
        return _HEAD.size + length - len(self._held) if kind == _MESSAGE else 0


def _checked(kind: int, length: int) -> tuple[int, int]:
    if kind == _MESSAGE:
        bound = wire.MAX_RECORD_BYTES
    elif kind == _PIECE:
        bound = wire.MAX_PIECE_BYTES
    else:
        raise RemoteProtocolError(f"unknown kind of record {kind}")
    if length > bound:
        raise RemoteProtocolError(f"record of {length} bytes; at most {bound} are allowed")
    return kind, length
