"""A job's tree on Windows: a process, and the Job Object that it and all it starts are in."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol, cast

import trio

from sandd._core.limits import NO_USAGE, Limits, Usage
from sandd._core.logs import get_logger
from sandd._core.processes.interface import Child, ExitStatus
from sandd._core.processes.windows_terminal import ConsoleProcess

if TYPE_CHECKING:
    from sandd._core.processes.interface import TreeUsage
    from sandd._core.processes.windows import WindowsProcessHost
    from sandd._core.processes.windows_terminal import ConsoleTerminal

POLL_SECONDS: Final = 0.02
"""How often a dying tree is looked at: a Job Object tells of its end by completion ports only."""

HOLDS: Final = frozenset({"cpu_seconds", "cpus", "memory_bytes", "processes", "nice"})
"""The limits that a Job Object can hold: of processor time that of users, and `nice` as a class of priority. What it
refuses, memory or a process, is the program's to deal with."""

log = get_logger("processes")


class JobObject(Protocol):
    """What is needed of the kernel; see `windows_job_objects` for the real one."""

    def adopt(self, pid: int) -> None:
        """Take in a suspended process and let it run."""

    def terminate(self) -> None:
        """End every process in it."""

    def active_processes(self) -> int:
        """How many processes are in it."""

    def hold(self, limits: Limits) -> None:
        """From now on these are its limits, those of `HOLDS`."""

    def used(self) -> tuple[Usage, str]:
        """What its processes have used so far, and the limit that they met, or ""."""

    def usage(self) -> TreeUsage:
        """What the processes in it take."""

    def close(self) -> None:
        """Kill what is left in it."""


class _Closable(Protocol):
    def close(self) -> None: ...


class WindowsChild(Child):
    """A process and its Job Object; a process in a console has a terminal."""

    __slots__ = (
        "_deadline",
        "_ending",
        "_gone",
        "_host",
        "_is_killing",
        "_job",
        "_limit",
        "_process",
        "_unheld",
        "_usage",
        "is_released",
    )

    def __init__(
        self,
        host: WindowsProcessHost,
        process: trio.Process | ConsoleProcess,
        job: JobObject,
        unheld: tuple[str, ...] = (),
    ) -> None:
        self._host = host
        self._process = process
        self._job = job
        self._deadline = trio.CancelScope()  # of the grace; cancelled by time alone
        self._is_killing = False
        self._ending = trio.CancelScope(shield=True)
        self._gone = trio.Event()
        self._usage, self._limit = NO_USAGE, ""
        self._unheld = unheld
        self.is_released = False
        """Without sweep: what is left in its Job Object is nobody's concern until the host ends."""

    def __repr__(self) -> str:
        return f"<WindowsChild {self.pid}, returncode {self._process.returncode}>"

    def usage(self) -> TreeUsage | None:
        """What its tree takes; None where there is no telling."""
        if self._gone.is_set():
            return None
        try:
            return self._job.usage()
        except OSError:
            return None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdin(self) -> trio.abc.SendStream | None:
        return self._process.stdin

    @property
    def stdout(self) -> trio.abc.ReceiveStream:
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def stderr(self) -> trio.abc.ReceiveStream | None:
        return self._process.stderr

    @property
    def terminal(self) -> ConsoleTerminal | None:
        return self._process.terminal if isinstance(self._process, ConsoleProcess) else None

    @property
    def has_exited(self) -> bool:
        return self._process.returncode is not None

    @property
    def ended(self) -> ExitStatus | None:
        return None  # its job object is looked at by `release`

    @property
    def used(self) -> Usage:
        return self._usage

    @property
    def limit(self) -> str:
        return self._limit

    @property
    def unheld(self) -> tuple[str, ...]:
        return self._unheld

    def close_pipes(self) -> None:
        if self.terminal is not None:
            self.terminal.close()
            return
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                # trio's streams for this have it, on Windows as elsewhere; its interfaces don't.
                cast("_Closable", pipe).close()

    async def wait_exited(self) -> ExitStatus:
        code = await self._process.wait()
        return ExitStatus(code, None) if code >= 0 else ExitStatus(None, -code)

    def signal(self, number: int) -> None:
        if number <= 0:
            raise ValueError(f"there is no signal {number}")
        if number == signal.SIGINT:
            self._send_break()
        elif not self._gone.is_set():
            try:
                self._job.terminate()
            except OSError as error:
                log.warning("job_not_terminated", leader=self.pid, error=str(error))

    async def kill(self, *, grace: float) -> None:
        if not self._gone.is_set():
            self._deadline.deadline = min(self._deadline.deadline, trio.current_time() + grace)
            if not self._is_killing:
                self._is_killing = True
                # In the host's nursery, so that cancelling us does not stop it.
                self._host.nursery.start_soon(self._end)
        await self._gone.wait()

    async def release(self, *, sweep: bool = True) -> None:
        if self._process.returncode is None:
            raise RuntimeError(f"process {self.pid} has not exited: kill it, or wait for it")
        if sweep:
            await self.kill(grace=0)
        elif not self._is_killing:
            # Its Job Object stays open as long as the host, for what is left in it.
            self.is_released = True
            self._note_usage()
            self._gone.set()
            await trio.lowlevel.checkpoint()
        else:
            await self._gone.wait()

    async def _end(self) -> None:
        # The host's last act is to kill everything; until then, this must not be cut short.
        with self._ending:
            try:
                with self._deadline:
                    if self._deadline.deadline > trio.current_time():
                        self._send_break()
                    await self._wait_empty()
                while self._job.active_processes():
                    self._job.terminate()
                    await trio.sleep(POLL_SECONDS)
            except OSError as error:
                # One tree's trouble is no other's. Closing its Job Object kills it as well.
                log.warning("job_not_terminated", leader=self.pid, error=str(error))
                self._job.close()
            await self._process.wait()
        self.give_up()

    def give_up(self) -> None:
        """Close the Job Object, whatever is in it, and be done."""
        self._note_usage()
        self._ending.cancel()
        if isinstance(self._process, ConsoleProcess):
            self._process.abandon()
        self._host.discard(self)
        self._job.close()
        self._gone.set()

    def _note_usage(self) -> None:
        if not self._gone.is_set():
            with suppress(OSError):  # closed in a struggle: then it isn't known
                self._usage, self._limit = self._job.used()

    async def _wait_empty(self) -> None:
        while self._job.active_processes():  # noqa: ASYNC110 - see POLL_SECONDS
            await trio.sleep(POLL_SECONDS)

    def _send_break(self) -> None:
        """Ctrl-Break; in a console Ctrl-C, which a shell at its prompt does not mind: it lives through the grace."""
        if self._process.returncode is not None:
            return
        try:
            if sys.platform == "win32":
                self._process.send_signal(signal.CTRL_BREAK_EVENT)
            else:
                self._process.send_signal(signal.SIGINT)
        except OSError as error:
            # A process without our console can't be told; it is terminated after its grace.
            log.debug("break_not_sent", pid=self.pid, error=str(error))
