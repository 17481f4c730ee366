"""A client's end of its link to a controller: its jobs, for tasks to wait on, and what is said when.

What carries the frames is for `LocalLink` (a router in this process) and `RemoteLink` (a connection) to know.
"""

from __future__ import annotations

import math
import os
import random
from abc import ABC, abstractmethod
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import trio

from sandd import wire
from sandd._core import tracing
from sandd._core._errors import (
    DaemonGone,
    JobNotFound,
    PolicyDenied,
    RemoteProtocolError,
    RequestRefused,
    SanddError,
    SpawnFailed,
    transfer_error,
)
from sandd._core.audit.sinks import NO_AUDIT
from sandd._core.client import Client
from sandd._core.client_job import NO_STALLS, AttachState, ClientJob
from sandd._core.logs import get_logger
from sandd._core.ring_room import RingRoom
from sandd._core.streams import RING_BYTES, WINDOW_BYTES
from sandd._core.transfers.partials import Partials
from sandd.wire import FailedCode, Role, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TypeAlias

    from sandd._core.audit.sinks import AuditSink
    from sandd._core.directory import Directory
    from sandd._core.streams import Gap
    from sandd.wire import Buffer

    Sink: TypeAlias = Callable[[Buffer | Gap], None]
    """It keeps no view: that would keep all of a message."""

log = get_logger("client")

LEAVE_MARGIN: Final = 10.0
"""Seconds beyond its kill grace that leaving a job waits for the daemon to say the tree is gone."""
LEAST_MARGIN: Final = 1.0
"""The same of a request, which has no tree, and was over sooner: the wait for a daemon that stands still is no longer
than the request lasted. What is said next comes behind its end all the same."""
FLUSH_SECONDS: Final = 10.0
"""How long leaving a job that goes on waits until what was sent to it has arrived."""
LATE_SECONDS: Final = 0.25
"""How long the farewell to a job that has ended may wait for others on its daemon, to go in one message with them: sent
one by one, each takes the processor from the commands that are under way by then, of a broadcast above all."""
FAREWELLS_AT_ONCE: Final = 8
"""To one daemon: so many don't wait any longer. More would be a millisecond of work, while somebody waits."""
DAEMONS_PER_TURN: Final = 64
"""Farewells to so many are said before other tasks run."""
LONGEST_PATIENCE: Final = 60.0
"""Seconds after which a job that was held back by a rate limit is asked for again, whatever the controller says."""
# Enum members are bound here because looking one up by its class costs as much as a function call (Python 3.11).
_CLOSED: Final = AttachState.CLOSED

_NO_SINKS: Final[Mapping[Stream, Sink]] = MappingProxyType({})
_NO_TAPS: Final[Mapping[Stream, tuple[Sink, int]]] = MappingProxyType({})

INPUT_CAPACITY: Final = RING_BYTES
"""Of a program's stdin, what is kept here until the program has taken it."""


