"""The byte streams of a job as whoever holds it sees them: exactly once and in order, across every cut."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, NoReturn

import trio

from sandd import wire
from sandd._core._errors import OutputGap
from sandd._core.streams import Gap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import TypeVar

    from sandd._core.job_link import JobHandle
    from sandd.wire import Buffer, Stream

    Chunk = TypeVar("Chunk", bytes, list[Buffer])

RECEIVE_BYTES = wire.MAX_DATA_BYTES
"""What `receive_some` returns at most, where the caller names no limit."""


async def send_input(
    handle: JobHandle, pieces: Iterable[Buffer], has_room: Callable[[], Awaitable[None]]
) -> None:
    """Send all of them to the job, as there is room: `has_room` waits for that, or raises what stands in the way.

    What there is room for goes together.
    """
    job = handle.job
    log = job.input
    for piece in pieces:
        position, size = log.fill(piece), len(piece)
        while position < size:
            handle.link.has_input(job)
            await has_room()
            position += log.fill(memoryview(piece)[position:])
    handle.link.has_input(job)
    # Others' turn comes when it is on its way.
    await trio.lowlevel.cancel_shielded_checkpoint()


class InputStream(trio.abc.SendStream):
    """What a job reads. What was sent is in order and once, whatever happens to the connection."""

    __slots__ = ("_closed", "_conflicts", "_handle", "_name", "_owner")

    def __init__(self, handle: JobHandle, *, name: str = "stdin", owner: str = "process") -> None:
        self._handle = handle
        self._name = name
        self._owner = owner
        self._conflicts = Exclusive(f"another task is sending to this {name}")
        self._closed = False

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; returns when it is on its way within the bounds of the buffers.

        Raises:
            trio.BrokenResourceError: the process has ended.
            trio.ClosedResourceError: this stream was closed before.
        """
        if not isinstance(data, bytes):
            with memoryview(data) as view:
                await self.send_pieces((view,))
            return
        # As `send_pieces`, with fewer functions on the way of a keystroke.
        conflicts, handle = self._conflicts, self._handle
        if conflicts.held:
            conflicts.refuse()
        conflicts.held = True
        try:
            job = handle.job
            if self._closed or job.channel is None or job.result is not None or handle.is_forgotten:
                self._check()  # (mostly there is nothing to look at more closely)
            await trio.lowlevel.checkpoint_if_cancelled()
            sent = job.input.fill(data)
            if sent < len(data):
                await send_input(handle, (memoryview(data)[sent:],), self._has_room)
            else:
                handle.link.has_input(job)
                await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            conflicts.held = False

    @trio.lowlevel.enable_ki_protection
    async def send_pieces(self, pieces: Iterable[Buffer]) -> None:
        """As `send_all` of all of them in a row."""
        with self._conflicts:
            self._check()
            await trio.lowlevel.checkpoint_if_cancelled()
            await send_input(self._handle, pieces, self._has_room)

    @trio.lowlevel.enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        with self._conflicts:
            self._check()
            await trio.lowlevel.checkpoint()
            await self._has_room()

    async def _has_room(self) -> None:
        job = self._handle.job
        await self._handle.until(lambda: job.input.room > 0 or self._closed or self._handle.ended)
        self._check()

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """End of file for the process; idempotent, never blocks."""
        self.close()
        await trio.lowlevel.checkpoint()

    @trio.lowlevel.enable_ki_protection
    async def send_eof(self) -> None:
        """As `aclose`, but not beside a `send_all`: trio.BusyResourceError."""
        with self._conflicts:
            await self.aclose()

    def close(self) -> None:
        """As `aclose`, in no time."""
        if not self._closed:
            self._closed = True
            if not self._handle.job.input.final:
                self._handle.job.input.finish()
            self._handle.link.changed(self._handle.job)
            self._handle.update()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError(f"this {self._name} was closed")
        if self._handle.job.result is not None or self._handle.closed:  # (it has ended)
            raise trio.BrokenResourceError(
                f"the {self._owner} has ended"
                if self._handle.job.result is not None
                else "the job was lost, or is not ours any more"
            ) from self._handle.job.error


