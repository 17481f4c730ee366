"""One connection through the fault proxy: two lanes, and the bytes that are under way in each."""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
import sys
from collections import deque
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

if TYPE_CHECKING:
    import random
    from collections.abc import Container

LINGER_SECONDS: Final = 1.0
"""How long an end waits for a receiver: to take the last bytes before a reset, to leave after a close."""
TAKEN_LOOK_SECONDS: Final = 0.0005
"""Between two looks at whether the receiver's kernel has everything; nothing tells us."""


class Direction(enum.Enum):
    """Which way bytes flow."""

    UP = "from who dialled to the target"
    DOWN = "from the target to who dialled"


UP, DOWN = Direction


class Ending(enum.IntEnum):
    """How the proxy ends a connection."""

    RESET = 1  # RST both ways: a router that forgot the connection
    CLOSE = 2  # FIN both ways: an orderly end, in the middle of whatever was said
    HALF_CLOSE = 3  # FIN one way, which then is deaf; the other way goes on


@define(eq=False)
class Lane:
    """One direction of one connection."""

    direction: Direction
    source: trio.SocketStream
    sink: trio.SocketStream
    passed: int = 0
    """Bytes handed on so far."""
    is_dark: bool = False
    is_closed: bool = False
    """Half-closed: what still comes is thrown away."""
    random: random.Random = field(init=False)
    _under_way: deque[tuple[float, bytes | None]] = field(factory=deque)
    """(when due, bytes); b"" is the sender's end, None its reset."""
    _held: int = 0
    _offset: int = 0
    """Bytes of the first entry that have been handed on."""
    _changed: trio.Event = field(factory=trio.Event)

    async def wait_room(self, most: int) -> int:
        """How many bytes may be read, once there is room for half of what there may be.

        Not as soon as there is any: then each would come in smaller and smaller pieces, for ever (the "silly
        window", RFC 813).
        """
        while self._held > most // 2 and not self.is_closed:
            await self._changed.wait()
        return most if self.is_closed else most - self._held

    def put(self, data: bytes | None, due: float) -> None:
        """What was read; it is not handed on before `due`, nor before what was put earlier."""
        if not self.is_closed:
            if self._under_way:
                due = max(due, self._under_way[-1][0])
            self._under_way.append((due, data))
            self._held += len(data or b"")
            self._change()

    async def first(self) -> bytes | memoryview | None:
        """What is to be handed on now, once anything is and nothing holds it; b"" when it is closed."""
        while not self.is_closed:
            if not self._under_way:
                await self._changed.wait()
                continue
            due, data = self._under_way[0]
            if due > trio.current_time():
                await trio.sleep_until(due)
            await self.wait_light()
            return memoryview(data)[self._offset :] if data else data
        return b""

    async def wait_light(self) -> None:
        """Return while it is not dark."""
        while self.is_dark and not self.is_closed:
            await self._changed.wait()

    def drop(self, count: int) -> None:
        """So many bytes of the first entry have been handed on."""
        if self.is_closed:
            return
        self._held -= count
        self._offset += count
        if self._offset == len(self._under_way[0][1] or b""):
            self._under_way.popleft()
            self._offset = 0
        self._change()

    def darken(self) -> None:
        """Hand on nothing any more, until `lighten`."""
        self.is_dark = True

    def lighten(self) -> None:
        """Hand on again."""
        self.is_dark = False
        self._change()

    def close(self) -> None:
        """Let the receiver see an end, and throw away what the sender says; it is not told."""
        self.is_closed = True
        self._under_way.clear()
        self._held = self._offset = 0
        self._change()
        with contextlib.suppress(OSError):  # it may be gone
            self.sink.socket.shutdown(socket.SHUT_WR)

    def _change(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()


@define(eq=False)
class ProxiedConnection:
    """Two streams, and the lanes between them."""

    near: trio.SocketStream
    far: trio.SocketStream
    lanes: dict[Direction, Lane]
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ending: Ending | None = None
    """How it is being ended, if not by its own two ends."""
    last_passed: float = field(factory=trio.current_time)

    @classmethod
    def between(
        cls, near: trio.SocketStream, far: trio.SocketStream, *, dark: Container[Direction]
    ) -> ProxiedConnection:
        """A connection from `near`, who dialled, to `far`, with those lanes dark."""
        lanes = {
            direction: Lane(direction, source, sink, is_dark=direction in dark)
            for direction, source, sink in ((UP, near, far), (DOWN, far, near))
        }
        return cls(near, far, lanes)

    def darken(self) -> None:
        """Hand on nothing any more, either way."""
        for lane in self.lanes.values():
            lane.darken()

    async def part(self) -> None:
        """Say an orderly end to both, and wait a moment for them to go."""

        async def see_off(stream: trio.SocketStream) -> None:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_eof()
                # Closed with bytes unread it would be a reset.
                while await stream.receive_some():
                    pass

        with trio.move_on_after(LINGER_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(see_off, self.near)
                nursery.start_soon(see_off, self.far)


async def wait_taken(stream: trio.SocketStream) -> None:
    """Return once the receiver's kernel has all that was sent: a reset would throw away the rest."""
    with trio.move_on_after(LINGER_SECONDS):
        while _unacknowledged(stream):  # noqa: ASYNC110 - the kernel has no event for it
            await trio.sleep(TAKEN_LOOK_SECONDS)


def _unacknowledged(stream: trio.SocketStream) -> int:
    """Bytes that the receiver's kernel doesn't have yet; 0 where the system doesn't tell."""
    if sys.platform != "linux":
        return 0
    import fcntl
    import termios

    # SIOCOUTQ, see tcp(7); it has the number of TIOCOUTQ.
    answer = fcntl.ioctl(stream.socket.fileno(), termios.TIOCOUTQ, bytes(4))
    return int(struct.unpack("i", answer)[0])


def close_streams(*streams: trio.SocketStream, reset: bool) -> None:
    """Close all, without an await that a cancellation could end halfway; with `reset` by RST."""
    for stream in streams:
        if reset:
            with contextlib.suppress(OSError, trio.ClosedResourceError):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()
