"""The writer's scheduler: decides what goes into the next WebSocket message of one connection.

Sources are *pulled*: a source that has something says so with `activate`, and is asked for frames
only when the socket can take them. So a connection queues control frames and nothing else, and
bulk data never stands between a keystroke and the socket.

Order: the answer to a ping; control frames; then one urgent frame from each source in turn (events,
ops, windows: all of them bounded by small windows, so they can't starve the rest); then late control
frames, farewells that nobody waits for; then data, one frame a source in turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from sandd import wire
from sandd._core.pace import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from sandd._core.backlog import Share
    from sandd.wire import Buffer, OutgoingFrame

    Message: TypeAlias = tuple[bytes, *tuple[Buffer, ...]]
    """One WebSocket message, in pieces that nobody changes: mostly a single one."""
    _Waiting: TypeAlias = tuple[OutgoingFrame, Share | None, int]
    """A control frame, whose it is, and what it counts for (`control_size`)."""

BATCH_BYTES: Final = MOST_BYTES
"""A message is closed once it holds this much, unless the line is slow."""
SHARED_FRAME_BYTES: Final = 32 * wire.KIB
"""Data frame size while several sources are ready, so that each gets its turn soon."""
LEAST_ROOM_PART: Final = 8
"""Data joins what is in a message already where one part in so many of it is free: frames are pulled whole, and for
less room than that it would become twice as large, and all that is urgent wait twice as long."""
SMALL_FRAME_BYTES: Final = 256
"""What a control frame counts for that isn't encoded yet: more than most of them have."""
FRAME_OVERHEAD: Final = 128
"""What a waiting control frame counts for besides its bytes: it is three objects."""
LONE_BYTES: Final = 64 * wire.KIB
"""A part of a message that has as much is a piece by itself: to put it together with others would be a copy."""
MAX_CONTROL_BACKLOG: Final = 64 * wire.MIB
"""Control bytes waiting for a peer that doesn't read; beyond it the connection is given up."""


_ControlFrame: Final = wire.ControlFrame


class Source(Protocol):
    """Something that has frames to send over a connection."""

    def next_urgent(self) -> OutgoingFrame | None:
        """The next small frame that shouldn't wait behind data; None when there is none."""

    def next_bulk(self, limit: int) -> OutgoingFrame | None:
        """The next data frame, of at most `limit` bytes; None when there is none."""


