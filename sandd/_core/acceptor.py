"""The controller's end of daemon connections: handshake, who may hold an id, and the live link."""

from __future__ import annotations

import contextlib
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd import wire
from sandd._core._errors import ConnectionLost
from sandd._core.audit.comings import DAEMON, gone, let_in, turned_away
from sandd._core.audit.sinks import NO_AUDIT
from sandd._core.fencing import Claim, Ruling
from sandd._core.identity.gate import REFUSED_DAEMON
from sandd._core.logs import get_logger
from sandd._core.metrics.comings import Comings
from sandd._core.metrics.link_bytes import LinkBytes
from sandd._core.pump import NEVER, Pump
from sandd._core.rate_limits.credentials import FailedCredentials
from sandd._core.reception import (
    DRAIN_RETRY_SECONDS,
    STALE_RETRY_SECONDS,
    Greeting,
    farewell,
    greet_with_pass,
    note_judgement,
    shake_hands,
    welcome_and_pump,
)
from sandd._core.registry import MAX_DAEMONS, DaemonRecord, Registry
from sandd.wire import DaemonState, RejectCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandd._core.audit.sinks import AuditSink
    from sandd._core.identity.gate import Gate
    from sandd._core.identity.passes import Pass
    from sandd._core.link_watch import LinkWatch
    from sandd._core.reception import Stay
    from sandd._core.router import Router
    from sandd._core.router_links import DaemonLink
    from sandd._core.transport import Connection

log = get_logger("daemons")

RIVAL_PING_SECONDS: Final = 5.0
"""How long the holder of an id has to answer when a rival asks for it."""
MOST_REST_SECONDS: Final = 0.05
"""How much later it may be heard what a daemon says of whom nobody expects anything: a dozen heartbeats of 5,000."""


