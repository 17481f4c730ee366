"""`ServerProcess`: a running command for code that doesn't use trio; what `Client.open_process` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandd._core.server_job import ServerJob
from sandd._core.server_streams import ServerInput, ServerOutput
from sandd.wire import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from typing import Any

    from sandd._core.bridge import TrioThread
    from sandd._core.process_handle import Process
    from sandd._core.spool import Stall


class ServerProcess(ServerJob["Process"]):
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
        super().__init__(thread, open_process)
        process = self._held
        logs = process._handle.job.outputs
        stdin, stderr = process._stdin, process._stderr
        self._stdin = None if stdin is None else ServerInput(thread, stdin)
        self._stdout = ServerOutput(thread, process._stdout, lambda: logs[Stream.OUTPUT].consumed)
        self._stderr = (
            None
            if stderr is None
            else ServerOutput(thread, stderr, lambda: logs[Stream.ERROR].consumed)
        )

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
        return self._held.stalls

    @property
    def stdin(self) -> ServerInput:
        """The process' standard input; closing it is end of file.

        There is none with ``stdin=False`` or ``read_only=True``: asking for it raises trio.ClosedResourceError.
        """
        if self._stdin is None:
            _ = self._held.stdin  # which says why
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
            _ = self._held.stderr  # which says why
            raise AssertionError("a stream that there is")
        return self._stderr

    def terminate(self) -> None:
        """Ask the process group to end: SIGTERM."""
        self._run(self._held.terminate)

    def kill(self) -> None:
        """End the process group at once: SIGKILL."""
        self._run(self._held.kill)

    # -- inside

    async def _stop_reading(self, held: Process) -> None:
        # What goes on without us keeps what nobody has read, and `offsets` counts it as unread.
        if self._stdin is not None:
            self._stdin._left = True
        for output in (self._stdout, self._stderr):
            if output is not None:
                output._leave(discard=not held._handle.job.outlives_us)
