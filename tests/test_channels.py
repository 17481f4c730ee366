"""A channel: what one attachment sends and receives, and in which order."""

from __future__ import annotations

import pytest
from scripted import Bytes, frame, read

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.channels import Channel
from sandd._core.streams import (
    ByteReceiveLog,
    ByteSendLog,
    MessageReceiveLog,
    MessageSendLog,
    ReceiveWindow,
    SendCursor,
)
from sandd.wire import Data, OutgoingFrame, Stream, encoded


class Ends:
    """A daemon's end of a channel, with the logs it serves."""

    def __init__(self, *, holds: bool = True) -> None:
        self.events = MessageSendLog()
        self.output = ByteSendLog()
        self.error = ByteSendLog()
        self.ops = MessageReceiveLog()
        self.input = ByteReceiveLog()
        self.channel = Channel(
            5,
            send=[
                SendCursor(Stream.EVENTS, self.events, 0, 64),
                SendCursor(Stream.OUTPUT, self.output, 0, 1000),
                SendCursor(Stream.ERROR, self.error, 0, 1000),
            ],
            receive=[
                ReceiveWindow.open(Stream.OPS, self.ops, 64),
                ReceiveWindow.open(Stream.INPUT, self.input, 1000),
            ],
            holds=holds,
        )


def said(outgoing: OutgoingFrame | None) -> object:
    """What a frame of the channel says; None for no frame."""
    if outgoing is None:
        return None
    decoded = frame(encoded(outgoing))
    assert decoded.channel == 5
    return read(decoded)


def test_windows_and_messages_are_urgent_and_bytes_are_bulk() -> None:
    """Acks and credit come first, all in one frame; then events; bytes only as bulk."""
    ends = Ends()
    assert not ends.channel.pending
    ends.events.append(wire.encode_event(wire.Started(1)))
    ends.output.append(b"abc")
    for stream, count in ((Stream.OPS, 16), (Stream.INPUT, 1000)):
        for n in range(count if stream is Stream.OPS else 1):
            body = memoryview(bytes(1 if stream is Stream.OPS else count))
            ends.channel.on_data(Data(stream, n, body))
    while ends.ops.take() is not None:
        pass
    ends.input.take(1000)
    assert ends.channel.pending
    assert said(ends.channel.next_urgent()) == wire.Window(
        (wire.StreamWindow(Stream.OPS, 16, 80), wire.StreamWindow(Stream.INPUT, 1000, 2000))
    )
    assert said(ends.channel.next_urgent()) == wire.Started(1)
    assert said(ends.channel.next_urgent()) is None
    assert ends.channel.pending
    assert said(ends.channel.next_bulk(100)) == Bytes(Stream.OUTPUT, 0, b"abc")
    assert said(ends.channel.next_bulk(100)) is None
    assert not ends.channel.pending


def test_byte_streams_take_turns() -> None:
    """(10) A command that floods one output doesn't keep the other from being seen."""
    ends = Ends()
    ends.output.append(bytes(500))
    ends.error.append(bytes(500))
    streams = [said(ends.channel.next_bulk(100)).stream for _ in range(10)]  # type: ignore[attr-defined]
    assert streams == [Stream.OUTPUT, Stream.ERROR] * 5


def test_a_lone_byte_stream_has_every_turn() -> None:
    """Where there is one stream there is nothing to share."""
    log = ByteSendLog()
    log.append(b"abcd")
    channel = Channel(5, send=[SendCursor(Stream.INPUT, log, 0, 1000)], receive=[])
    parts = [said(channel.next_bulk(2)) for _ in range(3)]
    assert parts == [Bytes(Stream.INPUT, 0, b"ab"), Bytes(Stream.INPUT, 2, b"cd"), None]


def test_an_owners_ack_frees_memory_and_a_viewers_does_not() -> None:
    """(4) Only who holds the job decides what is kept."""
    for holds in (True, False):
        ends = Ends(holds=holds)
        ends.output.append(b"abcdef")
        ends.channel.next_bulk(100)
        ends.channel.on_window(wire.Window((wire.StreamWindow(Stream.OUTPUT, 4, 1000),)))
        assert ends.output.floor == (4 if holds else 0)


def test_frames_and_windows_that_flow_the_wrong_way_are_refused() -> None:
    """Each end of a channel sends its own streams only, and no gaps towards the daemon."""
    ends = Ends()
    with pytest.raises(RemoteProtocolError, match="OUTPUT does not flow this way on channel 5"):
        ends.channel.on_data(Data(Stream.OUTPUT, 0, memoryview(b"x")))
    for stream in wire.TO_DAEMON:
        with pytest.raises(RemoteProtocolError, match="does not flow this way"):
            ends.channel.on_data(Data(stream, 0, memoryview(b""), gap_end=5))
    with pytest.raises(RemoteProtocolError, match="INPUT is not sent on channel 5"):
        ends.channel.on_window(wire.Window((wire.StreamWindow(Stream.INPUT, 0, 0),)))
    assert repr(ends.channel) == "<Channel 5: sends ['EVENTS', 'OUTPUT', 'ERROR']>"
