"""Streams: logs addressed by absolute offsets, and the cursors that carry them over a channel.

A stream has a sender and a receiver. On each side one object belongs to the *job* and lives as long
as it does, and one belongs to the *channel* and ends with its connection:

    =========  ==========================  =================================
    side       job owns (never decreases)  channel owns (never decreases)
    =========  ==========================  =================================
    sender     `SendLog`: base floor end   `SendCursor`: sent, ack, credit
    receiver   `ReceiveLog`: received,     `ReceiveWindow`: ack, credit
               consumed
    =========  ==========================  =================================

A first delivery, a resume after a cut and a replay are one thing: a new cursor at some offset.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from sandd import wire
from sandd._core._errors import LocalProtocolError, RemoteProtocolError
from sandd._core.byte_ring import LARGE_BYTES, ByteRing

if TYPE_CHECKING:
    from sandd.wire import Buffer, Data, EncodedFrame, Stream

RING_BYTES: Final = 512 * wire.KIB
"""Unacknowledged bytes a sender holds per stream before its source has to wait: four times what a receiver takes before
it says so, one for each that may be on its way, in the daemon, the router and the client at the same time."""
MOST_RING_BYTES: Final = 1 * wire.MIB
"""The same of a busy stream, while there is `RingRoom`: two frames of the largest. More gains nothing where
a router passes it on: what is under way has to fit the processor's caches (m)."""
WINDOW_BYTES: Final = wire.INITIAL_OUTPUT_BYTES
"""Bytes a receiver grants per stream beyond what its application has consumed."""
VIEWER_WINDOW_BYTES: Final = 2 * WINDOW_BYTES
"""The same where it only looks on: its sender doesn't wait for it, so what it can't be sent at once may be gone when it
can. At full speed, on a busy machine, a part was missing every 200 MB with one, in 2 GB none with two (m)."""
NOTHING: Final = -1
"""Credit where not even the end of a stream may be said: before the answer to an Attach, and on a closed channel."""


# ---- sender ------------------------------------------------------------------------------------


class SendLog(ABC):
    """The sender's part of a stream: every unit from `base` to `end`; below `floor` the owner has all.

    Invariant: ``base <= floor <= end``, none ever decreases, and nothing at or above the floor is
    freed. (A `SpooledLog` may be told to drop; then what it drops moves the floor, too.)
    """

    __slots__ = ("base", "capacity", "end", "end_is_told", "final", "floor", "retain")

    def __init__(self, *, capacity: int | None = RING_BYTES, retain: int = 0) -> None:
        self.capacity = capacity
        """Units above the floor that may be held; None: whatever the caller appends (it owns the memory)."""
        self.retain = retain
        """Units kept below the floor, for those who attach later."""
        self.base = 0
        self.floor = 0
        self.end = 0
        self.final = False
        """The stream ends at `end`: nothing will be appended any more."""
        self.end_is_told = False
        """Where it ends is told by the job's last event, so it needs no FIN."""

    @property
    def room(self) -> int:
        """Units that may be appended now."""
        if self.capacity is None:
            return wire.MAX_OFFSET - self.end
        return max(0, self.capacity - (self.end - self.floor))

    def finish(self) -> None:
        """Fix the final offset at what has been appended so far."""
        self.final = True

    def acknowledge(self, offset: int) -> None:
        """The owner has everything below `offset`; what `retain` doesn't cover is freed."""
        if offset > self.end:
            raise RemoteProtocolError(f"ack {offset} is beyond the end {self.end}")
        self.floor = max(self.floor, offset)
        self._free(self.floor - self.retain)

    def begin(self, offset: int) -> None:
        """Nothing was sent yet, and the peer expects `offset` first: what has been appended begins there."""
        self.end += offset - self.base
        self.base = self.floor = offset

    def _check_room(self, units: int, room: int) -> None:
        if self.final:
            raise LocalProtocolError("append to a finished stream")
        if units > room:
            raise LocalProtocolError(f"append of {units} where there is room for {room}")

    def _free(self, offset: int) -> None:
        if offset > self.base:
            self._discard(offset - self.base)
            self.base = offset

    @abstractmethod
    def _discard(self, units: int) -> None:
        """Forget the oldest `units`."""

    def at_hand(self, offset: int) -> bool:
        """Whether `read` has what stands at `offset` (base <= offset < end) now."""
        return True

    @abstractmethod
    def read(self, offset: int, limit: int) -> tuple[Buffer, int]:
        """(payload, units) of one frame from `offset` (base <= offset < end), of at most `limit` units.

        No units where that is not at hand; the log sees to it that it will be.
        """


