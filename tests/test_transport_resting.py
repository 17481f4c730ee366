"""Connections that rest are read together: who sleeps there is waked by more than a word, and by nothing else."""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import struct
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from raw_peer import MIB, Op, RawPeer, close_payload, frame, raw_client, serving, upgrade_request
from tls_peers import pem_of, server_pair, strict_client, write_pair

from sandd._core._errors import ConnectionLost
from sandd._core.tls.authority import new_authority
from sandd._core.tls.contexts import server_tls
from sandd._core.transport import _resting
from sandd._core.transport._connection import WORD_BYTES
from sandd._core.transport._resting import LOOKS_AT_ONCE, open_resting_place
from sandd._core.transport._streams import MeteredStream
from sandd._core.transport._tls import TlsEnd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from sandd._core.transport import Connection, ListenAddress
    from sandd._core.transport._resting import RestingPlace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nobody rests elsewhere")

A_WHILE = 0.02
"""Seconds in which whatever is to happen has happened; what is waited for besides is waited for."""
FOR_EVER = 3600.0


class Sleeper:
    """A handler whose connection rests, and what it got."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.ended: Exception | None = None
        self.connection: Connection | None = None
        self.is_over = trio.Event()

    async def __call__(self, connection: Connection) -> None:
        """A handler of `serve`."""
        self.connection = connection
        await connection.send_message(b"hello")
        connection.rest()
        try:
            await connection.deliver_messages(self._take, lambda: True)
        except ConnectionLost as error:
            self.ended = error
        finally:
            self.is_over.set()

    def _take(self, message: bytes) -> bool:
        self.got.append(message)
        return True


class Steps(trio.abc.Instrument):
    """Counts the steps of tasks, by their names."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """See trio."""
        self.counts[task.name] += 1

    @property
    def of_connections(self) -> int:
        """Those of the tasks that serve one each."""
        return sum(count for name, count in self.counts.items() if "run_connection" in name)


@contextlib.contextmanager
def counted() -> Iterator[Steps]:
    """The steps that tasks make in the block."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(steps)


@contextlib.asynccontextmanager
async def asleep(
    sleeper: Sleeper, rest_seconds: float = 0.001
) -> AsyncIterator[tuple[ListenAddress, RawPeer]]:
    """Its server, and a client whose connection rests there."""
    options: dict[str, Any] = {"until_admitted": True, "rest_seconds": rest_seconds}
    with trio.fail_after(30):
        async with serving(sleeper, **options) as address, raw_client(address) as peer:
            assert await peer.read_frame() == (Op.BINARY, b"hello")
            await trio.testing.wait_all_tasks_blocked()
            yield address, peer


async def until_got(sleeper: Sleeper, count: int) -> None:
    """It has received so many messages."""
    while len(sleeper.got) < count:
        await trio.sleep(0.001)


# ---- connections --------------------------------------------------------------------------------


async def test_a_word_wakes_nobody() -> None:
    """It is taken all the same, however it comes."""
    sleeper = Sleeper()
    async with asleep(sleeper) as (_, peer):
        with counted() as steps:
            for number in range(5):
                word = frame(Op.BINARY, b"%d" % number)
                await peer.send(word[:3])
                await trio.testing.wait_all_tasks_blocked(A_WHILE)
                await peer.send(word[3:])
                await until_got(sleeper, number + 1)
        assert sleeper.got == [b"%d" % number for number in range(5)]
        assert steps.of_connections == 0


async def test_a_word_waits_for_others_unless_it_is_expected() -> None:
    """The first after a pause is heard at once."""
    sleeper = Sleeper()
    async with asleep(sleeper, FOR_EVER) as (_, peer):
        await peer.send(frame(Op.BINARY, b"at once"))
        await until_got(sleeper, 1)
        await peer.send(frame(Op.BINARY, b"late"))
        await trio.testing.wait_all_tasks_blocked(A_WHILE)
        assert sleeper.got == [b"at once"]
        assert sleeper.connection is not None
        sleeper.connection.stir()
        await until_got(sleeper, 2)
        await peer.send(frame(Op.BINARY, b"at once again"))
        await until_got(sleeper, 3)
    assert sleeper.got == [b"at once", b"late", b"at once again"]


