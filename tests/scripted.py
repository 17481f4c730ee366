"""Speaks to one sans-IO core frame by frame, in place of the other end of its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from sandd import wire
from sandd._core.scheduler import message_bytes
from sandd.wire import FrameType, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandd._core.scheduler import Scheduler

Heard: TypeAlias = tuple[int, Any]
"""(channel, what was said on it): a control message, an event, an op, `Bytes` or `Skip`."""


class Bytes(NamedTuple):
    """What a data frame carries."""

    stream: Stream
    offset: int
    body: bytes
    final: bool = False


class Skip(NamedTuple):
    """What a gap frame says."""

    stream: Stream
    start: int
    end: int


def read(frame: wire.Frame) -> Any:
    """What a frame says, in a form that tests compare."""
    if frame.type is FrameType.CONTROL:
        return wire.decode_control(frame)
    data = wire.decode_data(frame)
    if data.gap_end is not None:
        return Skip(data.stream, data.offset, data.gap_end)
    if data.stream is Stream.EVENTS and not data.final:
        return wire.decode_event(data.body)
    if data.stream is Stream.OPS and not data.final:
        return wire.decode_op(data.body)
    return Bytes(data.stream, data.offset, bytes(data.body), data.final)


def drain(scheduler: Scheduler) -> list[Heard]:
    """Everything a core has to say now."""
    return [(frame.channel, read(frame)) for frame in frames_from(scheduler)]


def frames_from(scheduler: Scheduler) -> Iterator[wire.Frame]:
    """The frames a core has to send now."""
    while (message := scheduler.next_message()) is not None:
        assert message_bytes(message) <= wire.MAX_MESSAGE_BYTES
        yield from wire.decode_frames(b"".join(message))


def frame(encoded: wire.EncodedFrame) -> wire.Frame:
    """A frame as it comes out of the decoder."""
    (decoded,) = wire.decode_frames(b"".join(encoded))
    return decoded


def control(channel: int, message: wire.Control) -> wire.Frame:
    """A control frame."""
    return frame(wire.encode_control(channel, message))


def data(
    channel: int, stream: Stream, offset: int, body: bytes = b"", *, final: bool = False
) -> wire.Frame:
    """A data frame, or FIN."""
    return frame(wire.encode_data(channel, stream, offset, body, final=final))


def gap(channel: int, stream: Stream, start: int, end: int) -> wire.Frame:
    """A gap frame."""
    return frame(wire.encode_gap(channel, stream, start, end))


def op(channel: int, offset: int, message: wire.Op) -> wire.Frame:
    """A frame with one op."""
    return data(channel, Stream.OPS, offset, wire.encode_op(message))


def event(channel: int, offset: int, message: wire.Event) -> wire.Frame:
    """A frame with one event."""
    return data(channel, Stream.EVENTS, offset, wire.encode_event(message))


def unknown(channel: int, tag: str = "newer") -> wire.Frame:
    """A control message of a newer version."""
    ping = control(channel, wire.Ping())
    payload = bytes(ping.payload).replace(b"\xa4ping", bytes([0xA0 + len(tag)]) + tag.encode())
    return wire.Frame(FrameType.CONTROL, channel, memoryview(payload))


def cursors(
    *, output: int | None = 0, error: int | None = 0, events: int | None = 0, credit: int = wire.MIB
) -> tuple[wire.Cursor, ...]:
    """Cursors as a client sends them, from the given offsets on."""
    return (
        wire.Cursor(Stream.EVENTS, wire.MESSAGE_WINDOW, events),
        wire.Cursor(Stream.OUTPUT, credit, output),
        wire.Cursor(Stream.ERROR, credit, error),
    )
