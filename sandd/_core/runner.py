"""Runs the jobs of a daemon: between the job table, which knows the protocol, and the process host.

Each job that runs on is one task with a nursery of its own: a pump for each pipe, and whatever kills
it. A short one is over when the word of its start comes, and needs none. A job's failure ends that job
and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from sandd import wire
from sandd._core._errors import PolicyDenied, SpawnFailed
from sandd._core.job_requests import JobRequests, signal_number
from sandd._core.jobs import INPUT_CAME, Effect, Effects, JobTable
from sandd._core.limits import NO_LIMITS, Limits
from sandd._core.logs import get_logger
from sandd._core.policy.permits import Permit
from sandd._core.port_requests import PortRequests
from sandd._core.processes import (
    Child,
    ChildLost,
    ExitStatus,
    ProcessHost,
    ReceivesNowait,
    SendsNowait,
    SpawnRequest,
)
from sandd._core.requests import Requests
from sandd._core.spawn_requests import UNLIMITED, Allowance, spawn_request
from sandd._core.spooler import Spooler
from sandd.wire import FailedCode, IsolationLevel, JobState, Outcome, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sandd._core.isolation.confining import Isolation
    from sandd._core.job import DaemonLink, Job
    from sandd._core.policy.permits import Gate
    from sandd._core.pump import Pump
    from sandd._core.spool_files import SpoolFiles
    from sandd._core.spooled_log import SpooledLog

log = get_logger("jobs")

# Enum members are bound here because looking one up by its class costs as much as a function call (Python 3.11).
_ENDED: Final = JobState.ENDED
_QUEUED: Final = JobState.QUEUED
_RUNNING: Final = JobState.RUNNING
_OUTPUT: Final = Stream.OUTPUT
_ERROR: Final = Stream.ERROR
_EXITED: Final = Outcome.EXITED
_START: Final = Effect.START
_TOGETHER: Final = IsolationLevel.NONE

DRAIN_SECONDS: Final = 1.0
"""After the exit, how long a pipe that somebody else holds open may stay silent before we stop reading."""
DRAIN_BYTES: Final = 1 * wire.MIB
"""After the exit, how much is read beyond the ring: the most that a pipe can hold."""
NOT_STARTED: Final = "the job was ended before it was started"
COALESCE_SECONDS: Final = 0.003
"""How long, at most, the word of a start, or of an output's end, waits for the exit that may be about to come."""
TELL_SECONDS: Final = 0.001
"""What would be told within this is told at once, if something is: they go in one message."""
SHORTAGES: Final = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Reasons for a failed spawn that may pass: processes, descriptors or memory are short."""
SHORTAGE_DELAYS: Final = (0.05, 0.2, 0.8, 2.0)
"""Seconds before each further try while something is short; then it is a typed error."""
IDLE_LOOK_SECONDS: Final = 0.05
"""Before a process counts as idle, the time in which its pipes are looked at once more."""
READ_BYTES: Final = wire.MAX_DATA_BYTES
"""One read from a pipe: what a large pipe holds, and one frame does."""
FIRST_READ_BYTES: Final = 64 * wire.KIB
"""The same, while nothing has been put out yet: what a pipe holds by default, and any ring has room for."""
TYPED_BYTES: Final = 1024
"""Input of so few bytes at a time is somebody's who waits for what comes of it."""
TYPED_SECONDS: Final = 1.0
"""So long after it, who moves much at a time lets others go first: until the next keystroke, mostly."""
MUCH_BYTES: Final = 64 * wire.KIB
"""Of output at a time: a third of a millisecond of work, and more (m)."""
MAX_LOOKUPS: Final = 8
"""Users looked up at once, which may hang: other threads are to be had all the same."""
TOLD_SECONDS: Final = 0.02
"""How often a stopping daemon looks whether all has been sent."""
READER_SECONDS: Final = 2.0
"""How long it waits for readers of whom none takes anything."""
TICK_SECONDS: Final = 1.0
"""How often leases are counted."""
REST_SECONDS: Final = 5.0
"""How often, where every job has its owner: what waits to be sent behind a start goes then, should the start hang."""


