"""A TCP relay on loopback that cuts, holds and refuses on demand: a network with faults.

::

    async with open_relay(port_of_the_controller) as relay:
        async with open_daemon(relay.url) as daemon:
            ...
            relay.cut()                 # reset what is open; whoever dials again gets through
            relay.hold()                # nothing passes, nothing breaks: a black hole
            relay.release()             # ... and what was held arrives, as after a retransmission
            relay.refuse()              # reset what is open, and whoever dials
            relay.cut_after(10, DOWN)   # reset when exactly 10 more bytes have gone that way
"""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd._core.nurseries import open_unwrapping_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHUNK: Final = 65536


class Direction(enum.Enum):
    """Which way bytes flow."""

    UP = "daemon to controller"
    DOWN = "controller to daemon"


UP, DOWN = Direction


@define(eq=False)
class _Pair:
    """One relayed connection."""

    near: trio.SocketStream
    far: trio.SocketStream
    scope: trio.CancelScope = field(factory=trio.CancelScope)


@define(eq=False)
class CutRelay:
    """Carries bytes both ways between whoever dials `url` and the target."""

    target: int
    port: int = 0
    accepted: int = 0
    """Connections taken so far; those that were refused don't count."""
    passed: dict[Direction, int] = field(factory=lambda: {UP: 0, DOWN: 0})
    """Bytes handed on so far."""
    _refusing: bool = False
    _left: dict[Direction, int] = field(factory=dict)
    """Bytes until the cut that `cut_after` asked for."""
    _open: dict[Direction, trio.Event] = field(factory=dict)
    _pairs: set[_Pair] = field(factory=set)
    _changed: trio.Event = field(factory=trio.Event)

    @property
    def url(self) -> str:
        """Where daemons dial."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._pairs)

    async def wait_accepted(self, count: int) -> None:
        """Return once `count` connections have been taken since the start."""
        while self.accepted < count:
            await self._changed.wait()

    def cut(self) -> int:
        """Reset every open connection; returns how many there were."""
        for pair in self._pairs:
            pair.scope.cancel()
        return len(self._pairs)

    def cut_after(self, count: int, direction: Direction) -> None:
        """Reset the connection over which the `count`-th byte from now goes that way, just behind it."""
        self._left = {direction: count}

    def hold(self, *directions: Direction) -> None:
        """Let nothing pass (that way, or either way); connections open and stay open."""
        for direction in directions or Direction:
            self._open[direction] = trio.Event()

    def release(self) -> None:
        """Let pass again, what was held first."""
        for event in self._open.values():
            event.set()
        self._open.clear()

    def refuse(self) -> None:
        """Reset what is open, and whoever dials from now on, until `accept`."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        """Take connections again."""
        self._refusing = False

    async def serve(self, near: trio.SocketStream) -> None:
        """Relay one connection to its end."""
        if self._refusing:
            _close(near, reset=True)
            return
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            _close(near, reset=True)
            return
        pair = _Pair(near, far)
        self._pairs.add(pair)
        self.accepted += 1
        self._tell()
        try:
            with pair.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, near, far, UP, pair.scope)
                    await self._copy(far, near, DOWN, pair.scope)
        finally:
            self._pairs.discard(pair)
            # Without an await, which a cancellation could end before the second one is closed.
            for stream in (near, far):
                _close(stream, reset=pair.scope.cancelled_caught)
            self._tell()

    async def _copy(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        direction: Direction,
        scope: trio.CancelScope,
    ) -> None:
        try:
            while data := await source.receive_some(CHUNK):
                while direction in self._open:
                    await self._open[direction].wait()
                if direction in self._left:
                    data = data[: self._left[direction]]
                    self._left[direction] -= len(data)
                await sink.send_all(data)
                self.passed[direction] += len(data)
                if self._left.get(direction) == 0:
                    self._left.clear()
                    await sink.send_eof()  # behind the last byte; the reset alone might overtake it
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            scope.cancel()

    def _tell(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


def _close(stream: trio.SocketStream, *, reset: bool) -> None:
    """Close; with `reset` by RST instead of FIN, as a router that forgot the connection does."""
    if reset:
        with contextlib.suppress(OSError, trio.ClosedResourceError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@contextlib.asynccontextmanager
async def open_relay(target: int, *, port: int = 0) -> AsyncIterator[CutRelay]:
    """A relay to that port of this machine, while the block lasts; it listens on `port`, 0: a free one."""
    relay = CutRelay(target)
    async with open_unwrapping_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, relay.serve, port, host="127.0.0.1", handler_nursery=nursery)
        )
        relay.port = listeners[0].socket.getsockname()[1]
        try:
            yield relay
        finally:
            nursery.cancel_scope.cancel()