class Scheduler:
    """What one connection sends next. Bounded: control by MAX_CONTROL_BACKLOG, the rest is pulled."""

    __slots__ = (
        *("_bulk", "_control", "_control_bytes", "_late", "_urgent"),
        *("batch_bytes", "overrun", "pong"),
    )

    def __init__(self) -> None:
        self._control: list[_Waiting] = []
        self._late: list[_Waiting] = []
        self._control_bytes = 0
        self.pong: OutgoingFrame | None = None
        """The answer to a ping, while it waits."""
        self.batch_bytes = BATCH_BYTES
        """A message is closed, and a data frame ends, at this much: less on a slow line."""
        self.overrun = False
        """The peer doesn't read, and too much waits for it: this connection must be given up."""
        # dicts as ordered sets: a source stands in a ring at most once.
        self._urgent: dict[Source, None] = {}
        self._bulk: dict[Source, None] = {}

    @property
    def pending(self) -> bool:
        """Whether `next_message` may have something."""
        return bool(
            self._control or self._urgent or self._late or self._bulk or self.pong is not None
        )

    @property
    def only_answers(self) -> bool:
        """Whether the next message is the answer to a ping by itself: of most links it is all there ever is."""
        return self.pong is not None and not (
            self._control or self._urgent or self._late or self._bulk
        )

    @property
    def pressing(self) -> bool:
        """The same, for what somebody may wait for."""
        return bool(self._control or self._urgent or self._bulk or self.pong is not None)

    def control(
        self, frame: OutgoingFrame, *, late: bool = False, share: Share | None = None
    ) -> None:
        """Queue a control frame, ahead of everything but earlier ones.

        `late`: nobody waits for it, so what is urgent goes first, control frames or not.
        `share`: whose it is; it counts there until it is sent.
        """
        size = control_size(frame)
        self._control_bytes += size
        if self._control_bytes > MAX_CONTROL_BACKLOG:
            self.overrun = True
        if not self.overrun:
            (self._late if late else self._control).append((frame, share, size))
            if share is not None:
                share.add(size)

    def answer(self, pong: OutgoingFrame) -> None:
        """Send this before all else, in the place of an answer to an earlier ping that still waits.

        So a peer that pings and doesn't read fills nothing.
        """
        self.pong = pong

    def activate(self, source: Source) -> None:
        """The source may have something; it keeps its place if it already waits."""
        self._urgent[source] = None
        self._bulk[source] = None

    def activate_urgent(self, source: Source) -> None:
        """The same, where it can't be data: so it isn't asked for that."""
        self._urgent[source] = None

    def activate_bulk(self, source: Source) -> None:
        """The same, where it can only be data: a keystroke is not worth a look at all windows."""
        self._bulk[source] = None

    def discard(self, source: Source) -> None:
        """The source is gone; nothing of it is sent any more."""
        self._urgent.pop(source, None)
        self._bulk.pop(source, None)

    def next_frames(
        self, max_bytes: int = BATCH_BYTES, *, late: bool = True
    ) -> list[OutgoingFrame]:
        """What to send next, in order: at least one frame if there is any, then up to about `max_bytes`.

        Without `late`, what nobody waits for stays for another time.
        """
        frames: list[OutgoingFrame] = []
        room = max_bytes
        if self.pong is not None:
            pong, self.pong = self.pong, None
            room -= _size(pong)
            frames.append(pong)
        if self._control:
            room = self._take_control(self._control, frames, room)
        while self._urgent and room > 0:
            source = next(iter(self._urgent))
            del self._urgent[source]
            urgent = source.next_urgent()
            if urgent is not None:
                self._urgent[source] = None  # to the back of the ring
                room -= _size(urgent)
                frames.append(urgent)
        if late and self._late:
            room = self._take_control(self._late, frames, room)
        while self._bulk and room > max_bytes // LEAST_ROOM_PART:
            source = next(iter(self._bulk))
            del self._bulk[source]
            limit = SHARED_FRAME_BYTES if self._bulk else wire.MAX_DATA_BYTES
            bulk = source.next_bulk(min(limit, self.batch_bytes))
            if bulk is not None:
                self._bulk[source] = None
                if isinstance(
                    bulk, wire.ControlFrame
                ):  # (as `_size`, which a keystroke can do without)
                    room -= SMALL_FRAME_BYTES
                else:
                    room -= len(bulk[0]) + len(bulk[1])
                frames.append(bulk)
        return frames

    def _take_control(self, queue: list[_Waiting], frames: list[OutgoingFrame], room: int) -> int:
        """Move what there is room for from the queue to the frames; the room that is left."""
        count = 0
        for frame, share, size in queue:
            if room <= 0:
                break
            count += 1
            room -= size - FRAME_OVERHEAD
            self._control_bytes -= size
            if share is not None:
                share.remove(size)
            frames.append(frame)
        del queue[:count]  # a deque would take 700 bytes, of each of thousands of idle links
        return room

    def next_message(self) -> Message | None:
        """The next WebSocket message, or None when there is nothing to send."""
        pong = self.pong
        if pong is not None and self.only_answers:
            self.pong = None
            return (b"".join(wire.encoded(pong)),)
        frames = self.next_frames(self.batch_bytes, late=True)
        if not frames:
            return None
        parts: list[Buffer] = []
        for frame in frames:
            parts += wire.encoded(frame) if isinstance(frame, _ControlFrame) else frame
        if max(map(len, parts)) < LONE_BYTES:
            return (b"".join(parts),)  # as mostly
        first, *more = _gathered(parts)
        assert isinstance(first, bytes)  # it begins with the head of a frame
        return first, *more


def message_bytes(message: Message) -> int:
    """How many bytes it has."""
    return sum(map(len, message))


def _gathered(parts: list[Buffer]) -> Iterable[Buffer]:
    """The same bytes in fewer pieces, of which none that is large is a copy."""
    small: list[Buffer] = []
    for part in parts:
        if len(part) < LONE_BYTES:
            small.append(part)
            continue
        if small:
            yield b"".join(small)
            small = []
        yield part
    if small:
        yield b"".join(small)


def control_size(frame: OutgoingFrame) -> int:
    """What a control frame counts for while it waits."""
    if isinstance(frame, _ControlFrame):
        return SMALL_FRAME_BYTES + FRAME_OVERHEAD
    return len(frame[0]) + len(frame[1]) + FRAME_OVERHEAD


def _size(frame: OutgoingFrame) -> int:
    """Its bytes; about, where it isn't encoded yet: those are small."""
    return SMALL_FRAME_BYTES if isinstance(frame, _ControlFrame) else len(frame[0]) + len(frame[1])
