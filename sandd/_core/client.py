"""The client's half of the protocol: jobs as the one who asked for them sees them.

Sans-IO, and ignorant of what carries its frames: an in-memory link to the router in the same
process, or a WebSocket to a remote one. A cut is nothing special: the job loses its channel, waits,
and attaches again from the offsets it has reached.

    WAITING --daemon online--> ATTACHING --Attached--> ATTACHED
       ^----------- Away / link down --------------------/
    any --Refused, Taken, daemon gone, closed--> CLOSED

A new job's first event may stand for Attached: see `wire.Attached`.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import TYPE_CHECKING, Final

from attrs import define

from sandd import wire
from sandd._core._errors import (
    DaemonGone,
    DaemonNotFound,
    JobIdConflict,
    JobNotFound,
    JobTaken,
    LocalProtocolError,
    PolicyDenied,
    RateLimited,
    RemoteProtocolError,
    RequestRefused,
    SanddError,
)
from sandd._core.channels import Channel
from sandd._core.client_job import UNNAMED, AttachState, ClientJob
from sandd._core.scheduler import Scheduler
from sandd._core.streams import (
    NOTHING,
    RING_BYTES,
    VIEWER_WINDOW_BYTES,
    WINDOW_BYTES,
    SendCursor,
)
from sandd._core.tombstones import generate
from sandd.wire import DaemonState, RefusedCode, Role, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

# Enum members are bound here because looking one up by its class costs as much as a function call (Python 3.11).
_WAITING: Final = AttachState.WAITING
_ATTACHING: Final = AttachState.ATTACHING
_ATTACHED: Final = AttachState.ATTACHED
_CLOSED: Final = AttachState.CLOSED
_ONLINE: Final = DaemonState.ONLINE
_OWNER: Final = Role.OWNER
_CONTROL: Final = wire.FrameType.CONTROL
_OPS: Final = Stream.OPS
_EVENTS: Final = Stream.EVENTS
_INPUT: Final = Stream.INPUT

MAX_ENDS_UNDER_WAY: Final = 1024
"""Ends remembered, to be said again after a cut; saying one twice is harmless."""
NOT_DONE: Final = (RefusedCode.DENIED, RefusedCode.POLICY_DENIED, RefusedCode.UNSUPPORTED)
"""Of a start: whoever says so, it has not started anything."""
LEAST_RETRY_SECONDS: Final = 0.1
"""Until a start that was one too many is asked for again, where nobody says when: so it is no busy loop."""


@define
class KnownDaemon:
    """What the client knows of a daemon."""

    state: DaemonState
    instance: str


class Client:
    """All jobs of one client over one link to a router."""

    def __init__(
        self, hear: Callable[[wire.News], None] = lambda _: None, *, prefix: str = ""
    ) -> None:
        self.id = prefix + secrets.token_hex(8)
        self._hear = hear
        """Called with what the controller tells of daemons."""
        self.scheduler = Scheduler()
        self.daemons: dict[str, KnownDaemon] = {}
        # A dict as an ordered set: after an outage, who came first is attached first.
        self.jobs: dict[ClientJob, None] = {}
        self._channels: dict[int, ClientJob] = {}
        self._unconfirmed: dict[str, dict[int, None]] = {}
        """Per daemon, the sequences of generated ids that it has not confirmed."""
        self._next_channel = 1
        self._next_sequence = 1
        self._attempts = 0
        """Attaches sent so far, over all links."""
        self._ends: deque[wire.End] = deque(maxlen=MAX_ENDS_UNDER_WAY)
        """The latest that were sent: should the link break, they may not have arrived."""
        self.held_back: list[tuple[ClientJob, float]] = []
        """Jobs to `ask_again` for, each after so many seconds; the shell empties it."""
        self._asked = 0
        """The latest question for statistics."""
        self.statistics = wire.Statistics(0)
        """The latest answer."""

    # -- what the application does

    def open(
        self,
        daemon_id: str,
        spec: wire.Spec,
        *,
        encoded: bytes | None = None,
        job_id: str | None = None,
        input_capacity: int | None = RING_BYTES,
        output_window: int = WINDOW_BYTES,
        trace: str = "",
    ) -> ClientJob:
        """Start a job, now or as soon as the daemon is there. LocalProtocolError if the spec is too large.

        `encoded` is the spec, for whoever has encoded it already.
        """
        if encoded is None:
            encoded = wire.encode_spec(spec)
        if len(encoded) > wire.MAX_CONTROL_BYTES - 4 * wire.KIB:
            raise LocalProtocolError(f"a job spec of {len(encoded)} bytes is too large")
        sequence = None
        own: list[ClientJob] = []
        if job_id is None:
            sequence, self._next_sequence = self._next_sequence, self._next_sequence + 1
            job_id = generate(self.id, sequence)
        else:
            own = self._owned(daemon_id, job_id)
            # It may be used again: what ended its last job must not end this one.
            self._ends = deque(
                [end for end in self._ends if (end.daemon_id, end.job_id) != (daemon_id, job_id)],
                MAX_ENDS_UNDER_WAY,
            )
        job = ClientJob(
            daemon_id,
            job_id,
            spec=encoded,
            sequence=sequence,
            input_capacity=input_capacity,
            output_window=output_window,
            trace=trace,
        )
        self._add(job, own)
        return job

    def attach(
        self,
        daemon_id: str,
        job_id: str,
        *,
        role: Role = Role.OWNER,
        takeover: bool = False,
        since: dict[Stream, int] | None = None,
    ) -> ClientJob:
        """Attach to a job that exists; RequestRefused if we own it already, and don't say takeover."""
        own = self._owned(daemon_id, job_id) if role is _OWNER else []
        if own and not takeover:
            # The daemon takes us for one and the same, and would not mind.
            raise RequestRefused(
                f"job {job_id} on daemon {daemon_id!r} is held by another block of this program; "
                "attach with takeover=True to take it over, or with read_only=True to look on"
            )
        job = ClientJob(
            daemon_id,
            job_id,
            spec=None,
            role=role,
            takeover=takeover,
            since=since,
            output_window=WINDOW_BYTES if role is _OWNER else VIEWER_WINDOW_BYTES,
        )
        self._add(job, own)
        return job

    def ask_again(self, job: ClientJob) -> None:
        """Attach a job that was held back, unless it is attached or left by now."""
        if job in self.jobs:
            self._attach(job)

    def ask_statistics(self) -> int:
        """Ask the controller for its figures; when `statistics` has this number, or a higher one, they are there."""
        self._asked += 1
        self._say_asked()
        return self._asked

    def _say_asked(self) -> None:
        self.scheduler.control(wire.ControlFrame(0, wire.AskStatistics(self._asked)))

    def activate(self, job: ClientJob) -> None:
        """Something was appended to the job's logs, or consumed from them."""
        if job.channel is not None:
            self.scheduler.activate(job.channel)

    def flush(self, job: ClientJob) -> None:
        """Have the daemon say when it has all that was sent until now: then `ClientJob.flush` is None.

        Of a job that has ended, input doesn't count: nobody takes it, so it may never be there.
        """
        if job.result is None:
            job.flush = wire.Flush(job.ops.end, job.input.end, job.input.final)
        else:
            job.flush = wire.Flush(job.ops.end)
        self._ask_flush(job)

    def end(self, job: ClientJob, grace: float | None = None) -> None:
        """Leave the job: kill what runs of it, then forget it. Reaches an absent daemon as the router's intent."""
        if self._may_end(job):
            job.end_said = True
            self._say_end(wire.End(job.daemon_id, job.id, grace, self.id), 0)

    def forget(self, job: ClientJob) -> None:
        """`end` and `close` in one message, which nobody waits for."""
        if self._may_end(job):
            number = 0 if job.channel is None else job.channel.number
            self._drop_channel(job)
            job.end_said = True
            message = wire.End(job.daemon_id, job.id, None, self.id)
            # A generated id is never used again, so nothing that overtakes this can mean that job.
            late = job.sequence is not None
            self._say_end(message, number, late=late)
            self._shut(job)
        else:
            self.close(job)

    def _say_end(self, message: wire.End, channel: int, *, late: bool = False) -> None:
        self._ends.append(message)
        self.scheduler.control(wire.ControlFrame(channel, message), late=late)

    def _may_end(self, job: ClientJob) -> bool:
        # Said in our name, it would end the job for a rival, too, of which we have yet to hear Taken.
        rival = job.rival
        ours = rival is None or rival.error is not None or rival.given_up
        return job.sent and job.error is None and job.role is _OWNER and ours

    def _leaves_a_session(self, job: ClientJob) -> bool:
        """It goes on without us, and we have had it."""
        return job.terminal and not (job.given_up or job.end_said) and self._may_end(job)

    def close(self, job: ClientJob, error: SanddError | None = None) -> None:
        """We are done with the job; it goes on, unless `end` was called."""
        if error is None and self._leaves_a_session(job):
            # A message that is said again where a cut may have lost it: else all that it shows would be kept for us.
            number = 0 if job.channel is None else job.channel.number
            self._drop_channel(job)
            message = wire.End(job.daemon_id, job.id, client=self.id, left=job.generation)
            self._say_end(message, number)
        else:
            self._detach(job)
        self._shut(job, error)

    def _shut(self, job: ClientJob, error: SanddError | None = None) -> None:
        job.state = _CLOSED
        job.error = job.error or error
        self.jobs.pop(job, None)
        self._confirm(job)

    def give_up(self, job: ClientJob) -> None:
        """`close` a job that was attached to and is not wanted after all."""
        job.given_up = True
        self.close(job)

    @property
    def has_ended_any(self) -> bool:
        """An End was said, which the daemon may not have heard yet."""
        return bool(self._ends)

    def job_on(self, channel: int) -> ClientJob | None:
        """The job attached to the channel, if any."""
        return self._channels.get(channel)

    # -- what the link brings

    def receive(self, frame: wire.Frame) -> list[ClientJob]:
        """Take one frame; returns the jobs it changed. RemoteProtocolError if the peer broke the rules."""
        job = self._channels.get(frame.channel)
        if frame.type is _CONTROL:
            message = wire.decode_control(frame)
            if isinstance(message, wire.News):
                return self.hear(message)
            if isinstance(message, wire.Statistics):
                self.statistics = message
                return []
            if job is None:
                return []
            self._control(job, message)
        elif job is not None:
            self.receive_data(frame.channel, wire.decode_data(frame))
        return [] if job is None else [job]

    def receive_attached(self, number: int, message: wire.Attached) -> ClientJob | None:
        """Take the answer to an Attach on that channel; returns the job that it changed. Raises as `receive`."""
        job = self._channels.get(number)
        if job is not None:
            self._attached(job, message)
        return job

    def receive_data(self, number: int, data: wire.Data) -> ClientJob | None:
        """Take what a data frame for that channel says; returns the job that it changed. Raises as `receive`.

        What is consumed of it is for those to tell who consume it.
        """
        job = self._channels.get(number)
        if job is None:
            return None  # it was closed, and this was under way
        channel = job.channel
        assert channel is not None
        if job.state is _ATTACHING:
            if not job.attaches_plainly:
                raise RemoteProtocolError("data before the answer to an Attach")
            self._attached_plainly(job)
        channel.on_data(data)
        if data.stream is _EVENTS:
            job.take_events()
            if channel.receive[_EVENTS].update_due:
                self.scheduler.activate_urgent(channel)
        return job

    def hear(self, news: wire.News) -> list[ClientJob]:
        """Take what is told of daemons; returns the jobs it changed."""
        self._hear(news)
        return self._daemon_changed(news) if isinstance(news, wire.DaemonStatus) else []

    def _daemon_changed(self, message: wire.DaemonStatus) -> list[ClientJob]:
        if message.state is DaemonState.GONE:
            self.daemons.pop(message.daemon_id, None)
        else:
            self.daemons[message.daemon_id] = KnownDaemon(message.state, message.instance)
        changed = []
        for job in [job for job in self.jobs if job.daemon_id == message.daemon_id]:
            other = job.sent and job.instance != message.instance
            if job.finished and (other or message.state is DaemonState.GONE):
                # All that it had to tell has come: that is what counts.
                self._detach(job)
                self._shut(job)
            elif message.state is _ONLINE and other:
                self.close(
                    job,
                    DaemonGone(
                        f"daemon {job.daemon_id!r} was restarted; its jobs ended with the old process"
                    ),
                )
            elif message.state is DaemonState.GONE:
                text = f"daemon {job.daemon_id!r} is gone, and its jobs with it"
                self.close(job, DaemonGone(text, outcome_unknown=job.sent))
            elif message.state is not _ONLINE:
                self._detach(job)
            else:
                self._attach(job)
            changed.append(job)
        return changed

    def link_down(self) -> list[ClientJob]:
        """The link to the router is gone: every job waits for the next one."""
        self.scheduler = Scheduler()
        self.daemons.clear()
        self._next_channel = 1
        for job in self.jobs:
            self._drop_channel(job)
        for end in self._ends:
            self.scheduler.control(wire.ControlFrame(0, end))
        if self.statistics.number < self._asked:
            self._say_asked()
        return list(self.jobs)

    # -- inside

    def _owned(self, daemon_id: str, job_id: str) -> list[ClientJob]:
        return [
            job
            for job in self.jobs
            if job.id == job_id and job.daemon_id == daemon_id and job.role is _OWNER
        ]

    def _add(self, job: ClientJob, displaced: list[ClientJob]) -> None:
        for other in displaced:
            other.rival = job
        self.jobs[job] = None
        if job.sequence is not None:
            self._unconfirmed.setdefault(job.daemon_id, {})[job.sequence] = None
        self._attach(job)

    def _attach(self, job: ClientJob) -> None:
        daemon = self.daemons.get(job.daemon_id)
        if daemon is None or daemon.state is not _ONLINE or job.state is not _WAITING:
            return
        self._attempts += 1
        first = not job.sent
        job.is_repeated = not first
        job.instance = job.instance or daemon.instance
        number, self._next_channel = self._next_channel, self._next_channel + 1
        cursors = []
        spec = None if job.confirmed or job.refusal is not None else job.spec
        # Only a job that can't exist yet is known to begin at 0; else the answer tells where to go on.
        eager = first and job.sequence is not None
        # Where it says nothing of them, they may wait for what comes, too.
        windows = [] if eager else job.open_windows()
        if job.role is _OWNER:
            cursors = [
                SendCursor(
                    _OPS,
                    job.ops,
                    job.ops.floor,
                    wire.MESSAGE_WINDOW if eager else NOTHING,
                ),
                SendCursor(
                    _INPUT,
                    job.input,
                    job.input.floor,
                    wire.INITIAL_INPUT_BYTES if eager else NOTHING,
                ),
            ]
        job.channel = Channel(number, send=cursors, receive=windows, opener=job)
        job.state = _ATTACHING
        job.attaches_plainly = eager
        self._channels[number] = job
        message = wire.Attach(
            daemon_id=job.daemon_id,
            job_id=job.id,
            client=self.id,
            cursors=()
            if eager
            else tuple(
                wire.Cursor(w.stream, w.max_offset, job.cursor(w.stream, w.log)) for w in windows
            ),
            spec=spec,
            instance=job.instance,
            role=job.role,
            takeover=job.takeover,
            generation=job.generation,
            settled=self._settled(job.daemon_id),
            attempt=self._attempts,
            output_credit=job.output_window,
            trace="" if spec is None else job.trace,
        )
        self.scheduler.control(wire.ControlFrame(number, message))
        if not eager or job.ops.end or job.input.end or job.input.final:
            self.scheduler.activate(job.channel)

    def _settled(self, daemon_id: str) -> int:
        """Below this sequence, no generated id will be started on the daemon any more."""
        # Sequences enter in rising order, so the first is the lowest.
        return next(iter(self._unconfirmed.get(daemon_id, ())), self._next_sequence)

    def _confirm(self, job: ClientJob) -> None:
        unconfirmed = self._unconfirmed.get(job.daemon_id)
        if unconfirmed is not None and job.sequence is not None:
            unconfirmed.pop(job.sequence, None)
            if not unconfirmed:
                del self._unconfirmed[job.daemon_id]

    def _control(self, job: ClientJob, message: wire.Control | wire.Unknown) -> None:
        match message:
            case wire.Attached():
                self._attached(job, message)
            case wire.Refused():
                self._refused(job, message)
            case wire.Taken():
                self._drop_channel(job)
                self.close(job, JobTaken(f"another client took over job {job.id}"))
            case wire.Away():
                self._drop_channel(job)
            case wire.Window():
                assert job.channel is not None
                job.channel.on_window(message)
                self.scheduler.activate(job.channel)
            case wire.Flush():
                if message == job.flush:  # else it answers an earlier question, for less
                    job.flush = None
            case wire.Unknown():
                pass
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not for a client")

    def _attached(self, job: ClientJob, message: wire.Attached) -> None:
        if job.state is not _ATTACHING or job.channel is None:
            raise RemoteProtocolError("Attached without an Attach")
        if job.attaches_plainly and message is wire.PLAIN_ATTACHED:
            self._attached_plainly(job)
            return
        states = {state.stream: state for state in message.streams}
        job.place(states)
        for window in job.channel.receive.values():
            if window.max_offset < window.log.received:
                window.max_offset = window.log.received
        for cursor in job.channel.send.values():
            state = states.get(cursor.stream) or UNNAMED[cursor.stream]
            if not cursor.log.base <= state.received <= cursor.log.end:
                raise RemoteProtocolError(
                    f"the daemon continues {cursor.stream.name} where we can't"
                )
            cursor.sent = max(cursor.sent, state.received)
            cursor.max_offset = max(cursor.max_offset, state.max_offset)
        events = states.get(_EVENTS)
        job.known_events = 0 if events is None else events.end
        self.scheduler.activate(job.channel)
        self._settle_in(job, message)

    def _attached_plainly(self, job: ClientJob) -> None:
        """As `_attached` with PLAIN_ATTACHED, of a new job: that is how its channel was opened."""
        if job.ops.base or job.input.base:
            raise RemoteProtocolError("the daemon continues where we can't")
        self._settle_in(job, wire.PLAIN_ATTACHED)

    def _settle_in(self, job: ClientJob, message: wire.Attached) -> None:
        job.state = _ATTACHED
        if not job.confirmed:
            # Later it changes by our own doing alone, and is ours to say: see `Process.detach`.
            job.detached = message.detached
        job.confirmed = True
        self._confirm(job)
        job.spec = None
        job.takeover = False
        job.generation = message.generation
        job.terminal = message.terminal
        job.job_state = message.state
        if job.flush is not None:
            self._ask_flush(job)

    def _ask_flush(self, job: ClientJob) -> None:
        """At once, and on each new channel until there is an answer."""
        if job.flush is not None and job.state is _ATTACHED:
            assert job.channel is not None
            self.scheduler.control(wire.ControlFrame(job.channel.number, job.flush))

    def _refused(self, job: ClientJob, message: wire.Refused) -> None:
        self._drop_channel(job)
        if message.code is RefusedCode.RATE_LIMITED and job.is_repeated:
            # That nothing ran is true of this Attach, and not of the one before: so it is asked again until one
            # is let pass, and the daemon tells.
            job.times_held_back += 1
            self.held_back.append((job, message.retry_after or LEAST_RETRY_SECONDS))
            return
        is_ours = job.sequence is not None and not job.confirmed  # a chosen id may be of another's
        if message.code in NOT_DONE and job.is_repeated and is_ours and job.refusal is None:
            # Nor is it of these, and they would be said again. So it is asked for as one that is there.
            job.refusal = message
            self._attach(job)
            return
        if message.code is RefusedCode.JOB_NOT_FOUND and job.refusal is not None:
            message = job.refusal
        text = f"job {job.id} on daemon {job.daemon_id!r}: {message.message}"
        errors: dict[RefusedCode, SanddError] = {
            RefusedCode.JOB_NOT_FOUND: JobNotFound(text),
            RefusedCode.ENDED: JobNotFound(text),
            RefusedCode.LOST: DaemonGone(text),
            RefusedCode.JOB_ID_CONFLICT: JobIdConflict(text),
            RefusedCode.TAKEN: JobTaken(text),
            RefusedCode.DAEMON_NOT_FOUND: DaemonNotFound(text),
            RefusedCode.RATE_LIMITED: RateLimited(
                text, scope=message.scope, retry_after=message.retry_after or LEAST_RETRY_SECONDS
            ),
            RefusedCode.POLICY_DENIED: PolicyDenied(text, policy_hash=message.policy_hash),
        }
        self.close(job, errors.get(message.code) or RequestRefused(text))

    def _detach(self, job: ClientJob) -> None:
        """Close a channel that the other end may still hold open."""
        if job.channel is not None:
            number = job.channel.number
            self._drop_channel(job)
            self.scheduler.control(wire.ControlFrame(number, wire.Detach()))

    def _drop_channel(self, job: ClientJob) -> None:
        if job.channel is not None:
            self._channels.pop(job.channel.number, None)
            self.scheduler.discard(job.channel)
            job.channel.close()
            job.channel = None
        if job.state is not _CLOSED:
            job.state = _WAITING
