"""`Process`: a running command with live stdin, stdout and stderr, as its opener holds it."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import trio

from sandd import wire
from sandd._core._errors import OutputGap, RequestRefused
from sandd._core.commands import normal_signal, wait_begun
from sandd._core.interrupts import protected_context
from sandd._core.job_info import stalls_by_name
from sandd._core.results import ExitStatus
from sandd._core.streams import Gap
from sandd.wire import Role, Stream

if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import AsyncIterator, Mapping

    from sandd._core.local_link import JobHandle
    from sandd._core.spool import Stall

RECEIVE_BYTES = 64 * wire.KIB
"""What `receive_some` returns at most, where the caller names no limit."""


class _InputStream(trio.abc.SendStream):
    """The job's stdin. What was sent is in order and once, whatever happens to the connection."""

    def __init__(self, handle: JobHandle) -> None:
        self._handle = handle
        self._conflicts = _Exclusive("another task is sending to this stdin")
        self._closed = False

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; returns when it is on its way within the bounds of the buffers.

        Raises:
            trio.BrokenResourceError: the process has ended.
            trio.ClosedResourceError: this stream was closed before.
        """
        with self._conflicts, memoryview(data) as view:
            self._check()
            await trio.lowlevel.checkpoint()
            job = self._handle.job
            position = 0
            while position < len(view):
                await self._handle.until(
                    lambda: job.input.room > 0 or self._closed or self._handle.ended
                )
                self._check()
                chunk = view[position : position + job.input.room]
                job.input.append(chunk)
                position += len(chunk)
                self._handle.link.changed(job)

    @trio.lowlevel.enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        with self._conflicts:
            self._check()
            await trio.lowlevel.checkpoint()
            await self._handle.until(
                lambda: self._handle.job.input.room > 0 or self._closed or self._handle.ended
            )

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """End of file for the process; idempotent, never blocks."""
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            if not self._handle.job.input.final:
                self._handle.job.input.finish()
            self._handle.link.changed(self._handle.job)
            self._handle.update()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stdin was closed")
        if self._handle.ended:
            raise trio.BrokenResourceError("the process has ended")


class _OutputStream(trio.abc.ReceiveStream):
    """stdout or stderr of the job: all its bytes, in order and once, whatever happens to the connection."""

    def __init__(self, handle: JobHandle, stream: Stream) -> None:
        self._handle = handle
        self._stream = stream
        self._log = handle.job.outputs[stream]
        self._conflicts = _Exclusive("another task is receiving from this stream")
        self._closed = False

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at most `max_bytes`; b"" at the end.

        Raises:
            OutputGap: bytes are gone, because the job was told to drop what nobody fetched, or
                this reader only looks on and was overtaken, or asked for what is not kept any
                more. Said once; reading goes on behind them.
            trio.BrokenResourceError: the job was lost before its output ended.
            trio.ClosedResourceError: this stream was closed before.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._conflicts:
            self._check()
            await trio.lowlevel.checkpoint()
            await self._handle.until(
                lambda: (
                    self._log.readable or self._log.at_end or self._closed or self._handle.closed
                )
            )
            self._check()
            if self._log.readable:
                chunk = self._log.take(max_bytes or RECEIVE_BYTES)
                self._handle.link.changed(self._handle.job)
                if isinstance(chunk, Gap):
                    raise OutputGap(chunk.start, chunk.end)
                return chunk
            if self._log.at_end:
                return b""
            raise trio.BrokenResourceError(
                "the job was lost before its output ended"
            ) from self._handle.job.error

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Stop reading; what the process writes from now on is thrown away."""
        if not self._closed:
            self._closed = True
            self._handle.sink(self._stream, lambda _: None)
        await trio.lowlevel.checkpoint()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")


