"""Streams and iterators of the trio thread, as anyio has them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
import anyio.abc
import trio

from sandd._core.aio.calls import call
from sandd._core.kept_pieces import KeptItems, KeptPieces

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandd._core.bridge import TrioThread
    from sandd._core.job_streams import OutputStream
    from sandd._core.port_streams import RemoteStream as TrioRemoteStream

T = TypeVar("T")
U = TypeVar("U")

RECEIVE_BYTES = 65536
"""What `receive` gives at most, where the caller names no limit: as with all streams of anyio."""


class Sending:
    """Sends to a stream of the trio thread; one task at a time."""

    def __init__(
        self, thread: TrioThread[Any], send_all: Callable[[bytes], Awaitable[None]]
    ) -> None:
        self._thread = thread
        self._send_all = send_all
        self._guard = anyio.ResourceGuard("writing to")
        # A call that was cancelled goes on in the background for a moment, when the next one may be there.
        self._turn = trio.Lock()

    async def send(self, data: bytes) -> None:
        """Send all of it, or fail as the stream does."""
        with self._guard:
            await call(self._thread, partial(self._send, bytes(data)))

    async def _send(self, data: bytes) -> None:
        async with self._turn:
            await self._send_all(data)


class Receiving:
    """Receives from a stream of the trio thread; one task at a time. Cancelled, it loses nothing."""

    def __init__(
        self,
        thread: TrioThread[Any],
        receive_some: Callable[[int | None], Awaitable[bytes]],
        offset: Callable[[], int] | None = None,
    ) -> None:
        self._thread = thread
        self._kept = KeptPieces(receive_some, offset)
        self._guard = anyio.ResourceGuard("reading from")
        self.offset = 0 if offset is None else offset()
        """How much of it the caller has, or will never have."""

    async def receive(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        """What comes next; anyio.EndOfStream at the end."""
        with self._guard:
            take = partial(self._kept.take, max_bytes)
            piece = await call(self._thread, take, unwanted=self._kept.put_back)
        self.offset = piece.end
        if piece.gap is not None:
            raise piece.gap
        if not piece.data:
            raise anyio.EndOfStream
        return piece.data


async def close(thread: TrioThread[Any], aclose: Callable[[], Awaitable[object]]) -> None:
    """Close something there, which a controller that is closed has done already."""
    with contextlib.suppress(anyio.ClosedResourceError):
        await call(thread, aclose, although_cancelled=True)


class SendStream(anyio.abc.ByteSendStream):
    """A process' standard input."""

    def __init__(self, thread: TrioThread[Any], stream: trio.abc.SendStream) -> None:
        self._thread = thread
        self._stream = stream
        self._sending = Sending(thread, stream.send_all)

    async def send(self, item: bytes) -> None:
        """Send all of it; returns when it is on its way within the bounds of the buffers.

        Raises:
            anyio.BrokenResourceError: the process has ended.
            anyio.ClosedResourceError: this stream was closed before.
        """
        await self._sending.send(item)

    async def aclose(self) -> None:
        """End of file for the process; idempotent."""
        await close(self._thread, self._stream.aclose)


class ReceiveStream(anyio.abc.ByteReceiveStream):
    """A process' standard output, or error."""

    def __init__(
        self, thread: TrioThread[Any], stream: OutputStream, offset: Callable[[], int]
    ) -> None:
        self._thread = thread
        self._stream = stream
        self._receiving = Receiving(thread, stream.receive_some, offset)

    async def receive(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        """The next bytes, at most `max_bytes`. Cancelling it loses nothing.

        Raises:
            anyio.EndOfStream: that was all.
            OutputGap: bytes are gone, because the job was told to drop what nobody fetched, or
                this reader only looks on and was overtaken, or asked for what is not kept any
                more. Said once; reading goes on behind them.
            anyio.BrokenResourceError: the job was lost before its output ended.
            anyio.ClosedResourceError: this stream was closed before.
        """
        return await self._receiving.receive(max_bytes)

    async def aclose(self) -> None:
        """Stop reading; what the process writes from now on is thrown away."""
        await close(self._thread, self._stream.aclose)


class RemoteStream(anyio.abc.ByteStream):
    """A connection on the daemon's side; made by `Daemon.open_tcp_stream` and `Daemon.open_unix_stream`.

    It survives every cut between the controller and the daemon. Either direction ends by itself. One task may
    send and one may receive at a time.
    """

    def __init__(self, thread: TrioThread[Any], stream: TrioRemoteStream) -> None:
        self._thread = thread
        self._stream = stream
        self._sending = Sending(thread, stream.send_all)
        self._receiving = Receiving(thread, stream.receive_some)

    def __repr__(self) -> str:
        return repr(self._stream).replace("<sandd.", "<sandd.aio.", 1)

    async def send(self, item: bytes) -> None:
        """Send all of it; returns when it is on its way within the bounds of the buffers.

        Raises:
            anyio.BrokenResourceError: the connection has ended or broke, or the daemon was lost; its cause
                says how it broke.
            anyio.ClosedResourceError: this stream was closed, or `send_eof` was called before.
        """
        await self._sending.send(item)

    async def send_eof(self) -> None:
        """Tell the peer that nothing more will be sent; receiving goes on. Idempotent."""
        await call(self._thread, self._stream.send_eof)

    async def receive(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        """The next bytes, at most `max_bytes`. Cancelling it loses nothing.

        Raises:
            anyio.EndOfStream: the peer has said all.
            anyio.BrokenResourceError: the connection broke, or the daemon was lost, behind the bytes that came
                before; its cause says how.
            anyio.ClosedResourceError: this stream was closed before.
        """
        return await self._receiving.receive(max_bytes)

    async def aclose(self) -> None:
        """Close both directions. Returns when what was sent before has reached the daemon, which delivers it.

        It waits for as long as that gets any further, and 10 seconds while it doesn't, as when the daemon
        is away. What then is left is lost, and the peer told so: its connection is reset. So it is
        when this is cancelled. Idempotent.
        """
        await close(self._thread, self._stream.aclose)


class Items(AsyncIterator[U], Generic[T, U]):
    """An iterator of the trio thread. A step that is cancelled loses nothing."""

    def __init__(
        self, thread: TrioThread[Any], iterator: AsyncIterator[T], wrap: Callable[[T], U]
    ) -> None:
        self._thread = thread
        self._kept = KeptItems(iterator)
        self._wrap = wrap

    async def __anext__(self) -> U:
        """The next one."""
        return self._wrap(await call(self._thread, self._kept.take, unwanted=self._kept.put_back))
