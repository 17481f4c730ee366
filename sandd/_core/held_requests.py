"""Requests that wait for the audit log: nothing of them is passed on before it is known who asked for what.

Sans-IO. An Attach that would start something is held until its record is on the disk, with all that follows on its
channel, which the credit bounds; so is what names the same job, as it may not overtake the request: an `End`, or
another Attach. Everything else goes its way.

    Attach{spec} --record--> held --committed--> in order to the daemon, as if it came now
                              |---refused------> Refused
                              `---link cut-----> forgotten, but for its Ends: they may mean a job that runs
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd.wire import FrameType, Stream

if TYPE_CHECKING:
    from sandd._core.audit.trail import JobKey
    from sandd._core.router import ClientLink
    from sandd.wire import Frame

HEAD_BYTES: Final = 128
"""What a held frame counts for besides its bytes: it is three objects."""
MAX_HELD_BYTES: Final = 64 * wire.MIB
"""Held for one client in another process: a thousand requests, with all the input that may go with each."""


@define(eq=False)
class Held:
    """A channel that is not open yet, with what came on it; or, as channel 0, an `End` by itself."""

    link: ClientLink
    number: int
    attach: wire.Attach | None
    frames: list[Frame] = field(factory=list)
    size: int = 0
    """Bytes it keeps."""
    _ops: int = 0

    def take(self, frame: Frame) -> None:
        """Keep one more frame; RemoteProtocolError where a channel that has no answer yet may not send it."""
        if frame.type is not FrameType.CONTROL:
            data = wire.decode_data(frame)
            if data.stream not in wire.TO_DAEMON or data.gap_end is not None:
                raise RemoteProtocolError(f"{data.stream.name} does not flow to the daemon")
            self._ops += data.stream is Stream.OPS
            is_input = data.stream is Stream.INPUT
            end = data.offset + len(data.body) if is_input else 0
            if end > wire.INITIAL_INPUT_BYTES or self._ops > wire.MESSAGE_WINDOW:
                raise RemoteProtocolError(f"{data.stream.name} ahead of the answer to an Attach")
            self._add(frame, len(data.body))
        else:
            self._add(frame, len(frame.payload))

    def _add(self, frame: Frame, size: int) -> None:
        self.frames.append(frame)
        self.count(size)

    def count(self, size: int) -> None:
        """It keeps so many bytes more."""
        self.size += size + HEAD_BYTES
        self.link.held_bytes += size + HEAD_BYTES

    def let_go(self) -> None:
        """It keeps nothing any more."""
        self.frames = []
        self.link.held_bytes -= self.size
        self.size = 0

    def drop_all_but_ends(self) -> None:
        """Its channel is gone."""
        frames = self.frames
        self.let_go()
        self.attach = None
        for frame in frames:
            if frame.type is FrameType.CONTROL and isinstance(wire.decode_control(frame), wire.End):
                self._add(frame, len(frame.payload))


@define(eq=False)
class PendingRequest:
    """A record under way to the disk, and what waits for it."""

    key: JobKey
    message: wire.Attach
    kind: str | None
    held: list[Held] = field(factory=list)
    """In the order in which it came."""

    def means(self, message: wire.Attach) -> bool:
        """The Attach asks for the same once more, or for a job that is there: one record is enough."""
        mine = self.message
        return message.spec is None or (message.spec, message.instance, message.client) == (
            mine.spec, mine.instance, mine.client
        )  # fmt: skip
