"""Files on a daemon's machine that are open here: a stream to read from one, and one to write to one."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.job_streams import Exclusive, send_input
from sandd._core.streams import Gap
from sandd.wire import Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Any

    from sandd._core.job_link import JobHandle

S = TypeVar("S", bound="AbstractAsyncContextManager[Any, bool | None]")

RECEIVE_BYTES: Final = 256 * wire.KIB
"""What `receive_some` returns at most, where the caller names no limit."""


class Opening(Generic[S]):
    """A file that is about to be opened: use it in ``async with``, or await it for the stream.

    A stream that was awaited is to be closed, as every stream is: in ``async with``, best of all.
    """

    def __init__(self, open_stream: Callable[[], Awaitable[S]]) -> None:
        self._open = open_stream
        self._stream: S | None = None

    def __await__(self) -> Generator[Any, Any, S]:
        return self._open().__await__()

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> S:
        self._stream = await self._open()
        return self._stream

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._stream is not None
        await self._stream.__aexit__(kind, value, traceback)


class FileReader(trio.abc.ReceiveStream):
    """What is in a file, from where it was opened; all its bytes in order, whatever happens to the connection."""

    def __init__(self, handle: JobHandle, name: str) -> None:
        self._handle = handle
        self._name = name
        self._log = handle.job.outputs[Stream.OUTPUT]
        self._conflicts = Exclusive("another task is reading from this file")
        self._is_closed = False

    def __repr__(self) -> str:
        closed = ", closed" if self._is_closed else ""
        return f"<sandd.FileReader {self._handle.job.daemon_id}:{self._name}{closed}>"

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at most `max_bytes`; b"" at the end.

        Raises:
            TransferError: the file can't be read further (also an OSError: its disk is broken, ...).
            DaemonGone: the daemon is gone for good.
            trio.ClosedResourceError: this stream was closed before, or the controller is closed.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._conflicts:
            self._check()
            await trio.lowlevel.checkpoint()
            await self._handle.until(
                # The news that it ended may come ahead of the last bytes.
                lambda: self._log.readable or nothing_more(self._handle)
            )
            self._check()
            if not self._log.readable:
                self._handle.raise_if_failed()
                if not self._log.at_end:  # the job was closed under us
                    raise trio.ClosedResourceError("this file was closed")
                return b""
            chunk = self._log.take(max_bytes or RECEIVE_BYTES)
            self._handle.link.changed(self._handle.job)
            if isinstance(chunk, Gap):
                raise RemoteProtocolError(f"the daemon left out a part of {self._name!r}")
            return chunk

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Read no further; idempotent, never blocks."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """As `aclose`, at once."""
        if not self._is_closed:
            self._is_closed = True
            self._handle.forget()
            self._handle.update()

    def _check(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this file was closed")


class FileWriter(trio.abc.SendStream):
    """A file that is being written. `aclose` makes it what was sent; nothing else does.

    Leaving its ``async with`` block does so, too, but by an exception: then the file is as it was. So it is if
    nobody closes this at all. (What was appended stays.)
    """

    def __init__(self, handle: JobHandle, name: str) -> None:
        self._handle = handle
        self._name = name
        self._conflicts = Exclusive("another task is writing to this file")
        self._is_closed = False

    def __repr__(self) -> str:
        closed = ", closed" if self._is_closed else ""
        return f"<sandd.FileWriter {self._handle.job.daemon_id}:{self._name}{closed}>"

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; returns when it is on its way within the bounds of the buffers.

        Raises:
            TransferError: the file can't be written (also an OSError: no space left, ...). It is as it was.
            DaemonGone: the daemon is gone for good.
            trio.ClosedResourceError: this stream was closed before, or the controller is closed.
        """
        with self._conflicts, memoryview(data) as view:
            self._check()
            await trio.lowlevel.checkpoint_if_cancelled()
            await send_input(self._handle, [view], self._has_room)

    @trio.lowlevel.enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        with self._conflicts:
            self._check()
            await trio.lowlevel.checkpoint()
            await self._has_room()

    async def _has_room(self) -> None:
        job = self._handle.job
        await self._handle.until(
            lambda: job.input.room > 0 or self._is_closed or self._handle.ended
        )
        self._check()

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """The file is now what was sent, whole and on the daemon's disk. Idempotent.

        Cancelled before it has begun, the file is as it was; later, it may be either.

        Raises:
            TransferError: the file can't be written (also an OSError: no space left, ...). It is as it was.
            DaemonGone: the daemon is gone for good.
        """
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        self._is_closed = True
        self._handle.update()  # who is sending still learns of it
        await finish(self._handle)

    @trio.lowlevel.enable_ki_protection
    async def abandon(self) -> None:
        """The file stays as it was. Idempotent; after `aclose` it does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._handle.update()
            await self._handle.leave(0.0)
        await trio.lowlevel.checkpoint()

    def _drop(self) -> None:
        """As `abandon`, at once."""
        if not self._is_closed:
            self._is_closed = True
            self._handle.forget()
            self._handle.update()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.aclose()
        elif not self._is_closed:
            self._is_closed = True
            await self._handle.leave(0.0)

    def _check(self) -> None:
        if self._is_closed:
            raise trio.ClosedResourceError("this file was closed")
        if self._handle.ended:
            self._handle.raise_if_failed()
            raise trio.ClosedResourceError("this file was closed")


def nothing_more(handle: JobHandle) -> bool:
    """What has arrived of a request's output is all that ever will."""
    return handle.complete or handle.closed


@trio.lowlevel.enable_ki_protection
async def finish(handle: JobHandle) -> None:
    """The end of what is written, and of its file's job; whatever happens, nothing of it is left there."""
    try:
        await trio.lowlevel.checkpoint_if_cancelled()
        if not handle.job.input.final:
            handle.job.input.finish()
            handle.link.changed(handle.job)
        await handle.until(lambda: handle.ended)
        handle.raise_if_failed()
    except BaseException:
        await handle.leave(0.0)
        raise
    handle.forget()


@trio.lowlevel.enable_ki_protection
async def opened(handle: JobHandle) -> None:
    """Wait until the daemon has opened the file; raise why it can't."""
    log = handle.job.outputs[Stream.OUTPUT]
    try:
        await trio.lowlevel.checkpoint_if_cancelled()
        await handle.until(lambda: log.readable or nothing_more(handle))
        if not log.readable:
            handle.raise_if_failed()
    except BaseException:
        await handle.leave(0.0)
        raise
