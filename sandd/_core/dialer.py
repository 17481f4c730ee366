"""Keeps a daemon connected: dials, introduces itself, pumps, waits, and dials again, for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import trio
from attrs import define, field

from sandd import wire
from sandd._core._errors import (
    AuthenticationFailed,
    ConnectionLost,
    RemoteProtocolError,
    RequestRefused,
    SanddError,
)
from sandd._core.job import DaemonLink
from sandd._core.link import Backoff, Identity, answer_challenge
from sandd._core.logs import get_logger
from sandd._core.pump import HANDSHAKE_SECONDS, Pump, receive_control, send_control
from sandd._core.transport import Connection, connect
from sandd.wire import RejectCode

if TYPE_CHECKING:
    from sandd._core.runner import JobRunner

log = get_logger("link")

LEAST_ID_WAIT: Final = 1.0
"""Seconds between two tries at an id that another daemon holds."""


class Rejected(SanddError):
    """The controller said no, for now."""

    def __init__(self, reject: wire.Reject) -> None:
        super().__init__(f"rejected ({reject.code.value}): {reject.message}")
        self.reject = reject


@define
class Dialer:
    """One daemon's connection to its controller, over all its cuts."""

    url: str
    identity: Identity
    token: bytes | None
    runner: JobRunner
    backoff: Backoff
    _connections: int = 0
    _pump: Pump | None = None
    _link: DaemonLink | None = None
    live: trio.Event = field(factory=trio.Event)
    """Set while a link is live."""

    async def run(self) -> None:
        """Stay connected until cancelled.

        Raises:
            AuthenticationFailed: the controller refused our credentials.
            RequestRefused: the controller will never take this daemon as it is.
        """
        while True:
            wait = await self._one_link()
            await trio.sleep(wait)

    async def tell_all(self) -> None:
        """Send all that jobs still have to tell to those who take it, if a link is live. Bound it."""
        if self._pump is not None:
            await self.runner.told()
        if self._pump is not None:
            await self._pump.drained()

    async def say_goodbye(self, message: str) -> None:
        """Send Goodbye, if a link is live. Bound it."""
        pump, link = self._pump, self._link
        if pump is not None and link is not None:
            # By itself, because nothing behind it is read, and control frames overtake data.
            link.control(0, wire.Goodbye(message))
            await pump.drained()

    async def _one_link(self) -> float:
        """Dial once and pump until the link ends; returns the seconds to wait before the next dial."""
        self._connections += 1
        live_at: float | None = None
        try:
            async with connect(
                self.url, subprotocol=wire.SUBPROTOCOL, max_message_bytes=wire.MAX_MESSAGE_BYTES
            ) as connection:
                welcome = await self._introduce(connection)
                live_at = trio.current_time()
                await self._pump_link(connection, welcome)
        except Rejected as error:
            return self._after_reject(error)
        except (ConnectionLost, RemoteProtocolError) as error:
            retry_after = self._goodbye_wait()
            if live_at is None:
                refused_for = error.retry_after if isinstance(error, ConnectionLost) else None
                wait = self.backoff.after_failure(refused_for)
                log.warning(
                    "dial_failed",
                    url=shown_url(self.url),
                    reason=str(error),
                    retry_in=round(wait, 2),
                )
            elif retry_after:
                wait = self.backoff.after_failure(retry_after)
                log.info("controller_left", reason=str(error), retry_in=round(wait, 2))
            else:
                progressed = self._link is not None and self._link.progressed
                wait = self.backoff.after_loss(trio.current_time() - live_at, progressed)
                log.warning("link_lost", reason=str(error), retry_in=round(wait, 2))
            return wait
        finally:
            self._pump = self._link = None
            self.live = trio.Event()
        raise AssertionError(
            "a pump ends by an error"
        )  # pragma: no cover - says so to the type checker

    async def _introduce(self, connection: Connection) -> wire.Welcome:
        with trio.move_on_after(HANDSHAKE_SECONDS) as scope:
            challenge = await receive_control(connection)
            hello = answer_challenge(challenge, self.identity, self._connections, self.token)
            await send_control(connection, hello)
            answer = await receive_control(connection)
        if scope.cancelled_caught:
            raise ConnectionLost(
                f"{self.url} accepted the connection, but did not answer within {HANDSHAKE_SECONDS} s"
            )
        if isinstance(answer, wire.Reject):
            raise Rejected(answer)
        if not isinstance(answer, wire.Welcome):
            raise RemoteProtocolError(
                f"the controller answered with {type(answer).__name__}, not with Welcome"
            )
        return answer

    async def _pump_link(self, connection: Connection, welcome: wire.Welcome) -> None:
        link = DaemonLink()
        pump = Pump(
            connection,
            link.scheduler,
            on_frame=lambda frame: self.runner.receive(link, frame),
            heartbeat=welcome.heartbeat,
            dead_after=welcome.dead_after,
            after_message=self.runner.after_message,
            after_pull=self.runner.serve_disk,
        )
        self._pump, self._link = pump, link
        self.runner.add_link(link, pump)
        log.info("connected", url=shown_url(self.url), daemon_id=self.identity.daemon_id)
        self.live.set()
        try:
            await pump.run()
        finally:
            self.runner.remove_link(link)

    def _goodbye_wait(self) -> float:
        goodbye = self._pump.goodbye if self._pump is not None else None
        return goodbye.retry_after if goodbye is not None else 0.0

    def _after_reject(self, error: Rejected) -> float:
        reject = error.reject
        if reject.code is RejectCode.UNAUTHENTICATED:
            raise AuthenticationFailed(
                reject.message or "the controller refused our credentials"
            ) from error
        if reject.code in (RejectCode.BAD_HELLO, RejectCode.BAD_VERSION):
            raise RequestRefused(f"the controller refuses this daemon: {reject.message}") from error
        retry_after = reject.retry_after
        if reject.code in (RejectCode.ID_IN_USE, RejectCode.CLONED):
            retry_after = max(retry_after or 0.0, LEAST_ID_WAIT)
        wait = self.backoff.after_failure(retry_after)
        log.warning(
            "rejected", code=reject.code.value, reason=reject.message, retry_in=round(wait, 2)
        )
        return wait


def shown_url(url: str) -> str:
    """The URL as it may be logged: without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