@define(eq=False)
class RunningJob:
    """The shell's side of a job: what its tasks wait for."""

    job: Job
    spec: wire.ProgramSpec
    child: Child | None = None
    nursery: trio.Nursery | None = None
    is_unwanted: bool = False
    """Somebody wants it ended; for the time before there is a process to kill."""
    unwanted: trio.Event | None = None
    """Set then; it is made by who waits for it, as are the next two."""
    input_ready: trio.Event | None = None
    fed: SendsNowait | None = None
    """Where what pumps its input has nothing in hand, and waits: whoever brings some may send it here."""
    unsent_input: bytes = b""
    """The rest of what was to be sent without waiting; it goes first."""
    room_ready: trio.Event | None = None
    has_slot: bool = False
    """It counts among those that run at once."""
    begun: Child | None = None
    """Asked for, but not yet known to be started. It has no task then."""
    began_at: float = 0.0
    """When the process was asked for, trio time."""
    exited_at: float | None = None
    last_output: float = 0.0
    held_back: int = 0
    """Pumps that wait for room: it is us who keep the process from writing."""
    limits: Limits = NO_LIMITS
    """What it may use, by all who have a say."""
    output_bytes: int = 0
    """What it has written so far, where that is limited."""
    exceeded: str = ""
    """The limit that we have seen it go beyond."""
    over: trio.Event | None = None
    """Set when its tree is gone and its end is told; made by who waits for that."""


