"""What stands behind a `Controller`: one that listens in this process, or a connection to one that doesn't."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import trio

from sandd import __version__, wire
from sandd._core._errors import (
    ConnectionLost,
    ControllerUnreachable,
)
from sandd._core.acceptor import Acceptor
from sandd._core.audit.sinks import NO_AUDIT
from sandd._core.dialer import Dialer, shown_url
from sandd._core.directory import Directory
from sandd._core.identity.rights import EVERYTHING, split_name
from sandd._core.link import Backoff
from sandd._core.link_watch import LinkWatch
from sandd._core.local_link import LocalLink
from sandd._core.logs import get_logger
from sandd._core.metrics.comings import Comings
from sandd._core.metrics.loop_lag import LoopLag
from sandd._core.metrics.readiness import WritableDirectory
from sandd._core.metrics.statistics import ProcessFigures, statistics_for
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.operators import OperatorDesk
from sandd._core.rate_limits.credentials import FailedCredentials
from sandd._core.rate_limits.job_starts import JobStartLimiter
from sandd._core.registry import Registry
from sandd._core.remote_link import RemoteLink
from sandd._core.router import Router
from sandd._core.transport import Connection, ListenAddress, serve

if TYPE_CHECKING:
    from pathlib import Path

    from sandd._core.admission import Admission
    from sandd._core.audit.sinks import AuditSink
    from sandd._core.audit.writer import AuditLog
    from sandd._core.bundle.handing_out import Bootstrap
    from sandd._core.controller_state import EndFile
    from sandd._core.identity.gate import Gate
    from sandd._core.identity.proofs import Credential
    from sandd._core.job_link import JobLink
    from sandd._core.metrics.catalogue import Reading
    from sandd._core.metrics.http_answers import MetricsAddress
    from sandd._core.policy.tenants import TenantPolicies
    from sandd._core.rate_limits.job_starts import RateLimits
    from sandd._core.reception import Stay
    from sandd._core.router_links import ClientLink
    from sandd._core.tls.contexts import ServerTls
    from sandd._core.tls.renewal import LiveCertificates
    from sandd._core.tls.trust import Trust

log = get_logger("controller")

DRAIN_SECONDS: Final = 3.0
"""Closing: how long peers have to take the farewell."""
LAG_INTERVAL: Final = 1.0
"""How often the loop's lag is measured, and daemons' leases are looked at."""
KEEP_INTERVAL: Final = 0.2
"""How often Ends that are kept for absent daemons go to the disk. A client that leaves waits for that, as its ping is
answered behind it: so a controller that is killed forgets none that nobody else remembers."""


class Service(ABC):
    """Serves one client, that of a `Controller`, from `run` until `close`."""

    link: JobLink
    directory: Directory

    def __init__(self) -> None:
        self._closing = trio.Event()
        """Whoever opened it wants to leave."""
        self._closed = trio.Event()
        """Nothing is served any more."""
        self._patience = trio.CancelScope()
        """Around the wait for the last process trees."""
        self.loop_lag = LoopLag(LAG_INTERVAL)

    @property
    @abstractmethod
    def address(self) -> str:
        """``HOST:PORT`` of the controller."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where daemons dial in."""

    @property
    @abstractmethod
    def ca_pin(self) -> str | None:
        """What the CA behind the controller's certificate is known by, where that is its own."""

    @property
    def certificate_failures(self) -> int:
        """Times that a new certificate could not be used."""
        return 0

    @property
    @abstractmethod
    def traffic(self) -> tuple[int, int]:
        """Bytes received and sent."""

    def own_statistics(self) -> wire.Statistics | None:
        """The controller's figures, where it is in this process."""
        return None

    @abstractmethod
    async def _serve(self, opened: trio.TaskStatus[None]) -> None:
        """Serve, until cancelled."""

    @abstractmethod
    async def _leave(self) -> None:
        """What is still to be said, when all jobs have ended; bounded."""

    @trio.lowlevel.enable_ki_protection
    async def run(
        self, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `close` is called, in the scope that this starts with."""
        try:
            with trio.CancelScope() as scope:
                async with open_unwrapping_nursery() as nursery:
                    await nursery.start(lambda task_status: self._serve(task_status))
                    nursery.start_soon(self.link.run)
                    nursery.start_soon(self.link.ask_again)
                    nursery.start_soon(self._watch_lag)
                    task_status.started(scope)
                    await self._closing.wait()
                    await self._drain()
                    nursery.cancel_scope.cancel()
        finally:
            self._closed.set()

    @trio.lowlevel.enable_ki_protection
    async def _watch_lag(self) -> None:
        while True:
            await trio.sleep_until(self.loop_lag.due(trio.current_time()))
            self.loop_lag.woke(trio.current_time())
            self._look_after()

    def _look_after(self) -> None:
        """Called every LAG_INTERVAL: nothing, unless there is something to look at."""
        return

    async def _drain(self) -> None:
        """End what runs, say goodbye. Bounded, and not by the opener's task, where Ctrl-C strikes."""
        self._patience.deadline = trio.current_time() + self.link.longest_grace + DRAIN_SECONDS
        self.link.close()
        self.directory.close()
        with self._patience:
            await self.link.ended()
        with trio.move_on_after(DRAIN_SECONDS):
            await self._leave()
        log.info("controller_closed")

    async def close(self) -> None:
        """Have it drain, and wait for that; Ctrl-C doesn't undo that, but shortens it."""
        self._closing.set()
        try:
            with trio.CancelScope(shield=True):  # `_drain` is bounded
                await self._closed.wait()
        except KeyboardInterrupt:
            self.hurry()
            raise

    def hurry(self) -> None:
        """Don't wait for the last process trees."""
        self._patience.cancel()

    def abandon(self) -> None:
        """Nothing is served any more, for whatever reason: whoever still waits learns of it."""
        self.link.close()
        self.directory.close()
        self.link.abandon()


class LocalService(Service):
    """A controller in this process: daemons and operators dial in, and a router joins them and our own client."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        gate: Gate,
        heartbeat: float,
        dead_after: float,
        admission: Admission,
        rate_limits: RateLimits,
        ends: EndFile | None,
        policies: TenantPolicies,
        certificates: LiveCertificates | None = None,
        audit: AuditSink = NO_AUDIT,
        metrics: MetricsAddress | None = None,
        log_written: AuditLog | None = None,
        state_dir: Path | None = None,
        bootstrap: bool = False,
    ) -> None:
        super().__init__()
        self._host, self._port = host, port
        self.gate = gate
        self.certificates = certificates
        """What it serves by; None: no TLS."""
        self.bootstrap: Bootstrap | None = None
        """What it hands out to who has no daemon yet; None: nothing."""
        if bootstrap:
            from sandd._core.bundle.handing_out import Bootstrap  # few controllers do

            self.bootstrap = Bootstrap(self._presented, is_in_the_clear=gate.insecure)
        self.router = Router(
            self._authorise,
            audit,
            lambda tenant: [each.hash for each in policies.of(tenant)],
            policies.limits,
            policies.isolation,
        )
        self.router.process = self._figures
        self._began_at = time.monotonic()
        self._job_starts = JobStartLimiter(rate_limits)
        self._failures = FailedCredentials()
        self.comings = Comings()
        self.policies = policies
        self._ends = ends
        self._ends_written = 0
        """The router's `ends_version` when the file was written."""
        self._written_at_look: int | None = None
        """`_ends_written` at the last look, if there were others to be written by then."""
        self.registry = Registry()
        self.directory = Directory()
        self.link = self._local = LocalLink(self.router, self.directory, audit=audit)
        self.link.flush()  # it is told that there is nobody yet
        settle = self._local.flush
        self._link_watch = LinkWatch()
        self.acceptor = Acceptor(
            router=self.router,
            registry=self.registry,
            settle=settle,
            gate=gate,
            heartbeat=heartbeat,
            dead_after=dead_after,
            audit=audit,
            failures=self._failures,
            comings=self.comings,
            watch=self._link_watch,
        )
        self.desk = OperatorDesk(
            router=self.router,
            settle=settle,
            gate=gate,
            heartbeat=heartbeat,
            dead_after=dead_after,
            may_answer=lambda: not self._has_unwritten_ends,
            audit=audit,
            failures=self._failures,
            comings=self.comings,
            watch=self._link_watch,
        )
        self._admission = admission
        self._listening: ListenAddress | None = None
        self._metrics = metrics
        """Where its figures are to be had; None: nowhere."""
        self.metrics_address: str | None = None
        """The same, with the real port."""
        self._log_written = log_written
        self._stores = None if state_dir is None else WritableDirectory(state_dir)

    @property
    def address(self) -> str:
        """``HOST:PORT`` it listens on, with the real port."""
        assert self._listening is not None
        return f"{_bracketed(self._listening.host)}:{self._listening.port}"

    @property
    def url(self) -> str:
        """Where daemons on this machine dial in."""
        assert self._listening is not None
        # "Every address" is none that can be dialled.
        every = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
        host = every.get(self._listening.host, self._listening.host)
        scheme = "ws" if self.certificates is None else "wss"
        return f"{scheme}://{_bracketed(host)}:{self._listening.port}{wire.DAEMON_PATH}"

    @property
    def ca_pin(self) -> str | None:
        """Of its own CA, if it has one."""
        if self.certificates is None or self.certificates.certificates.pin is None:
            return None
        return str(self.certificates.certificates.pin)

    @property
    def certificate_failures(self) -> int:
        """Times that a new certificate could not be used, and the old one stayed."""
        return 0 if self.certificates is None else self.certificates.failures

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes from and to daemons."""
        meter = self.acceptor.meter
        return meter.received, meter.sent

    def own_statistics(self) -> wire.Statistics:
        """The controller's figures."""
        tallies = self.router.counts.tallies
        return statistics_for(EVERYTHING, wire.AskStatistics(0), tallies, self._figures)

    def _figures(self) -> ProcessFigures:
        uptime = time.monotonic() - self._began_at  # whoever asks may be in another loop than ours
        return ProcessFigures(len(self.desk.operators), uptime, self.loop_lag.latest)

    @trio.lowlevel.enable_ki_protection
    async def _serve(self, opened: trio.TaskStatus[None]) -> None:
        if self._ends is not None:
            self.router.restore_ends(await trio.to_thread.run_sync(self._ends.read))
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(self._link_watch.run)
            if self._metrics is not None:
                # Not before: most controllers are parts of programs, and start sooner without.
                from sandd._core.metrics.listener import Pages, serve_pages

                pages = Pages(self._read_figures, self._why_not_ready)
                where: tuple[str, int] = await nursery.start(serve_pages, pages, self._metrics)
                self.metrics_address = f"{_bracketed(where[0])}:{where[1]}"
            addresses: list[ListenAddress] = await nursery.start(
                lambda task_status: serve(
                    self._handle,
                    host=self._host,
                    port=self._port,
                    paths=(wire.DAEMON_PATH, wire.OPERATOR_PATH),
                    subprotocol=wire.SUBPROTOCOL,
                    max_message_bytes=wire.MAX_HELLO_BYTES,  # until it has said who it is
                    admission=self._admission,
                    until_admitted=True,
                    rest_seconds=self.acceptor.rest_seconds,
                    barred_for=self._barred_for,
                    tls=self._presented,
                    documents=self.bootstrap,
                    task_status=task_status,
                )
            )
            self._listening = addresses[0]
            if self._ends is not None:
                nursery.start_soon(self._keep_ends, self._ends)
            nursery.start_soon(self.gate.watch)
            if self.bootstrap is not None:
                nursery.start_soon(self.bootstrap.run)
            if self.certificates is not None:
                self.certificates.note = self.link.audit.note
                self.link.audit.note(self.certificates.record())
                nursery.start_soon(self.certificates.keep_fresh)
            log.info("controller_started", address=self.address)
            if self.gate.insecure and self.gate.token is None:
                log.warning(
                    "daemons_need_no_token",
                    address=self.address,
                    reason="insecure: whoever reaches it can be a daemon, and is sent what is to run there",
                )
            opened.started()

    def _read_figures(self) -> list[Reading]:
        from sandd._core.metrics.readings import ControllerFigures, read_controller

        written = self._log_written
        return read_controller(
            ControllerFigures(
                version=__version__,
                counts=self.router.counts,
                comings=self.comings,
                daemon_links=self.acceptor.meter,
                operator_links=self.desk.meter,
                operators=len(self.desk.operators),
                ends_kept=self.router.ends_kept,
                certificate_failures=self.certificate_failures,
                loop_lag=self.loop_lag,
                audit=None if written is None else written.counts,
                audit_is_failing=written is not None and written.failure is not None,
            )
        )

    async def _why_not_ready(self) -> str | None:
        """Why daemons and operators had better not come; None: they may. Bounded."""
        if self._listening is None:
            return "it does not listen yet"
        if self._closing.is_set():
            return "it is closing"
        if self._log_written is not None and self._log_written.failure is not None:
            return f"the audit log can't be written: {self._log_written.failure}"
        return None if self._stores is None else await self._stores.problem()

    def _presented(self) -> ServerTls | None:
        return None if self.certificates is None else self.certificates.current

    @trio.lowlevel.enable_ki_protection
    async def _keep_ends(self, file: EndFile) -> None:
        """Have on the disk what is still to be said to absent daemons: for the next controller."""
        while True:
            await trio.sleep(KEEP_INTERVAL)
            await self._write_ends(file)

    async def _write_ends(self, file: EndFile) -> None:
        version = self.router.ends_version
        if version != self._ends_written:
            try:
                await trio.to_thread.run_sync(file.write, self.router.kept_ends)
            except OSError as error:
                log.warning("ends_not_kept", path=str(file.path), error=str(error))
            else:
                self._ends_written = version
            self.desk.answer()  # a disk that is full is not the operators' business

    @property
    def _has_unwritten_ends(self) -> bool:
        return self._ends is not None and self.router.ends_version != self._ends_written

    @trio.lowlevel.enable_ki_protection
    async def _handle(self, connection: Connection) -> Stay | None:
        if connection.path == wire.OPERATOR_PATH:
            return await self.desk.handle(connection)
        return await self.acceptor.handle(connection)

    def _barred_for(self, host: str, path: str) -> float:
        seconds = self._failures.barred_for(host, path, trio.current_time())
        self.comings.unheard += seconds > 0.0
        return seconds

    def _authorise(self, link: ClientLink, attach: wire.Attach) -> wire.Refused | None:
        if self.policies.is_empty and not self._job_starts.is_limiting:
            return None
        tenant, _ = split_name(attach.daemon_id)
        refused = self.policies.judge(tenant, attach)
        if refused is not None or not self._job_starts.is_limiting:
            return refused
        return self._job_starts.judge(
            attach,
            operator=f"{link.principal.tenant}/{link.principal.name}",
            tenant=tenant,
            is_agent=not link.client,
            now=trio.current_time(),
        )

    def _look_after(self) -> None:
        for daemon_id, forgotten in self.registry.expire():
            if forgotten:
                self.router.forget_daemon(daemon_id)
            else:
                self.router.daemon_gone(daemon_id)
        self._answer_where_the_disk_hangs()
        self.link.flush()

    def _answer_where_the_disk_hangs(self) -> None:
        """A write that takes from one look to the next holds up no pings: operators would take us for dead."""
        written = self._ends_written if self._has_unwritten_ends else None
        if written is not None and written == self._written_at_look:
            self.desk.answer()
        self._written_at_look = written

    async def _leave(self) -> None:
        pumps = [*self.acceptor.say_goodbye(), *self.desk.say_goodbye()]
        async with trio.open_nursery() as nursery:
            for pump in pumps:
                nursery.start_soon(pump.drained)
        if self._ends is not None:
            await self._write_ends(self._ends)


MOST_WAIT_SECONDS: Final = 2.0
"""Of operators, before they dial again: people and scripts wait for them, and they are few. A thousand of them are
five hundred dials in a second while nobody answers; once somebody does, no more than it lets in."""


class RemoteService(Service):
    """A connection to a controller in another process, made again whenever it breaks."""

    def __init__(
        self,
        url: str,
        *,
        daemon_url: str,
        credential: Credential | None,
        name: str,
        connect_timeout: float,
        trust: Trust | None = None,
    ) -> None:
        super().__init__()
        self._url, self._daemon_url = url, daemon_url
        self._connect_timeout = connect_timeout
        self.directory = Directory()
        self.link = self._remote = RemoteLink(self.directory, credential=credential, name=name)
        self._dialer = Dialer(url, self._remote, Backoff(maximum=MOST_WAIT_SECONDS), trust)

    @property
    def address(self) -> str:
        """``HOST:PORT`` that it dials."""
        return self._url.partition("//")[2].partition("/")[0]

    @property
    def url(self) -> str:
        """Where daemons dial in."""
        return self._daemon_url

    @property
    def ca_pin(self) -> str | None:
        """What it is dialled by, if that is a pin."""
        trust = self._dialer.trust
        return None if trust is None else ",".join(map(str, trust.options.pins)) or None

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes from and to the controller."""
        return self._remote.traffic

    @trio.lowlevel.enable_ki_protection
    async def _serve(self, opened: trio.TaskStatus[None]) -> None:
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(self._remote.look_after)
            nursery.start_soon(self._dialer.run)
            with trio.move_on_after(self._connect_timeout) as patience:
                await self.directory.told.wait()
            if patience.cancelled_caught:
                url = shown_url(self._url)
                # Nobody has said the path: it is what is behind any URL of a controller.
                why = self._dialer.failure.removeprefix(f"could not connect to {url}: ")
                raise ControllerUnreachable(
                    f"no controller could be reached at {url.removesuffix(wire.OPERATOR_PATH)} within "
                    f"{self._connect_timeout:g} s: {why or 'it does not answer'}"
                )
            opened.started()

    async def _leave(self) -> None:
        if self.link.client.has_ended_any:
            await self._be_heard()
        await self._dialer.say_goodbye("the client has closed")

    async def _be_heard(self) -> None:
        """The controller has what we said, if need be on another connection, where it is said again. Bound it."""
        while True:
            await self._dialer.live.wait()
            pump = self._dialer.pump
            try:
                if pump is not None:
                    await pump.ping()
                    return
            except ConnectionLost as error:
                log.warning("farewells_unheard", reason=str(error))
            # Its end has yet to be seen to by the dialer, some turns from now; until then it counts as live.
            while self._dialer.pump is pump and pump is not None:
                await trio.lowlevel.checkpoint()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