@define(eq=False)
class Acceptor:
    """Takes connections from daemons into the registry and the router."""

    router: Router
    registry: Registry
    settle: Callable[[], None]
    """Called when the router may hold something for others."""
    gate: Gate
    heartbeat: float = 20.0
    dead_after: float = 45.0
    audit: AuditSink = NO_AUDIT
    failures: FailedCredentials = field(factory=FailedCredentials)
    draining: bool = False
    comings: Comings = field(factory=Comings)
    meter: LinkBytes = field(factory=LinkBytes)
    """Of its links."""
    watch: LinkWatch | None = None
    """What looks after all of them; None: each looks after itself."""

    @property
    def rest_seconds(self) -> float:
        """How much later it is heard: little beside a heartbeat."""
        return min(MOST_REST_SECONDS, self.heartbeat / 20)

    async def handle(self, connection: Connection) -> Stay | None:
        """One connection, from its first message on: see `shake_hands`."""
        return await shake_hands(
            connection, self.gate.controller_id, self._greet, self.audit, self.comings
        )

    async def _greet(self, connection: Connection, greeting: Greeting) -> wire.Reject | Stay:
        reject = await greet_with_pass(
            self.gate.passes, lambda given: self._judge(connection, greeting, given)
        )
        hello = greeting.hello
        if not isinstance(reject, wire.Reject) or not isinstance(hello, wire.Hello):
            return reject
        self.comings.refuse(DAEMON, reject.code.value)
        log.warning(
            "daemon_rejected",
            daemon_id=hello.daemon_id,
            remote=connection.remote,
            code=reject.code.value,
            reason=reject.message,
        )
        self.audit.note(
            turned_away(DAEMON, connection.remote, reject, daemon=hello.daemon_id),
            from_stranger=True,
        )
        return reject

    async def _judge(
        self, connection: Connection, greeting: Greeting, given: Pass
    ) -> wire.Reject | Stay:
        """What serves the daemon to the link's end, if it is to have one; else the answer."""
        hello = greeting.hello
        reject = await self.gate.admit_daemon(
            given,
            greeting,
            is_loopback=connection.is_loopback,
            channel_binding=connection.channel_binding,
            certificate=connection.peer_identity,
        )
        note_judgement(connection, reject, self.failures, self.comings)
        if reject is not None:
            return reject
        assert isinstance(hello, wire.Hello)  # the gate lets nothing else in
        claim = Claim.of(hello, greeting.challenged_at)
        # From its answer on nothing is waited for until the link is live, and its pass can close it.
        reject = await self._admit(given.name, hello, claim)
        if reject is None and given.is_withdrawn:
            reject = REFUSED_DAEMON
        return reject or partial(self._serve, connection, hello, claim, given)

    async def _admit(self, name: str, hello: wire.Hello, claim: Claim) -> wire.Reject | None:
        """Whether the id is this daemon's to hold; None: it is, and nobody else holds it now."""
        while True:
            if self.draining:
                return wire.Reject(
                    RejectCode.BUSY, "the controller is closing", DRAIN_RETRY_SECONDS
                )
            record = self.registry.get(name)
            if record is None and len(self.registry) >= MAX_DAEMONS:
                return wire.Reject(
                    RejectCode.BUSY, f"the controller knows {MAX_DAEMONS} daemons already", 60.0
                )
            if record is None:
                return None
            match record.tenure.judge(claim, record.state, trio.current_time() - record.since):
                case Ruling.STALE:
                    return wire.Reject(
                        RejectCode.STALE,
                        "a newer connection, or start, of this daemon is known",
                        STALE_RETRY_SECONDS,
                    )
                case Ruling.REFUSE:
                    return self._refuse(record, claim, hello)
                case Ruling.ASK_HOLDER:
                    if await self._answers(record):
                        return self._refuse(record, claim, hello)
                case Ruling.SUPERSEDE:
                    if record.pump is not None:
                        record.pump.close("superseded by a newer connection of the same daemon")
                    return None
                case Ruling.ADMIT_FORK:
                    log.warning(
                        "daemon_forked",
                        daemon_id=name,
                        host=hello.hostname,
                        previous_host=record.about.hostname,
                        reason="its state directory was copied, or rolled back, since the daemon that "
                        "was here before it was started; if both run, stop one",
                    )
                    self.router.tell_cloned(name, hello.instance, _about(hello))
                    return None
                case Ruling.ADMIT:
                    return None

    async def _answers(self, record: DaemonRecord) -> bool:
        """Whether the holder of an id gives a sign of life; the link of one that doesn't is over."""
        pump, link = record.pump, record.link
        assert pump is not None  # it is online
        assert link is not None
        # ConnectionLost: it ended meanwhile, and its own task may not have come to saying so.
        with trio.move_on_after(RIVAL_PING_SECONDS), contextlib.suppress(ConnectionLost):
            await pump.ping()
            # If another took its place in the turn of its answer, that one is to be asked.
            known = self.registry.get(record.id)
            return known is not None and known.pump is pump
        pump.close("silent while a rival asked for its id")
        self._offline(link, _state_after(pump))
        return False

    def _refuse(self, record: DaemonRecord, claim: Claim, hello: wire.Hello) -> wire.Reject:
        is_news = not record.tenure.has_refused(claim)
        reject = record.tenure.refuse(hello.daemon_id, claim)
        if reject.code is RejectCode.CLONED and is_news:  # it will ask again every ten seconds
            self.router.tell_cloned(record.id, hello.instance, _about(hello))
        return reject

    async def _serve(
        self, connection: Connection, hello: wire.Hello, claim: Claim, given: Pass
    ) -> None:
        """Carry the daemon's frames until its link ends."""
        try:
            link, pump = self._open_link(connection, hello, claim, given)
            version = hello.version
            del hello, claim  # a link lives for weeks, and there are thousands
            try:
                self.settle()
                # By itself, before the pump sends what has been scheduled since the daemon counts as online.
                await welcome_and_pump(
                    connection, pump, self._welcome(version, given), "daemon_id", given.name
                )
            finally:
                self._offline(link, _state_after(pump))
                who = {"tenant": link.tenant, "daemon": link.daemon_id}
                self.audit.note(gone(DAEMON, connection.remote, **who))
                self.failures.proven(connection.host, connection.path, trio.current_time())
        finally:
            self.gate.passes.take_back(given)

    def _open_link(
        self, connection: Connection, hello: wire.Hello, claim: Claim, given: Pass
    ) -> tuple[DaemonLink, Pump]:
        connection.allow_messages(wire.MAX_MESSAGE_BYTES)
        about = _about(hello, given.labels)
        link = self.router.add_daemon(given.name, hello.instance, about, now=trio.current_time())
        pump = Pump(
            connection,
            link.scheduler,
            on_frame=partial(self.router.receive_from_daemon, link),
            after_message=self.settle,
            after_pull=self.router.wake_carriers,
            heartbeat=NEVER,  # the daemon pings; we answer, and count its silence
            dead_after=self.dead_after,
            meter=self.meter,
            watch=self.watch,
            expecting=link.routes,  # for jobs of which nobody has a channel, it says nothing
        )
        link.carrier = pump
        given.close = pump.close
        self.registry.online(given.name, about, claim, link, pump)
        self.comings.admitted[DAEMON] += 1
        log.info(
            "daemon_connected",
            daemon_id=given.name,
            remote=connection.remote,
            instance=hello.instance,
        )
        about_it = {"hostname": hello.hostname, "instance": hello.instance}
        who = {"tenant": link.tenant, "daemon": link.daemon_id}
        self.audit.note(let_in(DAEMON, connection.remote, result=about_it, **who))
        return link, pump

    def _welcome(self, version: int, given: Pass) -> wire.Welcome:
        return wire.Welcome(version, self.heartbeat, self.dead_after, enrolment=given.enrolment)

    def _offline(self, link: DaemonLink, state: DaemonState) -> None:
        self.router.remove_daemon(link, state)
        self.registry.offline(link, state)
        self.settle()

    def say_goodbye(self) -> list[Pump]:
        """Take nobody new, and tell every daemon to come back later; the links that are to be drained."""
        self.draining = True
        pumps = []
        for record in self.registry:
            if record.link is not None and record.pump is not None:
                farewell(record.link, record.pump)
                pumps.append(record.pump)
        return pumps


def _state_after(pump: Pump) -> DaemonState:
    return DaemonState.AWAY if pump.goodbye is None else DaemonState.GONE


def _about(
    hello: wire.Hello, labels: Mapping[str, str] = MappingProxyType({})
) -> wire.DaemonDescription:
    """What it says of itself, and the labels that its token gave it."""
    return wire.DaemonDescription(
        hostname=hello.hostname,
        platform=hello.platform,
        arch=hello.arch,
        version=hello.daemon_version,
        # Beyond the limit those of its own go, and not those that it was given.
        labels=dict([*hello.labels.items(), *labels.items()][-wire.MAX_LABELS :]),
        isolation=hello.isolation,
        isolation_levels=hello.isolation_levels,
    )
