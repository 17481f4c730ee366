"""Bytes that grow at one end and go at the other, copied as little as can be.

What comes in large pieces is kept as it came, if nobody can change it; what comes in crumbs is gathered.
Nobody holds much more memory than there are bytes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sandd.wire import Buffer

LARGE_BYTES: Final = 16 * 1024
"""From here on a piece is worth an object of its own, of some 100 bytes."""
CRUMB_BYTES: Final = 512
"""Up to here it costs less to copy twice than to make a view and let it go."""
GATHERED_BYTES: Final = 64 * 1024
"""Crumbs are gathered up to this; a read from here on returns what is in one piece."""


class ByteRing:
    """A run of bytes: appended to at its end, read anywhere, discarded from its front."""

    __slots__ = ("_pieces", "_skipped", "size")

    def __init__(self) -> None:
        self._pieces: deque[memoryview | bytearray] | None = None
        """None: there were none so far, as in most streams there never are; a deque takes 600 bytes."""
        self.size = 0
        """As `len`, for those who ask at every turn."""
        self._skipped = 0
        """Bytes of the first piece that are gone already; fewer than it has."""

    def __len__(self) -> int:
        return self.size

    def append(self, data: Buffer) -> None:
        """Add bytes at the end. A `bytes` object is kept and not copied, if it is large."""
        size = len(data)
        if not size:
            return
        pieces = self._pieces
        if pieces is None:
            pieces = self._pieces = deque()
        if size >= LARGE_BYTES:
            pieces.append(_unchanging(data))
        elif pieces and isinstance(last := pieces[-1], bytearray) and len(last) < GATHERED_BYTES:
            last += data
        else:
            pieces.append(bytearray(data))
        self.size += size

    def read(self, start: int, limit: int) -> Buffer:
        """Bytes from `start` on, counted from the front: at least one, if there are any, at most `limit`.

        Fewer than `limit` where what is large ends before, or begins.
        """
        position = start + self._skipped
        pieces = iter(self._pieces or ())
        for piece in pieces:
            if position < len(piece):
                break
            position -= len(piece)
        else:
            return b""
        if isinstance(piece, bytearray) and len(piece) - position <= CRUMB_BYTES:
            first: Buffer = bytes(piece[position : position + limit])
        else:
            first = _slice(piece, position, limit)
        if len(first) == limit or len(first) >= GATHERED_BYTES:
            return first
        parts, missing = [first], limit - len(first)
        for piece in pieces:
            if missing < len(piece) >= GATHERED_BYTES:
                break  # it goes by itself: a part of it would be a copy, and so would be a part of each behind it
            part = _slice(piece, 0, missing)
            parts.append(part)
            missing -= len(part)
            if not missing:
                break
        return b"".join(parts) if len(parts) > 1 else first

    def copy(self, count: int) -> bytes:
        """The first `count` bytes, or all there are."""
        parts: list[Buffer] = []
        missing = min(count, self.size)
        position = 0
        while missing:
            part = self.read(position, missing)
            parts.append(part)
            position += len(part)
            missing -= len(part)
        return b"".join(parts)

    def discard(self, count: int) -> None:
        """Let the first `count` bytes go; there are as many."""
        self.size -= count
        self._skipped += count
        while self._pieces and self._skipped >= len(self._pieces[0]):
            self._skipped -= len(self._pieces.popleft())


def _slice(piece: memoryview | bytearray, start: int, limit: int) -> Buffer:
    if isinstance(piece, memoryview):
        return piece[start : start + limit]
    with memoryview(piece) as view:  # none may stay: a bytearray with views of it can't grow
        return bytes(view[start : start + limit])


def _unchanging(data: Buffer) -> memoryview:
    """A view of the same bytes that nobody changes; of what holds much more memory, a copy."""
    if isinstance(data, memoryview):
        whole = data.obj
        if type(whole) is not bytes or len(whole) > 2 * len(data):
            data = bytes(data)
    return memoryview(data)
