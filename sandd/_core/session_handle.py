"""`Session`: a program in a terminal of its own, as whoever types there holds it."""

from __future__ import annotations

import shlex
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from sandd import wire
from sandd._core._errors import RequestRefused
from sandd._core.audit.records import Record, RecordType
from sandd._core.held_job import HeldJob, attached, part_or_end, started
from sandd._core.identity.rights import split_name
from sandd._core.interrupts import protected_context
from sandd._core.job_streams import InputStream, OutputStream
from sandd._core.recorder import open_recorder
from sandd._core.specs import check_size
from sandd._core.streams import Gap
from sandd.wire import Role, Stream

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator

    from sandd._core.audit.redaction import Redactor
    from sandd._core.job_link import JobHandle
    from sandd._core.recorder import Recorder


# Bound here because looking it up by its class costs as much as a function call (Python 3.11).
_VIEWER: Final = Role.VIEWER


class Session(HeldJob, trio.abc.Stream):
    """A terminal on a daemon; made by `Daemon.open_session` and `Daemon.attach_session`.

    Sending types, receiving gives what the terminal shows, escape sequences and all. It survives every cut
    of the connection: nothing is shown twice or left out, no keystroke is lost or typed twice. Reading
    slowly slows the program, as a terminal does.
    """

    def __init__(
        self, handle: JobHandle, *, kill_grace: float, recorder: Recorder | None = None
    ) -> None:
        super().__init__(handle, kill_grace=kill_grace)
        self._recorder = recorder
        self._input = InputStream(handle)
        self._output = OutputStream(handle, Stream.OUTPUT)

    @property
    def offset(self) -> int:
        """How many bytes of what it shows have been received, from its beginning.

        With this as `since`, `Daemon.attach_session` goes on there, as far back as the scrollback reaches.
        """
        return self._handle.job.outputs[Stream.OUTPUT].consumed

    @property
    def is_readable(self) -> bool:
        """`receive_some` would not wait: there is something, or the end."""
        return self._output.is_ready

    @property
    def recording_failure(self) -> Exception | None:
        """Why the recording of this session stopped before the session did, if it did: mostly an OSError."""
        return None if self._recorder is None else self._recorder.failure

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        r"""Type `data`: ``b"\x03"`` is Ctrl-C, ``b"\r"`` the Enter key, ``b"\x04"`` end of file.

        Returns when it is on its way within the bounds of the buffers.

        Raises:
            RequestRefused: it was attached with ``read_only=True``.
            trio.BrokenResourceError: the session has ended, or somebody took it over; the cause says so.
            trio.ClosedResourceError: it was closed before.
        """
        if self._handle.job.role is _VIEWER:
            self._check_writes()
        if self._recorder is not None:
            self._recorder.input(bytes(data))
        await self._input.send_all(data)

    @trio.lowlevel.enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until something can be typed."""
        self._check_writes()
        await self._input.wait_send_all_might_not_block()

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What the terminal shows next, at most `max_bytes`; b"" when the program has ended.

        Cancelling it loses nothing.

        Raises:
            OutputGap: bytes are gone, because nobody was there and there was too much to keep, or this
                reader only looks on and was overtaken, or asked for what is not kept any more. Said
                once; reading goes on behind them.
            trio.BrokenResourceError: the session was lost before its end, or somebody took it over; the
                cause says so.
            trio.ClosedResourceError: it was closed before.
        """
        return await self._output.receive_some(max_bytes)

    @trio.lowlevel.enable_ki_protection
    async def resize(self, rows: int, cols: int) -> None:
        """Tell the program that its window has another size now; it gets SIGWINCH.

        Returns when the request is on its way.

        Raises:
            ValueError: that is no size; both are from 1 to 65,535.
            RequestRefused: it was attached with ``read_only=True``.
        """
        check_size(rows, cols)
        await self._ask(wire.Resize(rows, cols))
        if self._recorder is not None:
            self._recorder.resized(rows, cols)

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """End the session, as leaving its block does: hang up, and see its whole tree gone.

        One that is detached, or was attached with ``read_only=True``, is left as it is: what was not
        received is there for who attaches next.
        """
        # Who reads here is told. What goes on without us keeps what nobody has read: thrown away, it would
        # be acknowledged, and counted by `offset`, and whoever attaches there would never see it.
        self._output.close(discard=not self._handle.job.outlives_us)
        try:
            await trio.lowlevel.checkpoint()
        finally:
            await part_or_end(self._handle, self._kill_grace)

    def _check_writes(self) -> None:
        if self._reads_only:
            raise RequestRefused(
                "this session was attached with read_only=True: whoever looks on can't type"
            )


@protected_context
async def recording(
    path: str | os.PathLike[str] | None,
    spec: wire.SessionSpec,
    *,
    title: str,
    include_input: bool,
    redactor: Redactor | None = None,
) -> AsyncIterator[Recorder | None]:
    """What records the session to a new file at `path`; None without one. Errors as `open_recorder`."""
    if path is None:
        yield None
        return
    argv = [argument.decode("utf-8", "replace") for argument in spec.argv]
    async with open_recorder(
        path,
        rows=spec.rows,
        cols=spec.cols,
        term=spec.term,
        command=argv[0] if spec.shell else shlex.join(argv) or None,
        title=title,
        include_input=include_input,
        redactor=redactor,
    ) as recorder:
        yield recorder


@protected_context
async def hold_session(
    handle: JobHandle, *, kill_grace: float, recorder: Recorder | None = None
) -> AsyncIterator[Session]:
    """A new session while the block lasts; all it shows goes to the recorder, too, whoever reads it."""
    if recorder is not None:
        handle.tap(Stream.OUTPUT, partial(_record, recorder))
    try:
        async with started(handle, timeout=None, kill_grace=kill_grace):
            yield Session(handle, kill_grace=kill_grace, recorder=recorder)
    finally:
        end = handle.job.result
        if recorder is not None and isinstance(end, wire.Exited):
            recorder.ended(end.code, end.signal)


def describe_recording(recorder: Recorder, handle: JobHandle) -> Record:
    """What the audit log has of a recording that is complete: where it is, and what it has to be."""
    failure = recorder.failure
    return Record(
        type=RecordType.RECORDING,
        outcome="complete" if failure is None else "incomplete",
        reason=None if failure is None else str(failure),
        tenant=split_name(handle.job.daemon_id)[0],
        actor=handle.link.actor,
        daemon=handle.job.daemon_id,
        job=handle.job.id,
        kind="session",
        target=str(recorder.path.absolute()),
        result={"sha256": recorder.sha256},
    )


def _record(recorder: Recorder, piece: bytes | Gap) -> None:
    if isinstance(piece, Gap):
        recorder.gap(piece.start, piece.end)
    else:
        recorder.output(piece)


@protected_context
async def hold_attached_session(handle: JobHandle, *, kill_grace: float) -> AsyncIterator[Session]:
    """A session that is there, while the block lasts; RequestRefused for a job without a terminal."""
    async with attached(handle, kill_grace=kill_grace, terminal=True):
        yield Session(handle, kill_grace=kill_grace)
