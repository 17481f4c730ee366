"""`Process` and `Session`, as other event loops than their controller's see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import anyio.abc

from sandd._core import process_handle, session_handle
from sandd._core.aio.calls import as_anyios
from sandd._core.aio.streams import (
    RECEIVE_BYTES,
    ReceiveStream,
    Receiving,
    Sending,
    SendStream,
    close,
)
from sandd._core.aio.wrapping import Wrapper, calls
from sandd._core.held_job import HeldJob
from sandd.wire import Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from sandd._core.bridge import TrioThread
    from sandd._core.results import ExitStatus
    from sandd._core.spool import Stall

J = TypeVar("J", bound=HeldJob)


class _Job(Wrapper[J]):
    """What whoever holds a job can do with it."""

    @property
    def job_id(self) -> str:
        """Id of the job, unique on its daemon; what `Daemon.attach_process` and others go by."""
        return self._inner.job_id

    @property
    def pid(self) -> int:
        """Process id on the daemon's machine."""
        return self._inner.pid

    @property
    def status(self) -> ExitStatus | None:
        """How the program ended; None while it runs, and if there is no telling: see `wait`."""
        return self._inner.status

    wait = calls(HeldJob.wait)
    signal = calls(HeldJob.signal)
    detach = calls(HeldJob.detach)


class Process(_Job[process_handle.Process]):
    """A command on a daemon; made by `Daemon.open_process` and `Daemon.attach_process`.

    It survives every cut of the connection. Reading slowly slows the command, never the link or
    another job.
    """

    def __init__(self, thread: TrioThread[Any], inner: process_handle.Process) -> None:
        super().__init__(thread, inner)
        self._stdin = SendStream(thread, inner._stdin) if inner._stdin is not None else None
        logs = inner._handle.job.outputs
        self._stdout = ReceiveStream(thread, inner._stdout, lambda: logs[Stream.OUTPUT].consumed)
        self._stderr = (
            ReceiveStream(thread, inner._stderr, lambda: logs[Stream.ERROR].consumed)
            if inner._stderr is not None
            else None
        )

    @property
    def offsets(self) -> Mapping[str, int]:
        """How many bytes of "stdout" and "stderr" have been read, from the job's beginning.

        With this as `since`, `Daemon.attach_process` goes on there: without a gap or a repeat.
        """
        stderr = 0 if self._stderr is None else self._stderr._receiving.offset
        return {"stdout": self._stdout._receiving.offset, "stderr": stderr}

    @property
    def stalls(self) -> Mapping[str, Stall]:
        """Outputs, of "stdout" and "stderr", for which the daemon has no room, so that the command waits; and why.

        That is so when more was written than its disk, or a quota, holds, while nobody read it. Nothing is
        lost, and the command goes on as soon as there is room: mostly when you read. A command that
        merely waits for its reader is in no stall. `Controller.open_events` tells when one begins and ends.
        """
        return self._inner.stalls

    @property
    def stdin(self) -> anyio.abc.ByteSendStream:
        """The process' standard input; closing it is end of file.

        There is none with ``stdin=False`` or ``read_only=True``: asking for it raises anyio.ClosedResourceError.
        """
        if self._stdin is None:
            _raise_why_not(self._inner, "stdin")
        return self._stdin

    @property
    def stdout(self) -> anyio.abc.ByteReceiveStream:
        """The process' standard output, in chunks that end anywhere; closing it throws the rest away."""
        return self._stdout

    @property
    def stderr(self) -> anyio.abc.ByteReceiveStream:
        """The process' standard error, as `stdout`.

        There is none with ``stderr="merge"``: asking for it raises anyio.ClosedResourceError.
        """
        if self._stderr is None:
            _raise_why_not(self._inner, "stderr")
        return self._stderr

    terminate = calls(process_handle.Process.terminate)
    kill = calls(process_handle.Process.kill)


def _raise_why_not(process: process_handle.Process, name: str) -> NoReturn:
    """As the trio API's property does, which has no such stream either."""
    try:
        getattr(process, name)
    except Exception as error:
        raise as_anyios(error) from None
    raise AssertionError(name)


class Session(_Job[session_handle.Session], anyio.abc.ByteStream):
    """A terminal on a daemon; made by `Daemon.open_session` and `Daemon.attach_session`.

    Sending types, receiving gives what the terminal shows, escape sequences and all. It survives every cut
    of the connection: nothing is shown twice or left out, no keystroke is lost or typed twice. Reading
    slowly slows the program, as a terminal does.
    """

    def __init__(self, thread: TrioThread[Any], inner: session_handle.Session) -> None:
        super().__init__(thread, inner)
        self._sending = Sending(thread, inner.send_all)
        self._receiving = Receiving(thread, inner.receive_some, lambda: inner.offset)

    @property
    def offset(self) -> int:
        """How many bytes of what it shows have been received, from its beginning.

        With this as `since`, `Daemon.attach_session` goes on there, as far back as the scrollback reaches.
        """
        return self._receiving.offset

    @property
    def recording_failure(self) -> Exception | None:
        """Why the recording of this session stopped before the session did, if it did: mostly an OSError."""
        return self._inner.recording_failure

    async def send(self, item: bytes) -> None:
        r"""Type it: ``b"\x03"`` is Ctrl-C, ``b"\r"`` the Enter key, ``b"\x04"`` end of file.

        Returns when it is on its way within the bounds of the buffers.

        Raises:
            RequestRefused: it was attached with ``read_only=True``.
            anyio.BrokenResourceError: the session has ended, or somebody took it over; the cause says so.
            anyio.ClosedResourceError: it was closed before.
        """
        await self._sending.send(item)

    async def send_eof(self) -> None:
        r"""Type the key for end of file, ``b"\x04"``: what it does is the program's choice, as with every key."""
        await self._sending.send(b"\x04")

    async def receive(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        """What the terminal shows next, at most `max_bytes`. Cancelling it loses nothing.

        Raises:
            anyio.EndOfStream: the program has ended, and that was all.
            OutputGap: bytes are gone, because nobody was there and there was too much to keep, or this
                reader only looks on and was overtaken, or asked for what is not kept any more. Said
                once; reading goes on behind them.
            anyio.BrokenResourceError: the session was lost before its end, or somebody took it over; the
                cause says so.
            anyio.ClosedResourceError: it was closed before.
        """
        return await self._receiving.receive(max_bytes)

    resize = calls(session_handle.Session.resize)

    async def aclose(self) -> None:
        """End the session, as leaving its block does: hang up, and see its whole tree gone.

        One that is detached, or was attached with ``read_only=True``, is left as it is: what was not
        received is there for who attaches next.
        """
        await close(self._thread, self._inner.aclose)


def take_back(job: HeldJob) -> Awaitable[None]:
    """Nobody has heard of it: a new one ends, and one that was attached to is left as it was."""
    return job._take_back()
