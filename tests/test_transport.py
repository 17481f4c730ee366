"""Connections between two ends of ours: what they carry, how they close, where a server listens."""

from __future__ import annotations

import errno
import inspect
import os
import socket
import ssl
import sys
from functools import partial
from pathlib import Path

import h11
import pytest
import trio
import trio_websocket
from raw_peer import (
    MIB,
    OPTIONS,
    Op,
    RawPeer,
    close_payload,
    dial,
    echo,
    frame,
    open_metered,
    raw_server,
    serving,
    shake_hands,
)
from trio.testing import check_half_closeable_stream
from wsproto import ConnectionType, WSConnection

from sandd._core._errors import ConfigurationError, ConnectionLost
from sandd._core.tls.contexts import server_tls
from sandd._core.transport import Connection, ListenAddress, connect, serve
from sandd._core.transport._streams import GATHERED_BYTES, NOTSENT_LOWAT, Address, MeteredStream

CERTIFICATE = Path(__file__).with_name("certificate.pem")


# ---- messages -----------------------------------------------------------------------------------


async def test_messages_arrive_whole_in_order_and_in_both_directions() -> None:
    """Every size at which the frame's header changes, and the limit itself, arrives as it was."""
    sizes = [0, 1, 125, 126, 65535, 65536, 300_000, MIB]
    with trio.fail_after(30):
        async with serving() as address, dial(address) as connection:
            for size in sizes:
                message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
                await connection.send_message(message)
                assert await connection.receive_message() == message


async def test_messages_are_bytes_and_nothing_else() -> None:
    """A message of another type is a mistake of the caller, and breaks nothing."""
    with trio.fail_after(30):
        async with serving() as address, dial(address) as connection:
            for wrong in ("text", bytearray(b"x"), memoryview(b"x")):
                with pytest.raises(TypeError, match="must be bytes"):
                    await connection.send_message(wrong)  # type: ignore[arg-type]  # on purpose
            await connection.send_message(b"right")
            assert await connection.receive_message() == b"right"


async def test_messages_wait_for_a_consumer_that_is_busy() -> None:
    """A hundred messages that nobody takes yet are all there later."""
    with trio.fail_after(30):
        async with serving() as address, dial(address) as connection:
            for number in range(100):
                await connection.send_message(b"%d" % number)
            for number in range(100):
                assert await connection.receive_message() == b"%d" % number


async def test_a_cancelled_receive_loses_nothing() -> None:
    """The message that arrives after a receive was cancelled goes to the next one."""
    with trio.fail_after(30):
        async with serving() as address, dial(address) as connection:
            with trio.move_on_after(0):
                await connection.receive_message()
            await connection.send_message(b"kept")
            assert await connection.receive_message() == b"kept"


async def test_who_has_caught_up_gets_messages_as_they_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who was not done with one for a turn doesn't lag behind for as long as there are more."""
    count = 1000
    got: list[bytes] = []
    late: list[bytes] = []

    async def say(connection: Connection) -> None:
        for number in range(count):
            while not connection.send_message_nowait(b"%d" % number):
                await trio.lowlevel.checkpoint()
            if number % 5 == 4:
                await trio.lowlevel.checkpoint()
        await connection.receive_message()

    with trio.fail_after(30):
        async with serving(say) as address, dial(address) as connection:
            receive_late = Connection._receive_message

            async def receive_message(each: Connection) -> bytes:
                message = await receive_late(each)
                if each is connection:
                    late.append(message)
                return message

            def receive(message: bytes) -> bool:
                got.append(message)
                if len(got) == count:
                    scope.cancel()
                return len(got) % 250 != 1

            monkeypatch.setattr(Connection, "_receive_message", receive_message)
            with trio.CancelScope() as scope:
                await connection.deliver_messages(receive, lambda: True)
    assert got == [b"%d" % number for number in range(count)]
    assert len(late) < 60


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no write(2) on sockets")
async def test_messages_sent_without_waiting_keep_their_order() -> None:
    """They go between the others, and what the kernel left of one goes before all that follows."""
    with trio.fail_after(30):
        async with serving() as address, dial(address) as connection:
            big = bytes(range(256)) * (MIB // 256)
            assert connection.send_message_nowait(b"first")
            sent = 1
            while connection.send_message_nowait(big):  # until the kernel takes but a part
                sent += 1
            await connection.flush()
            await connection.send_message(b"last")
            assert await connection.receive_message() == b"first"
            for _ in range(sent - 1):
                assert await connection.receive_message() == big
            assert await connection.receive_message() == b"last"


async def test_messages_are_not_sent_without_waiting_where_that_would_hurt() -> None:
    """Not into another message, and not after a goodbye from either side."""

    async def never_read(peer: RawPeer) -> None:
        await shake_hands(peer)
        await trio.sleep_forever()

    async def say_goodbye(peer: RawPeer) -> None:
        goodbye = frame(Op.CLOSE, close_payload(1000), mask=False)
        await shake_hands(peer, followed_by=goodbye)
        await peer.is_closed()

    with trio.fail_after(30):
        async with raw_server(never_read) as url, connect(url, **OPTIONS) as connection:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.send_message, bytes(64 * MIB))
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert not connection.send_message_nowait(b"x")
                nursery.cancel_scope.cancel()
            assert not connection.send_message_nowait(b"x")
        async with raw_server(say_goodbye) as url, connect(url, **OPTIONS) as connection:
            assert not connection.send_message_nowait(b"x")
            await connection.aclose(timeout=0.1)
            assert not connection.send_message_nowait(b"x")


