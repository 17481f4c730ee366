"""TCP peers for tests of forwarded ports: servers on loopback in this very program, and what they do."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@contextlib.asynccontextmanager
async def serving(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A server on loopback while the block lasts; its port."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[tuple[trio.SocketListener, int]]:
    """A listener on loopback of which the test accepts by itself, and its port."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    # What is accepted inherits it; the system's own would be megabytes, which take their time to fill.
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        listener.socket.setsockopt(socket.SOL_SOCKET, option, 65536)
    async with listener:
        yield listener, listener.socket.getsockname()[1]


async def echo(stream: trio.SocketStream) -> None:
    """Says everything again, as it comes; then ends as its peer did."""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            async for piece in stream:
                await stream.send_all(piece)
            await stream.send_eof()


async def reset(stream: trio.SocketStream) -> None:
    """Break the connection: TCP's RST."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything up to the end."""
    return b"".join([piece async for piece in stream])


async def receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """So many bytes."""
    received = b""
    while len(received) < size:
        piece = await stream.receive_some(size - len(received))
        assert piece, f"it ended after {len(received)} bytes of {size}"
        received += piece
    return received


async def hash_all(stream: trio.abc.ReceiveStream) -> str:
    """SHA-256 of everything up to the end."""
    digest = hashlib.sha256()
    async for piece in stream:
        digest.update(piece)
    return digest.hexdigest()


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port
