"""A channel: one client's attachment to one job, seen from either end of one connection.

The client's end sends OPS and INPUT and receives the rest; the daemon's end is its mirror. Both are
this class, because offsets, acks and credit mean the same in both directions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.streams import NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandd._core.streams import ReceiveWindow, SendCursor
    from sandd.wire import Data, EncodedFrame, OutgoingFrame, Stream


class Opener(Protocol):
    """Whose streams those are that a channel receives, where most of them may never say anything."""

    def open_window(self, stream: Stream) -> ReceiveWindow | None:
        """The window of a stream that begins on this channel, and of which nothing was told; None: there is none."""


class Channel:
    """Cursors and windows of one attachment; a `Source` for its connection's scheduler."""

    __slots__ = (
        *("_bytes", "_messages", "_opener", "_windows"),
        *("holds", "number", "plain_answer", "receive", "send"),
    )

    def __init__(
        self,
        number: int,
        *,
        send: Iterable[SendCursor],
        receive: Iterable[ReceiveWindow] = (),
        opener: Opener | None = None,
        holds: bool = True,
    ) -> None:
        self.number = number
        self._opener = opener
        """Opens the windows that are not in `receive`, each when the first of its stream comes."""
        self._windows: tuple[ReceiveWindow, ...] = ()
        self.receive: dict[Stream, ReceiveWindow] = {}
        for window in receive:
            self.add_window(window)
        self.send: dict[Stream, SendCursor] = {}
        self._messages: list[SendCursor] = []
        self._bytes: list[SendCursor] = []
        for cursor in send:
            self.add_cursor(cursor)
        self.holds = holds
        """The peer's acks free memory: true for the owner, false for a viewer."""
        self.plain_answer: wire.Attached | None = None
        """Goes first, unless there is an event, which says the same; see `wire.Attached`."""

    def __repr__(self) -> str:
        return f"<Channel {self.number}: sends {[s.name for s in self.send]}>"

    def add_cursor(self, cursor: SendCursor) -> None:
        """One more stream that we send."""
        self.send[cursor.stream] = cursor
        kind = self._messages if cursor.stream in wire.MESSAGE_STREAMS else self._bytes
        kind.append(cursor)

    def add_window(self, window: ReceiveWindow) -> None:
        """One more stream that we receive."""
        self.receive[window.stream] = window
        self._windows = (*self._windows, window)

    def is_update_due(self, stream: Stream) -> bool:
        """Whether enough of the stream was consumed to tell its sender."""
        window = self.receive.get(stream)
        return window is not None and window.update_due  # without one nothing has come

    def on_data(self, data: Data) -> None:
        """Take the payload of a DATA, FIN or GAP frame."""
        stream, _, _, _, gap_end = data
        window = self.receive.get(stream)
        if window is None and self._opener is not None:
            window = self._opener.open_window(stream)
            if window is not None:
                self.add_window(window)
        if window is None or (gap_end is not None and stream in wire.TO_DAEMON):
            raise RemoteProtocolError(
                f"{stream.name} does not flow this way on channel {self.number}"
            )
        window.on_data(data)

    def on_window(self, message: wire.Window) -> None:
        """Take acks and credit for what we send."""
        for entry in message.streams:
            cursor = self.send.get(entry.stream)
            if cursor is None:
                raise RemoteProtocolError(
                    f"{entry.stream.name} is not sent on channel {self.number}"
                )
            cursor.on_window(entry.ack, entry.max_offset)
            if self.holds:
                cursor.log.acknowledge(entry.ack)

    def close(self) -> None:
        """Nothing more is sent on it, whoever has hold of its cursors."""
        for cursor in self.send.values():
            cursor.max_offset = NOTHING

    @property
    def pending(self) -> bool:
        """Whether there is anything to send."""
        return (
            self.plain_answer is not None
            or any(w.update_due for w in self.receive.values())
            or any(c.pending for c in self.send.values())
        )

    def next_urgent(self) -> OutgoingFrame | None:
        """The answer to its Attach; acks and credit that are due, all in one frame; then events or ops."""
        answer, self.plain_answer = self.plain_answer, None
        if answer is not None:
            return self._next_message() or wire.ControlFrame(self.number, answer)
        for window in self._windows:
            if window.update_due:
                due = tuple(each.update() for each in self._windows if each.update_due)
                return wire.ControlFrame(self.number, wire.Window(due))
        return self._next_message()

    def _next_message(self) -> EncodedFrame | None:
        for cursor in self._messages:
            frame = cursor.next_frame(self.number, 1)
            if frame is not None:
                return frame
        return None

    def next_bulk(self, limit: int) -> EncodedFrame | None:
        """The next data frame; the channel's byte streams take turns."""
        for index, cursor in enumerate(self._bytes):
            frame = cursor.next_frame(self.number, limit)
            if frame is not None:
                if index + 1 < len(self._bytes):
                    self._bytes.append(self._bytes.pop(index))
                return frame
        return None
