"""Requests that wait for the audit log: nothing of them is passed on before it is known who asked for what.

Sans-IO. An Attach that would start something is held until its record is on the disk, with all that follows on its
channel, which the credit bounds; so is what names the same job, as it may not overtake the request: an `End`, or
another Attach. Everything else goes its way.

    Attach{spec} --record--> held --committed--> in order to the daemon, as if it came now
                              |---refused------> Refused
                              `---link cut-----> forgotten, but for its Ends: they may mean a job that runs
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, field

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.identity.rights import split_name
from sandd._core.relay_queue import by_itself
from sandd.wire import FrameType, RefusedCode, Stream

if TYPE_CHECKING:
    from sandd._core.audit.sinks import AuditSink
    from sandd._core.audit.trail import JobKey, JobTrail
    from sandd._core.router_links import ClientLink
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
            wire.decode_control(frame)  # later, nobody who could be told would be there
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


class Passage(Protocol):
    """The router: what was held goes on there."""

    def open_channel(self, link: ClientLink, number: int, message: wire.Attach) -> None:
        """Pass on an Attach that may be."""

    def turn_down(
        self, link: ClientLink, number: int, message: wire.Attach, refused: wire.Refused
    ) -> None:
        """Tell the client that its Attach is not passed on, and why."""

    def end_job(self, link: ClientLink, message: wire.End) -> None:
        """Pass on an End."""

    def receive(self, link: ClientLink, frame: Frame) -> None:
        """Take a frame, as if it came now."""


class HeldRequests:
    """What waits in one router."""

    def __init__(self, audit: AuditSink, trail: JobTrail, passage: Passage) -> None:
        self._audit = audit
        self._trail = trail
        self._passage = passage
        self._pending: dict[JobKey, PendingRequest] = {}
        """The latest for each job; the log answers in the order in which it is asked."""

    def __len__(self) -> int:
        return len(self._pending)

    def admits(self, link: ClientLink, number: int, message: wire.Attach) -> bool:
        """Whether the Attach may be passed on at once; else it is held until it may be, or was turned down."""
        if not self._audit.is_on:
            return True
        key = job_key(message)
        pending = self._pending.get(key)
        if pending is None or not pending.means(message):
            if message.spec is None or (pending is None and self._trail.knows(key, message)):
                return True
            record = self._trail.request(key, message, link.actor)
            pending = self._pending[key] = PendingRequest(key, message, record.kind)
            self._audit.commit(record, partial(self._committed, pending))
        held = link.held[number] = Held(link, number, message)
        pending.held.append(held)
        held.count(len(message.spec or b""))
        self._bound(held)
        return False

    def keeps(self, link: ClientLink, frame: Frame) -> bool:
        """Whether the frame is held, as its channel is."""
        held = link.held.get(frame.channel)
        if held is None:
            return False
        held.take(by_itself(frame))
        self._bound(held)
        return True

    def keeps_end(self, link: ClientLink, frame: Frame, message: wire.End) -> bool:
        """Whether the End is held, because it may not overtake the request of its job.

        `message` is what the frame says, by the daemon's full name and in its tenant's. RemoteProtocolError where so
        many wait that it would cost too much memory.
        """
        if frame.channel or not self._pending:
            return False  # on a channel that is open it follows what it means
        pending = self._pending.get((message.daemon_id, message.tenant, message.job_id))
        if pending is None:
            return False
        if link.is_metered and link.held_bytes > MAX_HELD_BYTES:
            # It can't be refused, as nobody waits for an answer to it.
            raise RemoteProtocolError(f"too many Ends: {_too_much()}")
        held = Held(link, 0, None)
        held.take(by_itself(frame))
        pending.held.append(held)
        return True

    def forget(self, link: ClientLink) -> None:
        """The link is gone, and its channels with it."""
        for held in link.held.values():
            held.drop_all_but_ends()
        link.held.clear()

    def _bound(self, held: Held) -> None:
        """What is held for a client in another process has a bound: a disk may stand still."""
        link, attach = held.link, held.attach
        if link.is_metered and link.held_bytes > MAX_HELD_BYTES and attach is not None:
            del link.held[held.number]
            held.drop_all_but_ends()
            refused = wire.Refused(RefusedCode.DENIED, _too_much())
            self._passage.turn_down(link, held.number, attach, refused)

    def _committed(self, pending: PendingRequest, refusal: str | None) -> None:
        """The request is on record, or can't be: what was held goes on, or doesn't."""
        if self._pending.get(pending.key) is pending:
            del self._pending[pending.key]
        if refusal is None:
            self._trail.requested(pending.key, pending.message, pending.kind)
        for held in pending.held:
            try:
                self._release(held, refusal)
            except RemoteProtocolError as error:
                if held.link.carrier is None:
                    raise
                held.link.carrier.close(f"it broke the protocol: {error}")

    def _release(self, held: Held, refusal: str | None) -> None:
        link, attach, frames = held.link, held.attach, held.frames
        held.let_go()
        if attach is None:  # an End by itself, or what is left of a channel that is gone
            for frame in frames:
                end = wire.decode_control(frame)
                assert isinstance(end, wire.End)  # nothing else was kept
                self._passage.end_job(link, end)
            return
        del link.held[held.number]
        if refusal is not None:
            refused = wire.Refused(RefusedCode.DENIED, refusal)
            self._passage.turn_down(link, held.number, attach, refused)
        else:
            self._passage.open_channel(link, held.number, attach)
        for frame in frames:
            self._passage.receive(link, frame)


def _too_much() -> str:
    return f"{MAX_HELD_BYTES} bytes of this client's wait for the audit log already"


def job_key(message: wire.Attach) -> JobKey:
    """Which job the Attach is about, that means the daemon by its full name."""
    return message.daemon_id, split_name(message.daemon_id)[0], message.job_id