class JobRunner:
    """All running jobs of a daemon. Its nursery owns their tasks."""

    def __init__(
        self,
        table: JobTable,
        host: ProcessHost,
        nursery: trio.Nursery,
        *,
        max_running: int,
        files: SpoolFiles | None = None,
        gate: Gate | None = None,
        allowance: Allowance = UNLIMITED,
        isolation: Isolation | None = None,
    ) -> None:
        self._table = table
        self._host = host
        self._gate = gate
        """The daemon's policy; None: whatever is asked for is run."""
        self._allowance = allowance
        """What each job may use."""
        self._isolation = isolation
        """How jobs are kept apart; None: they aren't."""
        self._nursery = nursery
        self._now = trio.lowlevel.current_clock().current_time
        self._free_slots = max_running
        self._queue: deque[RunningJob] = deque()
        """Jobs waiting for a slot, in the order of their starts."""
        self._running: dict[Job, RunningJob] = {}
        self._pumps: dict[DaemonLink, Pump] = {}
        self._one_ended: trio.Event | None = None
        """Set at the next end of a job, for who waits for it."""
        self._is_over = False
        """The daemon is being stopped: nothing is begun any more."""
        self._spooler: Spooler | None = None
        self._disk_work: Mapping[SpooledLog, None] = {} if table.spool is None else table.spool.work
        if table.spool is not None and files is not None:
            self._spooler = Spooler(table.spool, files, nursery, self._disk_has_served)
        self._lookups = trio.CapacityLimiter(MAX_LOOKUPS)
        self._typed_until = -math.inf
        """Until then somebody types, as far as we can tell."""
        self._starting = False
        """A start is under way whose answer has not been sent."""
        self._one_is_left: trio.Event | None = None
        """Where leases are not counted, as no job is without its owner; set when one may be."""
        self._untold: deque[tuple[float, Job]] = deque()
        """Those whose start, or output's end, is told at some time, should they still run then."""
        self._tells = False
        """There is a task that does."""
        self.requests = Requests(table, nursery, act=self.act)
        """What is done without a process; who can do more offers it here."""
        self.requests.offer(JobRequests(table, act=self.act, wait_over=self._wait_over).doers)
        self.requests.offer(PortRequests(table, act=self.act).doers)

    @property
    def queued(self) -> int:
        """Jobs that wait for a place among those that run at once."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs that have a place."""
        return len(self._running) - len(self._queue)

    # -- links

    def add_link(self, link: DaemonLink, pump: Pump) -> None:
        """Frames for this link go out by this pump."""
        self._pumps[link] = pump

    def remove_link(self, link: DaemonLink) -> None:
        """The link is gone."""
        self._pumps.pop(link, None)
        self._starting = False
        self.act(self._table.close_link(link, self._now()))

    def receive(self, link: DaemonLink, frame: wire.Frame) -> None:
        """Take a frame from the link; `after_message` follows the last one of a message."""
        clock = self._now  # (to call what is not a method by its name takes Python longer)
        self._dispatch(self._table.steps(link, frame, clock()))

    def after_message(self) -> None:
        """Send what the frames received led to.

        Not after a start: its answer travels with the word that the process runs, a millisecond later.
        That halves the messages, and the process is asked for before anything is sent.
        """
        if self._disk_work:
            # As of a job that was left: there is nothing to say, and so nobody else to see to it.
            self.serve_disk()
        if self._starting:
            self._starting = False
            for link in self._pumps:
                link.dirty = False
        else:
            # What such an answer waits for comes soon, so it isn't sent for the sake of a message between.
            for link, pump in self._pumps.items():
                if link.dirty:
                    link.dirty = False
                    pump.wake()

    def flush(self) -> None:
        """Wake the writers of links that have something to send."""
        if self._disk_work:
            self.serve_disk()
        for link, pump in self._pumps.items():
            if link.dirty or link.scheduler.pending:
                link.dirty = False
                pump.wake()

    def serve_disk(self) -> None:
        """See to what the jobs' outputs want of the disk: mostly nothing."""
        if self._disk_work and self._spooler is not None:
            self._spooler.serve()

    def _disk_has_served(self, job: Job) -> None:
        job.announce()
        running = self._running.get(job)
        if running is not None:
            _set(running.room_ready)
        self.flush()

    # -- effects

    def act(self, effects: Effects) -> None:
        """Do what the job table asks for, and send what it has to say."""
        self._dispatch(effects)
        self.flush()
        self._starting = False  # all answers are on their way

    def _dispatch(self, effects: Iterable[tuple[Job, Effect]]) -> None:
        for job, effect in effects:
            if effect is _START:
                self._start(job)
                continue
            running = self._running.get(job)
            if effect is INPUT_CAME and running is not None:
                self._feed(running)
                continue
            match effect:
                case _ if running is None:
                    self.requests.take(job, effect)  # unless it has ended already
                case Effect.OPS:
                    self._apply_ops(running)
                case Effect.ROOM:
                    _set(running.room_ready)
                case Effect.END:
                    self._end(running)
                case Effect.FORGOTTEN | Effect.CLAIMED:
                    pass
        if self._one_is_left is not None and self._table.has_unowned:
            self._one_is_left.set()

    def _start(self, job: Job) -> None:
        if isinstance(job.spec, wire.Request):
            self._starting = True
            self.requests.start(job)
            return
        self._running[job] = running = RunningJob(job, job.spec)
        self._queue.append(running)
        self._begin_next()
        self._starting = self._starting or running.has_slot  # else the answer would be a while

    def _end(self, running: RunningJob) -> None:
        job = running.job
        if running.child is not None and running.nursery is not None:
            running.nursery.start_soon(_kill, running.child, job.end_signal, job.end_grace)
        elif running.has_slot:
            # What has been asked for is waited for, and then killed like any other.
            running.is_unwanted = True
            _set(running.unwanted)
        else:
            self._queue.remove(running)
            job.failed(FailedCode.CANCELLED, NOT_STARTED)
            self._over(running)

    def _apply_ops(self, running: RunningJob) -> None:
        child = running.child
        if child is None:
            return  # they wait in the job until there is a process
        while (op := running.job.next_op()) is not None:
            match op:
                case wire.Signal():
                    number = signal_number(op.name)
                    if number is None:
                        log.warning("signal_refused", job=running.job.key[1], name=op.name)
                    elif child.terminal is None or not child.terminal.signal(number):
                        child.signal(number)
                case wire.Resize() if child.terminal is not None:
                    child.terminal.resize(op.rows, op.cols)

    async def count_leases(self) -> None:
        """Let leases and retention run; for as long as the daemon lives. It rests while every job has its owner.

        At its end, what was asked for and has no task is let go of: the process host ends it.
        """
        try:
            while True:
                self.act(self._table.tick(self._now()))
                if self._table.has_unowned:
                    await trio.sleep(TICK_SECONDS)
                else:
                    self._one_is_left = trio.Event()
                    with trio.move_on_after(REST_SECONDS):
                        await self._one_is_left.wait()
                    self._one_is_left = None
        finally:
            self._is_over = True
            for running in self._running.values():
                if running.begun is not None:
                    running.begun.close_pipes()

    async def _wait_over(self, job: Job) -> None:
        """Wait until the job has ended, with its tree and its task."""
        running = self._running.get(job)
        if running is not None:
            if running.over is None:
                running.over = trio.Event()
            await running.over.wait()

    async def end_all(self, grace: float) -> None:
        """Take no new jobs, kill all, and wait until each has ended. Bounded by the graces; bound it anyway."""
        self._table.draining = True
        for job in list(self._running):
            self.act(self._table.stop(job, Outcome.CANCELLED, grace))
        while self._running:
            self._one_ended = trio.Event()
            await self._one_ended.wait()

    async def told(self) -> None:
        """Wait until all output and events of attached jobs have been sent, or nobody takes any more of it.

        Bound it: clients grant the credit, and may do so slowly.
        """
        before, since = 0, self._now()
        while unsent := sum(link.unsent for link in self._pumps):
            if unsent != before:
                before, since = unsent, self._now()
            elif self._now() - since > READER_SECONDS:
                return  # a viewer that doesn't read delays nobody, nor does an owner
            await trio.sleep(TOLD_SECONDS)

    # -- one job

    def _begin_next(self) -> None:
        """Ask for the processes whose turn it is, right away."""
        while self._free_slots and self._queue and not self._is_over:
            running = self._queue.popleft()
            self._free_slots -= 1
            running.has_slot = True
            # Users may come from a network, and take seconds; so may what a policy has to look at, or a workspace.
            if (
                running.spec.user is None
                and self._gate is None
                and (
                    self._isolation is None
                    or self._level_of(running.job, running.spec) is _TOGETHER
                )
            ):
                running.began_at = self._now()
                try:
                    request = spawn_request(
                        running.job, running.spec, self._table.instance, self._allowance
                    )
                    running.limits = request.limits
                    running.begun = self._host.begin(request, partial(self._answered, running))
                except Exception:
                    # Whatever went wrong, defects included, is met and told when its task asks again.
                    running.begun = None
            if running.begun is None:
                self._nursery.start_soon(self._run, running)

    def _answered(self, running: RunningJob, alone: bool) -> Callable[[], None] | None:
        """What was begun has started, or failed to; mostly it has ended by now, too. See `Answered`."""
        if self._is_over:
            return None
        try:
            is_over = self._end_at_once(running, alone)
        except Exception:
            is_over = False  # as above: a task meets what went wrong once more
        if not is_over:
            self._nursery.start_soon(self._run, running)
            return None
        return None if alone else self.flush

    def _end_at_once(self, running: RunningJob, alone: bool) -> bool:
        """Tell the end of a process that is over, with its tree and its output; False if it isn't."""
        job, child = running.job, running.begun
        if child is None or (status := child.ended) is None:
            return False
        job.started(child.pid, running.began_at)
        if not self._read_what_is_there(running, _OUTPUT, child.stdout):
            return False
        stderr = child.stderr
        if stderr is not None and not self._read_what_is_there(running, _ERROR, stderr):
            return False
        self._tell_exit(running, child, status, pipes_held=False)
        if alone:
            self.flush()
        child.close_pipes()
        self._over(running, is_told=True)
        return True

    def _over(self, running: RunningJob, *, is_told: bool = False) -> None:
        """It has ended, or the daemon itself is being stopped: the next one's turn."""
        job = running.job
        del self._running[job]
        if running.has_slot:
            self._free_slots += 1
            if self._queue:
                self._begin_next()
        if self._one_ended is not None:
            self._one_ended.set()
        effects = self._table.ended(job, self._now()) if job.state is _ENDED else []
        if effects or not is_told:
            self.act(effects)
        if running.over is not None:
            running.over.set()

    async def _run(self, running: RunningJob) -> None:
        job = running.job
        try:
            child = await self._spawn(running)
            if child is not None:
                await self._supervise(running, child)
            elif job.state is not _ENDED:
                job.failed(FailedCode.CANCELLED, NOT_STARTED)
        except Exception as error:  # a defect of ours must cost this job alone
            log.exception("job_crashed", job=job.key[1])
            if running.child is not None:
                await running.child.kill(grace=0)
            if job.state is not _ENDED:
                job.failed(FailedCode.LOST, f"the daemon failed to supervise it: {error!r}")
        finally:
            self._over(running)

    async def _spawn(self, running: RunningJob) -> Child | None:
        """The started child; None if the job was ended before, or was told why there is no child."""
        job = running.job
        delays = iter(SHORTAGE_DELAYS)
        while True:
            begun, running.begun = running.begun, None
            if begun is None and running.is_unwanted:
                return None
            try:
                if begun is not None:
                    await self._host.begun(begun)
                    return begun
                self.flush()  # this may take longer than the answer to the start should wait
                with Permit() as permit:
                    request = await self._request(job, running.spec, permit)
                    running.began_at = self._now()
                    running.limits = request.limits
                    return await self._host.spawn(request)
            except PolicyDenied as error:
                job.failed(FailedCode.POLICY_DENIED, error.reason, policy_hash=error.policy_hash)
                return None
            except SpawnFailed as error:
                delay = next(delays, None) if error.errno in SHORTAGES else None
                if delay is None:
                    name = None if error.filename is None else os.fsencode(error.filename)
                    text = error.strerror or ""
                    job.failed(FailedCode.SPAWN, text, errno=error.errno or 0, filename=name)
                    return None
                self.flush()
                with trio.move_on_after(delay):
                    running.unwanted = trio.Event()
                    while not running.is_unwanted:
                        await running.unwanted.wait()
            except ChildLost as error:
                job.failed(FailedCode.LOST, str(error))
                return None

    def _level_of(self, job: Job, spec: wire.ProgramSpec) -> IsolationLevel:
        """What the job is kept apart from."""
        if self._isolation is None:
            return _TOGETHER
        level: IsolationLevel = self._isolation.level_of(spec, job.least_isolation)
        return level

    async def _request(self, job: Job, spec: wire.ProgramSpec, permit: Permit) -> SpawnRequest:
        instance = self._table.instance

        def make() -> SpawnRequest:
            if self._gate is None:
                request = spawn_request(job, spec, instance, self._allowance)
            else:
                request = self._gate.check(job, spec, instance, permit, self._allowance)
            if self._isolation is not None:
                request = self._isolation.confine(job.key[0], level, spec, request, permit)
            return request

        level = self._level_of(job, spec)
        if self._gate is None and spec.user is None and level is _TOGETHER:
            return make()
        # Users may come from a network, and take seconds.
        return await trio.to_thread.run_sync(make, limiter=self._lookups, abandon_on_cancel=True)

    async def _supervise(self, running: RunningJob, child: Child) -> None:
        job = running.job
        running.child = child
        running.last_output = running.began_at
        if job.state is _QUEUED:
            job.started(child.pid, running.began_at)
        if running.spec.stdin:
            self._tell_started(job)  # somebody is going to talk to it
        try:
            await self._see_through(running, child)
        finally:
            running.nursery = None
            # Killed here means the daemon itself is being stopped: its process host ends every tree.
            child.close_pipes()

    async def _see_through(self, running: RunningJob, child: Child) -> None:
        """Serve the process until it and its output have ended, and tell so."""
        job = running.job
        outputs = {_OUTPUT: child.stdout}
        if child.stderr is None:
            job.finish(_ERROR)
        else:
            outputs[_ERROR] = child.stderr
        async with trio.open_nursery() as nursery:
            running.nursery = nursery
            pumps = _Countdown(len(outputs))
            for stream, pipe in outputs.items():
                nursery.start_soon(self._pump_output, running, stream, pipe, pumps)
            if child.stdin is not None:
                nursery.start_soon(self._pump_input, running, child.stdin)
            times = (running.spec.timeout, running.spec.idle_timeout, running.limits.wall)
            if any(each is not None for each in times):
                nursery.start_soon(self._enforce_timeouts, running)
            self._apply_ops(running)
            if job.end_outcome is not None:
                self._end(running)
            if not child.has_exited:
                # A short command's start travels with its end, and nobody takes the processor from it.
                if not running.spec.stdin:  # else it has been told
                    self._tell_soon(job)
                with contextlib.suppress(ChildLost):
                    await child.wait_exited()
            running.exited_at = self._now()
            job.make_room(DRAIN_BYTES)
            _set(running.room_ready)
            pipes_held = not await pumps.wait(running)
            await self._tell_end(running, child, pipes_held=pipes_held)
            running.nursery = None
            nursery.cancel_scope.cancel()

    def _tell_started(self, job: Job) -> None:
        job.tell_started()
        self.flush()

    def _tell_soon(self, job: Job) -> None:
        """Tell its start, and that an output has ended, in a moment, unless the job has ended by then.

        One task waits for all jobs: a clock for each would cost as much as all else that such a job does in its task.
        """
        self._untold.append((self._now() + COALESCE_SECONDS, job))
        if not self._tells:
            self._tells = True
            self._nursery.start_soon(self._tell_what_waits)

    async def _tell_what_waits(self) -> None:
        while self._untold:
            due, job = self._untold[0]
            if job.state is not _RUNNING:
                self._untold.popleft()
                continue
            await trio.sleep_until(due)
            until = self._now() + TELL_SECONDS
            while self._untold and self._untold[0][0] <= until:
                _, job = self._untold.popleft()
                if job.state is _RUNNING:
                    job.tell_started()
            self.flush()
        self._tells = False

    async def _tell_end(self, running: RunningJob, child: Child, *, pipes_held: bool) -> None:
        """The process has exited and its output is here: see its tree gone, and tell how it ended."""
        job = running.job
        try:
            status = await child.wait_exited()
        except ChildLost as error:
            job.failed(FailedCode.LOST, str(error))
        else:
            await child.release(sweep=not job.detached or job.end_outcome is not None)
            self._tell_exit(running, child, status, pipes_held=pipes_held)
        self.flush()

    def _tell_exit(
        self, running: RunningJob, child: Child, status: ExitStatus, *, pipes_held: bool
    ) -> None:
        job = running.job
        exited_at = running.exited_at or self._now()
        outcome, limit = _outcome(job.end_outcome, status, running.exceeded or child.limit)
        job.exited(
            code=status.code,
            signal=status.signal,
            outcome=outcome,
            seconds=exited_at - running.began_at,
            pipes_held=pipes_held,
            usage=child.used,
            limits=running.limits.without(child.unheld) if child.unheld else running.limits,
            limit=limit,
        )

    def _write(self, running: RunningJob, stream: Stream, data: bytes | bytearray) -> None:
        """Output of the job, as far as it may have any; of one that has more, the end."""
        most = running.limits.output_bytes
        if most is not None:
            room = max(0, most - running.output_bytes)
            running.output_bytes += len(data)
            if len(data) > room:
                data = data[:room]
                if not running.exceeded:
                    running.exceeded = "output_bytes"
                    if running.child is not None:  # else it has ended
                        self.act(self._table.stop(running.job, Outcome.LIMIT_EXCEEDED, 0.0))
        if data:
            running.job.write(stream, memoryview(data))

    def _read_what_is_there(
        self, running: RunningJob, stream: Stream, pipe: trio.abc.ReceiveStream
    ) -> bool:
        """Take what the pipe holds now, as far as there is room; True at its end."""
        outputs = running.job.made_outputs
        if isinstance(pipe, ReceivesNowait):
            while room := outputs[stream].room if outputs else FIRST_READ_BYTES:
                chunk = pipe.receive_nowait(min(room, READ_BYTES))
                if chunk is None:
                    break
                if not chunk:
                    return True  # the end of the job is that of its outputs
                self._write(running, stream, chunk)
                outputs = running.job.outputs
        return False

    async def _pump_output(
        self, running: RunningJob, stream: Stream, pipe: trio.abc.ReceiveStream, pumps: _Countdown
    ) -> None:
        job = running.job
        while True:
            room = job.room(stream)
            if room == 0:
                self.serve_disk()
                # Both pumps wait on one event: an unset one must stay the one that will be set.
                if running.room_ready is None or running.room_ready.is_set():
                    running.room_ready = trio.Event()
                running.held_back += 1
                await running.room_ready.wait()
                running.held_back -= 1
                running.last_output = self._now()
                continue
            try:
                chunk = await pipe.receive_some(min(room, READ_BYTES))
            except trio.BrokenResourceError:
                chunk = b""
            if not chunk:
                break
            if job.state is _ENDED:
                return  # read in the turn in which the end was told, from a pipe that somebody else holds
            if running.limits.output_bytes is None:
                job.write(stream, chunk if isinstance(chunk, bytes) else memoryview(chunk))
            else:
                self._write(running, stream, chunk)
            if job.untold_pid is not None:
                job.tell_started()
            self.flush()
            # Behind what somebody waits for.
            now = running.last_output = self._now()
            pumps.progressed(len(chunk), now)
            if now < self._typed_until and len(chunk) >= MUCH_BYTES:
                # What came meanwhile, a keystroke or its echo, is in the next turn, as we are, and its order is
                # anybody's guess.
                await trio.lowlevel.cancel_shielded_checkpoint()
        job.finish(stream)
        pumps.done()
        # Mostly this is the end of the process, and travels with the word of that.
        self._tell_soon(job)

    def _feed(self, running: RunningJob) -> None:
        """Input has come: send at once what the pipe takes, as a keystroke has no turn of a task to lose."""
        pipe, job = running.fed, running.job
        if pipe is not None:
            chunk = job.input.take(READ_BYTES)
            if chunk:
                assert isinstance(chunk, bytes)  # accept() refuses gaps on the way to the daemon
                try:
                    running.unsent_input = chunk[pipe.send_nowait(chunk) :]
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # nobody reads there any more, or we are about to let go of it: as its pump would find
                job.input_taken(len(chunk))
                if len(chunk) <= TYPED_BYTES:
                    self._typed_until = self._now() + TYPED_SECONDS
            is_all = job.input.received == job.input.consumed and job.input.final is None
            if is_all and not running.unsent_input:
                return
        running.fed = None
        _set(running.input_ready)

    async def _pump_input(self, running: RunningJob, pipe: trio.abc.SendStream) -> None:
        job = running.job
        while not job.input.at_end or running.unsent_input:
            chunk, running.unsent_input = running.unsent_input or job.take_input(READ_BYTES), b""
            if not chunk:
                running.input_ready = trio.Event()
                running.fed = pipe if isinstance(pipe, SendsNowait) else None
                await running.input_ready.wait()
                running.fed = None
                continue
            self.flush()  # credit for what was taken
            # That the child reads no more is its right, and no error; a terminal may be opened again.
            with contextlib.suppress(trio.BrokenResourceError):
                await pipe.send_all(chunk)
        await pipe.aclose()

    async def _enforce_timeouts(self, running: RunningJob) -> None:
        spec, wall = running.spec, running.limits.wall
        longest = math.inf if spec.timeout is None else spec.timeout
        # Of the two the first is told; should they be equal, that is the time-out.
        is_limit = wall is not None and wall < longest
        end = running.began_at + min(longest, math.inf if wall is None else wall)
        idle = math.inf if spec.idle_timeout is None else spec.idle_timeout
        while running.exited_at is None:
            # A process that we hold back (its output is not fetched) is not idle.
            since = self._now() if running.held_back else running.last_output
            deadline = min(end, since + idle)
            await trio.sleep_until(deadline)
            if deadline < end:
                # This daemon may have stood still: then output waits that nobody has looked at yet.
                await trio.sleep(IDLE_LOOK_SECONDS)
                if running.held_back or running.last_output > since:
                    continue
                is_limit = False
            if is_limit:
                running.exceeded = running.exceeded or "wall"
            outcome = Outcome.LIMIT_EXCEEDED if is_limit else Outcome.TIMED_OUT
            self.act(self._table.stop(running.job, outcome))
            return