async def test_messages_over_tls() -> None:
    """wss:// carries the same, and a certificate nobody vouches for is named as the reason."""
    presented = server_tls(CERTIFICATE, CERTIFICATE)
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    with trio.fail_after(30):
        async with serving(tls=lambda: presented) as address:
            url = f"wss://127.0.0.1:{address.port}/ws"
            async with connect(url, ssl_context=trusting, **OPTIONS) as connection:
                await connection.send_message(b"x" * MIB)
                assert await connection.receive_message() == b"x" * MIB
            with pytest.raises(
                ConnectionLost, match=r"no TLS handshake.*certificate verify failed"
            ):
                async with connect(url, **OPTIONS):
                    pass
            with pytest.raises(ConnectionLost, match="could not connect to ws://"):
                async with dial(address):
                    pass


# ---- what a connection knows --------------------------------------------------------------------


async def test_connection_knows_its_ends_and_the_request() -> None:
    """Addresses, path and headers are those that the other side sees, and repr shows them."""
    accepted: list[Connection] = []

    async def handler(connection: Connection) -> None:
        accepted.append(connection)
        await echo(connection)

    with trio.fail_after(30):
        headers = [("X-Twice", "a"), ("x-twice", "b"), ("X-Other", "http://other.example")]
        async with serving(handler) as address, dial(address, headers=headers) as ours:
            await ours.send_message(b"")
            await ours.receive_message()
            theirs = accepted[0]
            assert (theirs.remote, theirs.local) == (ours.local, ours.remote)
            assert ours.remote == f"127.0.0.1:{address.port}"
            assert ours.path == theirs.path == "/ws"
            assert theirs.headers["x-twice"] == "a, b"
            assert theirs.headers["x-other"] == "http://other.example"
            assert theirs.headers["host"] == ours.remote
            assert ours.headers == {}
            assert ours.is_loopback
            assert theirs.is_loopback
            assert repr(ours) == f"<Connection to {ours.remote}/ws open>"
            assert repr(theirs) == f"<Connection from {ours.local}/ws open>"
        assert repr(ours) == f"<Connection to {ours.remote}/ws over>"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("fe80::1%eth0", False),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    """Only this machine's own addresses count, in whatever form they come."""
    assert Address(host, 80).is_loopback is expected


async def test_both_ends_have_the_socket_options_that_latency_needs() -> None:
    """TCP_NODELAY and, where it exists, TCP_NOTSENT_LOWAT are set, whoever dialled."""
    accepted: list[Connection] = []

    async def handler(connection: Connection) -> None:
        accepted.append(connection)
        await echo(connection)

    with trio.fail_after(30):
        async with serving(handler) as address, dial(address) as ours:
            await ours.send_message(b"")
            await ours.receive_message()
            for connection in (ours, accepted[0]):
                tcp = connection._meter._tcp
                assert tcp.getsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY)
                if hasattr(trio.socket, "TCP_NOTSENT_LOWAT"):
                    lowat = (trio.socket.IPPROTO_TCP, trio.socket.TCP_NOTSENT_LOWAT)
                    assert tcp.getsockopt(*lowat) == NOTSENT_LOWAT


async def test_metered_stream_is_a_trio_stream() -> None:
    """The stream below everything passes trio's own suite for streams."""

    async def make_pair() -> tuple[MeteredStream, MeteredStream]:
        ours, theirs = await open_metered()
        return ours, MeteredStream(theirs)

    async def make_clogged_pair() -> tuple[MeteredStream, MeteredStream]:
        pair = await make_pair()
        for stream in pair:
            with trio.move_on_after(0.1):
                await stream.send_all(bytes(16 * MIB))
        return pair

    with trio.fail_after(20):
        await check_half_closeable_stream(make_pair, make_clogged_pair)


