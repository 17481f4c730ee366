r"""The daemon's half of the protocol: which jobs exist, who is attached, what goes to whom.

Sans-IO. A shell feeds in frames (`JobTable.receive`), what the processes do (`Job.write`, ...) and
the clock (`JobTable.tick`), and acts on the `Effect`s it is handed back.

    QUEUED --started--> RUNNING --exited/failed--> ENDED --(End, all acknowledged, retention)--> forgotten
       \\------------------failed------------------/
"""

from __future__ import annotations

import enum
import secrets
from typing import TYPE_CHECKING, Final

from sandd import wire
from sandd._core._errors import LocalProtocolError, RemoteProtocolError
from sandd._core.channels import Channel
from sandd._core.job import DEFAULT_LEASE, Attachment, DaemonLink, Job
from sandd._core.metrics.daemon_tally import DaemonTally
from sandd._core.ring_room import RingRoom
from sandd._core.streams import (
    RING_BYTES,
    ReceiveWindow,
    SendCursor,
)
from sandd._core.tombstones import JobKey, Tombstones, generate, parse
from sandd.wire import JobState, RefusedCode, Role, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sandd._core.spool import Spool

INPUT_WINDOW: Final = RING_BYTES
"""Credit on INPUT: what the daemon may hold for a child that doesn't read."""
MAX_JOBS: Final = 100_000
"""Jobs (queued, running and ended) a daemon keeps; a bound on memory that nobody meets by accident."""
MAX_ENDED_BYTES: Final = 256 * wire.MIB
"""Memory that jobs which have ended, and that nobody is attached to, may hold together."""
MAX_REQUESTS: Final = 10_000
"""Requests a daemon keeps besides, so that one that is full of jobs can still be told to end some."""
MAX_ATTEMPTS: Final = 16
"""Owners of a job, former ones included, whose latest Attach is remembered: more don't take turns within
the time that a message can be late."""
LONGEST_TICK: Final = 5.0
"""Seconds a lease loses per tick at most: a suspended machine expires nothing."""


class Effect(enum.Enum):
    """What the shell has to do about a job."""

    START = enum.auto()  # a new job: run it, or do it yourself if it is a request
    OPS = enum.auto()  # ops wait in Job.next_op
    INPUT = enum.auto()  # input (or its end) waits in Job.take_input
    ROOM = enum.auto()  # output was acknowledged, or the owner left: Job.room may have grown
    CLAIMED = enum.auto()  # a job that the daemon began has an owner now
    END = enum.auto()  # kill it: Job.end_outcome, Job.end_signal and Job.end_grace say how
    FORGOTTEN = enum.auto()  # the job left the table


# Enum members are bound here because looking one up by its class costs as much as a function call (Python 3.11).
_CONTROL: Final = wire.FrameType.CONTROL
_EVENTS: Final = Stream.EVENTS
_OPS: Final = Stream.OPS
INPUT_CAME: Final = Effect.INPUT
_START: Final = Effect.START
_ENDED: Final = JobState.ENDED
_QUEUED: Final = JobState.QUEUED
_OWNER: Final = Role.OWNER

NO_JOB: Final = "no such job on this daemon"


def _complaint(message: wire.Attach) -> wire.Refused | None:
    """The answer to streams that no honest client can ask for; before anything is changed."""
    seen = set()
    for cursor in message.cursors:
        if cursor.stream not in wire.TO_CLIENT or cursor.stream in seen:
            return wire.Refused(
                RefusedCode.DENIED, f"Attach asks for {cursor.stream.name} twice, or the wrong way"
            )
        seen.add(cursor.stream)
    return None


def _repeats_start(message: wire.Attach) -> bool:
    """Whether it is, again, the start of a job under an id that this very client generated."""
    generated = parse(message.job_id)
    return message.spec is not None and generated is not None and generated[0] == message.client


def _is_plain(job: Job, role: Role) -> bool:
    """Whether all that there is to say of a new job is what need not be said: it is asked of each, and made of few."""
    return (
        job.state is _QUEUED
        and role is _OWNER
        and not (job.spec.stdin or job.detached or job.terminal)
    )


Effects = list[tuple[Job, Effect]]


def _input_window(spec: wire.Spec) -> int:
    """Credit on INPUT: what the daemon may hold for a job that doesn't read."""
    return spec.window if isinstance(spec, wire.Request) else INPUT_WINDOW


