"""Ports here that lead to a daemon's side, and ports there that lead here."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from sandd import wire
from sandd._core import port_streams, sockets
from sandd._core._errors import RemoteProtocolError, RequestRefused
from sandd._core.interrupts import protected_context
from sandd._core.job_streams import OutputStream
from sandd._core.logs import get_logger
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.port_streams import RemoteStream
from sandd.wire import Role, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sandd._core.job_link import JobHandle, JobLink

log = get_logger("ports")

MAX_CONNECTIONS: Final = 256
"""Connections through one forwarded port at once: each holds 2 MiB here if both its ends are slow. Those
that come meanwhile wait in the system's own queue, and are refused when that is full."""


@protected_context
async def forward(
    link: JobLink, daemon_id: str, target: wire.ConnectSpec, address: wire.ListenSpec
) -> AsyncIterator[tuple[str, int]]:
    """Listen here while the block lasts; each connection goes on to `target` on the daemon's side."""
    if address.path and not sockets.HAS_UNIX_SOCKETS:
        raise RequestRefused("there are no Unix sockets on this system")
    name = sockets.describe(target)

    async def serve(local: trio.SocketStream) -> None:
        # Not once it stands: what the peer says first goes along with the request.
        with local.socket:
            await relay(local, port_streams.begin(link, daemon_id, target))

    @trio.lowlevel.enable_ki_protection
    async def accept_all(listener: trio.SocketListener, connections: Connections) -> None:
        while True:
            await connections.wait_room()
            local = await sockets.accept(listener)
            connections.start(serve, local, daemon=daemon_id, target=name)

    async with sockets.listen(address) as listener, open_unwrapping_nursery() as nursery:
        nursery.start_soon(accept_all, listener, Connections(nursery))
        yield _bound(address, listener)
        nursery.cancel_scope.cancel()


@protected_context
async def reverse(
    link: JobLink, daemon_id: str, target: wire.ConnectSpec, address: wire.ListenSpec
) -> AsyncIterator[tuple[str, int]]:
    """Listen on the daemon's side while the block lasts; each connection goes on to `target` here."""
    if target.path and not sockets.HAS_UNIX_SOCKETS:
        raise RequestRefused("there are no Unix sockets on this system")
    name = sockets.describe(target)

    async def serve(remote: RemoteStream) -> None:
        try:
            local = await sockets.connect(target)
        except BaseException:
            remote.abort()
            raise
        with local.socket:
            await relay(local, remote)

    @trio.lowlevel.enable_ki_protection
    async def take_all(answers: Answers, connections: Connections) -> None:
        while True:
            answer = await answers.next()
            if isinstance(answer, wire.Accepted):
                await connections.wait_room()
                handle = link.attach(
                    daemon_id,
                    answer.job_id,
                    role=Role.OWNER,
                    takeover=False,
                    since={},
                    kill_grace=0.0,
                )
                handle.hold()  # nobody else could: what we read of it is read
                remote = RemoteStream(handle)
                connections.start(serve, remote, daemon=daemon_id, target=name, peer=answer.peer)

    await trio.lowlevel.checkpoint_if_cancelled()
    handle = link.open(daemon_id, address, input_data=b"")
    try:
        answers = Answers(handle)
        bound = await answers.next()
        if not isinstance(bound, wire.Listening):
            raise RemoteProtocolError(f"{type(bound).__name__} is no answer to who wants to listen")
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(take_all, answers, Connections(nursery))
            yield (os.fsdecode(bound.path), 0) if bound.path else (bound.host, bound.port)
            nursery.cancel_scope.cancel()
    finally:
        await handle.leave(0.0)


def _bound(address: wire.ListenSpec, listener: trio.SocketListener) -> tuple[str, int]:
    if address.path:
        return os.fsdecode(address.path), 0
    host, port, *_ = listener.socket.getsockname()
    return host, port


async def relay(local: trio.SocketStream, remote: RemoteStream) -> None:
    """Carry bytes both ways until both ends are done with it, or one breaks: then the other learns so.

    The caller closes the socket.
    """
    try:
        try:
            await sockets.carry(
                local.socket,
                read=lambda: remote.receive_some(sockets.PIECE_BYTES),
                write=remote.send_all,
                finish=remote.send_eof,
            )
        except trio.BrokenResourceError:
            if not remote.ended_well:  # else its peer left while ours was still talking
                raise
        if remote.at_end:
            await remote.wait_ended()  # however slowly its peer takes what is left
        await remote.aclose()
    except BaseException:
        sockets.reset_at_close(local.socket)
        remote.abort()
        raise


class Connections:
    """The connections through one port, each a task of its nursery; one that breaks harms no other."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._places = trio.Semaphore(MAX_CONNECTIONS, max_value=MAX_CONNECTIONS)

    async def wait_room(self) -> None:
        """Return when there may be one more; `start` is the next that is called."""
        await self._places.acquire()
        self._places.release()

    def start(
        self,
        serve: Callable[..., Awaitable[None]],
        end: trio.SocketStream | RemoteStream,
        **names: str,
    ) -> None:
        """Serve one that is there; what goes wrong with it is logged under these names."""
        self._places.acquire_nowait()
        self._nursery.start_soon(self._run, serve, end, names)

    @trio.lowlevel.enable_ki_protection
    async def _run(
        self,
        serve: Callable[..., Awaitable[None]],
        end: trio.SocketStream | RemoteStream,
        names: dict[str, str],
    ) -> None:
        try:
            await serve(end)
        except Exception as error:  # whatever it is, the others go on
            cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else None
            log.warning("connection_broke", reason=str(cause or error), **names)
        finally:
            self._places.release()


class Answers:
    """What a request that goes on tells, one by one."""

    def __init__(self, handle: JobHandle) -> None:
        self._handle = handle
        self._output = OutputStream(handle, Stream.OUTPUT)
        self._reader = wire.AnswerReader()
        self._read: deque[wire.Answer | wire.Unknown] = deque()

    async def next(self) -> wire.Answer | wire.Unknown:
        """The next answer.

        Raises:
            SanddError: the request failed, or was lost.
            trio.BrokenResourceError: there is none any more.
        """
        while not self._read:
            try:
                piece = await self._output.receive_some()
            except trio.BrokenResourceError:
                self._handle.raise_if_failed()
                raise
            if not piece:
                self._handle.raise_if_failed()
                raise trio.BrokenResourceError("the daemon ended the request")
            self._read.extend(self._reader.feed(piece))
        return self._read.popleft()
