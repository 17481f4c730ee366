"""The controller's end of daemon connections: handshake, who may hold an id, and the live link."""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd import wire
from sandd._core._errors import ConnectionLost, RemoteProtocolError
from sandd._core.fencing import Claim, Ruling
from sandd._core.link import judge_hello
from sandd._core.logs import get_logger
from sandd._core.pump import HANDSHAKE_SECONDS, NEVER, Pump, receive_control, send_control
from sandd._core.registry import MAX_DAEMONS, DaemonInfo, DaemonRecord, Registry
from sandd.wire import DaemonState, RejectCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.router import DaemonLink, Router
    from sandd._core.transport import Connection

log = get_logger("daemons")

RIVAL_PING_SECONDS: Final = 5.0
"""How long the holder of an id has to answer when a rival asks for it."""
DRAIN_RETRY_SECONDS: Final = 1.0
"""How soon daemons may come back to a controller that is closing: it may be restarting."""


@define(eq=False)
class Acceptor:
    """Takes connections from daemons into the registry and the router."""

    router: Router
    registry: Registry
    after_message: Callable[[], None]
    """Called when the router may hold something for others."""
    token: bytes | None
    insecure: bool
    heartbeat: float = 20.0
    dead_after: float = 45.0
    controller_id: str = field(factory=lambda: secrets.token_hex(8))
    draining: bool = False
    bytes_received: int = 0
    """On links that have ended; `statistics` adds the live ones."""
    bytes_sent: int = 0

    async def handle(self, connection: Connection) -> None:
        """One connection, from its first message to its end. Errors of the peer are logged, not raised."""
        challenge = wire.Challenge(secrets.token_bytes(32), self.controller_id)
        challenged_at = trio.current_time()
        try:
            hello = await self._hear_hello(connection, challenge)
            reject = judge_hello(
                hello,
                challenge,
                token=self.token,
                trusted_peer=self.insecure or connection.is_loopback,
            )
            assert isinstance(hello, wire.Hello)  # judge_hello refuses anything else
            claim = Claim.of(hello, challenged_at)
            reject = reject or await self._admit(hello, claim)
            if reject is None:
                await self._pump(connection, hello, claim)
                return
            log.warning(
                "daemon_rejected",
                daemon_id=hello.daemon_id,
                remote=connection.remote,
                code=reject.code.value,
                reason=reject.message,
            )
            with trio.move_on_after(HANDSHAKE_SECONDS):
                await send_control(connection, reject)
            await connection.aclose(1008, reject.code.value)
        except RemoteProtocolError as error:
            log.warning("connection_refused", remote=connection.remote, reason=str(error))
            await connection.aclose(1002, str(error)[:100])
        except ConnectionLost as error:
            log.info("connection_lost", remote=connection.remote, reason=str(error))

    async def _hear_hello(
        self, connection: Connection, challenge: wire.Challenge
    ) -> wire.Control | wire.Unknown:
        with trio.move_on_after(HANDSHAKE_SECONDS):
            await send_control(connection, challenge)
            return await receive_control(connection)
        raise RemoteProtocolError(f"no Hello within {HANDSHAKE_SECONDS:.0f} s")

    async def _admit(self, hello: wire.Hello, claim: Claim) -> wire.Reject | None:
        """Whether the id is this daemon's to hold; None: it is, and nobody else holds it now."""
        while True:
            if self.draining:
                return wire.Reject(
                    RejectCode.BUSY, "the controller is closing", DRAIN_RETRY_SECONDS
                )
            record = self.registry.get(hello.daemon_id)
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
                        0.0,
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
                        daemon_id=hello.daemon_id,
                        host=hello.hostname,
                        previous_host=record.info.hostname,
                        reason="its state directory was copied, or rolled back, since the daemon that "
                        "was here before it was started; if both run, stop one",
                    )
                    self.registry.tell_cloned(_info(hello))
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
            known = self.registry.get(record.info.id)
            return known is not None and known.pump is pump
        pump.close("silent while a rival asked for its id")
        self._offline(link, _state_after(pump))
        return False

    def _refuse(self, record: DaemonRecord, claim: Claim, hello: wire.Hello) -> wire.Reject:
        is_news = not record.tenure.has_refused(claim)
        reject = record.tenure.refuse(hello.daemon_id, claim)
        if reject.code is RejectCode.CLONED and is_news:  # it will ask again every ten seconds
            self.registry.tell_cloned(_info(hello))
        return reject

    async def _pump(self, connection: Connection, hello: wire.Hello, claim: Claim) -> None:
        connection.allow_messages(wire.MAX_MESSAGE_BYTES)
        link = self.router.add_daemon(hello.daemon_id, hello.instance)
        pump = Pump(
            connection,
            link.scheduler,
            on_frame=lambda frame: self._on_frame(link, frame),
            after_message=self.after_message,
            heartbeat=NEVER,  # the daemon pings; we answer, and count its silence
            dead_after=self.dead_after,
        )
        info = _info(hello)
        self.registry.online(info, claim, link, pump)
        log.info(
            "daemon_connected", daemon_id=info.id, remote=connection.remote, instance=info.instance
        )
        try:
            self.after_message()
            # By itself, before the pump sends what has been scheduled since the daemon counts as online.
            with trio.fail_after(HANDSHAKE_SECONDS):
                await send_control(
                    connection, wire.Welcome(hello.version, self.heartbeat, self.dead_after)
                )
            await pump.run()
        except trio.TooSlowError:
            log.info("daemon_disconnected", daemon_id=info.id, reason="it did not take the Welcome")
        except RemoteProtocolError as error:
            log.warning("daemon_broke_protocol", daemon_id=info.id, reason=str(error))
            await connection.aclose(1002, str(error)[:100])
        except ConnectionLost as error:
            log.info("daemon_disconnected", daemon_id=info.id, reason=str(error))
        finally:
            self.bytes_received += pump.bytes_received
            self.bytes_sent += pump.bytes_sent
            self._offline(link, _state_after(pump))

    def _on_frame(self, link: DaemonLink, frame: wire.Frame) -> None:
        # Of a superseded link nothing counts any more, though its pump may still hold a message.
        if self.router.daemons.get(link.daemon_id) is link:
            self.router.receive(link, frame)

    def _offline(self, link: DaemonLink, state: DaemonState) -> None:
        self.router.remove_daemon(link, state)
        self.registry.offline(link, state)
        self.after_message()

    async def drain(self) -> None:
        """Take nobody new, and tell every daemon to come back later. Bound it."""
        self.draining = True
        for record in self.registry:
            if record.link is not None and record.pump is not None:
                goodbye = wire.Goodbye("the controller is closing", DRAIN_RETRY_SECONDS)
                # Late, behind the Ends of jobs: nothing that follows a farewell is read.
                record.link.control(0, goodbye, late=True)
                record.pump.wake()
        async with trio.open_nursery() as nursery:
            for record in self.registry:
                if record.pump is not None:
                    nursery.start_soon(record.pump.drained)


def _state_after(pump: Pump) -> DaemonState:
    return DaemonState.AWAY if pump.goodbye is None else DaemonState.GONE


def _info(hello: wire.Hello) -> DaemonInfo:
    return DaemonInfo(
        id=hello.daemon_id,
        hostname=hello.hostname,
        platform=hello.platform,
        arch=hello.arch,
        version=hello.daemon_version,
        labels=dict(hello.labels),
        instance=hello.instance,
        connected_at=time.time(),
    )
