"""Moves frames between one live connection and the state machines; keeps the link alive, or ends it.

One reader, one writer and one timer, in one nursery that ends with the connection. The machines
never await: the reader hands them frames, the writer asks their scheduler what to send.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from sandd import wire
from sandd._core._errors import ConnectionLost, RemoteProtocolError
from sandd._core.link import OWN_LAG, Liveness, Verdict
from sandd._core.logs import get_logger

log = get_logger("link")

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandd._core.scheduler import Scheduler
    from sandd._core.transport import Connection

AT_ONCE_BYTES = 16 * wire.KIB
"""Messages up to this size are sent without waking the writer first; larger ones are bulk."""
HANDSHAKE_SECONDS = 10.0
"""From the first byte of a connection to Welcome or Reject."""


async def send_control(connection: Connection, message: wire.Control) -> None:
    """Send one link message by itself: for the handshake, when no pump runs yet."""
    head, body = wire.encode_control(0, message)
    await connection.send_message(head + body)


async def receive_control(connection: Connection) -> wire.Control | wire.Unknown:
    """Receive one link message by itself; RemoteProtocolError for anything but one small control frame."""
    message = await connection.receive_message()
    frames = list(wire.decode_frames(message, max_bytes=wire.MAX_HELLO_BYTES))
    if len(frames) != 1 or frames[0].type is not wire.FrameType.CONTROL or frames[0].channel != 0:
        raise RemoteProtocolError("one control frame on channel 0 was expected")
    return wire.decode_control(frames[0])


class Pump:
    """One live link. `run` it in its connection's task; call `wake` when its scheduler has something."""

    def __init__(
        self,
        connection: Connection,
        scheduler: Scheduler,
        on_frame: Callable[[wire.Frame], None],
        *,
        heartbeat: float,
        dead_after: float,
        after_message: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection = connection
        self._scheduler = scheduler
        self._on_frame = on_frame
        self._after_message = after_message
        self._liveness = Liveness(trio.current_time(), heartbeat, dead_after)
        self._wakeup = trio.Event()
        self._parked = False
        """The writer waits for `wake`, and everything before has been sent."""
        self._ready: bytes | None = None
        """A message taken from the scheduler that stands before what it gives next."""
        self._idle = trio.Event()
        self._is_over = False
        """Nothing more will be sent."""
        self._ping_number = 0
        self._pongs = trio.Event()
        self._scope = trio.CancelScope()
        self._closed_reason: str | None = None
        self.goodbye: wire.Goodbye | None = None
        """The peer's farewell, if it said one."""
        self.bytes_received = 0
        self.bytes_sent = 0

    def wake(self) -> None:
        """The scheduler has something to send.

        A small message goes out at once, which saves three turns of the loop. What follows before the
        writer has had its turn is left to it, all in one message: in a crowd, batching is worth more.
        """
        self._wakeup.set()
        if self._parked:
            self._parked = False
            message = self._scheduler.next_message()
            if message is not None:
                if len(message) <= AT_ONCE_BYTES and self._connection.send_message_nowait(message):
                    self.bytes_sent += len(message)
                else:
                    self._ready = message

    def close(self, reason: str) -> None:
        """End the link from our side; `run` raises ConnectionLost with the reason."""
        self._closed_reason = self._closed_reason or reason
        self._scope.cancel()

    async def drained(self) -> None:
        """Wait until everything scheduled so far has been handed to the socket, or the link is over. Bound it."""
        await trio.lowlevel.checkpoint()
        while not self._is_over and (self._scheduler.pending or not self._parked):
            self.wake()
            await self._idle.wait()
            await trio.lowlevel.checkpoint()

    async def ping(self) -> None:
        """Return as soon as the peer answers a new ping. Bound it: a dead peer never does.

        Raises:
            ConnectionLost: the link is over.
        """
        self._send_ping()
        pongs = self._pongs
        if not self._is_over:
            await pongs.wait()
        if self._is_over:
            raise ConnectionLost(self._closed_reason or "the link is over")

    async def run(self) -> None:
        """Pump until the connection ends: always by ConnectionLost or RemoteProtocolError, as itself."""
        outcome: ConnectionLost | RemoteProtocolError | None = None

        def ended(error: ConnectionLost | RemoteProtocolError) -> None:
            nonlocal outcome
            outcome = outcome or error
            self._scope.cancel()

        async def guarded(part: Callable[[], Awaitable[None]]) -> None:
            try:
                await part()
            except (ConnectionLost, RemoteProtocolError) as error:
                ended(error)
            except Exception as error:
                # A mistake of ours costs this link, which comes back, and not the whole program.
                log.exception("link_failed_inside")
                ended(ConnectionLost(f"it failed inside: {error!r}"))

        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(guarded, self._write)
                    nursery.start_soon(guarded, self._watch)
                    await guarded(self._read)
        finally:
            self._is_over = True
            self._idle.set()
            self._pongs.set()
        await trio.lowlevel.checkpoint_if_cancelled()
        raise outcome or ConnectionLost(self._closed_reason or "closed by us")

    async def _read(self) -> None:
        await self._connection.deliver_messages(self._take_message)

    def _take_message(self, message: bytes) -> None:
        self._liveness.received(trio.current_time())
        self.bytes_received += len(message)
        try:
            for frame in wire.decode_frames(message):
                if frame.channel == 0 and frame.type is wire.FrameType.CONTROL:
                    self._link_frame(frame)
                else:
                    self._on_frame(frame)
        finally:
            self._after_message()  # what came before a farewell or a bad frame counts

    def _link_frame(self, frame: wire.Frame) -> None:
        message = wire.decode_control(frame)
        match message:
            case wire.Ping():
                # Before the data that may wait: a slow link is not a dead one.
                self._scheduler.control(wire.encode_control(0, wire.Pong(message.number)))
                self.wake()
            case wire.Pong():
                self._pongs.set()
                self._pongs = trio.Event()
            case wire.Goodbye():
                self.goodbye = message
                raise ConnectionLost(f"the peer said goodbye: {message.message}")
            case _:
                self._on_frame(frame)

    async def _write(self) -> None:
        while True:
            await self._connection.flush()
            message, self._ready = self._ready or self._scheduler.next_message(), None
            if message is None:
                self._wakeup = trio.Event()
                self._parked = True
                self._idle.set()
                await self._wakeup.wait()
                self._parked = False
                self._idle = trio.Event()
                continue
            await self._connection.send_message(message)
            self.bytes_sent += len(message)

    async def _watch(self) -> None:
        interval = self._liveness.interval
        own_lag = max(interval, min(OWN_LAG, self._liveness.dead_after / 4))
        while True:
            planned = trio.current_time() + interval
            await trio.sleep_until(planned)
            now = trio.current_time()
            if self._scheduler.overrun:
                raise ConnectionLost(
                    "the peer does not read: too many control messages wait for it"
                )
            if now - planned > own_lag:
                self._liveness.lagged(now - planned)
                continue
            match self._liveness.check(now, self._connection.write_pending_since):
                case Verdict.DEAD:
                    raise ConnectionLost(f"the peer is dead: {self._liveness.reason}")
                case Verdict.PING:
                    self._send_ping()
                case Verdict.WAIT:
                    pass

    def _send_ping(self) -> None:
        self._ping_number += 1
        self._scheduler.control(wire.encode_control(0, wire.Ping(self._ping_number)))
        self.wake()


NEVER = math.inf
"""A heartbeat for the side that only answers."""
