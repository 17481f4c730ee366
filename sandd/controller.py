"""The agent's end: a controller that daemons dial in to, and handles to run commands on them.

::

    async with sandd.open_controller("0.0.0.0", 8765) as controller:
        worker = await controller.wait_for_daemon("worker-1")
        result = await worker.run("ls -la", timeout=10)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from sandd import wire
from sandd._core._errors import ConfigurationError, SanddError
from sandd._core.acceptor import Acceptor
from sandd._core.admission import Admission
from sandd._core.daemon_handle import Daemon
from sandd._core.interrupts import protected_context
from sandd._core.job_info import JobInfo, KeptOutput
from sandd._core.local_link import LocalLink
from sandd._core.logs import get_logger
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.port_streams import RemoteStream
from sandd._core.process_handle import Process
from sandd._core.registry import DaemonEvent, DaemonInfo, DaemonRecord, Registry
from sandd._core.router import DaemonLink, Router
from sandd._core.session_handle import Session
from sandd._core.transport import ListenAddress, serve
from sandd.wire import DaemonState, JobState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager
    from typing import Unpack

    from sandd._core._errors import RemoteProtocolError
    from sandd._core.commands import RunOptions
    from sandd._core.results import CommandResult
    from sandd._core.specs import Command

__all__ = [
    "Controller",
    "ControllerStatistics",
    "Daemon",
    "DaemonEvent",
    "DaemonInfo",
    "DaemonState",
    "JobInfo",
    "JobState",
    "KeptOutput",
    "Process",
    "RemoteStream",
    "Session",
    "open_controller",
]

log = get_logger("controller")

DRAIN_SECONDS: Final = 3.0
"""Closing a controller: how long daemons have to take the farewell."""
LAG_INTERVAL: Final = 1.0
"""How often the loop's lag is measured, and daemons' leases are looked at."""
MOST_HANDSHAKES_PER_SECOND: Final = 100_000
"""Far beyond what one processor can do: a bound on arithmetic only."""
PATH: Final = "/ws"


@frozen
class ControllerStatistics:
    """A snapshot of a controller."""

    daemons_online: int
    daemons_away: int
    platforms: Mapping[str, int]
    """Daemons online or away, by platform."""
    jobs: int
    """Jobs this process has open."""
    jobs_started: int
    """Jobs this process ever asked for."""
    bytes_received: int
    """From daemons, on the wire before TLS and WebSocket framing."""
    bytes_sent: int
    loop_lag: float
    """Seconds that the event loop was late at the last look: much more than 0.01 means that something in
    this program blocks it."""


@protected_context
async def open_controller(
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    token: str | bytes | None = None,
    insecure: bool = False,
    heartbeat: float = 20.0,
    dead_after: float = 45.0,
    max_handshakes_per_second: float = 200.0,
) -> AsyncIterator[Controller]:
    """A `Controller` that listens while the block lasts.

    Without a `token` only daemons on this machine (loopback) may register, whatever `host` is.

    Leaving the block ends every job that is still open, with its process tree, tells the daemons to
    come back later, and closes all connections; that takes a few seconds at most, plus the kill
    graces of what still runs. Ctrl-C while it does so saves these graces: the daemons have been told,
    and kill without us. An exception of the body comes out as itself.

    Args:
        host: address to listen on; "0.0.0.0" or "::" for all.
        port: TCP port; 0 takes a free one, see `Controller.url`.
        token: secret that daemons must prove to know (their option ``--token-file``); white space
            around it doesn't count, there and here.
        insecure: take daemons from anywhere without a token.
        heartbeat: seconds of silence after which daemons ping, 0.05 to 3,600.
        dead_after: seconds without a word from a daemon until its connection is given up; above
            `heartbeat`, and at most 7,200.
        max_handshakes_per_second: how many connections are let in, above 0 and up to 100,000; a
            quarter of a second's worth may come at once. Others wait for up to five seconds, or are
            told when to come back. By default 200, which takes this program about a third of its time
            while it lasts, and has 10,000 daemons back within a minute after a restart.

    Raises:
        OSError: the address can't be listened on.
        ConfigurationError: an argument makes no sense.
    """
    secret = token.encode() if isinstance(token, str) else token
    if secret is not None:
        secret = secret.strip()  # as the daemon does: a file that holds it ends with a newline
    if secret is not None and not secret:
        raise ConfigurationError(
            "the token is empty; leave it out to take daemons from loopback only"
        )
    if not heartbeat < dead_after:
        raise ConfigurationError(f"heartbeat ({heartbeat}) must be below dead_after ({dead_after})")
    try:
        wire.Welcome(1, heartbeat, dead_after)
    except ValueError as error:  # daemons could not be told
        raise ConfigurationError(str(error)) from error
    if not 0 < max_handshakes_per_second <= MOST_HANDSHAKES_PER_SECOND:
        raise ConfigurationError(
            f"max_handshakes_per_second is {max_handshakes_per_second}; it must be above 0 and at most "
            f"{MOST_HANDSHAKES_PER_SECOND:,}"
        )
    controller = Controller._create(
        token=secret,
        insecure=insecure,
        heartbeat=heartbeat,
        dead_after=dead_after,
        admission=Admission(max_handshakes_per_second),
    )
    try:
        async with open_unwrapping_nursery() as nursery:
            service: trio.CancelScope = await nursery.start(controller._serve, host, port)
            # Whatever is being cancelled, daemons are heard of until the last job has ended.
            service.shield = True
            try:
                yield controller
            finally:
                await controller._close()
    finally:
        controller._abandon()


class Controller:
    """Daemons that have dialled in, and what can be asked of them. Made by `open_controller`."""

    def __init__(self) -> None:
        raise TypeError("use sandd.open_controller()")

    @classmethod
    def _create(
        cls,
        *,
        token: bytes | None,
        insecure: bool,
        heartbeat: float,
        dead_after: float,
        admission: Admission,
    ) -> Controller:
        self = object.__new__(cls)
        self._router = Router()
        self._registry = Registry()
        self._local = LocalLink(self._router, self._wake, self._blame, self._registry.tell_stalls)
        self._acceptor = Acceptor(
            router=self._router,
            registry=self._registry,
            after_message=self._local.flush,
            token=token,
            insecure=insecure,
            heartbeat=heartbeat,
            dead_after=dead_after,
        )
        self._admission = admission
        self._listening = None
        self._loop_lag = 0.0
        self._closing = trio.Event()
        self._closed = trio.Event()
        self._patience = trio.CancelScope()
        return self

    def __repr__(self) -> str:
        if self._listening is None:
            return "<sandd.Controller, not listening>"
        return f"<sandd.Controller {self.url}, {len(self.daemons())} daemons>"

    _router: Router
    _registry: Registry
    _local: LocalLink
    _acceptor: Acceptor
    _admission: Admission
    _listening: ListenAddress | None
    _loop_lag: float
    _closing: trio.Event
    """Whoever opened it wants to leave."""
    _closed: trio.Event
    """Nothing is served any more."""
    _patience: trio.CancelScope
    """Around the wait for the last process trees."""

    # -- what it knows

    @property
    def address(self) -> str:
        """``HOST:PORT`` it listens on, with the real port."""
        assert self._listening is not None
        host = self._listening.host
        return f"{f'[{host}]' if ':' in host else host}:{self._listening.port}"

    @property
    def url(self) -> str:
        """The URL for a daemon's ``--server-url`` on this machine; elsewhere, put this machine's name in it."""
        assert self._listening is not None
        # "Every address" is none that can be dialled.
        every = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
        host = every.get(self._listening.host, self._listening.host)
        bracketed = f"[{host}]" if ":" in host else host
        return f"ws://{bracketed}:{self._listening.port}{PATH}"

    def daemons(self, labels: Mapping[str, str] | None = None, *, match: str = "*") -> list[Daemon]:
        """The daemons, online or away, that have all of `labels` and whose id matches the glob, by id."""
        records = self._registry.select(labels, match)
        return [self._handle(record) for record in sorted(records, key=lambda r: r.info.id)]

    def daemon(self, daemon_id: str) -> Daemon:
        """The daemon of that id, online or away.

        Raises:
            DaemonNotFound: none of that id is known.
        """
        return self._handle(self._registry.find(daemon_id))

    async def wait_for_daemon(self, daemon_id: str) -> Daemon:
        """The daemon, as soon as it is online: at once, or when it dials in. Bound it with `trio.fail_after`."""
        return self._handle(await self._registry.wait_online(daemon_id))

    def open_events(self) -> AbstractAsyncContextManager[AsyncIterator[DaemonEvent]]:
        """An async context manager for an endless async iterator over what happens to daemons from now on.

        1,024 events are held for a slow reader; then one event of kind "missed" counts the rest.
        """
        return self._registry.subscribe()

    def statistics(self) -> ControllerStatistics:
        """Numbers of this moment."""
        online = away = 0
        received, sent = self._acceptor.bytes_received, self._acceptor.bytes_sent
        platforms: dict[str, int] = {}
        for record in self._registry:
            if record.state is DaemonState.GONE:
                continue
            online += record.state is DaemonState.ONLINE
            away += record.state is DaemonState.AWAY
            platforms[record.info.platform] = platforms.get(record.info.platform, 0) + 1
            if record.pump is not None:
                received += record.pump.bytes_received
                sent += record.pump.bytes_sent
        return ControllerStatistics(
            daemons_online=online,
            daemons_away=away,
            platforms=platforms,
            jobs=self._local.job_count,
            jobs_started=self._local.jobs_started,
            bytes_received=received,
            bytes_sent=sent,
            loop_lag=self._loop_lag,
        )

    # -- what it does

    async def broadcast(
        self,
        command: Command,
        *,
        labels: Mapping[str, str] | None = None,
        match: str = "*",
        concurrency: int | None = None,
        **options: Unpack[RunOptions],
    ) -> dict[str, CommandResult | SanddError]:
        """Run a command on all matching daemons at once.

        One bad daemon delays and fails no other: its entry is the exception that `Daemon.run` raised.
        The answer takes as long as the slowest. A daemon that is away keeps it waiting, within
        `timeout`; but one that goes away with the command running does so for up to a day. Only
        `trio.move_on_after` bounds that too, and the other answers are lost with it.

        Args:
            command: as for `Daemon.run`, and so are the options.
            labels: only daemons that have all of these.
            match: only daemons whose id matches this glob.
            concurrency: how many run it at the same time; None: all.

        Returns:
            Daemon id to its result or its error.
        """
        if concurrency is not None and concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be at least 1")
        limiter = trio.CapacityLimiter(concurrency or 1_000_000)
        results: dict[str, CommandResult | SanddError] = {}
        misuse: list[Exception] = []

        async def run_on(daemon: Daemon) -> None:
            async with limiter:
                try:
                    results[daemon.id] = await daemon.run(command, **options)
                except SanddError as error:
                    results[daemon.id] = error
                except Exception as error:  # the same for each: once is enough
                    misuse.append(error)
                    nursery.cancel_scope.cancel()

        async with open_unwrapping_nursery() as nursery:
            for daemon in self.daemons(labels, match=match):
                nursery.start_soon(run_on, daemon)
        if misuse:
            raise misuse[0]
        return {daemon_id: results[daemon_id] for daemon_id in sorted(results)}

    # -- inside

    @trio.lowlevel.enable_ki_protection
    async def _serve(
        self,
        host: str,
        port: int,
        *,
        task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take daemons until `_close` is called, in the scope that this starts with."""
        try:
            with trio.CancelScope() as scope:
                async with open_unwrapping_nursery() as nursery:
                    addresses: list[ListenAddress] = await nursery.start(
                        lambda task_status: serve(
                            self._acceptor.handle,
                            host=host,
                            port=port,
                            path=PATH,
                            subprotocol=wire.SUBPROTOCOL,
                            max_message_bytes=wire.MAX_HELLO_BYTES,  # until it has said who it is
                            admission=self._admission,
                            task_status=task_status,
                        )
                    )
                    self._listening = addresses[0]
                    nursery.start_soon(self._look_after)
                    nursery.start_soon(self._local.run)
                    log.info("controller_started", address=self.address)
                    task_status.started(scope)
                    await self._closing.wait()
                    await self._drain()
                    nursery.cancel_scope.cancel()
        finally:
            self._closed.set()

    @trio.lowlevel.enable_ki_protection
    async def _look_after(self) -> None:
        while True:
            planned = trio.current_time() + LAG_INTERVAL
            await trio.sleep_until(planned)
            self._loop_lag = trio.current_time() - planned
            for daemon_id, forgotten in self._registry.expire():
                if forgotten:
                    self._router.forget_daemon(daemon_id)
                else:
                    self._router.daemon_gone(daemon_id)
            self._local.flush()

    async def _drain(self) -> None:
        """End what runs, say goodbye. Bounded, and not by the opener's task, where Ctrl-C strikes."""
        self._patience.deadline = trio.current_time() + self._local.longest_grace + DRAIN_SECONDS
        self._local.close()
        self._registry.close()
        with self._patience:
            await self._local.ended()
        with trio.move_on_after(DRAIN_SECONDS):
            await self._acceptor.drain()
        log.info("controller_closed")

    async def _close(self) -> None:
        """Have the service drain, and wait for it; Ctrl-C doesn't undo that, but shortens it."""
        self._closing.set()
        try:
            with trio.CancelScope(shield=True):  # `_drain` is bounded
                await self._closed.wait()
        except KeyboardInterrupt:
            self._patience.cancel()
            raise

    def _abandon(self) -> None:
        """Nothing is served any more, for whatever reason: whoever still waits learns of it."""
        self._local.close()
        self._registry.close()
        self._local.abandon()

    def _handle(self, record: DaemonRecord) -> Daemon:
        return Daemon._create(self._local, self._registry, record)

    def _wake(self, link: DaemonLink) -> None:
        record = self._registry.get(link.daemon_id)
        if record is not None and record.link is link and record.pump is not None:
            record.pump.wake()

    def _blame(self, link: DaemonLink, error: RemoteProtocolError) -> None:
        record = self._registry.get(link.daemon_id)
        if record is not None and record.link is link and record.pump is not None:
            record.pump.close(f"it broke the protocol: {error}")