class ByteSendLog(SendLog):
    """A log of bytes in one ring; freeing its front is cheap."""

    __slots__ = ("_bytes",)

    def __init__(self, *, capacity: int | None = RING_BYTES, retain: int = 0) -> None:
        super().__init__(capacity=capacity, retain=retain)
        self._bytes = ByteRing()

    def append(self, data: Buffer) -> None:
        """Add bytes at the end; at most `room` of them."""
        units, capacity = len(data), self.capacity
        if self.final or capacity is None or units > capacity - (self.end - self.floor):
            self._check_room(units, self.room)
        self._bytes.append(data)
        self.end += units

    def fill(self, data: Buffer) -> int:
        """Add the beginning of `data`, as far as there is room: so many bytes."""
        units, capacity = len(data), self.capacity
        if self.final or (capacity is not None and units > capacity - (self.end - self.floor)):
            units = min(units, self.room)
            self._check_room(units, units)
            data = memoryview(data)[:units]
        self._bytes.append(data)
        self.end += units
        return units

    def read(self, offset: int, limit: int) -> tuple[Buffer, int]:
        chunk = self._bytes.read(offset - self.base, limit)
        return chunk, len(chunk)

    def _discard(self, units: int) -> None:
        self._bytes.discard(units)


class MessageSendLog(SendLog):
    """A log of messages; each counts one."""

    __slots__ = ("_messages",)

    def __init__(self, *, capacity: int | None = wire.MESSAGE_WINDOW, retain: int = 0) -> None:
        super().__init__(capacity=capacity, retain=retain)
        self._messages: deque[bytes] | None = None
        """As all these: None until there is something, which of most streams of a command there never is."""

    def append(self, message: bytes) -> None:
        """Add one message at the end."""
        if self.final or self.capacity is not None:  # else there is room, as for all events
            self._check_room(1, self.room)
        if self._messages is None:
            self._messages = deque()
        self._messages.append(message)
        self.end += 1

    def read(self, offset: int, limit: int) -> tuple[Buffer, int]:
        assert self._messages is not None  # there is one at `offset`
        return self._messages[offset - self.base], 1

    def _discard(self, units: int) -> None:
        assert self._messages is not None  # there are as many
        for _ in range(units):
            self._messages.popleft()


@define
class SendCursor:
    """A log's way over one channel. Invariant: ``ack <= sent <= end``, and no unit at or beyond
    `max_offset` is ever sent; a gap begins below it, too, but may reach beyond."""

    stream: Stream
    log: SendLog
    sent: int
    max_offset: int
    ack: int = 0
    final_sent: bool = False

    @property
    def pending(self) -> bool:
        """Whether `next_frame` has something; not what has to come from a disk first."""
        log = self.log
        if self.sent < min(log.end, self.max_offset):
            return self.sent < log.base or log.at_hand(self.sent)
        return self._end_pending

    @property
    def _end_pending(self) -> bool:
        # The end takes no room, but where not even `sent` was granted, nothing may be said yet.
        log = self.log
        return (
            log.final
            and not (log.end_is_told or self.final_sent)
            and self.sent == log.end
            and self.sent <= self.max_offset
        )

    def next_frame(self, channel: int, limit: int) -> EncodedFrame | None:
        """The next frame in order, with at most `limit` units.

        None when there is nothing, no credit, or nothing at hand: who brings that activates the channel.
        """
        log = self.log
        if self.sent == log.end and (not log.final or log.end_is_told or self.final_sent):
            return None  # as mostly: all that may have something are asked
        available = min(log.end, self.max_offset) - self.sent
        if available > 0:
            offset = self.sent
            if offset < log.base:
                # Only now that there is credit: a receiver that takes nothing isn't told of every gap.
                self.sent = log.base
                return wire.encode_gap(channel, self.stream, offset, log.base)
            body, units = log.read(offset, min(limit, available))
            if not units:
                return None
            self.sent += units
            # A message's frame never carries the FIN, so that one frame is exactly one message.
            final = log.final and self.sent == log.end and self.stream not in wire.MESSAGE_STREAMS
            self.final_sent = final
            return wire.encode_data(channel, self.stream, offset, body, final=final)
        if self._end_pending:
            self.final_sent = True
            return wire.encode_data(channel, self.stream, self.sent, b"", final=True)
        return None

    def on_window(self, ack: int, max_offset: int) -> None:
        """Take the receiver's ack and credit; RemoteProtocolError if either breaks the rules."""
        if ack > self.sent:
            raise RemoteProtocolError(
                f"ack {ack} of {self.stream.name} is beyond what was sent ({self.sent})"
            )
        if ack < self.ack or max_offset < self.max_offset:
            raise RemoteProtocolError(f"ack or credit of {self.stream.name} went down")
        self.ack = ack
        self.max_offset = max_offset