@pytest.mark.skipif(sys.platform == "win32", reason="everything waits for its turn there")
@pytest.mark.parametrize("taken", [1, 9, 10, 11, 9 + GATHERED_BYTES])
async def test_what_the_kernel_leaves_of_two_pieces_follows(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the two it ends in, and before everything that is sent later."""
    head, body = b"the head:", bytes(range(256)) * (GATHERED_BYTES // 256)

    def write_some(descriptor: int, pieces: tuple[bytes, bytes]) -> int:
        return os.write(descriptor, b"".join(pieces)[:taken])

    monkeypatch.setattr("sandd._core.transport._streams.os.writev", write_some)
    with trio.fail_after(30):
        ours, theirs = await open_metered()
        async with ours, theirs:
            assert ours.send_nowait(head, body)
            assert ours.has_unsent == (taken < len(head + body))
            await ours.send_all(b"later")
            await ours.send_eof()
            received = b"".join([part async for part in theirs])
    assert received == head + body + b"later"


@pytest.mark.skipif(sys.platform == "win32", reason="trio reads there, as much as it is told to")
async def test_a_message_is_read_at_once_though_one_before_it_came_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a little the next read is for less; but what one read leaves of a message is no sign that little comes."""
    waiting, taken = bytearray(), []
    message = bytes(512 * 1024 + 32)

    def read(_descriptor: int, count: int) -> bytes:
        data = bytes(waiting[:count])
        del waiting[:count]
        taken.append(len(data))
        return data

    async def take(*parts: int) -> list[int]:
        """The reads for a message that comes in so many bytes at a time, and the rest of it."""
        taken.clear()
        for part in (*parts, len(message) - sum(parts)):
            waiting.extend(bytes(part))
            while waiting:
                await ours.receive_some()
        return list(taken)

    with trio.fail_after(30):
        ours, theirs = await open_metered()
        async with ours, theirs:
            await theirs.send_all(b"never read, so there is always something to be read")
            monkeypatch.setattr("sandd._core.transport._streams.os.read", read)
            await take()  # grows
            assert await take() == [len(message)]
            assert await take(100 * 1024) == [100 * 1024, len(message) - 100 * 1024]
            assert await take() == [512 * 1024, 32]
            for _ in range(3):
                assert await take() == [len(message)]


# ---- the end ------------------------------------------------------------------------------------


async def test_close_code_and_reason_reach_the_peer() -> None:
    """Whoever closes, the other side's `ConnectionLost` has the code and names the reason."""
    seen: list[ConnectionLost] = []

    async def handler(connection: Connection) -> None:
        if await connection.receive_message() == b"close":
            await connection.aclose(4001, "as you wish")
            return
        with pytest.raises(ConnectionLost) as caught:
            await connection.receive_message()
        seen.append(caught.value)

    with trio.fail_after(30):
        async with serving(handler) as address:
            async with dial(address) as connection:
                await connection.send_message(b"close")
                with pytest.raises(ConnectionLost, match="as you wish") as caught:
                    await connection.receive_message()
                assert caught.value.code == 4001
                with pytest.raises(ConnectionLost, match="code 4001"):
                    await connection.send_message(b"too late")
            async with dial(address) as connection:
                await connection.send_message(b"listen")
                await connection.aclose(4002, "enough")
                with pytest.raises(ConnectionLost, match="this side closed"):
                    await connection.send_message(b"too late")
                with pytest.raises(ConnectionLost, match="this side closed"):
                    await connection.receive_message()
            await trio.testing.wait_all_tasks_blocked()
        assert [lost.code for lost in seen] == [4002]


async def test_aclose_again_and_together_and_cancelled() -> None:
    """Closing is safe at any time: twice, by two tasks, in a cancelled scope, after the end."""
    with trio.fail_after(30):
        async with serving() as address:
            async with dial(address) as connection, trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await connection.aclose()  # doesn't raise Cancelled
                assert repr(connection).endswith(" over>")
                nursery.start_soon(connection.aclose)
                nursery.start_soon(connection.aclose, 1011)
            await connection.aclose()


async def test_a_send_that_was_cancelled_is_the_last() -> None:
    """After a send was cut short nothing more is sent, and closing doesn't pretend otherwise."""

    async def never_read(peer: RawPeer) -> None:
        await shake_hands(peer)
        await trio.sleep_forever()

    with trio.fail_after(30):
        async with raw_server(never_read) as url:
            async with connect(url, **OPTIONS) as connection:
                assert connection.line.write_pending_since is None
                before = connection.line.last_write_progress
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connection.send_message, b"x" * (64 * MIB))
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    assert connection.line.write_pending_since is not None
                    # What the kernel took at once was progress, before anything had to wait.
                    assert (
                        connection.line.write_pending_since >= connection.line.last_write_progress
                    )
                    assert connection.line.last_write_progress > before
                    nursery.cancel_scope.cancel()
                assert connection.line.write_pending_since is None
                for _ in range(2):
                    with pytest.raises(ConnectionLost, match="cut short"):
                        await connection.send_message(b"lost otherwise")
                started = trio.current_time()
                await connection.aclose(timeout=1000)
                assert trio.current_time() - started < 20  # it waits for no answer


