"""One job as the daemon's protocol sees it: its streams, its state, and who is attached to it.

Sans-IO. What a shell may do to a job is here; who may attach to which is the table's to say (`jobs`).
"""

from __future__ import annotations

from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field

from sandd import wire
from sandd._core._errors import LocalProtocolError
from sandd._core.limits import NO_LIMITS, NO_USAGE, Limits, Usage
from sandd._core.metrics.tallies import Traffic
from sandd._core.scheduler import Scheduler
from sandd._core.spooled_log import EVERYTHING, SpooledLog
from sandd._core.streams import (
    RING_BYTES,
    ByteReceiveLog,
    MessageReceiveLog,
    MessageSendLog,
    SendCursor,
    SendLog,
)
from sandd.wire import JobState, Role, Stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandd._core.channels import Channel
    from sandd._core.ring_room import RingRoom
    from sandd._core.spool import Spool
    from sandd._core.tombstones import JobKey

# Enum members are bound here because looking one up by its class costs as much as a function call (Python 3.11).
_INPUT: Final = Stream.INPUT
_QUEUED: Final = JobState.QUEUED
_RUNNING: Final = JobState.RUNNING
_ENDED: Final = JobState.ENDED
_TOGETHER: Final = wire.IsolationLevel.NONE

SESSION_RING_BYTES: Final = 256 * wire.KIB
"""As `RING_BYTES`, of a session: what is in it stands before the echo of a Ctrl-C. More than a receiver takes before
it acknowledges."""
DEFAULT_LEASE: Final = 24 * 3600.0
"""Seconds an owned job may run without an owner, and an ended one is kept for nobody."""
JOB_OVERHEAD: Final = 8 * wire.KIB
"""What a job costs besides its spec and output."""
OUTPUTS: Final = (Stream.OUTPUT, Stream.ERROR)
_NOT_MADE: Final[Mapping[Stream, SpooledLog]] = MappingProxyType({})
MAX_STALLS_TOLD: Final = 100
"""Stalls of a job that are told: its events are kept whole, and this bounds them."""


