"""What both ends of a forwarded port do with sockets: errors with a number, breaks that are no ends."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from peers import receive_all, reset

from sandd import wire
from sandd._core import sockets
from sandd._core.nurseries import open_unwrapping_nursery

if TYPE_CHECKING:
    from collections.abc import Callable


async def connected() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Both ends of a connection over loopback."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.open_tcp_stream(*listener.socket.getsockname())
        return near, await listener.accept()


class Side:
    """What `carry` reads from and writes to; both wait for the test."""

    def __init__(self) -> None:
        self.give, self._given = trio.open_memory_channel[bytes](10)
        self.written = bytearray()
        self.ended = False
        self.refuses: Exception | None = None

    async def read(self) -> bytes:
        """What the test gives."""
        return await self._given.receive()

    async def write(self, piece: bytes) -> None:
        """Take it, or not."""
        if self.refuses is not None:
            raise self.refuses
        self.written += piece

    async def finish(self) -> None:
        """The end of it."""
        self.ended = True

    async def carry(self, near: trio.SocketStream) -> None:
        """`sockets.carry`, which closes the socket as its callers do."""
        with near.socket:
            await sockets.carry(near.socket, read=self.read, write=self.write, finish=self.finish)


async def test_each_direction_ends_by_itself() -> None:
    """It is over when both have."""
    near, far = await connected()
    side = Side()
    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(side.carry, near)
        await side.give.send(b"said")
        await side.give.send(b"")
        assert await receive_all(far) == b"said"
        await far.send_all(b"answered")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not side.ended
        await far.send_eof()
    assert side.written == b"answered"
    assert side.ended


async def test_a_break_that_receiving_meets() -> None:
    """What came before is written; it is no end, and nothing more is read."""
    near, far = await connected()
    side = Side()
    with pytest.raises(ConnectionResetError):  # noqa: PT012 - the nursery raises
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(side.carry, near)
            await far.send_all(b"before")
            await trio.testing.wait_all_tasks_blocked(0.01)
            await reset(far)
    assert side.written == b"before"
    assert not side.ended


async def test_a_break_that_sending_meets_first() -> None:
    """The system tells it once: the end that receiving finds behind it is not believed."""
    near, far = await connected()
    side, may_go_on = Side(), trio.Event()

    async def write(piece: bytes) -> None:
        side.written += piece
        await may_go_on.wait()

    side.write = write  # type: ignore[method-assign]
    with pytest.raises(ConnectionResetError):  # noqa: PT012 - the nursery raises
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(side.carry, near)
            await far.send_all(b"before")
            await trio.testing.wait_all_tasks_blocked(0.01)
            await reset(far)
            await side.give.send(b"unheard")
            await trio.testing.wait_all_tasks_blocked(0.01)
            may_go_on.set()
    assert side.written == b"before"
    assert not side.ended


async def test_who_takes_no_more_is_still_read_from() -> None:
    """What it had to say is sent before its refusal comes out."""
    near, far = await connected()
    side = Side()
    side.refuses = trio.BrokenResourceError("it takes no more")
    async with far:
        with pytest.raises(trio.BrokenResourceError, match="takes no more"):  # noqa: PT012 - the nursery raises
            async with open_unwrapping_nursery() as nursery:
                nursery.start_soon(side.carry, near)
                await far.send_all(b"unheard")
                await trio.testing.wait_all_tasks_blocked(0.01)
                await side.give.send(b"last words")
                await side.give.send(b"")
        # What it said wasn't read, so the closing that follows is a reset; the words came before that.
        assert await far.receive_some() == b"last words"


async def test_whatever_else_goes_wrong_ends_both() -> None:
    """An error of who is read from comes out as itself, at once."""
    near, far = await connected()
    side = Side()

    async def read() -> bytes:
        raise ValueError("mine")

    side.read = read  # type: ignore[method-assign]
    async with far:
        with pytest.raises(ValueError, match="mine"):
            await side.carry(near)


async def test_a_shortage_postpones_what_waits_to_be_accepted(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again, and logged; any other error comes out."""
    answers: list[OSError | object] = [OSError(errno.EMFILE, "short"), "connection"]

    class Listener:
        async def accept(self) -> object:
            answer = answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer

    assert await sockets.accept(Listener()) == "connection"  # type: ignore[arg-type, comparison-overlap]
    assert "accept_postponed" in caplog.text
    answers.append(OSError(errno.EINVAL, "no listener"))
    with pytest.raises(OSError, match="no listener"):
        await sockets.accept(Listener())  # type: ignore[arg-type]


def refused() -> OSError:
    """As trio says it of a name with several addresses."""
    error = OSError("all attempts to connect failed")
    error.__cause__ = ExceptionGroup(
        "all", [OSError(errno.ENETUNREACH, "x"), ConnectionRefusedError(errno.ECONNREFUSED, "x")]
    )
    return error


@pytest.mark.parametrize(
    ("make", "number"),
    [
        pytest.param(refused, errno.ECONNREFUSED, id="several"),
        pytest.param(lambda: socket.gaierror(-2, "x"), errno.EHOSTUNREACH, id="unknown"),
        pytest.param(lambda: UnicodeError("x"), errno.EHOSTUNREACH, id="no name"),
        pytest.param(lambda: OSError("too long"), errno.EINVAL, id="too long"),
        pytest.param(lambda: ValueError("null byte"), errno.EINVAL, id="NUL"),
        pytest.param(lambda: OSError(errno.EACCES, "no"), errno.EACCES, id="plain"),
    ],
)
def test_every_error_has_a_number_and_a_name(
    make: Callable[[], OSError | ValueError], number: int
) -> None:
    """Also where the system, or Python, gives none."""
    error = sockets._complete(make(), "there")
    assert (error.errno, error.filename) == (number, "there")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (wire.ConnectSpec("here", 1), "here:1"),
        (wire.ListenSpec("::1", 0), "[::1]:0"),
        (wire.ConnectSpec("", path=b"/there"), "/there"),
    ],
)
def test_addresses_for_people(address: wire.ConnectSpec | wire.ListenSpec, text: str) -> None:
    """As they are mostly written."""
    assert sockets.describe(address) == text


async def test_peers_for_people() -> None:
    """One that is gone has no address any more."""
    near, far = await connected()
    assert sockets.describe_peer(near).startswith("127.0.0.1:")
    await near.aclose()
    assert sockets.describe_peer(near) == ""
    await far.aclose()