# ---- receiver ----------------------------------------------------------------------------------


@frozen
class Gap:
    """Units ``start`` to ``end`` that the sender had dropped."""

    start: int
    end: int


class ReceiveLog(ABC):
    """The receiver's part of a stream: what has arrived (`received`) and been handed on (`consumed`)."""

    __slots__ = ("acknowledges", "consumed", "final", "received")

    def __init__(self, start: int = 0) -> None:
        self.received = start
        self.consumed = start
        self.final: int | None = None
        """Offset at which the stream ends, once known."""
        self.acknowledges = True
        """What was handed on counts as read; not yet where nobody has taken hold of the stream, and where we
        begin is merely where we would."""

    @property
    def at_end(self) -> bool:
        """Everything up to the final offset was consumed."""
        return self.final is not None and self.consumed == self.final

    @property
    @abstractmethod
    def readable(self) -> bool:
        """Whether something waits to be taken."""

    def accept(self, data: Data) -> None:
        """Take one frame; RemoteProtocolError unless it continues the stream exactly."""
        if self.final is not None and self.received == self.final:
            if data.final and data.offset == self.final and not len(data.body):
                return  # each new channel says the end anew
            raise RemoteProtocolError(f"{data.stream.name} goes on behind its end")
        if data.offset != self.received:
            raise RemoteProtocolError(
                f"{data.stream.name} continues at {data.offset}, expected {self.received}"
            )
        if data.gap_end is not None:
            self._store_gap(Gap(data.offset, data.gap_end))
            self.received = data.gap_end
            if self.final is not None and self.received > self.final:
                raise RemoteProtocolError(f"{data.stream.name} goes on behind its end")
            return
        if len(data.body) or not data.final:
            self.received += self._store(data.body)
        if data.final:
            self.end_at(self.received)
        elif self.final is not None and self.received > self.final:
            raise RemoteProtocolError(f"{data.stream.name} goes on behind its end")

    def end_at(self, offset: int) -> None:
        """The stream ends there; RemoteProtocolError if it can't, or was said to end elsewhere."""
        if self.final not in (None, offset) or self.received > offset:
            raise RemoteProtocolError(
                f"a stream ends at {offset}, but {self.received} units came, and its end was {self.final}"
            )
        self.final = offset

    @abstractmethod
    def _store(self, body: memoryview) -> int: ...

    @abstractmethod
    def _store_gap(self, gap: Gap) -> None: ...