class JobHandle:
    """One job of this client, for tasks to wait on."""

    __slots__ = (
        *("_asked_at", "_sinks", "_stalls", "_taps", "_waiting", "is_forgotten", "is_held"),
        *("is_new", "job", "kill_grace", "link", "span", "widened"),
    )

    def __init__(
        self,
        link: JobLink,
        job: ClientJob,
        sinks: Mapping[Stream, Sink],
        kill_grace: float,
        *,
        is_new: bool = True,
        asked_at: float | None = None,
    ) -> None:
        self.link = link
        self.job = job
        self.is_new = is_new
        """We have started it; else it was there before us."""
        self._asked_at = asked_at
        """Of a request: when it was made, by trio's clock."""
        self.is_held = False
        """Its block was entered: somebody knows of it, and leaves it as its state has it."""
        self.kill_grace = kill_grace
        """Seconds from TERM to KILL when it is ended."""
        self._sinks = sinks
        self._taps: Mapping[Stream, tuple[Sink, int]] = _NO_TAPS
        """Who sees what arrives, besides its reader, and how far they have seen it."""
        self._stalls = NO_STALLS
        """Those of the job that the controller was told of."""
        self._waiting: dict[trio.lowlevel.Task, None] | None = None
        """For the next change; None: nobody does. They wait for no `trio.Event`: each would need one of its own, for
        each keystroke."""
        self.is_forgotten = False
        """We want nothing more of it."""
        self.span: tracing.JobSpan | None = None
        """Until what is to be told of the job has been told."""
        self.widened = 0
        """What it has of the link's room for windows."""

    @trio.lowlevel.enable_ki_protection
    def sink(self, stream: Stream, sink: Sink) -> None:
        """From now on, give what arrives on the stream to `sink`; no task reads it."""
        self._sinks = {**self._sinks, stream: sink}
        self.update()
        self.link.changed(self.job)

    def tap(self, stream: Stream, sink: Sink) -> None:
        """From now on, show to `sink` what arrives on the stream, at once, whoever reads it and when."""
        self._taps = {**self._taps, stream: (sink, self.job.outputs[stream].received)}

    def update(self) -> None:
        """The job changed: serve the taps and the sinks, and wake whoever waits."""
        for stream, (tap, seen) in self._taps.items():
            arrived = self.job.outputs[stream]
            if arrived.received > seen:
                for piece in arrived.tail(max(seen, arrived.consumed)):
                    tap(piece)
                self._taps = {**self._taps, stream: (tap, arrived.received)}
        for stream, sink in self._sinks.items():
            log = self.job.outputs[stream]
            if log.readable:
                while log.readable:
                    sink(log.take_piece())
                channel = self.job.channel
                if channel is not None and channel.is_update_due(stream):
                    self.link.client.activate(self.job)
        if self.job.stalls is not self._stalls:
            before, self._stalls = self._stalls, self.job.stalls
            self.link.tell_stalls(self.job, before)
        if self.span is not None and self.ended:
            self._end_span()
        waiting = self._waiting
        if waiting:
            self._waiting = None
            for task in waiting:
                trio.lowlevel.reschedule(task)

    def _end_span(self) -> None:
        if self.span is not None:
            span, self.span = self.span, None
            span.ended(self.job)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; it is looked at whenever the job changes. No checkpoint if it does."""
        task = trio.lowlevel.current_task()

        def stop_waiting(_: object) -> trio.lowlevel.Abort:
            assert self._waiting is not None  # it is in there until it is woken
            del self._waiting[task]
            return trio.lowlevel.Abort.SUCCEEDED

        while not condition():
            if self._waiting is None:
                self._waiting = {}
            self._waiting[task] = None
            await trio.lowlevel.wait_task_rescheduled(stop_waiting)

    @property
    def closed(self) -> bool:
        """The job is closed, or as good as that: nothing more will come."""
        return self.is_forgotten or self.job.state is _CLOSED

    @property
    def begun(self) -> bool:
        """It was started, or never will be."""
        return self.job.started is not None or self.job.result is not None or self.closed

    @property
    def ended(self) -> bool:
        """How it ended is known, or never will be."""
        return self.job.result is not None or self.closed

    @property
    def complete(self) -> bool:
        """It ended, and all its output has arrived."""
        return self.job.finished

    @property
    def _is_seen_off(self) -> bool:
        """Nothing more will come that anybody wants who has left it."""
        return self.closed or (self.complete if self._taps else self.ended)

    def raise_if_failed(self) -> None:
        """Raise what kept the job from having an exit status, if something did."""
        failed = self.job.result
        taken_back = isinstance(failed, wire.Failed) and failed.code is FailedCode.CANCELLED
        if self.link.closed and (failed is None or taken_back):
            raise trio.ClosedResourceError("the controller was closed while the job ran")
        if self.job.error is not None:
            raise self.job.error
        if isinstance(failed, wire.Failed):
            raise failure(failed, self.job)

    @trio.lowlevel.enable_ki_protection
    def hold(self) -> None:
        """Its block is entered."""
        self.is_held = True
        self.job.acknowledge(True)
        self.link.changed(self.job)

    @trio.lowlevel.enable_ki_protection
    async def leave(self, grace: float) -> None:
        """End the job and see its tree gone; at once if the daemon is away: then it ends on the return.

        Whoever taps it sees all it says to that; nobody reads it any more.

        Shielded, and bounded by the kill grace and a margin, of a request that was just made a small one. Ctrl-C, which
        no shield keeps off, saves the wait and nothing else.
        """
        job = self.job
        try:
            if not self._is_seen_off and job.sent:
                if job.result is None:
                    self.link.client.end(job, grace)
                for stream in self._taps:
                    self.sink(stream, lambda _: None)
                self.link.flush()
                now, margin = trio.current_time(), LEAVE_MARGIN
                if self._asked_at is not None:
                    margin = min(margin, max(LEAST_MARGIN, now - self._asked_at))
                deadline = now + grace + margin
                with trio.CancelScope(shield=True, deadline=deadline):
                    await self.until(lambda: self._is_seen_off or job.state is AttachState.WAITING)
        finally:
            self.forget()

    @trio.lowlevel.enable_ki_protection
    def forget(self) -> None:
        """We want nothing more of the job: it is ended, if it still runs, and its results are dropped."""
        if not self.closed:
            self.is_forgotten = True
            self.link.forget_later(self.job)
        self._let_go()

    @trio.lowlevel.enable_ki_protection
    async def part(self) -> None:
        """Let the job go on without us, once all that was sent to it is there.

        Shielded, and bounded by FLUSH_SECONDS. At once where nothing was sent.
        """
        if self.job.unflushed:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + FLUSH_SECONDS):
                await self.flushed()
            if self.job.flush is not None and not self.closed:
                log.warning("input_left_behind", job=self.job.id, daemon=self.job.daemon_id)
        self.detach()

    async def flushed(self) -> None:
        """Wait until all that was sent to the job has arrived there, or means nothing any more."""
        job = self.job
        while not self.closed:
            result = job.result
            self.link.client.flush(job)
            self.link.flush()
            await self.until(
                lambda result=result: (  # type: ignore[misc]
                    job.flush is None or job.result is not result or self.closed
                )
            )
            if job.flush is None:
                break

    @trio.lowlevel.enable_ki_protection
    def detach(self) -> None:
        """Let the job go on without us, now."""
        if not self.closed:
            self.link.client.close(self.job)
            self.link.flush()
        self._let_go()

    @trio.lowlevel.enable_ki_protection
    def give_up(self) -> None:
        """Let a job that was attached to go on as it was before."""
        if not self.closed:
            self.link.client.give_up(self.job)
            self.link.flush()
        self._let_go()

    def _let_go(self) -> None:
        self.link.drop(self)
        self._end_span()
        self.update()  # the last one: whoever still waits, in a task outside of the block, hears of it now


def failure(failed: wire.Failed, job: ClientJob) -> SanddError:
    """The exception for a job that has no exit status."""
    match failed.code:
        case FailedCode.SPAWN:
            name = None if failed.filename is None else failed.filename.decode("utf-8", "replace")
            return SpawnFailed(failed.errno, failed.message, name)
        case FailedCode.CANCELLED:
            return RequestRefused(f"job {job.id} on daemon {job.daemon_id!r}: {failed.message}")
        case FailedCode.JOB_NOT_FOUND:
            return JobNotFound(f"daemon {job.daemon_id!r}: {failed.message}")
        case FailedCode.DECLINED:
            return RequestRefused(f"daemon {job.daemon_id!r}: {failed.message}")
        case FailedCode.POLICY_DENIED:
            text = f"job {job.id} on daemon {job.daemon_id!r}: {failed.message}"
            return PolicyDenied(text, policy_hash=failed.policy_hash)
        case FailedCode.SYSTEM:
            name = None if failed.filename is None else os.fsdecode(failed.filename)
            return transfer_error(failed.symbol, failed.message, name)
        case FailedCode.LOST:
            return DaemonGone(
                f"job {job.id} on daemon {job.daemon_id!r} was lost: {failed.message}"
            )


def _patience(job: ClientJob, seconds: float) -> float:
    """Seconds until a job that was held back is asked for again, after `seconds` at the earliest.

    All that were under way when a link was cut are told of the same time, when there is room for one of them. So they
    spread out, each time further.
    """
    spread = 2.0 ** min(job.times_held_back, 10)  # bounded because floats are
    factor = random.uniform(1.0, spread)  # noqa: S311 - nobody gains anything by guessing it
    return min(seconds * factor, LONGEST_PATIENCE)


class JobLink(ABC):
    """All jobs of one client, and the way to the controller that knows the daemons they are on."""

    def __init__(self, directory: Directory, client_prefix: str = "") -> None:
        self.client = Client(directory.take, prefix=client_prefix)
        self.audit: AuditSink = NO_AUDIT
        """Of the controller, where that is in this process."""
        self.actor = ""
        """Who this client is there."""
        self.directory = directory
        self.closed = False
        self.jobs_started = 0
        self.partials = Partials()
        """Files in the making, of transfers to this machine."""
        self._handles: dict[ClientJob, JobHandle] = {}
        self._window_room = RingRoom()
        """For what downloads may have under way, besides what every output may: all of them together."""
        self._later = trio.Event()
        """Set when there is something for `run`."""
        self._soon = trio.Event()
        """Set when that needn't wait any longer."""
        self._is_held_back = trio.Event()
        """Set when the client has jobs to ask for again."""
        self._farewells: dict[str, list[ClientJob]] = {}
        """Jobs that have ended and are to be forgotten, by daemon."""
        self._statistics_came = trio.Event()

    @abstractmethod
    def flush(self, *, late: bool = False) -> None:
        """Send what the client has to send; without `late`, but for what nobody waits for."""

    @property
    def job_count(self) -> int:
        """Jobs open now."""
        return len(self._handles)

    @property
    def busy_daemons(self) -> set[str]:
        """Those that any of these jobs is on."""
        return {job.daemon_id for job in self._handles}

    @trio.lowlevel.enable_ki_protection
    def open(
        self,
        daemon_id: str,
        spec: wire.Spec,
        *,
        encoded: bytes | None = None,
        job_id: str | None = None,
        input_data: bytes | None = None,
        sinks: Mapping[Stream, Sink] | None = None,
        at_once: bool = True,
    ) -> JobHandle:
        """Start a job; output goes to the `sinks` as it arrives, or waits for a reader.

        With `input_data` its stdin is that, then its end; without, it stays open for a writer.
        `encoded` is the spec, for whoever has encoded it already. Without `at_once` it waits for the next `flush`,
        which the caller sees to.
        """
        if self.closed:
            raise trio.ClosedResourceError("this controller is closed")
        asked_at, capacity, wider = None, INPUT_CAPACITY, 0
        if isinstance(spec, wire.Request):
            capacity = spec.window
            # Ahead of a request goes what was left to `run`: else jobs that we have left would still be there.
            self.say_farewells([daemon_id])
            asked_at = trio.current_time()
        if isinstance(spec, wire.DownloadSpec):
            # As much as its daemon holds: with less, each turn of a copy waits for the one before.
            wider = self._window_room.take(spec.window - WINDOW_BYTES)
        span = None if isinstance(spec, wire.Request) else tracing.begin(daemon_id, spec)
        try:
            job = self.client.open(
                daemon_id,
                spec,
                encoded=encoded,
                job_id=job_id,
                input_capacity=capacity if input_data is None else None,
                output_window=WINDOW_BYTES + wider,
                trace="" if span is None else span.traceparent,
            )
        except BaseException as error:
            self._window_room.give_back(wider)
            if span is not None:
                span.failed(error)
            raise
        handle = self._handles[job] = JobHandle(
            self, job, sinks or _NO_SINKS, spec.kill_grace, asked_at=asked_at
        )
        handle.widened = wider
        if span is not None:
            span.opened(job.id)
            handle.span = span
        self.jobs_started += isinstance(spec, wire.ProgramSpec)
        if input_data is not None and spec.stdin:
            if input_data:
                job.input.append(input_data)
            job.input.finish()
            self.client.activate(job)
        if at_once:
            self.flush()
        return handle

    @trio.lowlevel.enable_ki_protection
    def attach(
        self,
        daemon_id: str,
        job_id: str,
        *,
        role: Role,
        takeover: bool,
        since: Mapping[Stream, int],
        kill_grace: float,
    ) -> JobHandle:
        """Attach to a job that exists; RequestRefused if we hold it already."""
        if self.closed:
            raise trio.ClosedResourceError("this controller is closed")
        self.say_farewells([daemon_id])  # it may be a job that we have just left
        job = self.client.attach(daemon_id, job_id, role=role, takeover=takeover, since=dict(since))
        job.acknowledge(False)
        handle = self._handles[job] = JobHandle(self, job, _NO_SINKS, kill_grace, is_new=False)
        self.changed(job)
        return handle

    @trio.lowlevel.enable_ki_protection
    def changed(self, job: ClientJob) -> None:
        """Our side appended to the job's logs or consumed from them: send what follows from it."""
        self.client.activate(job)
        self.flush()

    def has_input(self, job: ClientJob) -> None:
        """As `changed`, where it was appended to the job's input and nothing else."""
        self.changed(job)

    @trio.lowlevel.enable_ki_protection
    async def fetch_statistics(self) -> wire.Statistics:
        """The controller's figures, as soon as it answers."""
        await trio.lowlevel.checkpoint()
        number = self.client.ask_statistics()
        self.flush()
        while self.client.statistics.number < number:
            if self.closed:
                raise trio.ClosedResourceError("this controller is closed")
            await self._statistics_came.wait()
        return self.client.statistics

    def drop(self, handle: JobHandle) -> None:
        """Nobody waits on the handle any more."""
        if self._handles.pop(handle.job, None) is not None:
            self._window_room.give_back(handle.widened)

    def close(self) -> None:
        """The controller closes: end what would be left to nobody; whoever waits for a job learns of it.

        Left is what outlives us, and what was only going to be attached to. A detached job that nobody
        has heard of yet ends.
        """
        self.closed = True
        self._statistics_came.set()
        for handle in list(self._handles.values()):
            if handle.is_held and handle.job.outlives_us:
                handle.detach()
            elif not (handle.is_held or handle.is_new):
                handle.give_up()
            else:
                self.client.end(handle.job)
        self.say_farewells()

    @property
    def longest_grace(self) -> float:
        """Seconds that the most patient of the open jobs may take to be killed."""
        return max((handle.kill_grace for handle in self._handles.values()), default=0.0)

    async def ended(self) -> None:
        """Wait until no job is left that could still tell its end. Bound it."""
        for handle in list(self._handles.values()):
            await handle.until(
                lambda handle=handle: handle.ended or handle.job.state is AttachState.WAITING  # type: ignore[misc]
            )

    def abandon(self) -> None:
        """Forget what is left, and wake everybody."""
        for handle in list(self._handles.values()):
            self.client.close(handle.job)
            handle.update()
        self._handles.clear()

    def forget_later(self, job: ClientJob) -> None:
        """Say farewell to a job; a little later, by `run`, where nobody can tell the difference."""
        if job.result is None or job.sequence is None:
            # It may yet be started, or its id be used again.
            self.client.forget(job)
            self._soon.set()
        else:
            farewells = self._farewells.get(job.daemon_id)
            if farewells is None:
                farewells = self._farewells[job.daemon_id] = []
            farewells.append(job)
            if len(farewells) == FAREWELLS_AT_ONCE:
                self._soon.set()
        self._later.set()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Say the farewells that were left to it; as long as the controller lives."""
        while True:
            await self._later.wait()
            with trio.move_on_after(LATE_SECONDS):
                await self._soon.wait()
            self._later, self._soon = trio.Event(), trio.Event()
            daemon_ids = iter(list(self._farewells))
            self.say_farewells(islice(daemon_ids, DAEMONS_PER_TURN))
            for daemon_id in daemon_ids:
                await trio.lowlevel.checkpoint()
                self.say_farewells([daemon_id, *islice(daemon_ids, DAEMONS_PER_TURN - 1)])

    @trio.lowlevel.enable_ki_protection
    async def ask_again(self) -> None:
        """Ask for the jobs again that were held back by a rate limit; as long as the controller lives."""
        due: list[tuple[float, ClientJob]] = []
        while True:
            next_at = min((when for when, _ in due), default=math.inf)
            with trio.move_on_at(next_at):
                await self._is_held_back.wait()
            self._is_held_back = trio.Event()
            now = trio.current_time()
            due += [(now + _patience(job, seconds), job) for job, seconds in self.client.held_back]
            self.client.held_back.clear()
            for when, job in due:
                if when <= now:
                    self.client.ask_again(job)
            due = [(when, job) for when, job in due if when > now]
            self.flush()

    def tell_stalls(self, job: ClientJob, before: Mapping[Stream, wire.Stalled]) -> None:
        """The job's `stalls` have changed."""
        self.directory.tell_stalls(job, before)

    def say_farewells(self, daemon_ids: Iterable[str] | None = None) -> None:
        """Have those said that were left to `run`, to all daemons or to these."""
        for daemon_id in list(self._farewells if daemon_ids is None else daemon_ids):
            for job in self._farewells.pop(daemon_id, ()):
                self.client.forget(job)
        self.flush(late=True)

    def deliver(self, frame: wire.Frame, handles: set[JobHandle]) -> None:
        """Take a frame; the handles are those to `update` when all of a job's frames have been taken."""
        told = self.client.statistics
        try:
            changed = self.client.receive(frame)
        except RemoteProtocolError as error:
            broken = self.client.job_on(frame.channel)
            self._spoil(frame.channel, broken, error)
            changed = [] if broken is None else [broken]
        if self.client.held_back:
            self._is_held_back.set()
        if self.client.statistics is not told:
            self._statistics_came.set()
            self._statistics_came = trio.Event()
        for job in changed:
            handle = self._handles.get(job)
            if handle is not None:
                handles.add(handle)

    def _spoil(self, channel: int, job: ClientJob | None, error: RemoteProtocolError) -> None:
        """What came broke the protocol: a daemon can spoil only the results of its own jobs, of that one."""
        self.blame(channel, job, error)
        if job is not None:
            log.warning("daemon_broke_protocol", daemon=job.daemon_id, reason=str(error))
            self.client.end(job)
            self.client.close(job, error)

    @abstractmethod
    def blame(self, channel: int, job: ClientJob | None, error: RemoteProtocolError) -> None:
        """What came on a channel, for the job if there is one, broke the protocol."""

    def update(self, jobs: Iterable[ClientJob]) -> None:
        """The jobs have changed: whoever waits for them looks."""
        for job in jobs:
            handle = self._handles.get(job)
            if handle is not None:
                handle.update()
