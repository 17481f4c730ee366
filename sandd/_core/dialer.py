"""Keeps a link to a controller: dials, introduces itself, pumps, waits, and dials again, for ever.

A daemon does so (`DaemonEnd`), and a client of a controller in another process (`RemoteLink`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Protocol
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
from sandd._core.logs import get_logger
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.pump import HANDSHAKE_SECONDS, Pump, receive_control, send_control
from sandd._core.transport import Connection, connect
from sandd.wire import RejectCode

if TYPE_CHECKING:
    from sandd._core.link import Backoff
    from sandd._core.tls.trust import Trust

log = get_logger("link")

LEAST_REJECT_WAIT: Final = 1.0
"""Seconds after a refusal, whatever the controller says: until then nothing will have changed, and each try costs both
a handshake."""


class Rejected(SanddError):
    """The controller said no, for now."""

    def __init__(self, reject: wire.Reject) -> None:
        super().__init__(f"rejected ({reject.code.value}): {reject.message}")
        self.reject = reject


class Caller(Protocol):
    """Who dials: what it says of itself, and what it does with a link."""

    def introduce(
        self, said: wire.Control | wire.Unknown, connection: int, channel_binding: bytes
    ) -> wire.Control:
        """The answer to the controller's first words, on the so-manieth connection, over this channel.

        Raises:
            RemoteProtocolError: it was no Challenge that can be answered.
        """

    def has_another_credential(self) -> bool:
        """The one that was chosen was refused; whether to come again with another."""

    async def welcomed(self, welcome: wire.Welcome) -> None:
        """We are let in: see to what is to be kept, before anything else is said."""

    def begin(self, connection: Connection, welcome: wire.Welcome) -> Pump:
        """A link is live: what is to carry its frames."""

    def end(self) -> bool:
        """That link is over; whether anything came of it."""


@define
class Dialer:
    """One program's connection to its controller, over all its cuts."""

    url: str
    caller: Caller
    backoff: Backoff
    trust: Trust | None = None
    """By what the controller is known, for a wss:// URL."""
    connections: int = 0
    """Dials so far."""
    links: int = 0
    """Of these, those that came to a live link."""
    live_until: float = -math.inf
    """When the latest link ended that was live, by trio's clock."""
    pump: Pump | None = None
    """Of the live link, if there is one."""
    failure: str = ""
    """Why the latest dial came to nothing, or its link ended."""
    live: trio.Event = field(factory=trio.Event)
    """Set while a link is live."""

    async def run(self) -> None:
        """Stay connected until cancelled.

        Raises:
            AuthenticationFailed: the controller refused our credentials.
            RequestRefused: the controller will never take us as we are.
        """
        while True:
            wait = await self._one_link()
            await trio.sleep(wait)

    def status(self) -> str:
        """How it stands, for a person."""
        if self.pump is not None:
            return f"connected to {shown_url(self.url)}"
        why = f": {self.failure}" if self.failure else ""
        return f"dialling {shown_url(self.url)}{why}"

    async def say_goodbye(self, message: str) -> None:
        """Send Goodbye, if a link is live. Bound it."""
        if self.pump is not None:
            # By itself, because nothing behind it is read, and control frames overtake data.
            self.pump.say(wire.Goodbye(message))
            await self.pump.drained()

    async def _one_link(self) -> float:
        """Dial once and pump until the link ends; returns the seconds to wait before the next dial."""
        self.connections += 1
        live_at: float | None = None
        progressed = False
        retry_after = 0.0
        try:
            async with connect(
                self.url,
                subprotocol=wire.SUBPROTOCOL,
                max_message_bytes=wire.MAX_MESSAGE_BYTES,
                ssl_context=None if self.trust is None else await self.trust.context(),
            ) as connection:
                welcome = await self._introduce(connection)
                live_at = trio.current_time()
                pump = self.pump = self.caller.begin(connection, welcome)
                log.info("connected", url=shown_url(self.url))
                self.live.set()
                self.links += 1
                try:
                    await self._pump(pump, connection)
                finally:
                    self.pump = None
                    self.live = trio.Event()
                    self.live_until = trio.current_time()
                    progressed = self.caller.end()
                    if pump.goodbye is not None:
                        retry_after = pump.goodbye.retry_after
        except Rejected as error:
            self.failure = str(error)
            return self._after_reject(error)
        except (ConnectionLost, RemoteProtocolError) as error:
            self.failure = str(error)
            lived = 0.0 if live_at is None else trio.current_time() - live_at
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
                wait = self.backoff.after_farewell(lived, progressed, retry_after)
                log.info("controller_left", reason=str(error), retry_in=round(wait, 2))
            else:
                wait = self.backoff.after_loss(lived, progressed)
                log.warning("link_lost", reason=str(error), retry_in=round(wait, 2))
            return wait
        raise AssertionError(
            "a pump ends by an error"
        )  # pragma: no cover - says so to the type checker

    async def _pump(self, pump: Pump, connection: Connection) -> None:
        if self.trust is None:
            await pump.run()
        else:
            async with open_unwrapping_nursery() as nursery:
                nursery.start_soon(self.trust.look_after, connection.bundle_digest)
                await pump.run()

    async def _introduce(self, connection: Connection) -> wire.Welcome:
        with trio.move_on_after(HANDSHAKE_SECONDS) as scope:
            challenge = await receive_control(connection)
            hello = self.caller.introduce(challenge, self.connections, connection.channel_binding)
            await send_control(connection, hello)
            answer = await receive_control(connection)
        if scope.cancelled_caught:
            raise ConnectionLost(
                f"{shown_url(self.url)} accepted the connection, but did not answer within {HANDSHAKE_SECONDS} s"
            )
        if isinstance(answer, wire.Reject):
            raise Rejected(answer)
        if not isinstance(answer, wire.Welcome):
            raise RemoteProtocolError(
                f"the controller answered with {type(answer).__name__}, not with Welcome"
            )
        await self.caller.welcomed(answer)
        return answer

    def _after_reject(self, error: Rejected) -> float:
        reject = error.reject
        if reject.code is RejectCode.UNAUTHENTICATED:
            if self.caller.has_another_credential():
                log.warning("key_refused", reason=reject.message)
                return self.backoff.after_failure(0.0)
            raise AuthenticationFailed(
                reject.message or "the controller refused our credentials"
            ) from error
        if reject.code in (RejectCode.BAD_HELLO, RejectCode.BAD_VERSION):
            raise RequestRefused(f"the controller refuses us: {reject.message}") from error
        retry_after = max(reject.retry_after or 0.0, LEAST_REJECT_WAIT)
        wait = self.backoff.after_failure(retry_after)
        log.warning(
            "rejected", code=reject.code.value, reason=reject.message, retry_in=round(wait, 2)
        )
        return wait


def shown_url(url: str) -> str:
    """The URL as it may be logged: without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