async def test_more_than_a_word_is_left_to_its_owner() -> None:
    """So those who share a turn take little of it. Then it rests again."""
    sleeper = Sleeper()
    messages = [bytes(WORD_BYTES), b"x" * MIB, b"word"]
    async with asleep(sleeper) as (_, peer):
        with counted() as steps:
            for number, message in enumerate(messages, 1):
                await peer.send(frame(Op.BINARY, message))
                await until_got(sleeper, number)
                await trio.testing.wait_all_tasks_blocked(A_WHILE)
                if number == 2:
                    assert steps.of_connections > 1
                    steps.counts.clear()
        assert steps.of_connections == 0
    assert sleeper.got == messages


@pytest.mark.parametrize("how", ["goodbye", "end", "reset"])
async def test_its_end_wakes_it(how: str) -> None:
    """It hears the reason."""
    sleeper = Sleeper()
    async with asleep(sleeper) as (_, peer):
        if how == "goodbye":
            await peer.send(frame(Op.CLOSE, close_payload(1001, "bye")))
        elif how == "end":
            await peer.stream.send_eof()
        else:
            peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await peer.stream.aclose()
        await sleeper.is_over.wait()
    told = {"goodbye": "code 1001", "end": "without a goodbye", "reset": "reset by peer"}[how]
    assert told in str(sleeper.ended)


async def test_who_stirs_may_be_closed_and_its_number_used_again() -> None:
    """By another task, in the turn that it was read in."""
    sleeper = Sleeper()
    async with asleep(sleeper) as (address, peer):
        connection = sleeper.connection
        assert connection is not None
        await peer.send(frame(Op.BINARY, b"word"))
        await peer.stream.aclose()
        await connection.aclose(1000, timeout=0.1)
        for number in range(3):  # the same number, as the lowest that is free is taken
            async with raw_client(address) as next_peer:
                assert await next_peer.read_frame() == (Op.BINARY, b"hello")
                await next_peer.send(frame(Op.BINARY, b"%d" % number))
                while b"%d" % number not in sleeper.got:
                    await trio.sleep(0.001)
    assert isinstance(sleeper.ended, ConnectionLost)


async def test_the_server_says_goodbye_to_those_who_rest() -> None:
    """All at once, as to others."""
    sleeper = Sleeper()
    codes: list[int] = []

    async def listen(peer: RawPeer) -> None:
        codes.append(await peer.read_close())
        await peer.send(frame(Op.CLOSE, close_payload(1001)))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as peers:
            options: dict[str, Any] = {"until_admitted": True, "rest_seconds": 0.001}
            async with serving(sleeper, **options) as address:
                for _ in range(5):
                    peer = await peers.enter_async_context(raw_client(address))
                    assert await peer.read_frame() == (Op.BINARY, b"hello")
                    nursery.start_soon(listen, peer)
                await trio.testing.wait_all_tasks_blocked(A_WHILE)
            while len(codes) < 5:
                await trio.sleep(0.001)
    assert codes == [1001] * 5


async def test_over_tls_it_rests_as_well(tmp_path: Path) -> None:
    """Nothing is left behind in it: neither half a record, nor what comes behind a word, nor its end."""
    ca = new_authority(time.time())
    pair = write_pair(server_pair(ca), tmp_path)
    presented = server_tls(pair, pair, bundle=pem_of(ca))
    tls = TlsEnd(strict_client(ca), server_hostname="localhost")
    sleeper = Sleeper()
    options: dict[str, Any] = {
        "until_admitted": True,
        "rest_seconds": 0.001,
        "tls": lambda: presented,
    }
    with trio.fail_after(30):
        async with serving(sleeper, **options) as address:
            stream = await trio.open_tcp_stream(address.host, address.port)
            while not tls.shake_hands():
                await stream.send_all(tls.take_outgoing())
                tls.feed(await stream.receive_some())
            await stream.send_all(tls.take_outgoing() + tls.encrypt(upgrade_request())[0])
            heard = b""
            while not heard.endswith(b"hello"):
                tls.feed(await stream.receive_some())
                heard += b"".join(tls.decrypt(MIB) or ())
            await trio.testing.wait_all_tasks_blocked(A_WHILE)

            with counted() as steps:
                (record,) = tls.encrypt(frame(Op.BINARY, b"word"))
                await stream.send_all(record[:9])
                await trio.testing.wait_all_tasks_blocked(A_WHILE)
                await stream.send_all(record[9:])
                await until_got(sleeper, 1)
            assert steps.of_connections == 0
            large = bytes(2 * MIB // 3)
            several = [frame(Op.BINARY, each) for each in (b"and", large, large, large, b"last")]
            await stream.send_all(b"".join(b"".join(tls.encrypt(each)) for each in several))
            await until_got(sleeper, 6)
            await trio.testing.wait_all_tasks_blocked(A_WHILE)
            with pytest.raises(ssl.SSLWantReadError):
                tls._end.unwrap()  # its end is said by TLS alone: the socket stays open
            await stream.send_all(tls.take_outgoing())
            await sleeper.is_over.wait()
            await stream.aclose()
    assert sleeper.got == [b"word", b"and", large, large, large, b"last"]
    assert isinstance(sleeper.ended, ConnectionLost)


# ---- the place itself ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def opened(pause: float = 0.001) -> AsyncIterator[RestingPlace]:
    """One that is looked after."""
    place = open_resting_place(pause)
    assert place is not None
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.run)
            yield place
            nursery.cancel_scope.cancel()


