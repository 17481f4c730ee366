"""Connections that their owner's task reads, until something comes that is no whole message: nobody can tell."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_peer import MIB, Op, RawPeer, close_payload, dial, echo, frame, raw_client, serving

from sandd import RemoteProtocolError
from sandd._core._errors import ConnectionLost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sandd._core.transport import Connection, ListenAddress

QUIETLY: dict[str, Any] = {"until_admitted": True, "rest_seconds": 0.001}


class Owner:
    """Reads a connection in one of two ways, and keeps what it got and how it ended."""

    def __init__(self, *, delivers: bool, takes_at_once: bool = True, rests: bool = False) -> None:
        self.got: list[bytes] = []
        self.ended: Exception | None = None
        self.connection: Connection | None = None
        self.is_over = trio.Event()
        self._delivers = delivers
        self._takes_at_once = takes_at_once
        self._rests = rests

    async def __call__(self, connection: Connection) -> None:
        """A handler of `serve`."""
        self.connection = connection
        await connection.send_message(b"hello")
        if self._rests:
            connection.rest()
        try:
            if self._delivers:
                await connection.deliver_messages(self._take, lambda: True)
            while True:
                self.got.append(await connection.receive_message())
        except (ConnectionLost, RemoteProtocolError) as error:
            self.ended = error
        finally:
            self.is_over.set()

    @property
    def is_quiet(self) -> bool:
        """Nothing but the owner's task is there."""
        assert self.connection is not None
        return self.connection._websocket is None

    def _take(self, message: bytes) -> bool:
        self.got.append(message)
        return self._takes_at_once


@contextlib.asynccontextmanager
async def greeted(address: ListenAddress) -> AsyncIterator[RawPeer]:
    """A client that has heard the server's first word."""
    async with raw_client(address) as peer:
        assert await peer.read_frame() == (Op.BINARY, b"hello")
        yield peer


async def exchange(owner: Owner, say: Callable[[RawPeer], Awaitable[None]]) -> None:
    """A client of the owner's server says it, and goes when that is over."""
    with trio.fail_after(30):
        async with serving(owner, **QUIETLY) as address, greeted(address) as peer:
            await say(peer)
            await owner.is_over.wait()


both_ways = pytest.mark.parametrize("delivers", [False, True], ids=["receives", "delivers"])
at_rest = pytest.mark.parametrize("rests", [False, True], ids=["by itself", "at rest"])


@both_ways
@at_rest
async def test_whole_messages_leave_it_quiet(delivers: bool, rests: bool) -> None:
    """However they are cut: there is no second task, and no trio-websocket."""
    owner = Owner(delivers=delivers, rests=rests)
    messages = [bytes([number]) * 200 for number in range(5)]

    async def say(peer: RawPeer) -> None:
        for message in messages:
            data = frame(Op.BINARY, message)
            assert owner.connection is not None
            before = owner.connection.line.bytes_received
            await peer.send(data[:7])
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert owner.connection.line.bytes_received == before + 7, "a sign of life"
            await peer.send(data[7:])
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert owner.got == messages
        assert owner.is_quiet
        await peer.stream.aclose()

    await exchange(owner, say)
    assert "without a goodbye" in str(owner.ended)


@both_ways
@at_rest
async def test_a_close_is_heard_and_answered(delivers: bool, rests: bool) -> None:
    """With its code, behind the messages before it."""
    owner = Owner(delivers=delivers, rests=rests)

    async def say(peer: RawPeer) -> None:
        goodbye = frame(Op.CLOSE, close_payload(1001, "bye"))
        await peer.send(frame(Op.BINARY, b"a") + frame(Op.BINARY, b"b") + goodbye)
        assert await peer.read_close() == 1001
        assert await peer.is_closed()

    await exchange(owner, say)
    assert owner.got == [b"a", b"b"]
    assert isinstance(owner.ended, ConnectionLost)
    assert "code 1001 (bye)" in str(owner.ended)


@both_ways
@at_rest
async def test_a_ping_is_answered(delivers: bool, rests: bool) -> None:
    """And what follows arrives as before."""
    owner = Owner(delivers=delivers, rests=rests)

    async def say(peer: RawPeer) -> None:
        await peer.send(frame(Op.BINARY, b"a") + frame(Op.PING, b"p"))
        assert await peer.read_frame() == (Op.PONG, b"p")
        await peer.send(frame(Op.BINARY, b"b") + frame(Op.CLOSE, close_payload(1000)))

    await exchange(owner, say)
    assert owner.got == [b"a", b"b"]


@both_ways
@at_rest
@pytest.mark.parametrize(
    ("breach", "code"),
    [(frame(Op.TEXT, b"x"), 1003), (frame(Op.BINARY, bytes(MIB + 1)), 1009), (frame(3), 1002)],
    ids=["text", "long", "unknown"],
)
async def test_a_breach_is_told(delivers: bool, rests: bool, breach: bytes, code: int) -> None:
    """To both: the peer by the fitting code, the owner by the error."""
    owner = Owner(delivers=delivers, rests=rests)

    async def say(peer: RawPeer) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await peer.send(frame(Op.BINARY, b"a") + breach)
        assert await peer.read_close() == code

    await exchange(owner, say)
    assert owner.got == [b"a"]
    assert isinstance(owner.ended, RemoteProtocolError)


