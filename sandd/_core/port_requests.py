"""Connections on the daemon's side: those that it is asked to make, and those that come to it.

Either kind is a request whose INPUT goes into a socket and whose OUTPUT comes out of one. One that
comes to a listener is a job that nobody asked for: the daemon begins it, and tells the listener's
client, which then attaches to it as to any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from attrs import field, frozen

from sandd import wire
from sandd._core import sockets
from sandd._core.logs import get_logger
from sandd._core.requests import RequestFailedError
from sandd.wire import FailedCode, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandd._core.job import Job
    from sandd._core.jobs import Effects, JobTable
    from sandd._core.requests import Doer, Doing

log = get_logger("ports")

MAX_CONNECTIONS: Final = 1024
"""Connections of a daemon, of all its clients; each holds a descriptor, and 2 MiB if both its ends are slow."""
MAX_UNCLAIMED: Final = 64
"""Connections of a listener that its client has not come for: while there are more, they wait in the system."""
CLAIM_SECONDS: Final = 60.0
"""In which its client has to come for one; counted while the daemon runs, so a cut may last that long."""


class Unclaimed:
    """The connections of one listener that its client has not come for yet."""

    def __init__(self) -> None:
        self.jobs: set[Job] = set()
        self._changed = trio.Event()

    def discard(self, job: Job) -> None:
        """Its client came for it, or won't."""
        self.jobs.discard(job)
        self._changed.set()

    async def wait_room(self) -> None:
        """Return when there may be one more."""
        while len(self.jobs) >= MAX_UNCLAIMED:
            self._changed = trio.Event()
            await self._changed.wait()


@frozen(eq=False)
class AcceptedSpec(wire.ConnectSpec):
    """A connection that came to a listener. Nobody can ask for one: it never is bytes."""

    stream: trio.SocketStream = field(kw_only=True)
    unclaimed: Unclaimed = field(kw_only=True)
    """Of its listener."""


class PortRequests:
    """Does requests for connections and for listeners."""

    def __init__(
        self, table: JobTable, *, act: Callable[[Effects], None], confined_by: str = ""
    ) -> None:
        """Confined by that option, it takes no path of a Unix socket: we could not keep it beneath a root."""
        self._table = table
        self._confined_by = confined_by
        self._act = act
        self._places = trio.Semaphore(MAX_CONNECTIONS, max_value=MAX_CONNECTIONS)
        self._listening: dict[tuple[str, wire.ListenSpec], tuple[Job, trio.Event]] = {}
        """By tenant and address: whose it is, and what is set when nobody listens there any more."""

    @property
    def doers(self) -> Mapping[type[wire.Request], Doer]:
        """For `Requests.offer`."""
        return {
            wire.ConnectSpec: self._connect,
            wire.ListenSpec: self._listen,
            AcceptedSpec: self._serve,
        }

    def _check_path(self, spec: wire.ConnectSpec | wire.ListenSpec) -> None:
        if spec.path and not sockets.HAS_UNIX_SOCKETS:
            raise RequestFailedError(FailedCode.DECLINED, "its machine has no Unix sockets")
        if spec.path and self._confined_by:
            text = f"it was started with {self._confined_by}, and reaches no Unix sockets"
            raise RequestFailedError(FailedCode.DECLINED, text)

    async def _connect(self, doing: Doing, spec: wire.ConnectSpec) -> None:
        self._check_path(spec)
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            text = f"it has {MAX_CONNECTIONS} connections, and takes no more"
            raise RequestFailedError(FailedCode.DECLINED, text) from None
        try:
            await _carry(doing, await sockets.connect(spec))
        finally:
            self._places.release()

    async def _listen(self, doing: Doing, spec: wire.ListenSpec) -> None:
        self._check_path(spec)
        key = (doing.tenant, spec)
        while key in self._listening and self._listening[key][0].owner is None:
            # Left by a client that is gone, or cut off; whoever asks for it now is there.
            orphan, is_closed = self._listening[key]
            self._act(self._table.stop(orphan, Outcome.CANCELLED))
            await is_closed.wait()
        unclaimed, is_closed = Unclaimed(), trio.Event()
        try:
            async with sockets.listen(spec) as listener:
                if spec.port or spec.path:
                    self._listening[key] = doing.job, is_closed
                doing.started()
                await doing.answer(_bound(spec, listener))
                doing.send()
                while True:
                    await unclaimed.wait_room()
                    await self._begin(doing, await sockets.accept(listener), unclaimed)
        finally:
            if self._listening.get(key) == (doing.job, is_closed):
                del self._listening[key]
            is_closed.set()
            # Those that somebody has come for are jobs of their own, and stay. For these nobody will.
            for job in list(unclaimed.jobs):
                job.end_requested = True
                self._act(self._table.stop(job, Outcome.CANCELLED))

    async def _begin(self, doing: Doing, stream: trio.SocketStream, unclaimed: Unclaimed) -> None:
        """Make a job of a connection that came, and tell its client."""
        try:
            await self._places.acquire()
            spec = AcceptedSpec("", stream=stream, unclaimed=unclaimed)
            begun = self._table.begin(
                doing.job, spec, trio.current_time(), claim_within=CLAIM_SECONDS
            )
        except BaseException:
            _reset(stream)
            raise
        if begun is None:
            self._places.release()
            _reset(stream)
            log.warning("connection_turned_away", reason="no more jobs", listener=doing.job.key[1])
            return
        job, effects = begun
        unclaimed.jobs.add(job)
        self._act(effects)
        await doing.answer(wire.Accepted(job.key[1], sockets.describe_peer(stream)))
        doing.send()

    async def _serve(self, doing: Doing, spec: AcceptedSpec) -> None:
        """Carry what came to a listener; its end is told once somebody has come for it."""
        broken: OSError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_wait_claimed, doing, spec.unclaimed)
                try:
                    await _carry(doing, spec.stream)
                except OSError as error:
                    broken = error
        finally:
            self._places.release()
        if broken is not None:
            raise broken


async def _wait_claimed(doing: Doing, unclaimed: Unclaimed) -> None:
    try:
        await doing.until(lambda: doing.job.claim_within is None)
    finally:
        unclaimed.discard(doing.job)


def _bound(spec: wire.ListenSpec, listener: trio.SocketListener) -> wire.Listening:
    if spec.path:
        return wire.Listening(path=spec.path)
    host, port, *_ = listener.socket.getsockname()
    return wire.Listening(host, port)


async def _carry(doing: Doing, stream: trio.SocketStream) -> None:
    """Carry both ways until both have ended; a connection that broke or was given up is reset."""
    with stream.socket as socket:
        try:
            doing.started()
            await sockets.carry(
                socket,
                read=doing.read,
                write=doing.write,
                finish=doing.finish,
                left=lambda: doing.until(lambda: doing.is_ending),
            )
        except BaseException:
            sockets.reset_at_close(socket)
            raise


def _reset(stream: trio.SocketStream) -> None:
    sockets.reset_at_close(stream.socket)
    stream.socket.close()