class Process:
    """A command on a daemon; made by `Daemon.open_process` and `Daemon.attach_process`.

    It survives every cut of the connection. Reading slowly slows the command, never the link or
    another job.
    """

    def __init__(self, handle: JobHandle, *, stdin: bool, stderr: bool) -> None:
        self._handle = handle
        self._stdin = _InputStream(handle) if stdin else None
        self._stdout = _OutputStream(handle, Stream.OUTPUT)
        self._stderr = _OutputStream(handle, Stream.ERROR) if stderr else None

    def __repr__(self) -> str:
        job = self._handle.job
        ended = f", ended: {job.result!r}" if job.result is not None else ""
        return f"<sandd.Process {job.daemon_id}/{job.id} pid={self.pid}{ended}>"

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
    def offsets(self) -> Mapping[str, int]:
        """How many bytes of "stdout" and "stderr" have been read, from the job's beginning.

        With this as `since`, `Daemon.attach_process` goes on there: without a gap or a repeat.
        """
        outputs = self._handle.job.outputs
        return {"stdout": outputs[Stream.OUTPUT].consumed, "stderr": outputs[Stream.ERROR].consumed}

    @property
    def stalls(self) -> Mapping[str, Stall]:
        """Outputs, of "stdout" and "stderr", for which the daemon has no room, so that the command waits; and why.

        That is so when more was written than its disk, or a quota, holds, while nobody read it. Nothing is
        lost, and the command goes on as soon as there is room: mostly when you read. A command that
        merely waits for its reader is in no stall. `Controller.open_events` tells when one begins and ends.
        """
        return stalls_by_name(self._handle.job.stalls)

    @property
    def stdin(self) -> trio.abc.SendStream:
        """The process' standard input; closing it is end of file.

        Not there with ``stdin=False`` or ``read_only=True``.
        """
        if self._stdin is None:
            how = "attached with read_only=True" if self._reads_only else "opened with stdin=False"
            raise trio.ClosedResourceError(f"this process was {how}")
        return self._stdin

    @property
    def stdout(self) -> trio.abc.ReceiveStream:
        """The process' standard output, in chunks that end anywhere; closing it throws the rest away."""
        return self._stdout

    @property
    def stderr(self) -> trio.abc.ReceiveStream:
        """The process' standard error, as `stdout`. Not there with ``stderr="merge"``."""
        if self._stderr is None:
            raise trio.ClosedResourceError(
                'this process was opened with stderr="merge": read stdout'
            )
        return self._stderr

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
        event = self._handle.job.result
        if isinstance(event, wire.Exited):  # whatever has become of the job since then
            return ExitStatus.from_event(event)
        self._handle.raise_if_failed()
        raise trio.ClosedResourceError("this process' block was left before its end was known")

    @trio.lowlevel.enable_ki_protection
    async def signal(self, name: str | _signal.Signals) -> None:
        """Send a signal, such as "INT", to the process group; nothing happens if it has ended.

        Returns when the request is on its way. Signals arrive in order and once, across cuts too.

        Raises:
            ValueError: that is no signal.
            RequestRefused: it was attached with ``read_only=True``.
        """
        await self._ask(wire.Signal(normal_signal(name)))

    async def terminate(self) -> None:
        """Ask the process group to end: SIGTERM."""
        await self.signal("TERM")

    async def kill(self) -> None:
        """End the process group at once: SIGKILL."""
        await self.signal("KILL")

    async def detach(self) -> None:
        """Let the job outlive this block and this program; it has no lease any more.

        Returns when the daemon knows, and has all that was written to `stdin` and every signal: from
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
        self._handle.job.detached = True

    @property
    def _reads_only(self) -> bool:
        return self._handle.job.role is Role.VIEWER

    async def _ask(self, op: wire.Op, *, although_ended: bool = False) -> None:
        if self._reads_only:
            raise RequestRefused(
                "this process was attached with read_only=True: whoever looks on can't change it"
            )
        job = self._handle.job
        await trio.lowlevel.checkpoint()
        await self._handle.until(lambda: job.ops.room > 0 or self._handle.ended)
        meant = not self._handle.ended or (although_ended and job.ops.room > 0)
        if meant and not self._handle.closed:
            job.ops.append(wire.encode_op(op))
            self._handle.link.changed(job)


@protected_context
async def hold_process(
    handle: JobHandle, *, stdin: bool, stderr: bool, timeout: float | None, kill_grace: float
) -> AsyncIterator[Process]:
    """The process while the block lasts; then its tree is ended and reaped, unless it is detached."""
    try:
        await wait_begun(handle, timeout)
        if handle.job.started is None:
            handle.raise_if_failed()
    except BaseException:
        await handle.leave(kill_grace)  # a detached one, too: nobody has heard of it
        raise
    async with _held(handle, kill_grace):
        yield Process(handle, stdin=stdin, stderr=stderr)


@protected_context
async def hold_attached(handle: JobHandle, *, kill_grace: float) -> AsyncIterator[Process]:
    """The process while the block lasts; then it is left as its owner leaves it, or as who looked on."""
    try:
        await handle.until(lambda: handle.job.caught_up or handle.closed)
        if handle.closed:
            handle.raise_if_failed()
    except BaseException:
        handle.give_up()  # it was there before us, and is none of ours yet
        raise
    async with _held(handle, kill_grace):
        reads_only = handle.job.role is Role.VIEWER
        yield Process(handle, stdin=not reads_only, stderr=True)


@protected_context
async def _held(handle: JobHandle, kill_grace: float) -> AsyncIterator[None]:
    try:
        yield
    finally:
        if handle.job.outlives_us:
            await handle.part()
        else:
            await handle.leave(kill_grace)


class _Exclusive:
    """trio's rule that a stream has one task at a time per direction; the second gets BusyResourceError."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise trio.BusyResourceError(self._message)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
