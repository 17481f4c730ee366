"""`Daemon`, as other event loops than its controller's see it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from sandd._core import daemon_handle, remote_path
from sandd._core.aio.calls import call
from sandd._core.aio.jobs import Process, Session, take_back
from sandd._core.aio.paths import RemotePath
from sandd._core.aio.progress import reported_here
from sandd._core.aio.streams import Items, RemoteStream
from sandd._core.aio.wrapping import Wrapper, calls, documented_as, gives, holds, plain
from sandd._core.port_streams import RemoteStream as TrioRemoteStream

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sandd._core.bridge import TrioThread
    from sandd._core.copying import Patterns, Progress
    from sandd._core.daemon_statistics import DaemonStatistics
    from sandd._core.directory import DaemonInfo
    from sandd._core.specs import Text
    from sandd._core.transfers.result import TransferResult
    from sandd.wire import DaemonState

Inner = daemon_handle.Daemon


def _as_rounds(
    thread: TrioThread[Any], rounds: AsyncIterator[DaemonStatistics]
) -> AsyncIterator[DaemonStatistics]:
    return Items(thread, rounds, lambda each: each)


class Daemon(Wrapper[Inner]):
    """One daemon, as its controller sees it. The handle stays valid across reconnects.

    It means one *instance* (one start) of the daemon: when another instance took its place, `state`
    is GONE and nothing more can be run on this handle; take a new one.
    """

    @property
    def id(self) -> str:
        """The daemon's id."""
        return self._inner.id

    @property
    def info(self) -> DaemonInfo:
        """What the daemon said of itself, at its newest connection."""
        return self._inner.info

    @property
    def state(self) -> DaemonState:
        """ONLINE; AWAY, when its connection broke and its jobs go on; or GONE for good."""
        return self._inner.state

    run = calls(Inner.run)
    open_process = holds(Inner.open_process, Process, take_back=take_back)
    attach_process = holds(Inner.attach_process, Process, take_back=take_back)
    open_session = holds(Inner.open_session, Session, take_back=take_back)
    attach_session = holds(Inner.attach_session, Session, take_back=take_back)

    @documented_as(Inner.upload)
    async def upload(
        self,
        local: Text,
        remote: Text | RemotePath,
        *,
        progress: Progress | None = None,
        update: bool | Literal["hash"] = False,
        include: Patterns = None,
        exclude: Patterns = None,
    ) -> TransferResult:
        def copy(report: Progress | None) -> Awaitable[TransferResult]:
            return self._inner.upload(
                local,
                theirs(remote),
                progress=report,
                update=update,
                include=include,
                exclude=exclude,
            )

        return await self._copy(copy, progress)

    @documented_as(Inner.download)
    async def download(
        self,
        remote: Text | RemotePath,
        local: Text,
        *,
        progress: Progress | None = None,
        update: bool | Literal["hash"] = False,
        include: Patterns = None,
        exclude: Patterns = None,
    ) -> TransferResult:
        def copy(report: Progress | None) -> Awaitable[TransferResult]:
            return self._inner.download(
                theirs(remote),
                local,
                progress=report,
                update=update,
                include=include,
                exclude=exclude,
            )

        return await self._copy(copy, progress)

    @documented_as(Inner.path)
    def path(self, path: str | bytes | os.PathLike[str] | RemotePath) -> RemotePath:
        return RemotePath._create(self, path)

    jobs = calls(Inner.jobs)
    statistics = calls(Inner.statistics)
    open_statistics = holds(Inner.open_statistics, _as_rounds)
    kill = calls(Inner.kill)
    forget = calls(Inner.forget)
    open_tcp_stream = gives(Inner.open_tcp_stream, RemoteStream, unwanted=TrioRemoteStream.abort)
    open_unix_stream = gives(Inner.open_unix_stream, RemoteStream, unwanted=TrioRemoteStream.abort)
    forward_port = holds(Inner.forward_port, plain, may_fail=True)
    reverse_port = holds(Inner.reverse_port, plain, may_fail=True)

    async def _copy(
        self,
        copy: Callable[[Progress | None], Awaitable[TransferResult]],
        progress: Progress | None,
    ) -> TransferResult:
        if progress is None:
            return await call(self._thread, partial(copy, None))
        return await reported_here(self._thread, copy, progress)


def theirs(path: Text | RemotePath) -> Text | remote_path.RemotePath:
    """A path as the trio API has it."""
    return path._inner if isinstance(path, RemotePath) else path