async def test_body_exceptions_come_out_as_themselves() -> None:
    """What the block raises isn't wrapped in a group, whether an error or a cancellation."""
    with trio.fail_after(30):
        async with serving() as address:
            with pytest.raises(KeyError, match="mine"):
                async with dial(address):
                    raise KeyError("mine")
            with trio.CancelScope() as scope:
                async with dial(address) as connection:
                    scope.cancel()
                    await trio.sleep_forever()
            assert scope.cancelled_caught
            assert repr(connection).endswith(" over>")


async def test_cancelled_server_tells_every_peer_that_it_goes() -> None:
    """Handlers are cancelled, each peer gets 1001, and new connections are refused meanwhile."""
    codes: list[int | None] = []
    cancelled: list[Connection] = []

    async def handler(connection: Connection) -> None:
        try:
            await connection.send_message(b"hello")
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.append(connection)
            raise

    async def client(address: ListenAddress, task_status: trio.TaskStatus[None]) -> None:
        async with dial(address) as connection:
            await connection.receive_message()
            task_status.started()
            with pytest.raises(ConnectionLost) as caught:
                await connection.receive_message()
            codes.append(caught.value.code)

    with trio.fail_after(30):
        async with trio.open_nursery() as clients:
            async with serving(handler) as address:
                for _ in range(5):
                    await clients.start(client, address)
        assert codes == [1001] * 5
        assert len(cancelled) == 5


