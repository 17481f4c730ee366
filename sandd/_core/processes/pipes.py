"""The pipes between the daemon and a job: large, non-blocking on our side, held by nobody else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import trio

from sandd._core._errors import SpawnFailed
from sandd._core.processes.interface import ReceivesNowait, SendsNowait
from sandd._core.processes.terminals import PosixTerminal, open_terminal

if TYPE_CHECKING:
    from sandd._core.processes.interface import SpawnRequest, TerminalSize
    from sandd._core.processes.terminals import TerminalInput, TerminalOutput

PIPE_BYTES = 512 * 1024
"""What the output pipe of a busy program holds: eight times the default, so that it is woken eight
times less, and what is read at a time is one frame."""
BUSY_BYTES = 32 * 1024
"""Met by one read, so many make a program a busy one: half of what a pipe holds by default."""
MAX_JOBS_WITH_LARGE_PIPES = 32
"""A user without privileges may have 64 MiB in pipes (pipe(7), pipe-user-pages-soft); beyond that
every new one gets 8 KiB. So many jobs may have large ones and still leave more than a third for
others."""


class OutputPipe(trio.abc.ReceiveStream, ReceivesNowait):
    """Our end of an output pipe: trio's FdStream, but it can be asked without waiting, and reads before it
    looks whether anybody else wants to run."""

    __slots__ = ("_descriptor", "_is_known", "_may_grow")

    def __init__(self, descriptor: int, *, may_grow: bool) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._may_grow = may_grow
        self._is_known = False
        """trio has been asked to wait for it, and is to be told when it is closed."""

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """What is there, at most `max_bytes`; b"" at the end, None when there is nothing yet."""
        if self._descriptor == -1:
            raise trio.ClosedResourceError("this pipe was closed")
        try:
            data = os.read(self._descriptor, max_bytes)
        except BlockingIOError:
            return None
        if self._may_grow and len(data) >= BUSY_BYTES:
            self._grow()
        return data

    def _grow(self) -> None:
        # Not when it is made: most commands say little, and each would pay for it with its time.
        self._may_grow = False
        if sys.platform == "linux":
            # Over the user's share it is refused: the size it has does as well.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        data = self.receive_nowait(max_bytes or PIPE_BYTES)
        if data is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return data
        while data is None:
            # Which lets others run: what comes then has no turn to lose.
            self._is_known = True
            await trio.lowlevel.wait_readable(self._descriptor)
            data = self.receive_nowait(max_bytes or PIPE_BYTES)
        return data

    def close(self) -> None:
        """Close it now; whoever waits for it gets `trio.ClosedResourceError`."""
        if self._descriptor != -1:
            descriptor, self._descriptor = self._descriptor, -1
            if self._is_known:
                trio.lowlevel.notify_closing(descriptor)
            os.close(descriptor)

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class InputPipe(trio.abc.SendStream, SendsNowait):
    """Our end of an input pipe: trio's FdStream, but it can be written to without waiting."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor

    def send_nowait(self, data: bytes | memoryview) -> int:
        if self._descriptor == -1:
            raise trio.ClosedResourceError("this pipe was closed")
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError("nobody reads from this pipe any more") from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        with memoryview(data) as view:
            position = 0
            while position < len(view):
                sent = self.send_nowait(view[position:])
                position += sent
                if not sent:
                    await trio.lowlevel.wait_writable(self._descriptor)

    async def wait_send_all_might_not_block(self) -> None:
        if self._descriptor == -1:
            raise trio.ClosedResourceError("this pipe was closed")
        await trio.lowlevel.wait_writable(self._descriptor)

    def close(self) -> None:
        """Close it now; whoever waits for it gets `trio.ClosedResourceError`."""
        if self._descriptor != -1:
            descriptor, self._descriptor = self._descriptor, -1
            trio.lowlevel.notify_closing(descriptor)
            os.close(descriptor)

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class JobPipes:
    """Both ends of one job's pipes. Ours are the streams; theirs are to be passed on and closed."""

    __slots__ = ("_ours", "stderr", "stdin", "stdout", "terminal", "theirs")

    def __init__(self) -> None:
        self._ours: list[InputPipe | OutputPipe] = []
        self.theirs: list[int] = []
        """[stdin], stdout, [stderr], or the terminal: in the order of a `Spawn` message."""
        self.stdin: InputPipe | TerminalInput | None = None
        self.stdout: OutputPipe | TerminalOutput | None = None
        self.stderr: OutputPipe | None = None
        self.terminal: PosixTerminal | None = None
        """Instead of pipes; `stdin` and `stdout` are its directions."""

    def close_theirs(self) -> None:
        """Let go of the child's ends: until then the pipes can't come to an end."""
        while self.theirs:
            os.close(self.theirs.pop())

    def close(self) -> None:
        """Close everything."""
        if self.theirs:
            self.close_theirs()
        if self.terminal is not None:
            self.terminal.close()
        for pipe in self._ours:
            pipe.close()

    def add_input(self) -> None:
        """A pipe to write to."""
        reading, writing = os.pipe()
        self.theirs.append(reading)
        self.stdin = pipe = InputPipe(writing)
        self._ours.append(pipe)

    def add_output(self, *, may_grow: bool) -> OutputPipe:
        """A pipe to read from."""
        reading, writing = os.pipe()
        self.theirs.append(writing)
        pipe = OutputPipe(reading, may_grow=may_grow)
        self._ours.append(pipe)
        return pipe

    def add_terminal(self, size: TerminalSize) -> None:
        """A terminal, in the place of all three."""
        self.terminal, theirs = open_terminal(size)
        self.theirs.append(theirs)
        self.stdin, self.stdout = self.terminal.input, self.terminal.output


def open_job_pipes(request: SpawnRequest, *, may_grow: bool) -> JobPipes:
    """The pipes, or the terminal, that ``request`` asks for.

    Raises:
        SpawnFailed: no descriptors left (EMFILE, ENFILE). Nothing is left open.
    """
    pipes = JobPipes()
    try:
        if request.terminal is not None:
            pipes.add_terminal(request.terminal)
            return pipes
        if request.stdin:
            pipes.add_input()
        pipes.stdout = pipes.add_output(may_grow=may_grow)
        if not request.merge_stderr:
            pipes.stderr = pipes.add_output(may_grow=may_grow)
    except OSError as error:
        pipes.close()
        raise SpawnFailed(error.errno or 0, error.strerror or "") from error
    return pipes