class ByteReceiveLog(ReceiveLog):
    """Received bytes and gaps, in order, until they are taken."""

    __slots__ = ("_segments",)

    def __init__(self, start: int = 0) -> None:
        super().__init__(start)
        self._segments: deque[bytes | bytearray | memoryview | Gap] | None = None
        """What came in large pieces is a view of bytes that nobody changes; crumbs are gathered, once there are two."""

    @property
    def readable(self) -> bool:
        return bool(self._segments)

    def accept(self, data: Data) -> None:
        _, offset, body, final, gap_end = data
        if (
            0 < len(body) < LARGE_BYTES
            and not self._segments
            and offset == self.received
            and self.final is None
            and gap_end is None
            and not final
        ):
            if self._segments is None:
                self._segments = deque()
            self._segments.append(bytes(body))  # mostly it is taken before more comes
            self.received += len(body)
        else:
            ReceiveLog.accept(self, data)

    def take(self, limit: int) -> bytes | Gap:
        """Up to `limit` bytes, or a gap met on the way; b"" when there is nothing now. Counts as consumed."""
        if not self._segments:
            return b""
        first = self._segments[0]
        if isinstance(first, Gap):
            self._segments.popleft()
            self.consumed = first.end
            return first
        if isinstance(first, bytes) and len(first) <= limit and len(self._segments) == 1:
            self._segments.popleft()  # as mostly, where little comes at a time
            self.consumed += len(first)
            return first
        parts = self._take_parts(limit)
        return _whole(parts[0]) if len(parts) == 1 else b"".join(parts)

    def take_piece(self) -> Buffer | Gap:
        """As `take`, of whatever size it came in, and as `take_pieces` without a copy."""
        if not self._segments:
            return b""
        piece = self._segments.popleft()
        if isinstance(piece, Gap):
            self.consumed = piece.end
            return piece
        self.consumed += len(piece)
        return memoryview(piece) if isinstance(piece, bytearray) else piece

    def take_pieces(self, limit: int) -> list[Buffer] | Gap:
        """As `take`, in the pieces that it came in: what is large isn't copied, and borrows its message's memory.

        Fewer than `limit` where the next piece would have to be taken apart.
        """
        if self._segments and isinstance(gap := self._segments[0], Gap):
            self._segments.popleft()
            self.consumed = gap.end
            return gap
        return [
            memoryview(part) if isinstance(part, bytearray) else part
            for part in self._take_parts(limit, only_whole=True)
        ]

    def _take_parts(self, limit: int, *, only_whole: bool = False) -> list[Buffer | bytearray]:
        """What is there before the next gap; nobody else has the parts that are a bytearray."""
        parts: list[Buffer | bytearray] = []
        while limit and self._segments and not isinstance(first := self._segments[0], Gap):
            if len(first) <= limit:
                self._segments.popleft()
                parts.append(first)
            elif only_whole and parts:
                break
            else:
                parts.append(bytes(memoryview(first)[:limit]))
                if isinstance(first, bytearray):
                    del first[:limit]
                else:
                    self._segments[0] = memoryview(first)[limit:]
            size = len(parts[-1])
            limit -= size
            self.consumed += size
        return parts

    def tail(self, offset: int) -> list[bytes | Gap]:
        """What has arrived from `offset` (consumed <= offset <= received) on; nothing counts as consumed.

        Costs what it returns, however much is unread before it.
        """
        if not self.consumed <= offset <= self.received:
            raise LocalProtocolError(
                f"a look at {offset}, where {self.consumed} to {self.received} is unread"
            )
        pieces: list[bytes | Gap] = []
        end = self.received
        for segment in reversed(self._segments or ()):
            if end <= offset:
                break
            if isinstance(segment, Gap):
                start = segment.start
                pieces.append(Gap(max(start, offset), end))
            else:
                start = end - len(segment)
                pieces.append(bytes(memoryview(segment)[max(0, offset - start) :]))
            end = start
        pieces.reverse()
        return pieces

    def discard(self) -> None:
        """Consume everything that has arrived, unread."""
        self._segments = None
        self.consumed = self.received

    def _store(self, body: memoryview) -> int:
        segments = self._segments
        if segments is None:
            segments = self._segments = deque()
        if len(body) >= LARGE_BYTES:
            # What it is a view of is a whole message, of any size: where most of that is other things, a copy.
            whole = body.obj
            is_most = isinstance(whole, bytes) and len(whole) <= _HELD_FOR_EACH * len(body)
            segments.append(body if is_most else memoryview(bytes(body)))
        elif not segments:
            if len(body):
                segments.append(bytes(body))  # mostly it is taken before more comes
        elif isinstance(last := segments[-1], bytearray):
            last += body
        elif isinstance(last, bytes):
            segments[-1] = gathered = bytearray(last)
            gathered += body
        elif len(body):
            segments.append(bytearray(body))
        return len(body)

    def _store_gap(self, gap: Gap) -> None:
        segments = self._segments
        if segments is None:
            segments = self._segments = deque()
        if segments and isinstance(last := segments[-1], Gap):
            segments[-1] = Gap(last.start, gap.end)
        elif len(segments) >= wire.MAX_UNREAD_PIECES:
            raise RemoteProtocolError(
                f"more than {wire.MAX_UNREAD_PIECES} pieces with gaps between them"
            )
        else:
            segments.append(gap)


