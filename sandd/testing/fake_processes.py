r"""A process host without processes: each job is played by an async function of this program.

::

    async def program(process: FakeProcess) -> int:
        await process.stdout.send_all(b"hello\n")
        return 0                                    # the exit code

Everything around it is real: the job table, its streams and their bounds, time-outs, the kill.
"""

from __future__ import annotations

import itertools
import shlex
import signal
from typing import TYPE_CHECKING, Final, TypeAlias, final

import trio
import trio.testing
from attrs import define, field

from sandd._core.logs import get_logger
from sandd._core.processes.interface import Child, ExitStatus, ProcessHost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandd._core.processes.interface import Answered, SpawnRequest

log = get_logger("testing")

NOT_FOUND: Final = 127
"""The exit code of a shell that doesn't know the command."""


@final
@define(eq=False)
class FakeProcess:
    """What a program sees of itself while it plays a job."""

    argv: tuple[str, ...]
    """The command; of one for the shell, its words."""
    pid: int
    """No process has it."""
    stdin: trio.abc.ReceiveStream | None
    """None: it was asked for without."""
    stdout: trio.abc.SendStream
    stderr: trio.abc.SendStream
    """The same as `stdout` where the two were to be merged."""
    signals: list[int] = field(factory=list)
    """What it was sent so far. All but SIGTERM, SIGINT, SIGHUP and SIGKILL, which end it, are ignored."""


Program: TypeAlias = "Callable[[FakeProcess], Awaitable[int]]"
"""Plays one job and returns its exit code, 0 to 255."""


async def play_well_known(process: FakeProcess) -> int:
    """The program that is played unless another is given: ``true``, ``false``, ``echo``, ``cat`` and ``sleep``."""
    name, *arguments = process.argv
    match name:
        case "true" | ":":
            return 0
        case "false":
            return 1
        case "echo":
            await process.stdout.send_all(" ".join(arguments).encode() + b"\n")
            return 0
        case "cat":
            if process.stdin is not None:
                async for chunk in process.stdin:
                    await process.stdout.send_all(chunk)
            return 0
        case "sleep":
            await trio.sleep(float(arguments[0]))
            return 0
    await process.stderr.send_all(f"{name}: not found\n".encode())
    return NOT_FOUND


@final
class FakeProcessHost(ProcessHost):
    """Starts jobs by calling `program`. Their tasks belong to `nursery`, and end with it."""

    def __init__(self, nursery: trio.Nursery, program: Program = play_well_known) -> None:
        self._nursery = nursery
        self._program = program
        self._pids = itertools.count(1)
        self.started = 0
        """Jobs started so far."""
        self.running = 0
        """Jobs that run now."""

    def __repr__(self) -> str:
        return f"<FakeProcessHost, {self.running} running of {self.started} started>"

    def begin(self, request: SpawnRequest, answered: Answered) -> Child:
        """See `ProcessHost`."""
        child = _FakeChild(request, next(self._pids))
        self.started += 1
        self._nursery.start_soon(self._play, child, answered)
        return child

    async def begun(self, child: Child) -> None:
        """See `ProcessHost`."""
        await trio.lowlevel.checkpoint()

    async def spawn(self, request: SpawnRequest) -> Child:
        """See `ProcessHost`."""
        await trio.lowlevel.checkpoint()
        return self.begin(request, lambda _alone: None)

    async def _play(self, child: _FakeChild, answered: Answered) -> None:
        self.running += 1
        answered(True)
        # What is told if the nursery is cancelled: the daemon itself is being stopped.
        status = ExitStatus(None, _KILL)
        try:
            with child.scope:
                status = ExitStatus(await self._program(child.process) & 0xFF, None)
            if child.scope.cancelled_caught:
                status = ExitStatus(None, child.ended_by)
        except trio.BrokenResourceError:
            status = ExitStatus(None, _SIGPIPE)  # it wrote to who reads no more
        except Exception:
            log.exception("fake_process_failed", argv=child.process.argv)
            status = ExitStatus(1, None)
        finally:
            self.running -= 1
            child.end(status)


class _FakeChild(Child):
    """The daemon's end of a job that is played."""

    def __init__(self, request: SpawnRequest, pid: int) -> None:
        their_stdin: trio.abc.ReceiveStream | None = None
        self._stdin: trio.abc.SendStream | None = None
        if request.stdin:
            # In lockstep, as a pipe of no size: whoever doesn't read stops whoever writes.
            self._stdin, their_stdin = trio.testing.lockstep_stream_one_way_pair()
        their_stdout, self._stdout = trio.testing.lockstep_stream_one_way_pair()
        their_stderr: trio.abc.SendStream = their_stdout
        self._stderr: trio.abc.ReceiveStream | None = None
        if not request.merge_stderr:
            their_stderr, self._stderr = trio.testing.lockstep_stream_one_way_pair()
        self.process = FakeProcess(_words(request), pid, their_stdin, their_stdout, their_stderr)
        self.scope = trio.CancelScope()
        self.ended_by = _KILL
        """The signal that ends it, once its scope is cancelled."""
        self._status: ExitStatus | None = None
        self._exited = trio.Event()

    def __repr__(self) -> str:
        return f"<FakeChild {self.pid} {' '.join(self.process.argv)!r}>"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdin(self) -> trio.abc.SendStream | None:
        return self._stdin

    @property
    def stdout(self) -> trio.abc.ReceiveStream:
        return self._stdout

    @property
    def stderr(self) -> trio.abc.ReceiveStream | None:
        return self._stderr

    @property
    def has_exited(self) -> bool:
        return self._exited.is_set()

    @property
    def ended(self) -> ExitStatus | None:
        return self._status

    def close_pipes(self) -> None:
        for stream in (self._stdin, self._stdout, self._stderr):
            _close(stream)

    async def wait_exited(self) -> ExitStatus:
        await self._exited.wait()
        assert self._status is not None
        return self._status

    def signal(self, number: int) -> None:
        signal.Signals(number)  # ValueError for what is none
        self.process.signals.append(number)
        if number in _DEADLY:
            self._end_by(number)

    async def kill(self, *, grace: float) -> None:
        self._end_by(int(signal.SIGTERM) if grace else _KILL)
        await self._exited.wait()

    async def release(self, *, sweep: bool = True) -> None:
        await trio.lowlevel.checkpoint()

    def end(self, status: ExitStatus) -> None:
        """The program has come to its end: let go of its pipes, and tell."""
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            _close(stream)
        self._status = status
        self._exited.set()

    def _end_by(self, number: int) -> None:
        if not self.scope.cancel_called:
            self.ended_by = number
            self.scope.cancel()


_KILL: Final = int(getattr(signal, "SIGKILL", signal.SIGTERM))
_SIGPIPE: Final = int(getattr(signal, "SIGPIPE", signal.SIGTERM))
_DEADLY: Final = {
    int(getattr(signal, name))
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL")
    if hasattr(signal, name)
}


def _words(request: SpawnRequest) -> tuple[str, ...]:
    """The command as a program is to see it: what is meant for the shell is split as the shell does."""
    words = tuple(word.decode("utf-8", "replace") for word in request.argv)
    if words[:2] == ("/bin/sh", "-c") or words[1:-1] == ("/d", "/s", "/c"):
        return tuple(shlex.split(words[-1])) or (":",)
    return words


def _close(stream: trio.abc.AsyncResource | None) -> None:
    if stream is not None:
        stream.close()  # type: ignore[attr-defined]  # memory streams have it, and need no waiting
