"""Peers that misbehave: each costs its own connection at most, in bounded time and memory."""

from __future__ import annotations

import contextlib
import gc
import socket
import struct
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import trio
from raw_peer import (
    MIB,
    OPTIONS,
    Op,
    RawPeer,
    close_payload,
    dial,
    echo,
    frame,
    raw_client,
    raw_server,
    serving,
    shake_hands,
    upgrade_request,
)

from sandd._core._errors import ConnectionLost, RemoteProtocolError
from sandd._core.transport import Connection, connect
from sandd._core.transport._connection import MAX_WAITING_BYTES
from sandd._core.transport._protocol import FAST_MASK_BYTES, GuardedProtocol
from sandd._core.transport._streams import MeteredStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The events of our log so far."""
    return [record.msg["event"] for record in caplog.records if record.name == "sandd.transport"]


@pytest.fixture(autouse=True)
def _log_what_matters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sandd.transport")


# ---- pings --------------------------------------------------------------------------------------


async def test_ping_is_answered_while_nobody_takes_messages() -> None:
    """A consumer that is slow for a moment holds up no pong, and no message is lost by it."""
    take = trio.Event()

    async def handler(connection: Connection) -> None:
        await take.wait()
        await echo(connection)

    with trio.fail_after(30):
        async with serving(handler) as address, raw_client(address) as peer:
            for number in range(100):
                await peer.send(frame(Op.BINARY, b"%d" % number))
            await peer.send(frame(Op.PING, b"there?"))
            assert await peer.read_frame() == (Op.PONG, b"there?")
            take.set()
            for number in range(100):
                assert await peer.read_frame() == (Op.BINARY, b"%d" % number)


async def test_ping_is_no_reason_to_stop_reading_while_a_send_is_stuck() -> None:
    """A pong that must wait for a big message doesn't hold up what the peer sends meanwhile."""
    received = trio.Event()

    async def handler(connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.send_message, bytes(16 * MIB))
            assert await connection.receive_message() == b"while you were talking"
            received.set()

    with trio.fail_after(30):
        async with serving(handler) as address, raw_client(address) as peer:
            await peer.send(frame(Op.PING, b"1") + frame(Op.PING, b"2"))
            await trio.testing.wait_all_tasks_blocked(0.05)
            await peer.send(frame(Op.BINARY, b"while you were talking"))
            await received.wait()
            assert await peer.read_frame() == (Op.BINARY, bytes(16 * MIB))
            assert await peer.read_frame() == (Op.PONG, b"2")


@pytest.mark.parametrize("op", [Op.PING, Op.PONG], ids=["ping", "pong"])
async def test_control_frame_after_our_close_is_ignored(
    op: Op, caplog: pytest.LogCaptureFixture
) -> None:
    """It neither crashes the server nor is it answered, and the close handshake goes on."""

    async def handler(connection: Connection) -> None:
        if await connection.receive_message() == b"work":
            await connection.send_message(b"done")

    with trio.fail_after(30):
        async with serving(handler) as address:
            async with raw_client(address) as peer:
                await peer.send(frame(Op.BINARY, b"leave"))
                assert await peer.read_frame() == (Op.CLOSE, close_payload(1000))
                await peer.send(frame(op, b"late") + frame(Op.BINARY, b"late") + frame(op, b""))
                await peer.send(frame(Op.CLOSE, close_payload(1000)))
                with pytest.raises(EOFError):
                    await peer.read_frame()
            async with dial(address) as connection:
                await connection.send_message(b"work")
                assert await connection.receive_message() == b"done"
    assert events(caplog) == []


async def test_ping_flood_costs_one_pong_a_turn_and_delays_nobody() -> None:
    """100,000 pings get few answers, the last one among them, and others are served meanwhile."""
    with trio.fail_after(50):
        async with serving() as address, raw_client(address) as peer, dial(address) as other:
            served = 0
            done = trio.Event()

            async def be_served() -> None:
                nonlocal served
                while not done.is_set():
                    await other.send_message(b"")
                    await other.receive_message()
                    served += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(be_served)
                nursery.start_soon(peer.send, frame(Op.PING) * 100_000 + frame(Op.PING, b"last"))
                pongs = 1
                while await peer.read_frame() != (Op.PONG, b"last"):
                    pongs += 1
                done.set()
            assert pongs <= 2000
            # Once for each piece of the flood that is read at a time, however long that takes.
            assert served >= 10
            await peer.send(frame(Op.BINARY, b"still there"))
            assert await peer.read_frame() == (Op.BINARY, b"still there")


