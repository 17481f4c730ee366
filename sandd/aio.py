"""sandd for asyncio, or whatever anyio runs on: the same objects by the same names.

::

    async with sandd.aio.open_controller("0.0.0.0", 8765) as controller:
        worker = await controller.wait_for_daemon("worker-1")
        result = await worker.run("ls -la", timeout=10)

The controller runs on trio, in a thread of its own. No call blocks the event loop, and none has a thread; any number
may be under way, and from any number of event loops. Streams are anyio's byte streams, and their errors anyio's;
all others are those of `sandd`.

Cancelling a task cancels what it waits for, kills what that runs on the daemon, and goes on once it is gone, as in
trio. (asyncio cancels only once: cancelled a second time meanwhile, the task goes on at once, and the killing
without it.)
"""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, ParamSpec

from sandd import controller as _trio_api
from sandd._core.aio.administration import Enrolled, Tokens
from sandd._core.aio.blocks import OpenThread
from sandd._core.aio.daemon import Daemon
from sandd._core.aio.jobs import Process, Session
from sandd._core.aio.paths import FileChange, FileReader, FileWriter, RemotePath
from sandd._core.aio.streams import Items, RemoteStream
from sandd._core.aio.wrapping import Wrapper, calls, documented, gives, holds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from typing import Any

    from sandd._core.bridge import TrioThread
    from sandd.controller import ControllerStatistics, DaemonEvent

__all__ = [
    "Controller",
    "Daemon",
    "Enrolled",
    "FileChange",
    "FileReader",
    "FileWriter",
    "Process",
    "RemotePath",
    "RemoteStream",
    "Session",
    "Tokens",
    "connect_controller",
    "open_controller",
]

P = ParamSpec("P")
Inner = _trio_api.Controller


def _as_events(
    thread: TrioThread[Any], events: AsyncIterator[DaemonEvent]
) -> AsyncIterator[DaemonEvent]:
    return Items(thread, events, lambda event: event)


class Controller(Wrapper[Inner]):
    """Daemons that have dialled in, and what can be asked of them.

    Made by `open_controller`, or by `connect_controller` where the daemons have dialled in to another process.
    """

    @property
    def address(self) -> str:
        """``HOST:PORT`` it listens on, with the real port; of a controller in another process, what was dialled."""
        return self._inner.address

    @property
    def url(self) -> str:
        """The URL for a daemon's ``--server-url`` on this machine; elsewhere, put this machine's name in it.

        Of a controller in another process: for a daemon that can reach it by the name that was dialled here.
        """
        return self._inner.url

    @property
    def tokens(self) -> Tokens:
        """Tokens by which daemons join, and operators come in. Errors as of the trio API's."""
        return Tokens(self._thread, self._inner.tokens)

    @property
    def enrolled(self) -> Enrolled:
        """Daemons that have joined by a token, whether they are here or not. Errors as of the trio API's."""
        return Enrolled(self._thread, self._inner.enrolled)

    @property
    def ca_pin(self) -> str | None:
        """``sha256:HEX``, what the CA behind this controller's certificate is known by; None if that is not its own."""
        return self._inner.ca_pin

    @property
    def metrics_address(self) -> str | None:
        """``HOST:PORT`` where its figures are to be had, with the real port; None: nowhere, or in another process."""
        return self._inner.metrics_address

    @property
    def bootstrap_command(self) -> str | None:
        """What a shell fetches a script by that runs a daemon, for ``... | sh``; None where nothing is handed out."""
        return self._inner.bootstrap_command

    reload_tls = calls(Inner.reload_tls)

    def daemons(self, labels: Mapping[str, str] | None = None, *, match: str = "*") -> list[Daemon]:
        """The daemons, online or away, that have all of `labels` and whose id matches the glob, by id."""
        return [Daemon(self._thread, each) for each in self._inner.daemons(labels, match=match)]

    def daemon(self, daemon_id: str) -> Daemon:
        """The daemon of that id, online or away.

        Raises:
            DaemonNotFound: none of that id is known.
        """
        return Daemon(self._thread, self._inner.daemon(daemon_id))

    wait_for_daemon = gives(Inner.wait_for_daemon, Daemon)
    open_events = holds(Inner.open_events, _as_events)

    def statistics(self) -> ControllerStatistics:
        """Numbers of this moment."""
        return self._inner.statistics()

    fetch_statistics = calls(Inner.fetch_statistics)
    broadcast = calls(Inner.broadcast)
    reload_policy = calls(Inner.reload_policy)

    def set_tokens(self, *, token: str | bytes | None, operator_token: str | bytes | None) -> None:
        """From now on these are the secrets that daemons and operators must know; who is connected stays.

        Args and errors as of the trio API's `sandd.Controller.set_tokens`.
        """
        self._inner.set_tokens(token=token, operator_token=operator_token)


def _opens(
    open_inner: Callable[P, AbstractAsyncContextManager[Inner, bool | None]],
) -> Callable[P, AbstractAsyncContextManager[Controller, None]]:
    @wraps(open_inner)
    def opened(*args: P.args, **options: P.kwargs) -> AbstractAsyncContextManager[Controller, None]:
        return OpenThread(
            partial(open_inner, *args, **options),
            Controller,
            lambda controller: controller._service.hurry(),
            name="sandd.aio",
        )

    return documented(opened)


open_controller = _opens(_trio_api.open_controller)
connect_controller = _opens(_trio_api.connect_controller)
