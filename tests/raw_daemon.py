"""A daemon's end of one connection, by hand: it says what a test wants it to say, lies included."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd import wire
from sandd._core.identity.introductions import answer_challenge
from sandd._core.identity.proofs import SharedSecret
from sandd._core.link import Identity
from sandd._core.pump import receive_control, send_control
from sandd._core.transport import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from sandd._core.identity.proofs import Credential
    from sandd._core.transport import Connection

MESSAGE_BYTES: Final = 64 * wire.MIB
"""What this end takes and sends: far beyond what the protocol allows."""


@define
class RawDaemon:
    """One live connection, past its Welcome unless that was refused."""

    connection: Connection
    answer: wire.Control | wire.Unknown
    """Welcome or Reject."""
    _frames: list[tuple[int, wire.Control | wire.Unknown | wire.Data]] = field(factory=list)

    async def send(self, *frames: wire.EncodedFrame) -> None:
        """Send the frames in one message."""
        await self.connection.send_message(b"".join(part for frame in frames for part in frame))

    async def control(self, channel: int, message: wire.Control) -> None:
        """Send one control message."""
        await self.send(wire.encode_control(channel, message))

    async def receive(self) -> tuple[int, wire.Control | wire.Unknown | wire.Data]:
        """The next frame, decoded, with its channel; ConnectionLost at the end."""
        while not self._frames:
            for frame in wire.decode_frames(await self.connection.receive_message()):
                is_control = frame.type is wire.FrameType.CONTROL
                content = wire.decode_control(frame) if is_control else wire.decode_data(frame)
                self._frames.append((frame.channel, content))
        return self._frames.pop(0)

    async def receive_attach(self) -> tuple[int, wire.Attach]:
        """Channel and content of the next Attach; what comes before it is dropped."""
        while True:
            channel, message = await self.receive()
            if isinstance(message, wire.Attach):
                return channel, message


@contextlib.asynccontextmanager
async def raw_daemon(
    url: str,
    daemon_id: str = "raw",
    *,
    instance: str | None = None,
    connection_number: int = 1,
    labels: Mapping[str, str] | None = None,
    token: bytes | None = None,
    credential: Credential | None = None,
    ancestors: tuple[str, ...] = (),
    hostname: str = "raw-host",
    before_hello: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
) -> AsyncIterator[RawDaemon]:
    """A connection that has introduced itself, after what comes between challenge and Hello;
    `RawDaemon.answer` says how that was taken."""
    identity = Identity(
        daemon_id,
        instance or secrets.token_hex(8),
        labels or {},
        hostname=hostname,
        platform="raw-os",
        arch="raw-arch",
        daemon_version="9",
        ancestors=ancestors,
    )
    async with connect(
        url, subprotocol=wire.SUBPROTOCOL, max_message_bytes=MESSAGE_BYTES
    ) as connection:
        challenge = await receive_control(connection)
        await before_hello()
        if token is not None:
            credential = SharedSecret(token)
        await send_control(
            connection, answer_challenge(challenge, identity, connection_number, credential)
        )
        yield RawDaemon(connection, await receive_control(connection))
