"""What is under way through the router to one channel of one link; a `Source` for that link's scheduler.

Sans-IO. Acks, credit and the question of a `Flush` are absolute, and a later one says all that an earlier one did: so
of those that wait only the latest is kept, and a flood of them takes no room.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define

from sandd import wire
from sandd._core.metrics.tallies import Traffic
from sandd._core.scheduler import SHARED_FRAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.backlog import Share
    from sandd._core.credit import Flow
    from sandd._core.streams import SendCursor
    from sandd.wire import Frame, OutgoingFrame, Stream

PINNED_FACTOR: Final = 4
"""A frame that waits may keep so many times its size alive: a copy of each would cost more than that is worth."""
HEAD_BYTES: Final = 256
"""What a waiting frame counts for besides its bytes: it is some objects."""
WHOLE_BYTES: Final = 128 * wire.KIB
"""A frame is passed on whole up to this size where others wait for the same line; to put it together is the receiver's
work, and to take it apart ours."""
CRUMB_BYTES: Final = 4 * wire.KIB
"""Frames of one stream that wait are put together up to this size: of a program that prints byte by byte, the heads
would come to a hundred times its credit."""


UNCOUNTED: Final = Traffic()
"""Of queues that draw from nowhere, and routes on which nothing has passed yet."""
_NONE: Final[deque[OutgoingFrame]] = deque()
"""Stands for a queue in which nothing has waited yet, as mostly nothing ever does: each takes 600 bytes."""


class RelayQueue:
    """Frames under way to one channel of one link; what its receiver grants is all that bounds it."""

    __slots__ = (
        *("_bulk", "_flush", "_last", "_traffic", "_urgent", "_windows"),
        *("number", "source"),
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self._windows: dict[Stream, wire.StreamWindow] | None = None
        self._flush: wire.Flush | None = None
        self._urgent = self._bulk = _NONE
        self._last: tuple[wire.Control, Callable[[], None]] | None = None
        self.source: SendCursor | None = None
        """Where it draws from; see `draw_from`."""
        self._traffic = UNCOUNTED

    def draw_from(self, source: SendCursor, traffic: Traffic) -> None:
        """Behind what waits here goes what the client has, which is in this process: asked for when the link takes it.

        It counts as what goes to daemons then.
        """
        self.source = source
        self._traffic = traffic

    @property
    def holds_data(self) -> bool:
        """Something waits that would be lost with the queue."""
        return bool(self._urgent or self._bulk or self._flush is not None)

    def put(self, frame: Frame, data: wire.Data) -> bool:
        """Take a stream's frame; the order within the stream is kept. False: there is no room for it."""
        if data.stream in wire.MESSAGE_STREAMS:
            queue = self._urgent = self._urgent if self._urgent is not _NONE else deque()
        else:
            queue = self._bulk = self._bulk if self._bulk is not _NONE else deque()
        queue.append(wire.readdress(self.number, frame))
        return True

    def put_window(self, window: wire.StreamWindow) -> None:
        """Take an ack and credit: neither ever goes down."""
        windows = self._windows
        if windows is None:
            windows = self._windows = {}
        known = windows.get(window.stream)
        if known is not None:
            window = wire.StreamWindow(
                window.stream,
                max(window.ack, known.ack),
                max(window.max_offset, known.max_offset),
            )
        windows[window.stream] = window

    def put_flush(self, flush: wire.Flush) -> None:
        """Take a question, or an answer, in the place of one that still waits."""
        self._flush = flush

    def take_controls(self) -> list[wire.Control]:
        """The acks, credit and `Flush` that wait, for the channel is about to be closed."""
        controls: list[wire.Control] = []
        if self._windows:
            controls.append(wire.Window(tuple(self._windows.values())))
            self._windows.clear()
        if self._flush is not None:
            controls.append(self._flush)
            self._flush = None
        return controls

    def finish(self, last: wire.Control, then: Callable[[], None]) -> None:
        """Nothing more comes: when all has gone, say this on the channel, and call `then`."""
        self._last = (last, then)

    def next_urgent(self) -> OutgoingFrame | None:
        """See `Source`."""
        if self._windows:
            windows = tuple(self._windows.values())
            self._windows.clear()
            return wire.ControlFrame(self.number, wire.Window(windows))
        if self._flush is not None:
            flush, self._flush = self._flush, None
            return wire.ControlFrame(self.number, flush)
        return self._next_message()

    def next_bulk(self, limit: int) -> OutgoingFrame | None:
        """See `Source`; frames are passed on whole, unless the line is a slow one."""
        source = self.source
        if source is not None and not self._bulk:
            drawn = source.next_frame(self.number, limit)
            if drawn is not None:
                self._traffic.to_daemons += len(drawn[1])
            return drawn
        frame = self._next_bytes(limit)
        if frame is None and self._last is not None and not self.holds_data:
            (last, then), self._last = self._last, None
            then()
            return wire.ControlFrame(self.number, last)
        return frame

    def close(self) -> None:
        """Nothing of it is sent any more."""
        self.source = None

    def _next_message(self) -> OutgoingFrame | None:
        return self._urgent.popleft() if self._urgent else None

    def _next_bytes(self, limit: int) -> OutgoingFrame | None:
        if not self._bulk:
            return None
        frame = self._bulk.popleft()
        limit = _passed_at_once(limit)
        if not isinstance(frame, wire.ControlFrame) and len(frame[1]) > limit:
            frame, rest = wire.split_data(frame, limit)
            if rest is not None:
                self._bulk.appendleft(rest)
        return frame


