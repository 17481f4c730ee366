"""What whoever holds a job can do with it, be it a process or a session: wait, signal, detach, and leave."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sandd import wire
from sandd._core._errors import RequestRefused
from sandd._core.commands import wait_begun
from sandd._core.interrupts import protected_context
from sandd._core.results import ExitStatus
from sandd._core.specs import normal_signal
from sandd.wire import Role

if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import AsyncIterator

    from sandd._core.job_link import JobHandle


class HeldJob:
    """A job that runs a program, in the block that opened it or attached to it."""

    def __init__(self, handle: JobHandle, *, kill_grace: float) -> None:
        self._handle = handle
        self._kill_grace = kill_grace

    def __repr__(self) -> str:
        job = self._handle.job
        ended = f", ended: {job.result!r}" if job.result is not None else ""
        return f"<sandd.{type(self).__name__} {job.daemon_id}/{job.id} pid={self.pid}{ended}>"

    @property
    def job_id(self) -> str:
        """Id of the job, unique on its daemon; what `Daemon.attach_process` and others go by."""
        return self._handle.job.id

    @property
    def pid(self) -> int:
        """Process id on the daemon's machine."""
        started = self._handle.job.started
        return 0 if started is None else started.pid

    @property
    def status(self) -> ExitStatus | None:
        """How the program ended; None while it runs, and if there is no telling: see `wait`."""
        event = self._handle.job.result
        return ExitStatus.from_event(event) if isinstance(event, wire.Exited) else None

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> ExitStatus:
        """How the process ended, as soon as it has; running out of time is no exception here.

        It reads no output: read that first, or beside it, for a command whose output isn't read may
        never end.

        Raises:
            DaemonGone: the daemon was lost, and the status with it.
            JobTaken: another block took the job over, by its `job_id`.
            JobNotFound: it was forgotten meanwhile; see `Daemon.forget`.
            SpawnFailed: an attached job could not be started at all.
            trio.ClosedResourceError: the controller was closed meanwhile, or the block was left while
                the daemon was away.
        """
        await trio.lowlevel.checkpoint()
        await self._handle.until(lambda: self._handle.ended)
        status = self.status
        if status is not None:  # whatever has become of the job since then
            return status
        self._handle.raise_if_failed()
        raise trio.ClosedResourceError(
            f"the block of this {self._noun} was left before its end was known"
        )

    @trio.lowlevel.enable_ki_protection
    async def signal(self, name: str | _signal.Signals) -> None:
        """Send a signal, such as "INT", to the process group; nothing happens if it has ended.

        In a session that is the group in the foreground, as with the keys Ctrl-C and Ctrl-Z.

        Returns when the request is on its way. Signals arrive in order and once, across cuts too.

        Raises:
            ValueError: that is no signal.
            RequestRefused: it was attached with ``read_only=True``.
        """
        await self._ask(wire.Signal(normal_signal(name)))

    @trio.lowlevel.enable_ki_protection
    async def detach(self) -> None:
        """Let the job outlive this block and this program; it has no lease any more.

        Returns when the daemon knows, and has all that was written to it and every signal: from
        then on leaving the block, or dying, changes nothing for the job. Its results are kept for
        a day after its end. While the daemon is away this waits for its return. If it is cancelled,
        leaving the block ends the job as ever; dying may do so or not.

        Raises:
            RequestRefused: it was attached with ``read_only=True``.
            JobTaken, JobNotFound, DaemonGone, trio.ClosedResourceError: as for `wait`.
        """
        await self._ask(wire.DetachJob(), although_ended=True)
        await self._handle.flushed()
        if self._handle.job.result is None:
            self._handle.raise_if_failed()
            if self._handle.closed:
                raise trio.ClosedResourceError(
                    f"the block of this {self._noun} was left before the daemon knew"
                )
        self._handle.job.detached = True

    async def _take_back(self) -> None:
        """As if its block had not been entered: a new one ends, detached or not; else it is as it was before."""
        if self._handle.is_new:
            await self._handle.leave(self._kill_grace)
        else:
            self._handle.give_up()

    @property
    def _noun(self) -> str:
        return type(self).__name__.lower()

    @property
    def _reads_only(self) -> bool:
        return self._handle.job.role is Role.VIEWER

    @trio.lowlevel.enable_ki_protection
    async def _ask(self, op: wire.Op, *, although_ended: bool = False) -> None:
        if self._reads_only:
            raise RequestRefused(
                f"this {self._noun} was attached with read_only=True: whoever looks on can't change it"
            )
        job = self._handle.job
        await trio.lowlevel.checkpoint()
        await self._handle.until(lambda: job.ops.room > 0 or self._handle.ended)
        meant = not self._handle.ended or (although_ended and job.ops.room > 0)
        if meant and not self._handle.closed:
            job.ops.append(wire.encode_op(op))
            self._handle.link.changed(job)


@protected_context
async def started(
    handle: JobHandle, *, timeout: float | None, kill_grace: float
) -> AsyncIterator[None]:
    """A new job, once it runs; leaving the block ends it and reaps its tree, unless it is detached."""
    try:
        await wait_begun(handle, timeout)
        if handle.job.started is None:
            handle.raise_if_failed()
    except BaseException:
        await handle.leave(kill_grace)  # a detached one, too: nobody has heard of it
        raise
    async with _held(handle, kill_grace):
        yield


@protected_context
async def attached(
    handle: JobHandle, *, kill_grace: float, terminal: bool = False
) -> AsyncIterator[None]:
    """A job that is there, once all is known of it; then it is left as its owner leaves it, or as who looked on."""
    try:
        await handle.until(lambda: handle.job.caught_up or handle.closed)
        if handle.closed:
            handle.raise_if_failed()
        if terminal and not handle.job.terminal:
            raise RequestRefused(
                f"job {handle.job.id} on daemon {handle.job.daemon_id!r} has no terminal: it is no "
                "session; use attach_process"
            )
    except BaseException:
        handle.give_up()  # it was there before us, and is none of ours yet
        raise
    async with _held(handle, kill_grace):
        yield


@protected_context
async def _held(handle: JobHandle, kill_grace: float) -> AsyncIterator[None]:
    handle.hold()
    try:
        yield
    finally:
        await part_or_end(handle, kill_grace)


async def part_or_end(handle: JobHandle, kill_grace: float) -> None:
    """Leave the job as its state has it: running, if it outlives us, else ended with its tree gone."""
    if handle.job.outlives_us:
        await handle.part()
    else:
        await handle.leave(kill_grace)