# ---- messages that are too much -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (frame(Op.BINARY, bytes(MIB + 1)), 1009),
        (frame(Op.BINARY, bytes(MIB), fin=False) + frame(Op.CONTINUATION, b"x"), 1009),
        (frame(Op.BINARY, bytes(MIB), fin=False) + frame(Op.CONTINUATION, b"x", fin=False), 1009),
        (b"\x82\xff" + struct.pack("!Q", 2**62) + bytes(4) + bytes(2 * MIB), 1009),
        (frame(Op.BINARY, fin=False) + frame(Op.CONTINUATION, fin=False) * 100_000, 1008),
        (frame(Op.TEXT, b"hello"), 1003),
        (frame(Op.TEXT, b"hello", fin=False), 1003),
        (frame(Op.TEXT, b"\xff"), 1007),
        (frame(Op.BINARY, b"x", mask=False), 1002),
        (frame(Op.CONTINUATION, b"x"), 1002),
        (frame(Op.BINARY, fin=False) + frame(Op.BINARY), 1002),
        (frame(3), 1002),
        (frame(Op.PING, fin=False), 1002),
        (frame(Op.PING, bytes(126)), 1002),
        (frame(Op.CLOSE, b"x"), 1002),
        (frame(Op.CLOSE, close_payload(1006)), 1002),
        (frame(Op.CLOSE, close_payload(1000) + b"\xff"), 1007),
        (b"\xc2\x80" + bytes(4), 1002),
    ],
    ids=[
        "too long",
        "fragments too long",
        "unfinished and too long",
        "claims 2^62 bytes",
        "100k empty fragments",
        "text",
        "unfinished text",
        "text that isn't",
        "not masked",
        "continues nothing",
        "not continued",
        "unknown type",
        "fragmented ping",
        "long ping",
        "close of one byte",
        "close code for local use",
        "close reason that isn't text",
        "reserved bit",
    ],
)
async def test_breach_is_told_by_its_code_and_ends_that_connection(
    attack: bytes, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The peer gets the fitting close code, the handler RemoteProtocolError, others nothing."""
    caught: list[RemoteProtocolError] = []

    async def handler(connection: Connection) -> None:
        try:
            await echo(connection)
        except RemoteProtocolError as exc:
            caught.append(exc)
            with pytest.raises(ConnectionLost, match=f"this side closed .* with code {code}"):
                await connection.send_message(b"too late")
            with pytest.raises(RemoteProtocolError):
                await connection.receive_message()
            raise

    with trio.fail_after(30):
        async with serving(handler) as address, dial(address) as other:
            async with raw_client(address) as peer, trio.open_nursery() as nursery:
                await peer.send(frame(Op.BINARY, b"first"))
                assert await peer.read_frame() == (Op.BINARY, b"first")

                @nursery.start_soon
                async def send() -> None:
                    # The rest of it may meet a connection that is closed.
                    with contextlib.suppress(trio.BrokenResourceError):
                        await peer.send(attack)

                assert await peer.read_close() == code
            await other.send_message(b"well?")
            assert await other.receive_message() == b"well?"
    assert f"({code})" in str(caught[0])
    assert events(caplog) == ["connection_broke_rules"]


async def test_messages_nobody_takes_are_bounded() -> None:
    """A peer that ignores credit meets back-pressure at 16 MiB; all it sent arrives once taken."""
    take = trio.Event()
    count = 5 * MAX_WAITING_BYTES // MIB  # the system may hold 32 MiB and more of it (tcp_rmem)

    async def handler(connection: Connection) -> None:
        await take.wait()
        for number in range(count):
            assert (await connection.receive_message())[:1] == bytes([number])
        await connection.send_message(b"all")

    with trio.fail_after(80):
        async with serving(handler) as address, raw_client(address) as peer:
            sent = 0

            async def send() -> None:
                nonlocal sent
                for number in range(count):
                    await peer.send(frame(Op.BINARY, bytes([number]) + bytes(MIB - 1)))
                    sent += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while sent < MAX_WAITING_BYTES // MIB:
                    await trio.sleep(0.01)
                await trio.testing.wait_all_tasks_blocked(0.3)
                assert sent < count
                take.set()
            assert await peer.read_frame() == (Op.BINARY, b"all")


async def test_aclose_reads_on_although_nobody_takes_messages() -> None:
    """The answer to our goodbye is found behind messages that nobody will ever take."""
    full = trio.Event()

    async def handler(connection: Connection) -> None:
        await full.wait()
        started = trio.current_time()
        await connection.aclose(timeout=1000)
        took.append(trio.current_time() - started)

    took: list[float] = []
    with trio.fail_after(30):
        async with serving(handler) as address, raw_client(address) as peer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.send, frame(Op.BINARY, bytes(MIB)) * 32)
                await trio.testing.wait_all_tasks_blocked(0.1)
                full.set()
            assert await peer.read_close() == 1000
            await peer.send(frame(Op.CLOSE, close_payload(1000)))
            assert await peer.is_closed()
    assert took


async def test_a_mistake_of_ours_costs_the_connection_it_happens_in(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception out of the reader is logged and ends that connection; others go on."""
    cost_of = GuardedProtocol.cost_of

    def fail(message: bytes | bytearray) -> int:
        if message == b"trigger":
            raise RuntimeError("a bug")
        return cost_of(message)

    monkeypatch.setattr(GuardedProtocol, "cost_of", staticmethod(fail))
    with trio.fail_after(30):
        async with serving() as address, dial(address) as other:
            async with dial(address) as connection:
                await connection.send_message(b"trigger")
                with pytest.raises(ConnectionLost):
                    await connection.receive_message()
            await other.send_message(b"well?")
            assert await other.receive_message() == b"well?"
    assert events(caplog) == ["connection_failed_inside"]


# ---- peers that don't answer --------------------------------------------------------------------


async def test_aclose_is_bounded_when_the_peer_never_answers() -> None:
    """The socket is closed after the time-out; a later call can only shorten it."""

    async def deaf(peer: RawPeer) -> None:
        await shake_hands(peer)
        await peer.is_closed()

    with trio.fail_after(30):
        async with raw_server(deaf) as url:
            async with connect(url, **OPTIONS) as connection:
                started = trio.current_time()
                await connection.aclose(timeout=0.1)
                assert trio.current_time() - started >= 0.1
            async with connect(url, **OPTIONS) as connection, trio.open_nursery() as nursery:
                started = trio.current_time()
                nursery.start_soon(lambda: connection.aclose(timeout=1000))
                await trio.testing.wait_all_tasks_blocked()
                await connection.aclose(timeout=0.1)
            assert trio.current_time() - started < 20


async def test_aclose_is_bounded_when_the_peer_stops_reading() -> None:
    """A window of zero, which `write_pending_since` tells of, holds neither aclose nor the send."""
    lost: list[ConnectionLost] = []

    async def send(connection: Connection) -> None:
        with pytest.raises(ConnectionLost) as caught:
            await connection.send_message(bytes(32 * MIB))
        lost.append(caught.value)

    async def stop_reading(peer: RawPeer) -> None:
        await shake_hands(peer)
        await trio.sleep_forever()

    with trio.fail_after(30):
        async with raw_server(stop_reading) as url, connect(url, **OPTIONS) as connection:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, connection)
                await trio.testing.wait_all_tasks_blocked(0.1)
                pending = connection.line.write_pending_since
                assert pending is not None
                assert trio.current_time() - pending >= 0.1
                started = trio.current_time()
                await connection.aclose(timeout=0.1)
                assert trio.current_time() - started < 20
    assert len(lost) == 1