_HELD_FOR_EACH: Final = 3
"""Bytes that may be held in memory for each one of a frame: a message has mostly two frames of data."""


def _whole(part: Buffer | bytearray) -> bytes:
    """All of it; a view of all of a `bytes` object needs no copy."""
    whole = part.obj if isinstance(part, memoryview) else part
    return whole if isinstance(whole, bytes) and len(whole) == len(part) else bytes(part)


class MessageReceiveLog(ReceiveLog):
    """Received messages until they are taken."""

    __slots__ = ("_messages",)

    def __init__(self, start: int = 0) -> None:
        super().__init__(start)
        self._messages: deque[bytes] | None = None

    @property
    def readable(self) -> bool:
        return bool(self._messages)

    def take(self) -> bytes | None:
        """The next message, or None. Counts as consumed."""
        if not self._messages:
            return None
        self.consumed += 1
        return self._messages.popleft()

    def _store(self, body: memoryview) -> int:
        if self._messages is None:
            self._messages = deque()
        self._messages.append(bytes(body))
        return 1

    def _store_gap(self, gap: Gap) -> None:
        raise RemoteProtocolError("a gap in a stream of messages")


@functools.lru_cache(64)  # there are some ten
def _least_told(stream: Stream, window: int) -> int:
    """Units of a stream that are worth telling its sender of, where so many are granted."""
    if window <= 0:
        return wire.MAX_OFFSET
    return min(
        (window + 3) // 4 if stream in wire.MESSAGE_STREAMS else wire.ACK_EVERY_BYTES, window
    )


@define
class ReceiveWindow:
    """What this channel has granted and acknowledged. Invariant: ``received <= max_offset``."""

    stream: Stream
    log: ReceiveLog
    window: int
    """Units granted beyond what was consumed."""
    max_offset: int
    acked: int = 0
    """What the sender was told on this channel: what it was told on others may have been lost."""
    _is_messages: bool = field(init=False)
    _least: int = field(init=False)
    """Less than this is never worth telling."""

    def __attrs_post_init__(self) -> None:
        self._is_messages = self.stream in wire.MESSAGE_STREAMS
        self._least = _least_told(self.stream, self.window)

    @classmethod
    def open(cls, stream: Stream, log: ReceiveLog, window: int) -> ReceiveWindow:
        """A window for a new channel: grants `window` units beyond what was consumed."""
        return cls(stream, log, window, max(log.consumed + window, log.received))

    def on_data(self, data: Data) -> None:
        """Take one frame; RemoteProtocolError if it exceeds the credit or doesn't continue the stream."""
        _, offset, body, final, gap_end = data
        units = len(body)
        if gap_end is not None or (self._is_messages and (units or not final)):
            units = 1
        if offset + units > self.max_offset:
            raise RemoteProtocolError(f"{self.stream.name} exceeds its credit of {self.max_offset}")
        log = self.log
        log.accept(data)
        if log.received > self.max_offset:
            self.max_offset = log.received

    @property
    def update_due(self) -> bool:
        """Whether enough was consumed to tell the sender."""
        log = self.log
        # Where nothing is acknowledged yet, it is credit alone.
        told = self.acked if log.acknowledges else self.max_offset - self.window
        unacked = log.consumed - told
        if unacked < self._least:
            return False
        if log.at_end:
            return False  # nothing more will come; the job's End acknowledges the rest
        # Who has more at hand has not yet reached where the sender may be waiting: said together with that, it is
        # one message and not several. A sender that is out of room has all of it here, taken or at hand.
        return (
            unacked >= min(4 * wire.ACK_EVERY_BYTES, self.window)
            or not log.readable
            or self._is_messages
        )

    def update(self) -> wire.StreamWindow:
        """The ack and credit to send now."""
        if self.log.acknowledges:
            self.acked = self.log.consumed
        self.max_offset = max(self.max_offset, self.log.consumed + self.window)
        return wire.StreamWindow(self.stream, self.acked, self.max_offset)
