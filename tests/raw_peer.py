"""Both ends of a connection for the transport's tests: ours, and one made by hand on a raw socket.

The latter can misbehave in every way there is.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import struct
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from sandd._core.transport import Connection, ListenAddress, connect, serve
from sandd._core.transport._streams import Address, MeteredStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

SUBPROTOCOL = "test.1"
MIB = 1024 * 1024
OPTIONS: dict[str, Any] = {"subprotocol": SUBPROTOCOL, "max_message_bytes": MIB}


class Op(IntEnum):
    """Frame types (RFC 6455 s. 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


def frame(op: int, payload: bytes = b"", *, fin: bool = True, mask: bool = True) -> bytes:
    """One frame; masked, as a client's must be, with a key of zeros."""
    size = len(payload)
    if size < 126:
        length = bytes([size | mask << 7])
    elif size < 65536:
        length = bytes([126 | mask << 7]) + struct.pack("!H", size)
    else:
        length = bytes([127 | mask << 7]) + struct.pack("!Q", size)
    return bytes([op | fin << 7]) + length + (bytes(4) if mask else b"") + payload


def close_payload(code: int, reason: str = "") -> bytes:
    """What a close frame carries."""
    return struct.pack("!H", code) + reason.encode()


def upgrade_request(path: str = "/ws", subprotocol: str | None = SUBPROTOCOL, **more: str) -> bytes:
    """A client's handshake; `more` replaces headers (``_`` for ``-``), an empty one is left out."""
    headers = {
        "host": "127.0.0.1",
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": base64.b64encode(os.urandom(16)).decode(),
        "sec-websocket-version": "13",
        "sec-websocket-protocol": subprotocol or "",
    } | {name.replace("_", "-"): value for name, value in more.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if value]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


class RawPeer:
    """The stream of one connection, with a buffer to read heads and frames from."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = bytearray()

    async def send(self, data: bytes) -> None:
        """Send exactly these bytes."""
        await self.stream.send_all(data)

    async def read_exactly(self, count: int) -> bytes:
        """`count` bytes; fewer at the end of the stream."""
        while len(self._buffer) < count and (more := await self.stream.receive_some(65536)):
            self._buffer += more
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def read_head(self) -> str:
        """An HTTP request or response up to its empty line."""
        while b"\r\n\r\n" not in self._buffer and (more := await self.stream.receive_some()):
            self._buffer += more
        return (await self.read_exactly(self._buffer.find(b"\r\n\r\n") + 4)).decode()

    async def read_all(self) -> str:
        """Everything until the peer closes; a reset counts as that."""
        try:
            return (await self.read_exactly(2**40)).decode()
        except trio.BrokenResourceError:
            return bytes(self._buffer).decode()

    async def read_frame(self) -> tuple[int, bytes]:
        """Type and payload of the next frame; EOFError at the end."""
        head = await self.read_exactly(2)
        if len(head) < 2:
            raise EOFError
        size = head[1] & 127
        if size == 126:
            (size,) = struct.unpack("!H", await self.read_exactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.read_exactly(8))
        key = await self.read_exactly(4) if head[1] & 128 else bytes(4)
        payload = bytearray(await self.read_exactly(size))
        for i, byte in enumerate(key):
            payload[i::4] = bytes(each ^ byte for each in payload[i::4])
        return head[0] & 15, bytes(payload)

    async def read_close(self) -> int:
        """The code of the peer's close frame; frames before it are dropped."""
        while True:
            op, payload = await self.read_frame()
            if op == Op.CLOSE:
                return int.from_bytes(payload[:2], "big")

    async def is_closed(self) -> bool:
        """True once the peer has closed its socket, whatever it sends before that."""
        try:
            while await self.stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        return True


@contextlib.asynccontextmanager
async def raw_client(address: ListenAddress, **request: Any) -> AsyncIterator[RawPeer]:
    """A client that has shaken hands with a server of ours."""
    async with await trio.open_tcp_stream(address.host, address.port) as stream:
        peer = RawPeer(stream)
        await peer.send(upgrade_request(**request))
        head = await peer.read_head()
        assert head.startswith("HTTP/1.1 101 "), head
        yield peer


@contextlib.asynccontextmanager
async def loris(address: ListenAddress, count: int, start: bytes) -> AsyncIterator[None]:
    """So many clients that begin a request and never get on with it; each comes again when it is thrown out.

    Whoever dials in the block is behind all of them.
    """

    async def dawdle(task_status: trio.TaskStatus[None]) -> None:
        begun = False
        while True:
            with contextlib.suppress(OSError, trio.BrokenResourceError):
                async with await trio.open_tcp_stream(address.host, address.port) as stream:
                    await stream.send_all(start)
                    if not begun:
                        begun = True
                        task_status.started()
                    while await stream.receive_some():
                        pass
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as starting:
            for _ in range(count):
                starting.start_soon(nursery.start, dawdle)
        yield
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def raw_server(
    behave: Callable[[RawPeer], Awaitable[None]], host: str = "127.0.0.1"
) -> AsyncIterator[str]:
    """A TCP server that treats each client as `behave` says, and closes it then; yields a URL."""

    async def treat(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await behave(RawPeer(stream))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, treat, 0, host=host))
        yield f"ws://{host}:{listeners[0].socket.getsockname()[1]}/ws"
        nursery.cancel_scope.cancel()


async def shake_hands(
    peer: RawPeer,
    *,
    subprotocol: str | None = SUBPROTOCOL,
    key: str | None = None,
    followed_by: bytes = b"",
    **more: str,
) -> str:
    """Accept a client of ours; the head of its request. `key` forges the proof."""
    request = await peer.read_head()
    if key is None:
        given = [line.partition(": ") for line in request.splitlines()]
        key = next(value for name, _, value in given if name.lower() == "sec-websocket-key")
    proof = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    headers = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-accept": base64.b64encode(proof).decode(),
        "sec-websocket-protocol": subprotocol or "",
    } | {name.replace("_", "-"): value for name, value in more.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if value]
    head = "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode()
    await peer.send(head + followed_by)
    return request


async def echo(connection: Connection) -> None:
    """A handler that sends back what it gets."""
    while True:
        await connection.send_message(await connection.receive_message())


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[Connection], Awaitable[None]] = echo, **options: Any
) -> AsyncIterator[ListenAddress]:
    """A server of ours, on a free port of the loopback unless `options` say otherwise."""
    options = {"host": "127.0.0.1", "port": 0} | OPTIONS | options
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(partial(serve, handler, **options))
        yield addresses[0]
        nursery.cancel_scope.cancel()


async def open_metered() -> tuple[MeteredStream, trio.SocketStream]:
    """Both ends of a connection that has no WebSocket: ours, and one of trio's own."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        ours = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        return MeteredStream(ours), await listener.accept()


def dial(address: ListenAddress, **options: Any) -> AbstractAsyncContextManager[Connection]:
    """A client of ours, to a server of ours."""
    return connect(f"ws://{Address(address.host, address.port)}/ws", **(OPTIONS | options))


async def assert_works(address: ListenAddress) -> None:
    """The server, which echoes, still takes connections and answers."""
    async with dial(address) as connection:
        await connection.send_message(b"well?")
        assert await connection.receive_message() == b"well?"