@pytest.mark.parametrize("in_group", [False, True], ids=["alone", "in a group"])
async def test_handler_that_fails_ends_its_connection_only(
    in_group: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its peer gets 1011, the log gets the traceback, and everybody else goes on."""

    async def handler(connection: Connection) -> None:
        if await connection.receive_message() == b"fail":
            if not in_group:
                raise ValueError("a bug")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise ValueError("a bug")
        await connection.send_message(b"fine")
        await trio.sleep_forever()

    with trio.fail_after(30):
        async with serving(handler) as address, dial(address) as other:
            async with dial(address) as connection:
                await connection.send_message(b"fail")
                with pytest.raises(ConnectionLost) as caught:
                    await connection.receive_message()
                assert caught.value.code == 1011
            await other.send_message(b"work")
            assert await other.receive_message() == b"fine"
    assert [r.msg["event"] for r in caplog.records] == ["connection_handler_failed"]
    assert "a bug" in caplog.text


@pytest.mark.parametrize("in_group", [False, True], ids=["alone", "in a group"])
async def test_handler_that_ends_with_its_connection_is_no_failure(
    in_group: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A `ConnectionLost` that leaves the handler, from its nursery too, is what was expected."""

    async def handler(connection: Connection) -> None:
        if not in_group:
            await echo(connection)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(echo, connection)

    with trio.fail_after(30):
        async with serving(handler) as address:
            async with dial(address) as connection:
                await connection.send_message(b"x")
                assert await connection.receive_message() == b"x"
            await trio.testing.wait_all_tasks_blocked()
    assert not caplog.records


async def test_handler_that_fails_when_cancelled_ends_nothing_but_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error beside the cancellation is logged, and the cancellation goes on alone."""

    async def fail_late() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("a bug")

    async def hold(address: ListenAddress, task_status: trio.TaskStatus[Connection]) -> None:
        async with dial(address) as connection:
            task_status.started(connection)
            await trio.sleep_forever()

    async def handler(connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail_late)
            await echo(connection)

    with trio.fail_after(30):
        async with trio.open_nursery() as clients:
            async with serving(handler) as address:
                connection = await clients.start(hold, address)
                await connection.send_message(b"x")
                await connection.receive_message()
            clients.cancel_scope.cancel()
    assert [r.msg["event"] for r in caplog.records] == ["connection_handler_failed"]


async def test_handler_that_returns_ends_its_connection_cleanly() -> None:
    """The peer gets 1000."""

    async def handler(connection: Connection) -> None:
        await connection.send_message(b"bye")

    with trio.fail_after(30):
        async with serving(handler) as address, dial(address) as connection:
            assert await connection.receive_message() == b"bye"
            with pytest.raises(ConnectionLost) as caught:
                await connection.receive_message()
            assert caught.value.code == 1000


# ---- where a server listens ---------------------------------------------------------------------


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "localhost", "127.0.0.1"])
async def test_serve_listens_on_every_address_of_a_host(host: str) -> None:
    """Each address of the host takes connections, all on the one port that was free."""
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(partial(serve, echo, host=host, port=0, **OPTIONS))
            assert len({address.port for address in addresses}) == 1
            for address in addresses:
                near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
                async with dial(ListenAddress(near, address.port)) as connection:
                    await connection.send_message(b"x")
                    assert await connection.receive_message() == b"x"
            nursery.cancel_scope.cancel()


async def test_serve_raises_what_listening_raises() -> None:
    """A port that is taken is an OSError that names it, and not in a group."""
    with trio.fail_after(30):
        async with serving() as address:
            with pytest.raises(OSError, match=f"127.0.0.1:{address.port}") as caught:
                await serve(echo, host="127.0.0.1", port=address.port, **OPTIONS)
            assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(ConfigurationError, match="65536"):
            await serve(echo, host="127.0.0.1", port=65536, subprotocol="x", max_message_bytes=MIB)


# ---- dialling -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:80",
        "http://localhost/ws",
        "ws:///ws",
        "ws://localhost:99999/ws",
        "ws://localhost:0/ws",
        "ws://localhost:x/ws",
        "ws://[::1/ws",
        "ws://user:secret@localhost/ws",
        "ws://localhost/ws#here",
        "ws://localhost/w s",
        "ws://localhost/\N{SNOWMAN}",
        "ws://a..b/ws",
    ],
)
async def test_connect_refuses_a_bad_url(url: str) -> None:
    """What can't be dialled is found out before anything is sent, and passwords stay unsaid."""
    with pytest.raises(ConfigurationError) as caught:
        async with connect(url, **OPTIONS):
            pass
    assert "secret" not in str(caught.value)


async def test_connect_refuses_headers_and_tls_that_make_no_sense() -> None:
    """A header with a newline, and TLS settings for a plain URL, are configuration errors."""
    for options in (
        {"headers": [("x", "a\r\nb: c")]},
        {"ssl_context": ssl.create_default_context()},
    ):
        with pytest.raises(ConfigurationError):
            async with dial(ListenAddress("127.0.0.1", 1), **options):
                pass


async def test_connect_says_what_was_tried_and_what_happened() -> None:
    """A closed port and a name that doesn't resolve are told apart by the message."""

    class NoNames(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *args: object, **kwargs: object) -> list[object]:  # type: ignore[override]
            raise trio.socket.gaierror(trio.socket.EAI_NONAME, "no such name")

        async def getnameinfo(self, *args: object) -> tuple[str, str]:  # type: ignore[override]
            raise NotImplementedError

    with trio.fail_after(30):
        async with serving() as address:
            pass
        with pytest.raises(ConnectionLost, match=f"127.0.0.1:{address.port}/ws: .*refused") as lost:
            async with dial(address):
                pass
        assert isinstance(lost.value.__cause__, OSError)
        trio.socket.set_custom_hostname_resolver(NoNames())
        with pytest.raises(ConnectionLost, match=r"ws://name\.invalid/ws: no such name"):
            async with connect("ws://name.invalid/ws?token=x", **OPTIONS):
                pass


# ---- what we rely on ----------------------------------------------------------------------------


def test_trio_websocket_has_what_the_transport_reaches_for() -> None:
    """The private names, and the arguments by which the guards are put in, exist."""
    websocket = trio_websocket.WebSocketConnection
    protocol = WSConnection(ConnectionType.SERVER)
    channel = websocket(trio.testing.memory_stream_pair()[0], protocol)._recv_channel
    with pytest.raises(trio.WouldBlock):
        channel.receive_nowait()
    assert not websocket(trio.testing.memory_stream_pair()[0], protocol)._stream_lock.locked()
    assert isinstance(protocol.handshake._h11_connection, h11.Connection)
    assert callable(protocol.handshake._process_connection_request)
    assert inspect.iscoroutinefunction(websocket._reader_task)
    assert list(inspect.signature(websocket).parameters) == [
        "stream",
        "ws_connection",
        "host",
        "path",
        "client_subprotocols",
        "client_extra_headers",
        "message_queue_size",
        "max_message_size",
        "receive_buffer_size",
    ]