def _outcome(end_outcome: Outcome | None, status: ExitStatus, limit: str) -> tuple[Outcome, str]:
    """How a job ended, and by which limit if it was one: whoever else ended it before is what is told."""
    if limit and end_outcome in (None, Outcome.LIMIT_EXCEEDED):
        is_memory = limit == "memory_bytes"
        return Outcome.OUT_OF_MEMORY if is_memory else Outcome.LIMIT_EXCEEDED, limit
    if end_outcome is not None:
        return end_outcome, ""
    return _EXITED if status.signal is None else Outcome.SIGNALED, ""


def _set(event: trio.Event | None) -> None:
    """Wake whoever waits for it, if somebody does."""
    if event is not None:
        event.set()


class _Countdown:
    """Waits for the output pumps after the exit: to their end, or until the pipes are somebody else's."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._bytes = 0
        self._last_progress = 0.0
        self._changed = trio.Event()

    def progressed(self, size: int, now: float) -> None:
        self._bytes += size
        self._last_progress = now

    def done(self) -> None:
        self._count -= 1
        self._changed.set()

    async def wait(self, running: RunningJob) -> bool:
        """True once all pumps are at the end of their pipe; False when another process holds one open."""
        exited_at = running.exited_at or 0.0
        before = self._bytes
        while self._count:
            now = trio.current_time()
            # Quiet for the whole grace; or past the grace, and more than the exited process can have left.
            quiet_until = max(exited_at, self._last_progress) + DRAIN_SECONDS
            if now >= quiet_until or (
                now >= exited_at + DRAIN_SECONDS and self._bytes - before > DRAIN_BYTES
            ):
                return False
            self._changed = trio.Event()
            with trio.move_on_at(min(quiet_until, now + DRAIN_SECONDS)):
                await self._changed.wait()
        return True


async def _kill(child: Child, name: str, grace: float) -> None:
    """End the tree; what its group gets first, instead of TERM to all of it, may be another signal."""
    if name not in ("TERM", "KILL"):
        number = signal_number(name)
        assert number is not None  # else the request was declined
        child.signal(number)
        with trio.move_on_after(grace), contextlib.suppress(ChildLost):
            await child.wait_exited()
    await child.kill(grace=grace if name == "TERM" else 0.0)