@both_ways
@at_rest
async def test_another_task_may_close_it(delivers: bool, rests: bool) -> None:
    """While its owner reads: the goodbye is said, and the owner told."""
    owner = Owner(delivers=delivers, rests=rests)

    async def say(peer: RawPeer) -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert owner.connection is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(owner.connection.aclose, 1008, "enough")
            assert await peer.read_close() == 1008
            await peer.send(frame(Op.BINARY, b"late") + frame(Op.CLOSE, close_payload(1008)))
            assert await peer.is_closed()

    await exchange(owner, say)
    assert owner.got == []
    assert isinstance(owner.ended, ConnectionLost)


@both_ways
@at_rest
async def test_cancelled_its_owner_says_goodbye(delivers: bool, rests: bool) -> None:
    """As the server does for each that is cancelled."""
    with trio.fail_after(30):
        async with serving(Owner(delivers=delivers, rests=rests), **QUIETLY) as address:
            async with trio.open_nursery() as nursery:
                peers = [await nursery.start(hold, address) for _ in range(3)]
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
            assert len(peers) == 3
        codes: list[int] = []
        async with trio.open_nursery() as nursery:
            async with serving(Owner(delivers=delivers, rests=rests), **QUIETLY) as address:
                told = trio.Event()

                async def listen() -> None:
                    async with greeted(address) as peer:
                        told.set()
                        codes.append(await peer.read_close())
                        await peer.send(frame(Op.CLOSE, close_payload(1001)))

                nursery.start_soon(listen)
                await told.wait()
        assert codes == [1001]


async def hold(address: ListenAddress, task_status: trio.TaskStatus[RawPeer]) -> None:
    """A client that says nothing until it is cancelled."""
    async with greeted(address) as peer:
        task_status.started(peer)
        await trio.sleep_forever()


async def test_a_cancelled_receive_loses_nothing() -> None:
    """Whenever it is cancelled: each message is received once."""
    got: list[bytes] = []
    messages = [b"%d" % number for number in range(200)]
    over = trio.Event()

    async def impatient(connection: Connection) -> None:
        while len(got) < len(messages):
            with trio.move_on_after(0.0005):
                got.append(await connection.receive_message())
        over.set()

    with trio.fail_after(30):
        async with serving(impatient, **QUIETLY) as address, dial(address) as connection:
            for message in messages:
                await connection.send_message(message)
                await trio.sleep(0.0003)
            await over.wait()
    assert got == messages


async def test_a_message_that_is_not_done_with_is_gone_on_with() -> None:
    """What arrives meanwhile waits, and comes in order."""
    owner = Owner(delivers=True, takes_at_once=False)

    async def say(peer: RawPeer) -> None:
        await peer.send(b"".join(frame(Op.BINARY, b"%d" % number) for number in range(20)))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(owner.got) == 20
        assert owner.is_quiet
        await peer.send(frame(Op.CLOSE, close_payload(1000)))

    await exchange(owner, say)
    assert owner.got == [b"%d" % number for number in range(20)]


async def test_several_messages_at_once_leave_it_quiet() -> None:
    """Though each is received by itself."""
    owner = Owner(delivers=False)

    async def say(peer: RawPeer) -> None:
        await peer.send(b"".join(frame(Op.BINARY, b"%d" % number) for number in range(2000)))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert owner.got == [b"%d" % number for number in range(2000)]
        assert owner.is_quiet
        await peer.send(frame(Op.CLOSE, close_payload(1000)))

    await exchange(owner, say)


async def test_who_reads_before_it_speaks_is_heard_nevertheless() -> None:
    """The answer to the upgrade waits for the owner's first word; not for ever."""
    with trio.fail_after(30):
        async with serving(echo, **QUIETLY) as address, dial(address) as connection:
            await connection.send_message(b"well?")
            assert await connection.receive_message() == b"well?"


frames = st.lists(
    st.one_of(
        st.binary(max_size=300).map(lambda body: (frame(Op.BINARY, body), [body])),
        st.binary(min_size=1, max_size=40).map(
            lambda body: (
                frame(Op.BINARY, body[:1], fin=False) + frame(Op.CONTINUATION, body[1:]),
                [body],
            )
        ),
        st.sampled_from([(frame(Op.PING, b"p"), []), (frame(Op.PONG), [])]),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(
    said=frames,
    cuts=st.lists(st.tuples(st.integers(1, 400), st.booleans()), max_size=6),
    delivers=st.booleans(),
    rests=st.booleans(),
)
def test_whatever_comes_arrives_once_in_order(
    said: list[tuple[bytes, list[bytes]]],
    cuts: list[tuple[int, bool]],
    delivers: bool,
    rests: bool,
) -> None:
    """Messages whole or in fragments, among pings, in whatever pieces: as of a connection that was never quiet.

    And whether it rests or is waited for, or now this and now that.
    """
    data = b"".join(each for each, _ in said) + frame(Op.CLOSE, close_payload(1000))

    async def run() -> None:
        owner = Owner(delivers=delivers, rests=rests)

        async def say(peer: RawPeer) -> None:
            begin = 0
            for cut, rests_from_now in cuts:
                await peer.send(data[begin : begin + cut])
                assert owner.connection is not None
                owner.connection.rest() if rests_from_now else owner.connection.stir()
                await trio.testing.wait_all_tasks_blocked(0.0005)
                begin += cut
            await peer.send(data[begin:])

        await exchange(owner, say)
        assert owner.got == [body for _, bodies in said for body in bodies]

    trio.run(run)
