"""The `ProcessHost` of Windows: every job in a Job Object, which nobody leaves.

No spawner is needed: the kernel closes a dead daemon's handles, and closing a Job Object's last
handle kills what is in it. What Windows doesn't have: signals (INT becomes Ctrl-Break, everything
else ends the tree) and running as another user. It runs wherever trio does, given a `JobObject`;
that is how its logic is tested elsewhere.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

import trio

from sandd._core._errors import SpawnFailed
from sandd._core.logs import get_logger
from sandd._core.processes.interface import Child, ExitStatus, ProcessHost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sandd._core.processes.interface import SpawnRequest

POLL_SECONDS = 0.02
"""How often a dying tree is looked at: a Job Object tells of its end by completion ports only."""
LEAVE_SECONDS = 5.0
"""Bound of ending everything when the host is left. The kernel finishes it in any case."""
_CREATE_SUSPENDED = 0x4
_CREATE_NEW_PROCESS_GROUP = 0x200

OpenProcess = Callable[..., Awaitable[trio.Process]]
"""`trio.lowlevel.open_process`, or something like it."""

log = get_logger("processes")


class JobObject(Protocol):
    """What is needed of the kernel; see `windows_job_objects` for the real one."""

    def adopt(self, pid: int) -> None:
        """Take in a suspended process and let it run."""

    def terminate(self) -> None:
        """End every process in it."""

    def active_processes(self) -> int:
        """How many processes are in it."""

    def close(self) -> None:
        """Kill what is left in it."""


class _Closable(Protocol):
    def close(self) -> None: ...


class WindowsChild(Child):
    """A process and its Job Object."""

    __slots__ = (
        "_deadline",
        "_ending",
        "_gone",
        "_host",
        "_is_killing",
        "_job",
        "_process",
        "is_released",
    )

    def __init__(self, host: WindowsProcessHost, process: trio.Process, job: JobObject) -> None:
        self._host = host
        self._process = process
        self._job = job
        self._deadline = trio.CancelScope()  # of the grace; cancelled by time alone
        self._is_killing = False
        self._ending = trio.CancelScope(shield=True)
        self._gone = trio.Event()
        self.is_released = False
        """Without sweep: what is left in its Job Object is nobody's concern until the host ends."""

    def __repr__(self) -> str:
        return f"<WindowsChild {self.pid}, returncode {self._process.returncode}>"

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
    def has_exited(self) -> bool:
        return self._process.returncode is not None

    @property
    def ended(self) -> ExitStatus | None:
        return None  # its job object is looked at by `release`

    def close_pipes(self) -> None:
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
        self._ending.cancel()
        self._host.discard(self)
        self._job.close()
        self._gone.set()

    async def _wait_empty(self) -> None:
        while self._job.active_processes():  # noqa: ASYNC110 - see POLL_SECONDS
            await trio.sleep(POLL_SECONDS)

    def _send_break(self) -> None:
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


