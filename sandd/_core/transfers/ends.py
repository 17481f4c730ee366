"""What both ends of a transfer have: bytes each way, and how each tells the other that it failed."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, Protocol

import trio

from sandd import wire
from sandd._core._errors import TransferError, describe_system_error, transfer_error
from sandd._core.transfers.records import message_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

FAREWELL_SECONDS: Final = 5.0
"""For telling the other end what went wrong here: it would find out anyway that this end is gone."""
RECORDS_PER_TURN: Final = 512
"""Records taken in before other tasks run: one chunk may hold 100,000, half a second of reading."""


class ByteChannel(Protocol):
    """A stream of bytes each way. One task sends, and another one receives."""

    async def send(self, *data: bytes) -> None:
        """All of these in a row. Returns when they are on their way; only what is cancelled may be sent in part."""
        ...

    async def receive(self, at_least: int = 1) -> Sequence[wire.Buffer]:
        """What comes next, in pieces as it came; none at the end. Cancelled, it has taken nothing.

        It waits for `at_least` so many bytes, unless the end comes before.
        """
        ...


async def tell(channel: ByteChannel, *data: bytes) -> None:
    """Send that, while another task listens.

    Where that is not possible any more, the other end has mostly said why, and who listens raises that.
    """
    try:
        await channel.send(*data)
    except Exception:
        await trio.sleep(FAREWELL_SECONDS)
        raise


async def say_farewell(channel: ByteChannel, error: Exception) -> None:
    """Tell the other end what went wrong here, if it is there to hear it."""
    with trio.move_on_after(FAREWELL_SECONDS), contextlib.suppress(Exception):
        await channel.send(failure_bytes(error))


class PeerGoneError(TransferError):
    """The other end is gone, and didn't say why. What has come may be gone on with by another call."""


def failure_bytes(error: Exception) -> bytes:
    """The record that tells the other end."""
    symbol, text, filename = describe_system_error(error)
    return message_bytes(
        wire.FailedRecord(
            symbol,
            text[: wire.MAX_TEXT_LENGTH],
            None if filename is None else filename[: wire.MAX_PATH_BYTES],
        )
    )


def failure_error(record: wire.FailedRecord) -> TransferError:
    """What the other end's failure is here."""
    if not record.symbol:
        return TransferError(record.message or "the other end failed")
    name = None if record.filename is None else os.fsdecode(record.filename)
    return transfer_error(record.symbol, record.message, name)
