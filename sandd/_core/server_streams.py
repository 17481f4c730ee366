"""Streams of the trio thread for code that doesn't use trio: every call blocks its thread, and no other.

One thread at a time reads, one at a time writes; others wait for their turn. An interrupted call loses nothing
that came: the next one has it (`KeptPieces`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sandd._core.arguments import encode_data, patience
from sandd._core.kept_pieces import KeptPieces

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, Self

    from sandd._core.bridge import TrioThread
    from sandd._core.job_streams import InputStream, OutputStream
    from sandd._core.kept_pieces import Piece


class Reading:
    """Blocking reads of a stream that is received there."""

    def __init__(
        self,
        thread: TrioThread[Any],
        receive_some: Callable[[int | None], Awaitable[bytes]],
        is_ready: Callable[[], bool],
        offset: Callable[[], int],
    ) -> None:
        """`is_ready`: it would not wait; `offset`: how far it has come."""
        self._thread = thread
        self._is_ready = is_ready
        self._offset = offset
        self.kept = KeptPieces(receive_some, offset)

    @property
    def offset(self) -> int:
        """How many bytes the caller has, or will never have."""
        return self._offset() - self.kept.size

    def read(self, timeout: float | None, max_bytes: int | None) -> bytes | None:
        """As soon as there is something, all of it; b"" at the end, None if the time ran out."""
        limit = patience(timeout)

        async def receive() -> Piece | None:
            if not self.kept.is_busy and (self.kept.size or self._is_ready()):
                return await self.kept.take(max_bytes)  # even if there is no time
            with trio.move_on_after(limit):
                return await self.kept.take(max_bytes)
            return None

        piece = self._thread.run(receive, unwanted=self._put_back)
        if piece is not None and piece.gap is not None:
            raise piece.gap
        return None if piece is None else piece.data

    def _put_back(self, piece: Piece | None) -> None:
        if piece is not None:
            self.kept.put_back(piece)


class Writing:
    """Blocking writes to a stream that is sent there."""

    def __init__(
        self, thread: TrioThread[Any], send_all: Callable[[bytes], Awaitable[None]]
    ) -> None:
        self._thread = thread
        self._send_all = send_all
        # A call that was interrupted goes on in the background for a moment, when the next one may be there.
        self._turn = trio.Lock()

    def write(self, data: bytes | str) -> None:
        """All of it, a text as UTF-8; errors as the stream's."""
        self._thread.run(self._send, encode_data("data", data))

    async def _send(self, data: bytes) -> None:
        async with self._turn:
            await self._send_all(data)


class ServerInput:
    """Standard input of a `ServerProcess`."""

    def __init__(self, thread: TrioThread[Any], stream: InputStream) -> None:
        self._thread = thread
        self._stream = stream
        self._writing = Writing(thread, self._send)
        self._left = False
        """The block of its process was left."""

    def write(self, data: bytes | str) -> None:
        """Send all of `data`, a text as UTF-8; returns when it is on its way within the bounds of the buffers.

        A command that doesn't read makes this wait, as a pipe does. Interrupted, a part may have been sent.

        Raises:
            trio.BrokenResourceError: the process has ended.
            trio.ClosedResourceError: this was closed before, its process was, or the client was.
        """
        self._writing.write(data)

    def close(self) -> None:
        """End of file for the process. Idempotent."""
        if not self._left:
            self._thread.run(self._stream.aclose)

    async def _send(self, data: bytes) -> None:
        if self._left:
            raise trio.ClosedResourceError("this process was closed")
        await self._stream.send_all(data)


class ServerOutput:
    """Standard output, or error, of a `ServerProcess`; an iterator over what it writes, in pieces of bytes."""

    def __init__(
        self, thread: TrioThread[Any], stream: OutputStream, offset: Callable[[], int]
    ) -> None:
        self._thread = thread
        self._stream = stream
        self._reading = Reading(thread, stream.receive_some, lambda: stream.is_ready, offset)

    def read(self, timeout: float | None = None, max_bytes: int | None = None) -> bytes | None:
        """What comes next: as soon as there is something, and all of it, in pieces that end anywhere.

        Interrupting it, by Ctrl-C say, loses nothing.

        Args:
            timeout: seconds to wait for something; 0 doesn't wait; None waits for as long as it takes.
            max_bytes: at most so many; None: 64 KiB.

        Returns:
            The bytes; b"" at the end; None if the time ran out.

        Raises:
            OutputGap: bytes are gone, because the job was told to drop what nobody fetched, or this
                reader only looks on and was overtaken, or asked for what is not kept any more. Said once;
                reading goes on behind them.
            trio.BrokenResourceError: the job was lost before its output ended.
            trio.ClosedResourceError: this was closed before, its process was, or the client was.
        """
        return self._reading.read(timeout, max_bytes)

    def __iter__(self) -> Self:
        """Itself."""
        return self

    def __next__(self) -> bytes:
        """What comes next, as by `read`."""
        data = self.read()
        if not data:
            raise StopIteration
        return data

    def close(self) -> None:
        """Stop reading; what the process writes from now on is thrown away. Idempotent."""
        self._thread.run(self._stream.aclose)

    def _leave(self, *, discard: bool) -> None:
        """In the trio thread: the block of its process is left; without `discard` what nobody has read stays."""
        self._reading.kept.close()
        self._stream.close(discard=discard)