class Job:
    """One job as the daemon's protocol sees it: its streams and who is attached to it."""

    # With a dict each of the thousands that are kept would take three times as much.
    __slots__ = (
        *("__weakref__", "_is_left", "_ring_room", "_spool", "_stalls_told", "asked_at"),
        *("attempts", "ceiling", "claim_within", "client", "detached", "end_grace"),
        *("end_outcome", "end_requested", "end_signal", "ended_at", "generation", "key"),
        *("least_isolation", "made_outputs", "owner", "pid", "result", "spec", "spec_bytes"),
        *("started_at", "state", "terminal", "trace", "traffic", "unowned_seconds"),
        *("untold_pid", "viewers"),
        # Made when they are first asked for: see `__getattr__`.
        *("events", "input", "ops", "outputs", "sends"),
    )

    outputs: dict[Stream, SpooledLog]
    """What its process, or its request, puts out.

    A short command that says nothing never has it. Until it is made it is as if nothing had been put out, and whoever
    is attached has a cursor in it from its beginning, once it is.
    """
    ops: MessageReceiveLog
    """What its client asks of it."""
    input: ByteReceiveLog
    """What its process, or its request, is to read."""
    events: MessageSendLog
    """What has become of it; retained whole, so that whoever attaches later learns that."""
    sends: dict[Stream, SendLog]
    """All that flows to clients."""

    def __init__(
        self,
        key: JobKey,
        spec_bytes: bytes,
        spec: wire.Spec,
        spool: Spool | None = None,
        ring_room: RingRoom | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self.key = key
        self.spec_bytes = spec_bytes
        self.spec = spec
        self.state = _QUEUED
        self.pid = 0
        self.untold_pid: int | None = None
        """The process runs, and clients don't know: see `tell_started`."""
        self.generation = 1
        self.ceiling = NO_LIMITS
        """What it may use, whatever it asks for: by the controller's policy."""
        self.least_isolation = _TOGETHER
        """What it is kept apart from, whatever it asks for: by the same."""
        self.detached = spec.detach
        self.client = ""
        """The client that owns the job, attached or not."""
        self.owner: Attachment | None = None
        self.attempts: dict[str, int] = {}
        """Of those who owned the job last: their latest Attach."""
        self.viewers: dict[Attachment, None] = {}  # an ordered set
        self.unowned_seconds = 0.0
        self.end_requested = False
        """Its owner left for good: once ended, nobody will ask for the results."""
        self.end_outcome: wire.Outcome | None = None
        """Why we are killing it; the outcome to report. None: nobody is."""
        self.end_grace = spec.kill_grace
        self.end_signal = "TERM"
        """What its process gets first when it is killed."""
        self.trace = ""
        """What its program is to find as TRACEPARENT; "": nothing."""
        self.asked_at = 0.0
        """When it came, by the clock of `JobTable.receive`."""
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.result: wire.Exited | wire.Failed | None = None
        self.claim_within: float | None = None
        """The daemon began it, and nobody owns it yet: seconds in which its client has to come."""
        self._stalls_told = 0
        self.terminal = isinstance(spec, wire.SessionSpec)
        """It is a session: it keeps its scrollback, whoever has read it, and mostly no more."""
        self._is_left = False
        """Its owner went for good, and nobody came since."""
        self._spool = spool
        self._ring_room = ring_room
        self.traffic = Traffic() if traffic is None else traffic
        """Where its bytes are counted."""
        self.made_outputs: Mapping[Stream, SpooledLog] = _NOT_MADE
        """Its `outputs`, if they have been made."""

    def __repr__(self) -> str:
        return f"<Job {self.key[1]} {self.state.value}, {len(self.viewers)} viewers>"

    def __getattr__(self, name: str) -> Any:
        """Make one of its streams: the process is asked for before they are needed, and starts meanwhile."""
        made: Any
        if name == "events":
            made = self.events = MessageSendLog(capacity=None, retain=EVERYTHING)
        elif name == "ops":
            made = self.ops = MessageReceiveLog()
        elif name == "input":
            made = self.input = ByteReceiveLog()
        elif name == "outputs":
            made = self.outputs = self._make_outputs()
        elif name == "sends":
            made = self.sends = {Stream.EVENTS: self.events, **self.outputs}
        else:
            raise AttributeError(f"a job has no {name}")
        return made

    def _make_outputs(self) -> dict[Stream, SpooledLog]:
        spec, capacity, spool = self.spec, RING_BYTES, self._spool
        ring_room = self._ring_room
        retain = EVERYTHING if self.detached else 0
        if isinstance(spec, wire.SessionSpec):
            retain, capacity, ring_room = spec.scrollback, SESSION_RING_BYTES, None
        elif isinstance(spec, wire.Request):
            # What it tells has a source, and can wait there.
            capacity, spool, ring_room = spec.window, None, None
        made = {
            stream: SpooledLog(
                self,
                capacity=capacity,
                retain=retain,
                on_full=spec.on_full,
                spool=spool,
                ring_room=ring_room,
            )
            for stream in OUTPUTS
        }
        for stream, log in made.items():
            log.own(attached=self.owner is not None)
            if self.state is _ENDED:
                log.finish()
                log.end_is_told = True
            for each in self.attachments:
                each.channel.add_cursor(SendCursor(stream, log, 0, each.output_credit))
        self.made_outputs = made
        return made

    @property
    def lease(self) -> float:
        """Seconds that it runs without an owner."""
        if self.claim_within is not None:
            return self.claim_within
        return DEFAULT_LEASE if self.spec.lease is None else self.spec.lease

    # -- what the process does

    def started(self, pid: int, now: float = 0.0) -> None:
        """The process runs, since `now`. Clients learn of it by `tell_started`, or with its end."""
        self.state = _RUNNING
        self.pid = self.untold_pid = pid
        self.started_at = now

    def tell_started(self) -> None:
        """Let clients know that the process runs, unless they do."""
        if self.untold_pid is not None:
            pid, self.untold_pid = self.untold_pid, None
            self._emit(wire.Started(pid))

    @property
    def held_bytes(self) -> int:
        """Memory that keeping the job costs, about."""
        output = sum(log.memory_bytes for log in self.made_outputs.values())
        return JOB_OVERHEAD + len(self.spec_bytes) + output

    @property
    def disk_bytes(self) -> int:
        """Bytes of its output on the daemon's disk."""
        return sum(log.disk_bytes for log in self.made_outputs.values())

    def room(self, stream: Stream) -> int:
        """Bytes that `write` would take now."""
        return self.outputs[stream].room

    def write(self, stream: Stream, data: wire.Buffer) -> None:
        """Output of the process; at most `room` bytes."""
        log = self.outputs[stream]
        log.append(data)
        self.traffic.to_clients += len(data)
        if self._is_left:
            log.acknowledge(log.end)
        # No more than output: a keystroke's echo is worth no look at all that there may be to say.
        owner = self.owner
        if owner is not None:
            owner.link.scheduler.activate_bulk(owner.channel)
            owner.link.dirty = True
        for viewer in self.viewers:
            viewer.link.scheduler.activate_bulk(viewer.channel)
            viewer.link.dirty = True

    def make_room(self, units: int) -> None:
        """The process has exited: take what its pipes still hold, whoever reads, so that the end can be told."""
        for log in self.outputs.values():
            log.drain(units)

    def tell_stalls(self) -> None:
        """Say which outputs wait for the daemon's disk, and which do no more; once per stall."""
        if self.state is not _RUNNING:
            return  # an end is the last that is told
        for stream, log in self.made_outputs.items():
            if log.told_stall:
                if not log.is_stalled:
                    log.told_stall = False
                    self._emit(wire.Flowing(stream))
                continue
            stall = log.stall
            if stall is not None and self._stalls_told < MAX_STALLS_TOLD:
                log.told_stall = True
                self._stalls_told += 1
                message = stall.message[: wire.MAX_TEXT_LENGTH]
                self.tell_started()  # what a process does comes behind its start
                self._emit(wire.Stalled(stream, stall.reason, message))

    def finish(self, stream: Stream) -> None:
        """The process' output has ended."""
        self.sends[stream].finish()
        self.announce()

    def take_input(self, limit: int) -> bytes:
        """Bytes for the process' stdin; b"" when there are none now. Taking them grants new credit."""
        chunk = self.input.take(limit)
        assert isinstance(chunk, bytes)  # accept() refuses gaps on the way to the daemon
        self.input_taken(len(chunk))
        return chunk

    def take_input_pieces(self, limit: int) -> list[wire.Buffer]:
        """The same in the pieces that it came in; none when there are none now."""
        pieces = self.input.take_pieces(limit)
        assert isinstance(pieces, list)
        self.input_taken(sum(map(len, pieces)))
        return pieces

    def input_taken(self, count: int) -> None:
        """So many bytes were taken from `input`: they count, and grant new credit."""
        self.traffic.to_daemons += count
        # Not each time: a keystroke is worth no look at all that there may be to say.
        owner = self.owner
        if owner is None or owner.owes_windows:
            return
        if owner.channel.receive[_INPUT].update_due:
            self.announce()

    def next_op(self) -> wire.Op | wire.Unknown | None:
        """The next op, or None."""
        message = self.ops.take()
        if message is None:
            return None
        self.announce()
        return wire.decode_op(message)

    def exited(
        self,
        *,
        code: int | None,
        signal: int | None,
        outcome: wire.Outcome,
        seconds: float,
        pipes_held: bool,
        usage: Usage = NO_USAGE,
        limits: Limits = NO_LIMITS,
        limit: str = "",
    ) -> None:
        """The process is reaped and its tree empty; the outputs end here."""
        pid = self.untold_pid or 0
        self.untold_pid = None
        self._end(
            wire.Exited(
                code=code,
                signal=signal,
                outcome=outcome,
                seconds=seconds,
                pipes_held=pipes_held,
                finals=self._finals() if self.made_outputs else {},
                pid=pid,
                cpu_seconds=usage.cpu_seconds,
                max_rss_bytes=usage.max_rss_bytes,
                limits=limits,
                limit=limit,
            )
        )

    def failed(
        self,
        code: wire.FailedCode,
        message: str,
        *,
        errno: int = 0,
        symbol: str = "",
        filename: bytes | None = None,
        policy_hash: str = "",
    ) -> None:
        """There is no exit status: the job couldn't be started, or its fate is unknown."""
        self.tell_started()
        text = message[: wire.MAX_TEXT_LENGTH]
        name = None if filename is None else filename[: wire.MAX_TEXT_LENGTH]
        self._end(wire.Failed(code, text, errno, name, self._finals(), symbol, policy_hash))

    def _finals(self) -> dict[Stream, int]:
        finals = {}
        for stream, log in self.made_outputs.items():
            log.finish()
            log.end_is_told = True
            if log.end:
                finals[stream] = log.end
        return finals

    def _end(self, event: wire.Exited | wire.Failed) -> None:
        if self.state is _ENDED:
            raise LocalProtocolError("the job has ended already")
        self.state = _ENDED
        self.result = event
        self.unowned_seconds = 0.0  # from here on it counts towards the retention
        self._emit(event)

    def _emit(self, event: wire.Event) -> None:
        self.events.append(wire.encode_event(event))
        self.announce()

    # -- attachments

    def detach(self) -> None:
        """From now on it outlives its owner."""
        self.detached = True
        if not self.terminal:
            for log in self.made_outputs.values():
                log.keep_all()

    def leave(self) -> None:
        """Its owner went for good: of what a session shows until somebody comes, its scrollback is enough."""
        if self.terminal:
            self._is_left = True
            for log in self.made_outputs.values():
                log.acknowledge(log.end)

    def replay_start(self, stream: Stream) -> int:
        """Where who attaches begins, if it doesn't say where."""
        log = self.sends[stream]
        if stream is Stream.OUTPUT and isinstance(self.spec, wire.SessionSpec):
            return max(log.base, log.end - self.spec.scrollback)
        return log.base

    @property
    def attachments(self) -> Iterable[Attachment]:
        """Everyone attached: the owner first."""
        return (self.owner, *self.viewers) if self.owner is not None else tuple(self.viewers)

    def set_owner(self, owner: Attachment | None) -> None:
        """Who is attached as the owner, from now on: its pace is the process' pace."""
        self.owner = owner
        if owner is not None:
            self._is_left = False
        for log in self.made_outputs.values():
            log.own(attached=owner is not None)

    def release_pieces(self) -> None:
        """Nobody is attached: what was read back from the disk has no reader."""
        for log in self.made_outputs.values():
            log.release_pieces()

    def abandon(self) -> None:
        """Nobody will ask for its output any more; what of it is on disk is deleted."""
        for log in self.made_outputs.values():
            log.abandon()
        # They know the job: without them it goes when nobody has it any more, and not when cycles are looked for.
        if self.made_outputs is not _NOT_MADE:
            self.made_outputs = _NOT_MADE
            del self.outputs
            with suppress(AttributeError):  # nobody has asked for it
                del self.sends

    def announce(self) -> None:
        """There may be something for those who are attached."""
        owner = self.owner
        if owner is not None:  # mostly there is nobody else
            owner.link.scheduler.activate(owner.channel)
            owner.link.dirty = True
        for viewer in self.viewers:
            viewer.link.scheduler.activate(viewer.channel)
            viewer.link.dirty = True


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
    def unsent(self) -> int:
        """So much of the attached jobs' output and events has not been sent yet, in bytes and messages."""
        return sum(
            cursor.log.end - cursor.sent
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
    output_credit: int = 0
    """On outputs that have not been made yet."""
    owes_windows: bool = False
    """Its channel gets those for what comes from the client when something does."""
    flush: wire.Flush | None = None
    """What the client waits to hear of: to be sent back once it has all arrived."""
