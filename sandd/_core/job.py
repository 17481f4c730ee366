"""One job as the daemon's protocol sees it: its streams, its state, and who is attached to it.

Sans-IO. What a shell may do to a job is here; who may attach to which is the table's to say (`jobs`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandd import wire
from sandd._core._errors import LocalProtocolError
from sandd._core.scheduler import Scheduler
from sandd._core.streams import (
    RING_BYTES,
    ByteReceiveLog,
    ByteSendLog,
    MessageReceiveLog,
    MessageSendLog,
    ReceiveLog,
    SendLog,
)
from sandd.wire import JobState, OnFull, Role, Stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandd._core.channels import Channel
    from sandd._core.tombstones import JobKey

DEFAULT_LEASE: Final = 24 * 3600.0
"""Seconds an owned job may run without an owner, and an ended one is kept for nobody."""
JOB_OVERHEAD: Final = 8 * wire.KIB
"""What a job costs besides its spec and output."""


class Job:
    """One job as the daemon's protocol sees it: its streams and who is attached to it."""

    def __init__(self, key: JobKey, spec_bytes: bytes, spec: wire.Spec) -> None:
        self.key = key
        self.spec_bytes = spec_bytes
        self.spec = spec
        self.state = JobState.QUEUED
        self.pid = 0
        self._untold_pid: int | None = None
        self.generation = 1
        self.detached = spec.detach
        self.client = ""
        """The client that owns the job, attached or not."""
        self.owner: Attachment | None = None
        self.viewers: dict[Attachment, None] = {}  # an ordered set
        self.unowned_seconds = 0.0
        self.end_requested = False
        """Its owner left for good: once ended, nobody will ask for the results."""
        self.end_outcome: wire.Outcome | None = None
        """Why we are killing it; the outcome to report. None: nobody is."""
        self.end_grace = spec.kill_grace
        self.end_signal = "TERM"
        """What its process gets first when it is killed."""
        self.asked_at = 0.0
        """When it came, by the clock of `JobTable.receive`."""
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.result: wire.Exited | wire.Failed | None = None
        self.lease = DEFAULT_LEASE if spec.lease is None else spec.lease
        dropping = spec.on_full is OnFull.DROP_OLDEST
        self.sends: dict[Stream, SendLog] = {
            # Retained whole, so that whoever attaches later learns what became of the job.
            Stream.EVENTS: MessageSendLog(capacity=None, retain=wire.MESSAGE_WINDOW),
            Stream.OUTPUT: ByteSendLog(capacity=RING_BYTES, dropping=dropping),
            Stream.ERROR: ByteSendLog(capacity=RING_BYTES, dropping=dropping),
        }
        self.ops = MessageReceiveLog()
        self.input = ByteReceiveLog()
        self.receives: dict[Stream, ReceiveLog] = {Stream.OPS: self.ops, Stream.INPUT: self.input}

    def __repr__(self) -> str:
        return f"<Job {self.key[1]} {self.state.value}, {len(self.viewers)} viewers>"

    # -- what the process does

    def started(self, pid: int, now: float = 0.0) -> None:
        """The process runs, since `now`. Clients learn of it by `tell_started`, or with its end."""
        self.state = JobState.RUNNING
        self.pid = self._untold_pid = pid
        self.started_at = now

    def tell_started(self) -> None:
        """Let clients know that the process runs, unless they do."""
        if self._untold_pid is not None:
            pid, self._untold_pid = self._untold_pid, None
            self._emit(wire.Started(pid))

    @property
    def held_bytes(self) -> int:
        """Memory that keeping the job costs, about."""
        logs = (self.sends[Stream.OUTPUT], self.sends[Stream.ERROR])
        return JOB_OVERHEAD + len(self.spec_bytes) + sum(log.end - log.base for log in logs)

    def room(self, stream: Stream) -> int:
        """Bytes that `write` would take now."""
        return self.sends[stream].room

    def write(self, stream: Stream, data: wire.Buffer) -> None:
        """Output of the process; at most `room` bytes."""
        log = self.sends[stream]
        assert isinstance(log, ByteSendLog)
        log.append(data)
        self._announce()

    def make_room(self, units: int) -> None:
        """The process has exited: take what its pipes still hold, whoever reads, so that the end can be told."""
        for stream in (Stream.OUTPUT, Stream.ERROR):
            log = self.sends[stream]
            if log.capacity is not None:
                log.capacity += units

    def finish(self, stream: Stream) -> None:
        """The process' output has ended."""
        self.sends[stream].finish()
        self._announce()

    def take_input(self, limit: int) -> bytes:
        """Bytes for the process' stdin; b"" when there are none now. Taking them grants new credit."""
        chunk = self.input.take(limit)
        assert isinstance(chunk, bytes)  # accept() refuses gaps on the way to the daemon
        self._announce()
        return chunk

    def next_op(self) -> wire.Op | wire.Unknown | None:
        """The next op, or None."""
        message = self.ops.take()
        if message is None:
            return None
        self._announce()
        return wire.decode_op(message)

    def exited(
        self,
        *,
        code: int | None,
        signal: int | None,
        outcome: wire.Outcome,
        seconds: float,
        pipes_held: bool,
    ) -> None:
        """The process is reaped and its tree empty; the outputs end here."""
        pid = self._untold_pid or 0
        self._untold_pid = None
        self._end(wire.Exited(code, signal, outcome, seconds, pipes_held, self._finals(), pid))

    def failed(
        self, code: wire.FailedCode, message: str, *, errno: int = 0, filename: bytes | None = None
    ) -> None:
        """There is no exit status: the job couldn't be started, or its fate is unknown."""
        self.tell_started()
        text = message[: wire.MAX_TEXT_LENGTH]
        name = None if filename is None else filename[: wire.MAX_TEXT_LENGTH]
        self._end(wire.Failed(code, text, errno, name, self._finals()))

    def _finals(self) -> dict[Stream, int]:
        finals = {}
        for stream in (Stream.OUTPUT, Stream.ERROR):
            log = self.sends[stream]
            log.finish()
            log.end_is_told = True
            if log.end:
                finals[stream] = log.end
        return finals

    def _end(self, event: wire.Exited | wire.Failed) -> None:
        if self.state is JobState.ENDED:
            raise LocalProtocolError("the job has ended already")
        self.state = JobState.ENDED
        self.result = event
        self.unowned_seconds = 0.0  # from here on it counts towards the retention
        self._emit(event)

    def _emit(self, event: wire.Event) -> None:
        log = self.sends[Stream.EVENTS]
        assert isinstance(log, MessageSendLog)
        log.append(wire.encode_event(event))
        self._announce()

    # -- attachments

    def detach(self) -> None:
        """From now on it outlives its owner."""
        self.detached = True

    @property
    def attachments(self) -> Iterable[Attachment]:
        """Everyone attached: the owner first."""
        return (self.owner, *self.viewers) if self.owner is not None else tuple(self.viewers)

    def _announce(self) -> None:
        for attachment in self.attachments:
            attachment.link.scheduler.activate(attachment.channel)
            attachment.link.dirty = True


@define(eq=False)
class DaemonLink:
    """One connection to a controller, as the job table sees it."""

    scheduler: Scheduler = field(factory=Scheduler)
    attachments: dict[int, Attachment] = field(factory=dict)
    last_channel: int = 0
    dirty: bool = False
    """Something was scheduled since the shell last looked."""
    progressed: bool = False
    """A client has acknowledged or granted something on this link: it works."""

    @property
    def unsent(self) -> bool:
        """Something of the attached jobs' output or events has not been sent yet."""
        return any(
            cursor.sent < cursor.log.end
            for attachment in self.attachments.values()
            for cursor in attachment.channel.send.values()
        )

    def control(self, channel: int, message: wire.Control) -> None:
        """Queue a control message."""
        self.scheduler.control(wire.encode_control(channel, message))
        self.dirty = True


@define(eq=False)
class Attachment:
    """One channel of one link to one job."""

    link: DaemonLink
    channel: Channel
    job: Job
    role: Role
    flush: wire.Flush | None = None
    """What the client waits to hear of: to be sent back once it has all arrived."""