class JobTable:
    """All jobs of a daemon instance, and every rule about who may do what with them."""

    def __init__(
        self,
        instance: str,
        *,
        retention: float = DEFAULT_LEASE,
        spool: Spool | None = None,
        judge: Callable[[wire.Spec, wire.IsolationLevel], wire.Refused | None] | None = None,
    ) -> None:
        self.instance = instance
        self.retention = retention
        self.spool = spool
        """Where output goes while nobody is attached; None: it stays in memory."""
        self.ring_room = RingRoom()
        self._judge = judge
        """Why a spec may not be done here, if it may not: by the daemon's policy. It does no I/O. None: any may."""
        self.jobs: dict[JobKey, Job] = {}
        self.tombstones = Tombstones()
        self.draining = False
        """The daemon is stopping: nothing new is started."""
        self.tally = DaemonTally()
        self._requests = 0
        """How many of the jobs are requests."""
        self._own_name = secrets.token_hex(8)
        """In which the ids of jobs are generated that the daemon begins itself, as if it were a client."""
        self._own_sequence = 0
        self._last_tick: float | None = None
        self._more_is_unclaimed = False
        """Since the last tick a job has ended, or was left by its owner."""
        self.has_unowned = False
        """There may be jobs without an owner: whose time counts, so `tick` is to be called."""

    # -- links

    def close_link(self, link: DaemonLink, now: float) -> Effects:
        """The connection is gone; jobs go on, and those nobody wants any more are forgotten."""
        effects: Effects = []
        for attachment in list(link.attachments.values()):
            effects += self._detach(attachment, now)
        # `tick` looks at all of them: it may have broken before a new job had its owner.
        self.has_unowned = True
        return effects

    def receive(self, link: DaemonLink, frame: wire.Frame, now: float) -> Effects:
        """Take one frame for a channel, or an End.

        What a client has done wrong costs it its channel (`Refused`), and touches nobody else on the link.
        RemoteProtocolError is the router's: it closes the link; no job is touched.
        """
        return list(self.steps(link, frame, now))

    def steps(
        self, link: DaemonLink, frame: wire.Frame, now: float
    ) -> Iterable[tuple[Job, Effect]]:
        """`receive` for a shell that acts on each effect as it comes; it must take them all.

        A new job's START comes before its channel is made and its Attach answered, which then takes
        no time from the process: that is a tenth of what a short command costs.
        """
        kind, channel, _, _, known = frame
        if kind is _CONTROL:
            return self._control(link, channel, wire.decode_control(frame), now)
        attachment = link.attachments.get(channel) or self._attachment(link, channel)
        if attachment is None:
            return []
        data = known or wire.decode_data(frame)
        stream = data.stream
        if attachment.owes_windows:
            self.open_windows(attachment)
        op: wire.Op | wire.Unknown | None = None
        try:
            if stream is _OPS and (len(data.body) or not data.final):
                # A bad one is refused here, before it counts as received.
                op = wire.decode_op(data.body)
            attachment.channel.on_data(data)
        except RemoteProtocolError as error:
            return self._break(attachment, error, now)
        if op is not None and isinstance(op, wire.DetachJob):
            # Not when the shell takes it: its owner may be gone by then.
            attachment.job.detach()
        if attachment.flush is not None:
            self._answer_flush(attachment)
        return [(attachment.job, Effect.OPS if stream is _OPS else INPUT_CAME)]

    def _attachment(self, link: DaemonLink, channel: int) -> Attachment | None:
        """None: that channel was closed, and this frame was under way; it is no error."""
        if not 0 < channel <= link.last_channel:
            raise RemoteProtocolError(f"frame for channel {channel}, which was never opened")
        return link.attachments.get(channel)

    def _control(
        self, link: DaemonLink, channel: int, message: wire.Control | wire.Unknown, now: float
    ) -> Iterable[tuple[Job, Effect]]:
        match message:
            case wire.Attach():
                return self._attach(link, channel, message, now)
            case wire.End():
                effects = self._end(message, now)
                # On a channel it closes that, too, as Detach does.
                attachment = self._attachment(link, channel) if channel else None
                return effects if attachment is None else effects + self._detach(attachment, now)
            case wire.Window():
                attachment = self._attachment(link, channel)
                if attachment is None:
                    return []
                _ = attachment.job.outputs  # there is credit for them, so they must have been made
                try:
                    attachment.channel.on_window(message)
                except RemoteProtocolError as error:
                    return self._break(attachment, error, now)
                link.progressed = True
                link.scheduler.activate(attachment.channel)
                link.dirty = True
                return [(attachment.job, Effect.ROOM)] if attachment.channel.holds else []
            case wire.Detach():
                attachment = self._attachment(link, channel)
                if attachment is None:
                    return []
                return self._detach(attachment, now)
            case wire.Flush():
                attachment = self._attachment(link, channel)
                if attachment is not None:
                    attachment.flush = message
                    self._answer_flush(attachment)
                return []
            case wire.Unknown():
                return []
            case _:
                raise RemoteProtocolError(
                    f"{type(message).__name__} on channel {channel} is not for a daemon"
                )

    # -- attach and detach

    def _attach(
        self, link: DaemonLink, number: int, message: wire.Attach, now: float
    ) -> Iterator[tuple[Job, Effect]]:
        if number <= link.last_channel:
            raise RemoteProtocolError(f"Attach on channel {number}, behind {link.last_channel}")
        link.last_channel = number
        link.dirty = link.progressed = True
        complaint = _complaint(message) if message.cursors else None
        if complaint is not None:
            link.control(number, complaint)
            return
        key = (message.tenant, message.job_id)
        self.tombstones.settle(message.tenant, message.client, message.settled)
        job = self.jobs.get(key)
        is_new = job is None
        if job is None:
            created = self._create(key, message, now)
            if isinstance(created, wire.Refused):
                self.tally.turned_down(created)
                link.control(number, created)
                return
            job = created
            yield job, _START
        elif isinstance(job.spec, wire.Request) and job.client != message.client:
            link.control(number, wire.Refused(RefusedCode.JOB_NOT_FOUND, NO_JOB))
            return
        else:
            job.tell_started()  # who attaches shall know as much as there is to know
        # A new one was made by this very Attach, and nobody else is there.
        refusal = None if is_new else self._refusal(job, message)
        if refusal is not None:
            link.control(number, refusal)
            return
        is_plain = is_new and not message.cursors and _is_plain(job, message.role)
        channel = self._open_channel(job, number, message)
        attachment = Attachment(link, channel, job, message.role, message.output_credit)
        if message.role is _OWNER:
            attachment.owes_windows = True
            if not is_plain:  # else mostly nothing comes
                self.open_windows(attachment)
        link.attachments[number] = attachment
        if message.role is _OWNER:
            self._own(job, attachment, message)
            if job.claim_within is not None:
                job.claim_within = None
                yield job, Effect.CLAIMED
        else:
            job.viewers[attachment] = None
            self.has_unowned = self.has_unowned or job.owner is None
        if is_plain:
            channel.plain_answer = wire.PLAIN_ATTACHED
        else:
            link.control(number, self._attached(job, attachment))
        link.scheduler.activate(channel)

    def _create(self, key: JobKey, message: wire.Attach, now: float) -> Job | wire.Refused:
        if (
            message.spec is None
            or message.generation is not None
            or (message.cursors and any(c.offset for c in message.cursors))
        ):
            # The client means a job it has been attached to; a new one in its place isn't that.
            if message.instance and message.instance != self.instance:
                return wire.Refused(
                    RefusedCode.LOST, "the daemon was restarted; the job ended with its old process"
                )
            return wire.Refused(RefusedCode.JOB_NOT_FOUND, NO_JOB)
        if message.instance != self.instance:
            return wire.Refused(
                RefusedCode.LOST,
                "the job was first sent to another instance of this daemon; it is not run again",
            )
        generated = parse(key[1])
        is_own = generated is not None and generated[0] == self._own_name
        if is_own or self.tombstones.holds(key, now):
            return wire.Refused(RefusedCode.ENDED, "a job of this id was ended and forgotten")
        if self.draining:
            return wire.Refused(RefusedCode.DENIED, "the daemon is stopping")
        try:
            spec = wire.decode_spec(message.spec)
        except wire.UnsupportedSpec as error:
            return wire.Refused(RefusedCode.UNSUPPORTED, str(error))
        judge = self._judge
        denial = None if judge is None else judge(spec, message.isolation)
        if denial is not None:
            return denial
        if self._is_full(spec) or (generated is None and self.tombstones.full):
            return wire.Refused(RefusedCode.DENIED, "the daemon holds as many jobs as it can")
        job = self._add(key, message.spec, spec, now)
        job.ceiling = message.limits
        job.least_isolation = message.isolation
        job.trace = message.trace
        return job

    def _is_own(self, key: JobKey) -> bool:
        """Whether the id is one of those that the table generates: nobody else ever starts one."""
        generated = parse(key[1])
        return generated is not None and generated[0] == self._own_name

    def _is_full(self, spec: wire.Spec) -> bool:
        if isinstance(spec, wire.Request):
            return self._requests >= MAX_REQUESTS
        return len(self.jobs) - self._requests >= MAX_JOBS

    def _add(self, key: JobKey, spec_bytes: bytes, spec: wire.Spec, now: float) -> Job:
        traffic = self.tally.begun(spec)
        job = self.jobs[key] = Job(key, spec_bytes, spec, self.spool, self.ring_room, traffic)
        job.asked_at = now
        self._requests += isinstance(spec, wire.Request)
        return job

    def begin(
        self, parent: Job, spec: wire.Spec, now: float, *, claim_within: float
    ) -> tuple[Job, Effects] | None:
        """A request that nobody sent, for the client of `parent`: it learns the id by it, and attaches.

        From then on it is like any other; if that takes more than `claim_within` seconds, it is ended.
        None if there is no room for it.
        """
        if self.draining or self._is_full(spec):
            return None
        self._own_sequence += 1
        key = (parent.key[0], generate(self._own_name, self._own_sequence))
        job = self._add(key, b"", spec, now)
        job.client = parent.client
        job.claim_within = claim_within
        self.has_unowned = True
        return job, [(job, _START)]

    def _refusal(self, job: Job, message: wire.Attach) -> wire.Refused | None:
        if message.spec is not None and message.spec != job.spec_bytes:
            return wire.Refused(
                RefusedCode.JOB_ID_CONFLICT, "a job of this id exists with another spec"
            )
        if message.role is _OWNER and message.attempt < job.attempts.get(message.client, 0):
            # It was under way on a connection that its client has given up.
            return wire.Refused(RefusedCode.TAKEN, "a later Attach of the same client came before")
        if message.role is _OWNER and not message.takeover:
            # Who started the job may not have heard of it, and owns it all the same.
            generation = 1 if _repeats_start(message) else message.generation
            if generation not in (None, job.generation):
                return wire.Refused(RefusedCode.TAKEN, "another client took the job over")
            if job.owner is not None and job.client != message.client:
                return wire.Refused(
                    RefusedCode.BUSY,
                    "somebody else is attached as its owner; attach with takeover=True to take it "
                    "over, or with read_only=True to look on",
                )
        for cursor in message.cursors:
            end = job.sends[cursor.stream].end
            if cursor.offset is not None and cursor.offset > end:
                return wire.Refused(
                    RefusedCode.DENIED,
                    f"its {cursor.stream.name} can't be read from {cursor.offset} on: "
                    f"so far it ends at {end}",
                )
        return None

    def _own(self, job: Job, attachment: Attachment, message: wire.Attach) -> None:
        previous = job.owner
        if previous is not None:
            self._unlink(previous)
            # Also to the same client: it may have attached twice, and waits on that channel.
            previous.link.control(previous.channel.number, wire.Taken())
        resumes = job.client == message.client and (
            message.generation is not None or _repeats_start(message)
        )
        if job.client and not resumes:
            job.generation += 1
        job.client = message.client
        job.attempts.pop(message.client, None)
        job.attempts[message.client] = message.attempt
        if len(job.attempts) > MAX_ATTEMPTS:
            del job.attempts[next(iter(job.attempts))]
        job.set_owner(attachment)
        job.unowned_seconds = 0.0

    def _open_channel(self, job: Job, number: int, message: wire.Attach) -> Channel:
        cursors = []
        if message.cursors:
            for asked in message.cursors:
                log = job.sends[asked.stream]
                start = job.replay_start(asked.stream) if asked.offset is None else asked.offset
                cursors.append(SendCursor(asked.stream, log, start, asked.max_offset))
        else:
            events = job.events
            cursors.append(SendCursor(_EVENTS, events, events.base, wire.MESSAGE_WINDOW))
            for stream, output in job.made_outputs.items():
                start = job.replay_start(stream) if output.end else 0
                cursors.append(SendCursor(stream, output, start, message.output_credit))
        return Channel(number, send=cursors, receive=(), holds=message.role is _OWNER)

    def open_windows(self, attachment: Attachment) -> None:
        """Have its channel take what the client sends; for the owner."""
        attachment.owes_windows = False
        job, channel = attachment.job, attachment.channel
        channel.add_window(ReceiveWindow.open(Stream.OPS, job.ops, wire.MESSAGE_WINDOW))
        # Behind the end of input nobody can add any, so nothing is granted there.
        window = _input_window(job.spec) if job.input.final is None else 0
        channel.add_window(ReceiveWindow.open(Stream.INPUT, job.input, window))

    def _attached(self, job: Job, attachment: Attachment) -> wire.Attached:
        # A stream that stands at its beginning need not be named: all of a new job's outputs do.
        states = [
            wire.StreamState(
                c.stream, base=c.log.base, floor=c.log.floor, end=c.log.end, start=c.sent
            )
            for c in attachment.channel.send.values()
            if c.log.end or c.sent
        ]
        # Nor need those towards us of which a new job's credit is all there is to say.
        states += [
            wire.StreamState(w.stream, received=w.log.received, max_offset=w.max_offset)
            for w in attachment.channel.receive.values()
            if w.log.received or (w.stream is Stream.INPUT and attachment.job.spec.stdin)
        ]
        return wire.Attached(
            attachment.role, job.generation, job.state, tuple(states), job.detached, job.terminal
        )

    def _answer_flush(self, attachment: Attachment) -> None:
        """Send a Flush back if all of it has arrived."""
        flush, job = attachment.flush, attachment.job
        assert flush is not None
        if (
            job.ops.received >= flush.ops
            and job.input.received >= flush.input
            and (job.input.final is not None or not flush.ended)
        ):
            attachment.flush = None
            attachment.link.control(attachment.channel.number, flush)

    def _unlink(self, attachment: Attachment) -> None:
        self._cut(attachment)
        job = attachment.job
        if job.owner is attachment:
            job.set_owner(None)
            self.has_unowned = self._more_is_unclaimed = True
        job.viewers.pop(attachment, None)
        if not job.attachments:
            job.release_pieces()

    def _cut(self, attachment: Attachment) -> None:
        """Its channel is no more."""
        attachment.link.attachments.pop(attachment.channel.number, None)
        attachment.link.scheduler.discard(attachment.channel)

    def _break(self, attachment: Attachment, error: RemoteProtocolError, now: float) -> Effects:
        """The client broke the protocol: its channel is closed, the job goes on."""
        refused = wire.Refused(RefusedCode.DENIED, f"broke the protocol: {error}")
        attachment.link.control(attachment.channel.number, refused)
        return self._detach(attachment, now)

    def _detach(self, attachment: Attachment, now: float) -> Effects:
        job = attachment.job
        owned = job.owner is attachment
        if owned and job.end_requested and job.state is _ENDED and not job.viewers:
            # As mostly: what would be done for the time without an owner is done for nobody.
            self._cut(attachment)
            job.owner = None
            return self._settle(job, now)
        self._unlink(attachment)
        effects = self._settle(job, now)
        if owned and self.spool is not None:
            # The process need not keep to the pace of an owner that is gone.
            effects.append((job, Effect.ROOM))
        return effects

    # -- the end

    def _end(self, message: wire.End, now: float) -> Effects:
        key = (message.tenant, message.job_id)
        job = self.jobs.get(key)
        if message.left is not None:
            if job is not None and (job.client, job.generation) == (message.client, message.left):
                job.leave()
            return []
        if job is None:
            self.tombstones.forestall(key, now)
            return []
        if message.client and message.client != job.client:
            return []
        job.end_requested = True
        if job.state is _ENDED:
            if message.client and job.owner is not None:
                return []  # its owner has yet to hear how it ended, and then leaves
            return self._forget(job, now)
        return self.stop(job, wire.Outcome.CANCELLED, message.grace)

    def stop(
        self,
        job: Job,
        outcome: wire.Outcome,
        grace: float | None = None,
        *,
        signal: str = "TERM",
    ) -> Effects:
        """Have the job killed; the first reason given is the one reported, a shorter grace counts."""
        job.end_signal = signal
        if job.end_outcome is None:
            job.end_outcome = outcome
            job.end_grace = job.spec.kill_grace if grace is None else grace
        elif grace is not None:
            job.end_grace = min(job.end_grace, grace)
        return [(job, Effect.END)]

    def ended(self, job: Job, now: float) -> Effects:
        """Call after `Job.exited` or `Job.failed`."""
        job.ended_at = now
        self.tally.ended(job)
        self._more_is_unclaimed = True
        return self._settle(job, now)

    def _settle(self, job: Job, now: float) -> Effects:
        """Forget a job that has ended and that nobody will ask for."""
        wanted = not job.end_requested or job.owner is not None
        if job.state is _ENDED and not wanted and self.jobs.get(job.key) is job:
            return self._forget(job, now)
        return []

    def _forget(self, job: Job, now: float) -> Effects:
        for attachment in list(job.attachments):
            self._unlink(attachment)
            refused = wire.Refused(RefusedCode.ENDED, "the job was ended and forgotten")
            attachment.link.control(attachment.channel.number, refused)
        job.abandon()
        del self.jobs[job.key]
        self._requests -= isinstance(job.spec, wire.Request)
        if not self._is_own(job.key):
            self.tombstones.bury(job.key, now)
        return [(job, Effect.FORGOTTEN)]

    # -- what there is, for requests

    def commands(self, tenant: str) -> list[Job]:
        """The tenant's jobs in the order of their starts; requests are not among them."""
        return [
            job
            for key, job in self.jobs.items()
            if key[0] == tenant and isinstance(job.spec, wire.ProgramSpec)
        ]

    def living(self) -> list[Job]:
        """The jobs of all tenants whose process was started, and has not ended as far as was told."""
        return [job for job in self.jobs.values() if job.pid and job.state is JobState.RUNNING]

    def find(self, tenant: str, job_id: str) -> Job | None:
        """A job of the tenant; requests, and jobs of others, are not there."""
        job = self.jobs.get((tenant, job_id))
        return job if job is not None and isinstance(job.spec, wire.ProgramSpec) else None

    def forget(self, job: Job, now: float) -> Effects:
        """Drop a job that has ended, with its results; whoever is attached is told."""
        if job.state is not _ENDED:
            raise LocalProtocolError("only a job that has ended can be forgotten")
        return self._forget(job, now) if self.jobs.get(job.key) is job else []

    # -- time

    def tick(self, now: float) -> Effects:
        """Count leases and retention; call every few seconds while it `has_unowned`. A pause counts as LONGEST_TICK."""
        elapsed = 0.0 if self._last_tick is None else min(now - self._last_tick, LONGEST_TICK)
        self._last_tick = now
        effects: Effects = []
        self.has_unowned = False
        for job in list(self.jobs.values()):
            if job.owner is not None:
                continue
            self.has_unowned = True
            job.unowned_seconds += elapsed
            if job.state is _ENDED:
                if job.unowned_seconds >= self.retention:
                    effects += self._forget(job, now)
            elif not job.detached and job.unowned_seconds >= job.lease and job.end_outcome is None:
                # What nobody ever claimed has no results for anybody.
                job.end_requested = job.end_requested or job.claim_within is not None
                effects += self.stop(job, wire.Outcome.LEASE_EXPIRED)
        # To count 20,000 results takes 0.1 s: not each second, for nothing.
        if self._more_is_unclaimed:
            self._more_is_unclaimed = False
            effects += self._forget_excess(now)
        if not self.has_unowned:
            self._last_tick = None  # the time until there is one counts for nobody
        return effects

    def _forget_excess(self, now: float) -> Effects:
        """Keep what ended jobs hold for nobody within MAX_ENDED_BYTES: the longest unclaimed go first."""
        unclaimed = [j for j in self.jobs.values() if j.state is _ENDED and j.owner is None]
        excess = sum(job.held_bytes for job in unclaimed) - MAX_ENDED_BYTES
        effects: Effects = []
        if excess > 0:
            unclaimed.sort(key=lambda job: -job.unowned_seconds)
        for job in unclaimed:
            if excess <= 0:
                break
            excess -= job.held_bytes
            effects += self._forget(job, now)
        return effects