class WindowsProcessHost(ProcessHost):
    """All children of one daemon."""

    def __init__(
        self, nursery: trio.Nursery, open_process: OpenProcess, create_job: Callable[[], JobObject]
    ) -> None:
        self.nursery = nursery
        self._open_process = open_process
        self._create_job = create_job
        self._children: set[WindowsChild] = set()

    def begin(self, request: SpawnRequest, answered: Callable[[], None]) -> None:
        return None  # trio's way of starting a process here is to await it

    async def begun(self, child: Child) -> None:
        raise AssertionError("begin never gives a child here")

    async def spawn(self, request: SpawnRequest) -> Child:
        if request.user is not None:
            text = "running as another user is not supported on Windows"
            raise SpawnFailed(errno.EINVAL, text, request.user)
        program = os.fsdecode(request.argv[0])
        try:
            process = await self._open_process(
                [os.fsdecode(argument) for argument in request.argv],
                stdin=subprocess.PIPE if request.stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if request.merge_stderr else subprocess.PIPE,
                cwd=None if request.cwd is None else os.fsdecode(request.cwd),
                env={
                    os.fsdecode(k): os.fsdecode(v)
                    for k, v in {**request.base, **request.env}.items()
                },
            )
        except NotADirectoryError as error:
            # What CreateProcess says of a bad working directory (ERROR_DIRECTORY).
            place = os.fsdecode(request.cwd or b"")
            raise SpawnFailed(error.errno or 0, error.strerror or "", place) from error
        except OSError as error:
            raise SpawnFailed(error.errno or 0, error.strerror or "", program) from error
        except ValueError as error:  # a NUL in an argument, a "=" in a variable's name
            raise SpawnFailed(errno.EINVAL, str(error), program) from error
        # No await from here to the end, unless it fails: whoever cancels us gets a child.
        job = None
        try:
            job = self._create_job()
            job.adopt(process.pid)
        except BaseException as error:
            if job is not None:
                job.close()
            await _discard_process(process)
            if isinstance(error, OSError):
                raise SpawnFailed(error.errno or 0, error.strerror or "", program) from error
            raise
        child = WindowsChild(self, process, job)
        self._children.add(child)
        return child

    def discard(self, child: WindowsChild) -> None:
        """Forget a child whose tree is gone."""
        self._children.discard(child)

    async def leave(self) -> None:
        """End everything. Bounded; shield it."""
        with trio.move_on_after(LEAVE_SECONDS):
            async with trio.open_nursery() as nursery:
                for child in list(self._children):
                    nursery.start_soon(_kill_at_once, child)
        for child in list(self._children):
            if not child.is_released:
                log.warning("processes_survived", leader=child.pid)
            child.give_up()


async def _discard_process(process: trio.Process) -> None:
    """End a process that never ran, and close its pipes."""
    process.kill()
    with trio.CancelScope(shield=True):
        await process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                await trio.aclose_forcefully(stream)


async def _kill_at_once(child: WindowsChild) -> None:
    await child.kill(grace=0)


def command_line(argv: list[str]) -> str:
    """The arguments as CreateProcess takes them: quoted as C programs expect it.

    But ``cmd`` knows nothing of backslashes before quotes: with ``/s`` it takes off the first and the last
    quote, and all between them is the text (see ``cmd /?``).
    """
    if argv[1:-1] == ["/d", "/s", "/c"]:
        return f'{subprocess.list2cmdline(argv[:-1])} "{argv[-1]}"'
    return subprocess.list2cmdline(argv)


async def _open_suspended(argv: list[str], **options: Any) -> trio.Process:
    # Suspended, or the process could start others before it is in its Job Object.
    if sys.platform == "win32":
        flags = _CREATE_SUSPENDED | _CREATE_NEW_PROCESS_GROUP
        return await trio.lowlevel.open_process(command_line(argv), creationflags=flags, **options)
    raise NotImplementedError("processes are created suspended on Windows only")


def _create_job() -> JobObject:
    if sys.platform == "win32":
        from sandd._core.processes.windows_job_objects import KernelJobObject

        return KernelJobObject()
    raise NotImplementedError("Job Objects exist on Windows only")


@asynccontextmanager
async def open_windows_process_host(
    *,
    open_process: OpenProcess = _open_suspended,
    create_job: Callable[[], JobObject] = _create_job,
) -> AsyncIterator[ProcessHost]:
    """See `sandd._core.processes.open_process_host`. The arguments are for tests elsewhere."""
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            host = WindowsProcessHost(nursery, open_process, create_job)
            try:
                yield host
            except BaseException as error:
                body_error = error
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await host.leave()
    except BaseExceptionGroup as group:
        # Nothing but the body raises here, unless a task of ours has crashed.
        if body_error is None or len(group.exceptions) > 1:
            raise
    if body_error is not None:
        raise body_error  # itself: no group, no context