async def test_cancelled_server_is_bounded_by_its_slowest_peer() -> None:
    """Twenty peers that don't answer the goodbye take as long as one."""
    with trio.fail_after(30):
        async with trio.open_nursery() as peers:
            async with serving() as address:

                async def deaf(task_status: trio.TaskStatus[None]) -> None:
                    async with raw_client(address) as peer:
                        task_status.started()
                        assert await peer.read_close() == 1001
                        await peer.is_closed()

                for _ in range(20):
                    await peers.start(deaf)
                started = trio.current_time()
        assert 2 <= trio.current_time() - started < 20


async def test_reset_and_vanishing_peers_are_noticed() -> None:
    """A reset in the middle of a frame, and an end without a goodbye, are ConnectionLost."""
    lost: list[str] = []

    async def handler(connection: Connection) -> None:
        with pytest.raises(ConnectionLost) as caught:
            await connection.receive_message()
        assert caught.value.code is None
        lost.append(str(caught.value))
        raise caught.value

    with trio.fail_after(30):
        async with serving(handler) as address:
            async with raw_client(address) as peer:
                await peer.send(frame(Op.BINARY, bytes(1000))[:500])
                linger = struct.pack("ii", 1, 0)
                peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            async with raw_client(address) as peer:
                await peer.send(frame(Op.BINARY, bytes(1000))[:500])
            while len(lost) < 2:
                await trio.testing.wait_all_tasks_blocked()
    assert "broke" in lost[0]
    assert "without a goodbye" in lost[1]


HALF = MIB // 2
"""Of a message whose rest never comes."""


def reset(peer: RawPeer) -> None:
    """Have the connection end by a reset, and not in order, as soon as it is closed."""
    linger = struct.pack("ii", 1, 0)
    peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


async def _load_what_loads_late() -> None:
    with trio.fail_after(30):
        async with serving() as address, dial(address) as connection:
            await connection.send_message(b"x" * FAST_MASK_BYTES)
            await connection.receive_message()