@define(eq=False)
class _Piece:
    """A frame that waits, or several of one stream put together."""

    flow: Flow
    offset: int
    body: memoryview | bytearray
    final: bool
    gap_end: int | None
    end: int
    """Where its stream stands behind it."""
    charged: int
    """Its part of the sender's share."""


class Meter(Protocol):
    """What counts the bytes under way to one link over metered routes."""

    waiting: int


class MeteredQueue(RelayQueue):
    """A queue whose streams tell their flows what has passed, and whose sender pays for what credit doesn't bound."""

    __slots__ = ("_flows", "_messages", "_meter", "_open", "_pieces", "_share")

    def __init__(self, number: int, meter: Meter, flows: dict[Stream, Flow], share: Share) -> None:
        super().__init__(number)
        self._meter = meter
        self._flows = flows
        self._share = share
        self._messages: deque[_Piece] = deque()
        self._pieces: deque[_Piece] = deque()
        self._open: dict[Stream, _Piece] = {}
        """The last piece of each stream of bytes, where nothing of it has been sent."""

    @property
    def holds_data(self) -> bool:
        """Something waits that would be lost with the queue."""
        return bool(self._messages or self._pieces or self._flush is not None)

    def put(self, frame: Frame, data: wire.Data) -> bool:
        """Take a stream's frame; False where its sender has too much waiting for this link.

        RemoteProtocolError where the sender has no credit for it.
        """
        flow = self._flows[data.stream]
        granted = flow.granted
        end = flow.arrived(data)
        is_message = data.stream in wire.MESSAGE_STREAMS
        size = len(data.body)
        last = None if is_message else self._open.get(data.stream)
        if last is not None and _joins(last, data):
            head = 0
        else:
            head, last = HEAD_BYTES, None
        # Of a stream of bytes the pool knows all that was granted; the rest is what may be sent unasked.
        charged = head + (size if is_message else max(0, min(size, end - granted)))
        if charged:
            if not self._share.has_room(charged):
                return False
            self._share.add(charged)
        self._meter.waiting += head + size
        if last is not None:
            _join(last, data, end, charged)
            return True
        body = _by_itself(data.body)
        piece = _Piece(flow, data.offset, body, data.final, data.gap_end, end, charged)
        if is_message:
            self._messages.append(piece)
        else:
            self._pieces.append(piece)
            self._open[data.stream] = piece
        return True

    def close(self) -> None:
        """Nothing of it is sent any more."""
        for pieces in (self._messages, self._pieces):
            while pieces:
                piece = pieces.popleft()
                self._gone(piece, len(piece.body))
        self._open.clear()

    def _next_message(self) -> OutgoingFrame | None:
        if not self._messages:
            return None
        piece = self._messages.popleft()
        self._gone(piece, len(piece.body))
        piece.flow.pass_on(piece.end)
        body = memoryview(piece.body)
        return wire.encode_data(
            self.number, piece.flow.stream, piece.offset, body, final=piece.final
        )

    def _next_bytes(self, limit: int) -> OutgoingFrame | None:
        if not self._pieces:
            return None
        piece = self._pieces[0]
        stream = piece.flow.stream
        if self._open.get(stream) is piece:
            del self._open[stream]  # what is handed out must not change
        limit = _passed_at_once(limit)
        if piece.gap_end is None and len(piece.body) > limit:
            part = memoryview(piece.body)[:limit]
            frame = wire.encode_data(self.number, stream, piece.offset, part)
            piece.body = memoryview(piece.body)[limit:]
            piece.offset += limit
            self._meter.waiting -= limit
            piece.flow.pass_on(piece.offset)
            return frame
        self._pieces.popleft()
        self._gone(piece, len(piece.body))
        if piece.gap_end is not None:
            piece.flow.pass_on(piece.end, piece.gap_end - piece.offset)
            return wire.encode_gap(self.number, stream, piece.offset, piece.gap_end)
        piece.flow.pass_on(piece.end)
        body = memoryview(piece.body)
        return wire.encode_data(self.number, stream, piece.offset, body, final=piece.final)

    def _gone(self, piece: _Piece, size: int) -> None:
        self._meter.waiting -= size + HEAD_BYTES
        self._share.remove(piece.charged)


def _passed_at_once(limit: int) -> int:
    """How much of a frame, where the line's scheduler asks for so much."""
    return limit if limit < SHARED_FRAME_BYTES else max(limit, WHOLE_BYTES)


def _joins(last: _Piece, data: wire.Data) -> bool:
    """Whether the frame can be put together with what waits before it."""
    if last.end != data.offset:
        return False
    if last.gap_end is not None or data.gap_end is not None:
        return last.gap_end is not None and data.gap_end is not None
    return len(last.body) + len(data.body) <= CRUMB_BYTES


def _join(last: _Piece, data: wire.Data, end: int, charged: int) -> None:
    if data.gap_end is not None:
        last.gap_end = data.gap_end
    else:
        if not isinstance(last.body, bytearray):
            last.body = bytearray(last.body)
        last.body += data.body
        last.final = data.final
    last.end = end
    last.charged += charged


def _by_itself(body: memoryview) -> memoryview:
    """The bytes, without the message that they came in, if that is much larger: it would be kept along with them."""
    if memoryview(body.obj).nbytes < PINNED_FACTOR * len(body):
        return body
    return memoryview(bytes(body))


def by_itself(frame: Frame) -> Frame:
    """The frame, without the message that it came in, where that is much larger."""
    payload = _by_itself(frame.payload)
    return frame if payload is frame.payload else frame._replace(payload=payload)
