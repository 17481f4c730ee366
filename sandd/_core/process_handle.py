"""`Process`: a running command with live stdin, stdout and stderr, as its opener holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sandd._core.held_job import HeldJob, attached, started
from sandd._core.interrupts import protected_context
from sandd._core.job_info import stalls_by_name
from sandd._core.job_streams import InputStream, OutputStream
from sandd.wire import Role, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from sandd._core.job_link import JobHandle
    from sandd._core.spool import Stall


class Process(HeldJob):
    """A command on a daemon; made by `Daemon.open_process` and `Daemon.attach_process`.

    It survives every cut of the connection. Reading slowly slows the command, never the link or
    another job.
    """

    def __init__(self, handle: JobHandle, *, stdin: bool, stderr: bool, kill_grace: float) -> None:
        super().__init__(handle, kill_grace=kill_grace)
        self._stdin = InputStream(handle) if stdin else None
        self._stdout = OutputStream(handle, Stream.OUTPUT)
        self._stderr = OutputStream(handle, Stream.ERROR) if stderr else None

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

        There is none with ``stdin=False`` or ``read_only=True``: asking for it raises trio.ClosedResourceError.
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
        """The process' standard error, as `stdout`.

        There is none with ``stderr="merge"``: asking for it raises trio.ClosedResourceError.
        """
        if self._stderr is None:
            raise trio.ClosedResourceError(
                'this process was opened with stderr="merge": read stdout'
            )
        return self._stderr

    async def terminate(self) -> None:
        """Ask the process group to end: SIGTERM."""
        await self.signal("TERM")

    async def kill(self) -> None:
        """End the process group at once: SIGKILL."""
        await self.signal("KILL")


@protected_context
async def hold_process(
    handle: JobHandle, *, stdin: bool, stderr: bool, timeout: float | None, kill_grace: float
) -> AsyncIterator[Process]:
    """A new process while the block lasts."""
    async with started(handle, timeout=timeout, kill_grace=kill_grace):
        yield Process(handle, stdin=stdin, stderr=stderr, kill_grace=kill_grace)


@protected_context
async def hold_attached(handle: JobHandle, *, kill_grace: float) -> AsyncIterator[Process]:
    """A process that is there, while the block lasts."""
    async with attached(handle, kill_grace=kill_grace):
        yield Process(
            handle, stdin=handle.job.role is Role.OWNER, stderr=True, kill_grace=kill_grace
        )