@pytest.fixture
def uncollected() -> Iterator[Callable[[], int]]:
    """Bytes of memory that are still held, by cycles too, since the test began."""
    trio.run(_load_what_loads_late)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()


@pytest.fixture(params=["as it comes", "at once"])
def is_read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether the half has been: in as many pieces as the machine makes of it, or in one, which is the last."""
    receive = MeteredStream.receive_some
    pieces: dict[MeteredStream, bytearray] = {}
    total = 0

    async def receive_and_count(stream: MeteredStream, max_bytes: int | None = None) -> bytes:
        nonlocal total
        piece = await (receive_at_once if request.param == "at once" else receive)(
            stream, max_bytes
        )
        total += len(piece)
        return piece

    async def receive_at_once(stream: MeteredStream, max_bytes: int | None = None) -> bytes:
        while True:
            piece = await receive(stream, max_bytes)
            before = pieces.setdefault(stream, bytearray())
            if not 1000 < len(before) + len(piece) < HALF:
                return bytes(pieces.pop(stream)) + piece
            before += piece
            del piece  # or an error, or a cancellation, of the next would keep it

    monkeypatch.setattr(MeteredStream, "receive_some", receive_and_count)
    return lambda: total >= HALF


@pytest.mark.parametrize("is_reset", [True, False])
async def test_half_a_message_goes_with_its_connection(
    uncollected: Callable[[], int], is_read: Callable[[], bool], is_reset: bool
) -> None:
    """It waits for no collector of cycles, which in a daemon that only moves bulk may not come for a long time."""

    async def say_half(peer: RawPeer) -> None:
        await shake_hands(peer)
        await peer.stream.receive_some()  # it is not to come together with our answer
        await peer.send(frame(Op.BINARY, bytes(2 * HALF), mask=False)[:HALF])
        await peer.stream.receive_some()  # until the half has arrived
        if is_reset:
            reset(peer)

    with trio.fail_after(30):
        async with raw_server(say_half) as url, connect(url, **OPTIONS) as connection:
            await connection.send_message(b"come")
            while not is_read():
                with trio.move_on_after(0.01):
                    await connection.receive_message()
            await connection.send_message(b"go")
            with pytest.raises(ConnectionLost):
                await connection.receive_message()
    assert uncollected() < HALF // 2


@pytest.mark.parametrize("is_reset", [True, False])
async def test_half_a_message_goes_with_its_connection_to_a_server(
    uncollected: Callable[[], int], is_read: Callable[[], bool], is_reset: bool
) -> None:
    """The same of one that was quiet until then."""
    lost = trio.Event()

    async def handler(connection: Connection) -> None:
        try:
            await connection.receive_message()
        finally:
            lost.set()

    with trio.fail_after(30):
        async with serving(handler) as address:
            async with raw_client(address) as peer:
                await peer.send(frame(Op.BINARY, bytes(2 * HALF))[:HALF])
                while not is_read():
                    await trio.sleep(0.01)
                if is_reset:
                    reset(peer)
            await lost.wait()
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert uncollected() < HALF // 2


async def test_what_the_peer_said_last_is_heard_although_sending_fails() -> None:
    """A close frame that waits to be read survives that our own writes no longer arrive."""

    failed = trio.Event()

    async def say_and_leave(peer: RawPeer) -> None:
        await shake_hands(peer)
        await failed.wait()
        await peer.send(frame(Op.BINARY, b"listen", mask=False))
        await peer.send(frame(Op.CLOSE, close_payload(4003, "go away"), mask=False))

    with trio.fail_after(30):
        async with raw_server(say_and_leave) as url, connect(url, **OPTIONS) as connection:
            # Behind our back, as the network would: the socket object in use knows nothing of it.
            with connection._meter._tcp.socket.dup() as same:
                same.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionLost):
                await connection.send_message(b"x")
            failed.set()
            assert await connection.receive_message() == b"listen"
            with pytest.raises(ConnectionLost, match=r"4003 \(go away\)"):
                await connection.receive_message()


async def test_connection_sliced_into_single_bytes_is_the_same() -> None:
    """Handshake, messages and close may come byte by byte."""
    with trio.fail_after(30):
        async with serving() as address:
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                peer = RawPeer(stream)
                for byte in upgrade_request():
                    await peer.send(bytes([byte]))
                assert (await peer.read_head()).startswith("HTTP/1.1 101 ")
                for byte in frame(Op.BINARY, b"x" * 300) + frame(Op.CLOSE, close_payload(1000)):
                    await peer.send(bytes([byte]))
                assert await peer.read_frame() == (Op.BINARY, b"x" * 300)
                assert await peer.read_close() == 1000