class OutputStream(trio.abc.ReceiveStream):
    """stdout or stderr of the job: all its bytes, in order and once, whatever happens to the connection."""

    __slots__ = ("_closed", "_conflicts", "_handle", "_log", "_stream")

    def __init__(self, handle: JobHandle, stream: Stream) -> None:
        self._handle = handle
        self._stream = stream
        self._log = handle.job.outputs[stream]
        self._conflicts = Exclusive("another task is receiving from this stream")
        self._closed = False

    @property
    def is_ready(self) -> bool:
        """`receive_some` would not wait."""
        return self._log.readable or self._log.at_end or self._closed or self._handle.closed

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at most `max_bytes`; b"" at the end.

        Raises:
            OutputGap: bytes are gone, because the job was told to drop what nobody fetched, or
                this reader only looks on and was overtaken, or asked for what is not kept any
                more. Said once; reading goes on behind them.
            trio.BrokenResourceError: the job was lost before its output ended.
            trio.ClosedResourceError: this stream was closed before.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        return await self._receive(self._log.take, 1, max_bytes or RECEIVE_BYTES)

    @trio.lowlevel.enable_ki_protection
    async def receive_pieces(self, count: int, max_bytes: int) -> list[Buffer]:
        """As `receive_some`, once there are so many bytes or no more will come, in the pieces that they came in.

        For what costs less in large pieces; `count` has to be less than the sender may have under way.
        """
        return await self._receive(self._log.take_pieces, count, max_bytes)

    async def _receive(
        self, take: Callable[[int], Chunk | Gap], count: int, max_bytes: int
    ) -> Chunk:
        log, conflicts = self._log, self._conflicts

        def has_come() -> bool:
            arrived = log.received - log.consumed
            if arrived >= count:
                return True
            return self.is_ready and (log.final is not None or self._closed or self._handle.closed)

        if conflicts.held:
            conflicts.refuse()
        conflicts.held = True  # without functions of ours in between, as in `send_all`
        try:
            if self._closed:
                self._check()
            await trio.lowlevel.checkpoint_if_cancelled()
            if has_come():
                # Others' turn comes all the same.
                await trio.lowlevel.cancel_shielded_checkpoint()
            else:
                await self._handle.until(has_come)
            if self._closed:
                self._check()
            chunk = take(max_bytes)
            if chunk:
                channel = self._handle.job.channel
                if channel is not None and channel.is_update_due(self._stream):
                    self._handle.link.changed(self._handle.job)
            if isinstance(chunk, Gap):
                raise OutputGap(chunk.start, chunk.end)
            if chunk or log.at_end:
                return chunk
            error = self._handle.job.error
            raise trio.BrokenResourceError(
                "the job was left before its output ended"
                if error is None
                else "the job was lost before its output ended"
            ) from error
        finally:
            conflicts.held = False

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Stop reading; what the process writes from now on is thrown away."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self, *, discard: bool = True) -> None:
        """As `aclose`, in no time; without `discard` what nobody has received stays unread."""
        if not self._closed:
            self._closed = True
            if discard:
                self._handle.sink(self._stream, lambda _: None)
            else:
                self._handle.update()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")


class Exclusive:
    """trio's rule that a stream has one task at a time per direction; the second gets BusyResourceError."""

    __slots__ = ("_message", "held")

    def __init__(self, message: str) -> None:
        self._message = message
        self.held = False
        """A task is at it."""

    def refuse(self) -> NoReturn:
        """Tell the second."""
        raise trio.BusyResourceError(self._message)

    def __enter__(self) -> None:
        if self.held:
            self.refuse()
        self.held = True

    def __exit__(self, *_: object) -> None:
        self.held = False
