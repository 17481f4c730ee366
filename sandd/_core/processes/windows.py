"""The `ProcessHost` of Windows: every job in a Job Object, which nobody leaves.

No spawner is needed: the kernel closes a dead daemon's handles, and closing a Job Object's last
handle kills what is in it. What Windows doesn't have: signals (INT becomes Ctrl-Break, in a terminal Ctrl-C;
everything else ends the tree), a hang-up, and running as another user. It runs wherever trio does, given a `JobObject`;
that is how its logic is tested elsewhere.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import trio

from sandd._core._errors import SpawnFailed
from sandd._core.limits import NO_LIMITS, Limits
from sandd._core.logs import get_logger
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.processes.interface import Child, ProcessHost
from sandd._core.processes.windows_child import HOLDS, JobObject, WindowsChild
from sandd._core.processes.windows_terminal import ConsoleProcess, console_size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator, Mapping

    from sandd._core.processes.interface import Answered, SpawnRequest, TerminalSize, TreeUsage
    from sandd._core.processes.windows_terminal import Console, OpenConsole

LEAVE_SECONDS = 5.0
"""Bound of ending everything when the host is left. The kernel finishes it in any case."""
_CREATE_SUSPENDED = 0x4
_CREATE_NEW_PROCESS_GROUP = 0x200

OpenProcess = Callable[..., Awaitable[trio.Process]]
"""`trio.lowlevel.open_process`, or something like it."""

log = get_logger("processes")


class WindowsProcessHost(ProcessHost):
    """All children of one daemon."""

    def __init__(
        self,
        nursery: trio.Nursery,
        open_process: OpenProcess,
        create_job: Callable[[], JobObject],
        open_console: OpenConsole,
    ) -> None:
        self.nursery = nursery
        self._open_process = open_process
        self._create_job = create_job
        self._open_console = open_console
        self._children: set[WindowsChild] = set()

    def begin(self, request: SpawnRequest, answered: Answered) -> None:
        return None  # trio's way of starting a process here is to await it

    async def begun(self, child: Child) -> None:
        raise AssertionError("begin never gives a child here")

    async def unheld(self, limits: Limits) -> tuple[str, ...]:
        return _unheld(limits)

    async def spawn(self, request: SpawnRequest) -> Child:
        unheld = _unheld(request.limits)
        if unheld and request.must_hold:
            text = f"a Job Object can't be held to {', '.join(unheld)}"
            raise SpawnFailed(errno.ENOTSUP, text)
        if request.user is not None:
            text = "running as another user is not supported on Windows"
            raise SpawnFailed(errno.EINVAL, text, request.user)
        if request.terminal is not None:
            return await self._spawn_in_console(request, request.terminal)
        with _spawn_errors(request):
            process = await self._open_process(
                [os.fsdecode(argument) for argument in request.argv],
                stdin=subprocess.PIPE if request.stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if request.merge_stderr else subprocess.PIPE,
                cwd=None if request.cwd is None else os.fsdecode(request.cwd),
                env=_environment(request),
            )
        # No await from here to the end, unless it fails: whoever cancels us gets a child.
        job = None
        try:
            with _spawn_errors(request):
                job = self._create_job()
                if request.limits is not NO_LIMITS:
                    job.hold(request.limits)
                job.adopt(process.pid)
        except BaseException:
            if job is not None:
                job.close()
            await _discard_process(process)
            raise
        return self._keep(WindowsChild(self, process, job, unheld))

    async def _spawn_in_console(self, request: SpawnRequest, size: TerminalSize) -> Child:
        with _spawn_errors(request):
            # Not to be abandoned: whatever it has started must come back here.
            console = await trio.to_thread.run_sync(
                self._open_console,
                [os.fsdecode(argument) for argument in request.argv],
                console_size(size),
                None if request.cwd is None else os.fsdecode(request.cwd),
                _environment(request),
            )
        # As above. But this process runs already, for pywinpty starts none that is suspended. What it starts
        # in the moment before it is adopted stays out of the Job Object, and a kill of the tree does not
        # reach it. It is in the console, though, unless it has left that, too; and Windows ends who is there
        # when a console is closed, as it is with the job, and by the kernel with a dead daemon's handles.
        job = None
        try:
            with _spawn_errors(request):
                job = self._create_job()
                if request.limits is not NO_LIMITS:
                    job.hold(request.limits)
                _adopt_running(job, console)
        except BaseException:
            if job is not None:
                job.close()
            await _discard_console(console)
            raise
        process = ConsoleProcess(console, self.nursery)
        return self._keep(WindowsChild(self, process, job, _unheld(request.limits)))

    async def measure(self, pids: Collection[int]) -> Mapping[int, TreeUsage]:
        # Here and not in a thread: a few system calls each, and meanwhile nobody closes a Job Object.
        await trio.lowlevel.checkpoint()
        found = {each.pid: each.usage() for each in self._children if each.pid in pids}
        return {pid: usage for pid, usage in found.items() if usage is not None}

    def _keep(self, child: WindowsChild) -> WindowsChild:
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


def _unheld(limits: Limits) -> tuple[str, ...]:
    """What is neither the Job Object's nor the daemon's to hold."""
    return tuple(sorted(limits.given.keys() - HOLDS - {"wall", "output_bytes"}))


@contextmanager
def _spawn_errors(request: SpawnRequest) -> Iterator[None]:
    """What goes wrong in a start, as `SpawnFailed`."""
    program = os.fsdecode(request.argv[0])
    try:
        yield
    except SpawnFailed:
        raise
    except NotADirectoryError as error:
        # What CreateProcess says of a bad working directory (ERROR_DIRECTORY).
        place = os.fsdecode(request.cwd or b"")
        raise SpawnFailed(error.errno or 0, error.strerror or "", place) from error
    except OSError as error:
        raise SpawnFailed(error.errno or 0, error.strerror or "", program) from error
    except ValueError as error:  # a NUL in an argument, a "=" in a variable's name
        raise SpawnFailed(errno.EINVAL, str(error), program) from error


def _environment(request: SpawnRequest) -> dict[str, str]:
    return {os.fsdecode(k): os.fsdecode(v) for k, v in {**request.base, **request.env}.items()}


def _adopt_running(job: JobObject, console: Console) -> None:
    try:
        job.adopt(console.pid)
    except OSError:
        # A program may have ended before we come: then it needs no Job Object, and nothing has failed.
        if not console.has_exited():
            raise


async def _discard_console(console: Console) -> None:
    """End a process that could not be adopted, and its console."""
    console.terminate()
    with trio.CancelScope(shield=True):
        await console.wait_exited()
        console.interrupt()
        # It waits until nothing of it is left, and nobody has read it.
        await trio.to_thread.run_sync(console.close)


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


def _open_console(
    argv: list[str], size: TerminalSize, cwd: str | None, env: Mapping[str, str]
) -> Console:
    if sys.platform == "win32":
        from sandd._core.processes.windows_pywinpty import open_console

        return open_console(argv, size, cwd, env)
    raise NotImplementedError("pseudo-consoles exist on Windows only")


@asynccontextmanager
async def open_windows_process_host(
    *,
    open_process: OpenProcess = _open_suspended,
    create_job: Callable[[], JobObject] = _create_job,
    open_console: OpenConsole = _open_console,
) -> AsyncIterator[ProcessHost]:
    """See `sandd._core.processes.open_process_host`. The arguments are for tests elsewhere."""
    async with open_unwrapping_nursery() as nursery:
        host = WindowsProcessHost(nursery, open_process, create_job, open_console)
        try:
            yield host
        finally:
            with trio.CancelScope(shield=True):
                await host.leave()
            # What is left are threads that type into a console, which may never be done.
            nursery.cancel_scope.cancel()
