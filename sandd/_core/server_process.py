"""`ServerProcess`: a running command for code that doesn't use trio; what `Client.open_process` gives.

A task in the trio thread holds the block of a `Process` open until `close`; every method is a short call into
that thread.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import trio

from sandd._core.arguments import patience
from sandd._core.held_block import HeldBlock
from sandd._core.server_streams import ServerInput, ServerOutput
from sandd.wire import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from signal import Signals
    from typing import Any, Self

    from sandd._core.bridge import TrioThread
    from sandd._core.process_handle import Process
    from sandd._core.results import ExitStatus
    from sandd._core.spool import Stall

T = TypeVar("T")


class ServerProcess:
    """A command on a daemon, for synchronous code; made by `Client.open_process` and `Client.attach_process`.

    ::

        with client.open_process("worker-1", ["make", "test"], stderr="merge") as process:
            for piece in process.stdout:
                print(piece.decode(errors="replace"), end="")
            print(process.wait().exit_code)

    Any number of threads may use it: one reads, say, one writes, and a third one ends it by `close` or `kill`. Use it
    in a ``with`` block or call `close`; closing the client ends it, too.
    """

    def __init__(
        self,
        thread: TrioThread[Any],
        open_process: Callable[[], AbstractAsyncContextManager[Process, bool | None]],
    ) -> None:
        self._thread = thread
        self._block = HeldBlock(
            thread,
            lambda: self._hold_open(open_process),
            take_back=lambda process: process._take_back(),
        )
        self._process = process = self._block.enter()
        logs = process._handle.job.outputs
        stdin, stderr = process._stdin, process._stderr
        self._stdin = None if stdin is None else ServerInput(thread, stdin)
        self._stdout = ServerOutput(thread, process._stdout, lambda: logs[Stream.OUTPUT].consumed)
        self._stderr = (
            None
            if stderr is None
            else ServerOutput(thread, stderr, lambda: logs[Stream.ERROR].consumed)
        )

    def __repr__(self) -> str:
        return repr(self._process).replace("sandd.Process", "sandd.ServerProcess")

    def __enter__(self) -> Self:
        """The process itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def job_id(self) -> str:
        """Id of its job, unique on its daemon; what `Client.attach_process` and others go by."""
        return self._process.job_id

    @property
    def pid(self) -> int:
        """Process id on the daemon's machine."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its own; ``-N`` if signal N ended it; None while it runs, or if how it ended isn't known."""
        status = self._process.status
        return None if status is None else status.exit_code

    @property
    def offsets(self) -> Mapping[str, int]:
        """How many bytes of "stdout" and "stderr" have been read, from the job's beginning.

        With this as `since`, `Client.attach_process` goes on there: without a gap or a repeat.
        """
        stderr = 0 if self._stderr is None else self._stderr._reading.offset
        return {"stdout": self._stdout._reading.offset, "stderr": stderr}

    @property
    def stalls(self) -> Mapping[str, Stall]:
        """Outputs, of "stdout" and "stderr", for which the daemon has no room; as `Process.stalls`."""
        return self._process.stalls

    @property
    def stdin(self) -> ServerInput:
        """The process' standard input; closing it is end of file.

        There is none with ``stdin=False`` or ``read_only=True``: asking for it raises trio.ClosedResourceError.
        """
        if self._stdin is None:
            _ = self._process.stdin  # which says why
            raise AssertionError("a stream that there is")
        return self._stdin

    @property
    def stdout(self) -> ServerOutput:
        """The process' standard output."""
        return self._stdout

    @property
    def stderr(self) -> ServerOutput:
        """The process' standard error. With ``stderr="merge"`` asking for it raises trio.ClosedResourceError."""
        if self._stderr is None:
            _ = self._process.stderr  # which says why
            raise AssertionError("a stream that there is")
        return self._stderr

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        """How the process ended, once it has; None if that takes more than `timeout` seconds.

        It reads nothing, and a command whose output isn't read may never end. Errors as `Process.wait`.
        """
        limit = patience(timeout)

        async def wait() -> ExitStatus | None:
            with trio.move_on_after(limit):
                return await self._process.wait()
            return self._process.status

        return self._run(wait)

    def signal(self, name: str | Signals) -> None:
        """Send a signal, such as "INT", to the process group; nothing happens if it has ended."""
        self._run(self._process.signal, name)

    def terminate(self) -> None:
        """Ask the process group to end: SIGTERM."""
        self._run(self._process.terminate)

    def kill(self) -> None:
        """End the process group at once: SIGKILL."""
        self._run(self._process.kill)

    def detach(self) -> None:
        """Let it outlive this object and this program; `Client.attach_process` finds it again."""
        self._run(self._process.detach)

    def close(self) -> None:
        """End the process, and wait until its whole tree is gone; a detached one goes on.

        A thread that reads at this moment gets `trio.ClosedResourceError`. Idempotent. Once the client is closed, so
        is the process.
        """
        self._block.leave()

    # -- inside

    def _run(self, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        return self._thread.run(async_fn, *args)

    @asynccontextmanager
    async def _hold_open(
        self, open_process: Callable[[], AbstractAsyncContextManager[Process, bool | None]]
    ) -> AsyncIterator[Process]:
        async with open_process() as process:
            yield process
            # Who reads at this moment is told that it was closed. What goes on without us keeps what nobody
            # has read, and `offsets` counts it as unread.
            if self._stdin is not None:
                self._stdin._left = True
            for output in (self._stdout, self._stderr):
                if output is not None:
                    output._leave(discard=not process._handle.job.outlives_us)
