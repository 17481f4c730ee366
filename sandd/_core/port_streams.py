"""`RemoteStream`: a connection on a daemon's side, as the agent holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from sandd import wire
from sandd._core.job_link import failure
from sandd._core.job_streams import InputStream, OutputStream
from sandd._core.logs import get_logger
from sandd.wire import Stream

if TYPE_CHECKING:
    from sandd._core.job_link import JobHandle, JobLink

log = get_logger("ports")

CLOSE_SECONDS: Final = 10.0
"""How long closing waits while nothing of what was sent gets any further."""


class RemoteStream(trio.abc.HalfCloseableStream):
    """A connection on the daemon's side; made by `Daemon.open_tcp_stream` and `Daemon.open_unix_stream`.

    As `trio.SocketStream`, and it survives every cut between the controller and the daemon. Either
    direction ends by itself. One task may send and one may receive at a time. Sending holds 1 MiB here
    at most, and as much on the daemon, for a peer that doesn't read; then it waits.
    """

    def __init__(self, handle: JobHandle) -> None:
        self._handle = handle
        self._input = InputStream(handle, name="stream", owner="connection")
        self._output = OutputStream(handle, Stream.OUTPUT)
        self.at_end = False
        """The peer has said all, and all of it was received."""
        self._closed = False

    def __repr__(self) -> str:
        job = self._handle.job
        state = "closed" if self._closed else "ended" if self._handle.ended else "open"
        return f"<sandd.RemoteStream {job.daemon_id}/{job.id} {state}>"

    @property
    def ended_well(self) -> bool:
        """The daemon has seen both directions end."""
        return isinstance(self._handle.job.result, wire.Exited)

    @trio.lowlevel.enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; returns when it is on its way within the bounds of the buffers.

        Raises:
            trio.BrokenResourceError: the connection has ended or broke, or the daemon was lost; its cause
                says how it broke.
            trio.ClosedResourceError: this stream was closed, or `send_eof` was called before.
        """
        await self._input.send_all(data)

    @trio.lowlevel.enable_ki_protection
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        await self._input.wait_send_all_might_not_block()

    @trio.lowlevel.enable_ki_protection
    async def send_eof(self) -> None:
        """Tell the peer that nothing more will be sent; receiving goes on. Idempotent.

        Raises:
            trio.ClosedResourceError: this stream was closed before.
        """
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        await self._input.send_eof()

    @trio.lowlevel.enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at most `max_bytes`; b"" when the peer has said all.

        Raises:
            trio.BrokenResourceError: the connection broke, or the daemon was lost, behind the bytes that came
                before; its cause says how.
            trio.ClosedResourceError: this stream was closed before.
        """
        data = await self._output.receive_some(max_bytes)
        failed = self._handle.job.result
        if data or self.at_end or not isinstance(failed, wire.Failed):
            self.at_end = not data
            return data
        raise trio.BrokenResourceError("the connection broke") from failure(
            failed, self._handle.job
        )

    @trio.lowlevel.enable_ki_protection
    async def aclose(self) -> None:
        """Close both directions. Returns when what was sent before has reached the daemon, which delivers it.

        It waits for as long as that gets any further, and 10 seconds while it doesn't, as when the daemon
        is away. What then is left is lost, and the peer told so: its connection is reset. So it is
        when this is cancelled. Idempotent.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            self._input.close()
            self._output.close()
            await trio.lowlevel.checkpoint()
            await self._wait_delivered()
        finally:
            self._handle.forget()

    def abort(self) -> None:
        """Close it at once; unless both directions have ended, the peer is told that the connection broke."""
        self._closed = True
        self._handle.forget()
        self._handle.update()

    async def wait_ended(self) -> None:
        """Return when all that was sent has been delivered, where both directions were ended; or if it broke."""
        await self._handle.until(lambda: self._handle.ended)

    async def wait_connected(self) -> None:
        """Return when the connection stands; else raise why there is none."""
        await self._handle.until(lambda: self._handle.begun)
        if self._handle.job.started is None:
            self._handle.raise_if_failed()
            raise trio.BrokenResourceError("it ended before it was told that it stands")

    async def _wait_delivered(self) -> None:
        handle, job = self._handle, self._handle.job
        if handle.ended:
            return
        handle.link.client.flush(job)
        handle.link.flush()
        while not self._is_delivered():
            floor = job.input.floor
            with trio.move_on_after(CLOSE_SECONDS) as patience:
                await handle.until(
                    lambda floor=floor: self._is_delivered() or job.input.floor > floor  # type: ignore[misc]
                )
            if patience.cancelled_caught:
                log.warning("connection_cut_short", job=job.id, daemon=job.daemon_id)
                return

    def _is_delivered(self) -> bool:
        return self._handle.job.flush is None or self._handle.ended


def begin(link: JobLink, daemon_id: str, target: wire.ConnectSpec) -> RemoteStream:
    """A connection that is about to be made; what is sent meanwhile goes with the request for it."""
    return RemoteStream(link.open(daemon_id, target))


@trio.lowlevel.enable_ki_protection
async def connect(link: JobLink, daemon_id: str, target: wire.ConnectSpec) -> RemoteStream:
    """A connection that stands."""
    await trio.lowlevel.checkpoint_if_cancelled()
    stream = begin(link, daemon_id, target)
    try:
        await stream.wait_connected()
    except BaseException:
        stream.abort()
        raise
    return stream