@contextlib.contextmanager
def socket_pairs(count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """So many, which are closed in the end."""
    pairs = [socket.socketpair() for _ in range(count)]
    try:
        yield pairs
    finally:
        for each in pairs:
            for end in each:
                end.close()


async def test_who_is_cancelled_is_not_looked_at_any_more() -> None:
    """Nor anybody who has its number by then."""
    async with opened() as place:
        with socket_pairs(2) as ((ours, theirs), (other, _)):
            looks: list[int] = []
            with trio.move_on_after(A_WHILE) as scope:
                await place.rest(ours.fileno(), lambda: looks.append(1))
            assert scope.cancelled_caught
            theirs.send(b"x")
            await trio.testing.wait_all_tasks_blocked(A_WHILE)
            assert looks == []
            with trio.move_on_after(A_WHILE):
                await place.rest(other.fileno(), lambda: looks.append(2))
            assert looks == []


async def test_no_turn_looks_at_all() -> None:
    """However many have something, and whether they take it or not."""
    count = 5 * LOOKS_AT_ONCE
    turns: list[int] = []
    looked = 0

    def look() -> None:
        nonlocal looked
        looked += 1

    async def count_turns() -> None:
        nonlocal looked
        while True:
            turns.append(looked)
            looked = 0
            await trio.lowlevel.checkpoint()

    place = open_resting_place(FOR_EVER)
    assert place is not None
    with socket_pairs(count) as pairs, trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for ours, theirs in pairs:
                theirs.send(b"x")
                nursery.start_soon(place.rest, ours.fileno(), look)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(place.run)
            nursery.start_soon(count_turns)
            while sum(turns) < 2 * count:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert (
        max(turns) <= 2 * LOOKS_AT_ONCE
    )  # tasks of one turn run in any order, so it may be two turns' worth


async def test_what_a_look_raises_is_its_sleepers() -> None:
    """And costs nobody else anything."""
    async with opened() as place:
        with socket_pairs(2) as ((ours, theirs), (other, others)):
            looked = trio.Event()

            def fail() -> None:
                raise ValueError("in a look")

            def look() -> None:
                other.recv(10)
                looked.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(place.rest, other.fileno(), look)
                theirs.send(b"x")
                with pytest.raises(ValueError, match="in a look"):
                    await place.rest(ours.fileno(), fail)
                others.send(b"x")
                await looked.wait()
                nursery.cancel_scope.cancel()


async def test_what_a_look_raises_when_nobody_sleeps_any_more_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The others are looked after as before."""
    async with opened() as place:
        with socket_pairs(1) as ((ours, theirs),):

            def fail() -> None:
                place.wake(ours.fileno())
                raise ValueError("in a look")

            theirs.send(b"x")
            assert await place.rest(ours.fileno(), fail) is None
            assert place.takes_more
    assert "look_failed" in caplog.text


async def test_one_look_may_wake_others() -> None:
    """Who was waked is not looked at, though it had something, too; it gets what it was waked with, once."""
    place = open_resting_place(0.001)
    assert place is not None
    looks: list[int] = []
    came: list[bytes | None] = []
    with socket_pairs(2) as pairs, trio.fail_after(30):

        def look() -> None:
            looks.append(1)
            for ours, _ in pairs:
                for data in (b"waked", b"again"):
                    place.wake(ours.fileno(), data)

        async def sleep(descriptor: int) -> None:
            came.append(await place.rest(descriptor, look))

        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as sleepers:
                for ours, theirs in pairs:
                    theirs.send(b"x")
                    sleepers.start_soon(sleep, ours.fileno())
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(place.run)
            nursery.cancel_scope.cancel()
    assert looks == [1]
    assert came == [b"waked", b"waked"]


async def test_with_its_end_nobody_rests_any_more() -> None:
    """Those who do wait by themselves from then on."""
    place = open_resting_place(0.001)
    assert place is not None
    with socket_pairs(1) as ((ours, _),), trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def run() -> None:
                with scope:
                    await place.run()

            async def sleep() -> None:
                assert await place.rest(ours.fileno(), lambda: None) is None

            nursery.start_soon(run)
            nursery.start_soon(sleep)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
        assert not place.takes_more


async def test_where_the_system_has_no_room_each_waits_by_itself() -> None:
    """As it says, by refusing what can't be waited for, too."""
    async with opened() as place:
        with open(__file__, "rb") as file:  # noqa: ASYNC230 - nothing is read
            assert await place.rest(file.fileno(), lambda: None) is None
        assert not place.takes_more


async def test_where_the_system_has_room_again_they_rest_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once a while has passed, and not before; in the end nobody does, however long ago that was."""
    monkeypatch.setattr(_resting, "REFUSED_SECONDS", A_WHILE)
    async with opened() as place:
        refused_at = trio.current_time()
        with open(__file__, "rb") as file:  # noqa: ASYNC230 - nothing is read
            assert await place.rest(file.fileno(), lambda: None) is None
        while not place.takes_more:
            await trio.sleep(0.001)
        assert trio.current_time() - refused_at >= A_WHILE
        with socket_pairs(1) as ((ours, theirs),):
            theirs.send(b"x")
            assert await place.rest(ours.fileno(), lambda: place.wake(ours.fileno(), b"x")) == b"x"
    assert not place.takes_more


async def test_a_connection_that_was_refused_rests_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits by itself, and takes what comes, until there may be room; with the next word it rests."""
    places: list[_resting.RestingPlace] = []

    def open_full(pause: float) -> _resting.RestingPlace:
        place = _resting.EpollRestingPlace(pause)
        place._takes_more_from = math.inf
        places.append(place)
        return place

    monkeypatch.setattr("sandd._core.transport._server.open_resting_place", open_full)
    sleeper = Sleeper()
    async with asleep(sleeper) as (_, peer):
        (place,) = places
        assert isinstance(place, _resting.EpollRestingPlace)
        await peer.send(frame(Op.BINARY, b"by itself"))
        await until_got(sleeper, 1)
        await trio.testing.wait_all_tasks_blocked(A_WHILE)
        assert not place._resting
        place._takes_more_from = -math.inf
        await peer.send(frame(Op.BINARY, b"still"))
        await until_got(sleeper, 2)
        await trio.testing.wait_all_tasks_blocked(A_WHILE)
        assert place._resting
        await peer.send(frame(Op.BINARY, b"at rest"))
        await until_got(sleeper, 3)
    assert sleeper.got == [b"by itself", b"still", b"at rest"]


async def test_a_stream_that_is_closed_ends_its_rest() -> None:
    """Before its number is another's."""
    async with opened() as place:
        async with trio.open_nursery() as nursery:
            listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
            port = listener.socket.getsockname()[1]
            async with listener, await trio.open_tcp_stream("127.0.0.1", port) as peer:
                stream = MeteredStream(await listener.accept())
                stream.resting_place = place
                looks: list[int] = []

                async def sleep() -> None:
                    assert await stream.rest(lambda: looks.append(1)) is None
                    assert not stream.may_rest
                    with pytest.raises(trio.ClosedResourceError):
                        await stream.receive_some()

                nursery.start_soon(sleep)
                await trio.testing.wait_all_tasks_blocked()
                stream.close()
                with contextlib.suppress(trio.BrokenResourceError):
                    await peer.send_all(b"x")
        assert looks == []
