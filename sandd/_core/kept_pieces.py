"""What was received for a call that nobody waits for any more: the next one gets it.

A call into the trio thread may have received something when whoever called it is cancelled or
interrupted. `KeptPieces.put_back` is what such a call has as `unwanted` (`TrioThread.call`), and so no byte
is lost, and none comes out of its order. All of this is in the trio thread.
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, Generic, TypeVar

import trio
from attrs import field, frozen

from sandd._core._errors import OutputGap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

T = TypeVar("T")


@frozen
class Piece:
    """Received from a stream."""

    end: int
    """Offset behind it."""
    data: bytes = field(eq=False)
    """b"" at the stream's end."""
    gap: OutputGap | None = field(default=None, eq=False)
    """In place of data: these are missing."""


class KeptPieces:
    """Takes from a stream what is next, or what was put back; one call at a time, and others wait."""

    def __init__(
        self,
        receive: Callable[[int | None], Awaitable[bytes]],
        offset: Callable[[], int] | None = None,
    ) -> None:
        """`offset` is how far `receive` has come, where that isn't what it has given in all."""
        self._receive = receive
        self._offset = offset
        self._received = 0
        self._pieces: list[Piece] = []
        self._closed = False
        # A call that was cancelled goes on in the background for a moment, when the next one may be there.
        self._turn = trio.Lock()

    @property
    def is_busy(self) -> bool:
        """Somebody is receiving."""
        return self._turn.locked()

    @property
    def size(self) -> int:
        """How many bytes have been put back."""
        return sum(len(piece.data) for piece in self._pieces)

    async def take(self, max_bytes: int | None = None) -> Piece:
        """What comes next, at most `max_bytes`; errors as the stream's, but that a gap is a piece."""
        async with self._turn:
            if self._pieces and (max_bytes is None or max_bytes > 0):
                piece = self._pieces.pop(0)
                beyond = piece.data[max_bytes:] if max_bytes is not None else b""
                if beyond:
                    self.put_back(Piece(piece.end, beyond))
                    piece = Piece(piece.end - len(beyond), piece.data[:max_bytes])
                return piece
            try:
                data = await self._receive(max_bytes)
            except OutputGap as gap:
                return Piece(gap.end, b"", gap)
            self._received += len(data)
            return Piece(self._received if self._offset is None else self._offset(), data)

    def put_back(self, piece: Piece) -> None:
        """Nobody has got this one."""
        if not self._closed and (piece.data or piece.gap is not None):
            insort(self._pieces, piece, key=lambda each: each.end)

    def close(self) -> None:
        """Nobody wants them any more."""
        self._closed = True
        self._pieces.clear()


class KeptItems(Generic[T]):
    """Takes from an iterator what is next, or what was put back; one call at a time, and others wait."""

    def __init__(self, iterator: AsyncIterator[T]) -> None:
        self._iterator = iterator
        self._items: list[T] = []
        self._turn = trio.Lock()

    async def take(self) -> T:
        """The next item; StopAsyncIteration at the end."""
        async with self._turn:
            if self._items:
                return self._items.pop(0)
            return await anext(self._iterator)

    def put_back(self, item: T) -> None:
        """Nobody has got this one."""
        self._items.insert(0, item)
