"""Handshakes with what is no peer of ours: stray clients, other servers, and too many of either."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from proc_files import seconds_of_calm
from raw_peer import (
    OPTIONS,
    SUBPROTOCOL,
    Op,
    RawPeer,
    assert_works,
    close_payload,
    dial,
    frame,
    raw_client,
    raw_server,
    serving,
    shake_hands,
    upgrade_request,
)
from wsproto import ConnectionType

from sandd._core._errors import ConnectionLost
from sandd._core.admission import LONGEST_WAIT, Admission
from sandd._core.tls.contexts import server_tls
from sandd._core.transport import connect
from sandd._core.transport._http import RequestReader, Upgrade
from sandd._core.transport._protocol import GuardedProtocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CERTIFICATE = Path(__file__).with_name("certificate.pem")


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The events of our log so far."""
    return [record.msg["event"] for record in caplog.records if record.name == "sandd.transport"]


@pytest.fixture(autouse=True)
def _log_what_matters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sandd.transport")


# ---- servers that are none ----------------------------------------------------------------------


async def refuse(peer: RawPeer, response: bytes) -> None:
    """Answer the handshake with something else."""
    await peer.read_head()
    await peer.send(response)
    await peer.is_closed()


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (b"", r"no answer to the WebSocket handshake within 0\.3 s"),
        (b"HTTP/1.1 101 Swi", r"no answer to the WebSocket handshake within 0\.3 s"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "no WebSocket handshake"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP status 200: hello"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", "HTTP status 302"),
        (b"HTTP/1.1 429 No\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP status 429"),
        (b"HTTP/1.1 403 No\r\n\r\nsorry\r\n\x1b[31mred", r"HTTP status 403: sorry \?\[31mred"),
        (b"HTTP/1.1 403 No\r\n\r\n" + b"x" * 10_000_000, "HTTP status 403: x{1024}$"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "HTTP status 100"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "no WebSocket handshake"),
        (b"HTTP/1.1 101 \xff\r\nConnection: \xff\r\n\r\n", "no WebSocket handshake"),
    ],
    ids=[
        "nothing",
        "half a line",
        "another protocol",
        "a page",
        "a redirect",
        "a body that never comes",
        "terminal escapes",
        "an endless body",
        "continue",
        "no upgrade",
        "bytes beyond ASCII",
    ],
)
async def test_connect_tells_what_answered_instead(response: bytes, message: str) -> None:
    """Whatever a port answers, connect() fails in time, by ConnectionLost, and says what it was."""
    with trio.fail_after(30):
        async with raw_server(lambda peer: refuse(peer, response)) as url:
            started = trio.current_time()
            with pytest.raises(ConnectionLost, match=message) as caught:
                async with connect(url, timeout=0.3, **OPTIONS):
                    pass
            assert url in str(caught.value)
            assert caught.value.__cause__ is not None
            assert trio.current_time() - started < 20


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (lambda peer: shake_hands(peer, subprotocol=None), "not test.1"),
        (lambda peer: shake_hands(peer, subprotocol="other"), "no WebSocket handshake"),
        (lambda peer: shake_hands(peer, key="forged"), "no WebSocket handshake"),
        (
            lambda peer: shake_hands(peer, sec_websocket_extensions="permessage-deflate"),
            "no WebSocket handshake",
        ),
        (lambda peer: peer.read_head(), "closed the connection in the WebSocket handshake"),
        (lambda peer: peer.stream.aclose(), "in the WebSocket handshake"),
    ],
    ids=["no subprotocol", "another", "a forged proof", "deflate", "leaves", "leaves at once"],
)
async def test_connect_insists_on_a_handshake_that_is_right(
    behave: Callable[[RawPeer], Awaitable[object]], message: str
) -> None:
    """A 101 alone is not enough: proof, subprotocol and extensions must be what was asked for."""

    async def treat(peer: RawPeer) -> None:
        await behave(peer)

    with trio.fail_after(30):
        async with raw_server(treat) as url:
            with pytest.raises(ConnectionLost, match=message):
                async with connect(url, **OPTIONS):
                    pass


async def test_connect_yields_what_came_right_behind_the_handshake() -> None:
    """A server that accepts and closes at once has said why: that is the connection's to tell."""

    async def accept_and_close(peer: RawPeer) -> None:
        at_once = frame(Op.BINARY, b"first", mask=False)
        at_once += frame(Op.CLOSE, close_payload(4008, "too many of you"), mask=False)
        await shake_hands(peer, followed_by=at_once)

    with trio.fail_after(30):
        async with raw_server(accept_and_close) as url, connect(url, **OPTIONS) as connection:
            assert await connection.receive_message() == b"first"
            with pytest.raises(ConnectionLost, match="too many of you") as caught:
                await connection.receive_message()
            assert caught.value.code == 4008


async def test_compression_is_neither_offered_nor_accepted() -> None:
    """permessage-deflate, by which 261 KB become 256 MiB, is in no handshake of ours."""
    requests: list[str] = []

    async def listen(peer: RawPeer) -> None:
        requests.append(await shake_hands(peer))
        await peer.read_close()

    with trio.fail_after(30):
        async with raw_server(listen) as url, connect(url, **OPTIONS):
            pass
        assert "sec-websocket-extensions" not in requests[0].lower()
        async with serving() as address:
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                peer = RawPeer(stream)
                await peer.send(upgrade_request(sec_websocket_extensions="permessage-deflate"))
                head = await peer.read_head()
                assert head.startswith("HTTP/1.1 101 ")
                assert "sec-websocket-extensions" not in head.lower()


# ---- clients that are none ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:8765"},
        {"host": "localhost"},
        {"host": "LOCALHOST:1"},
        {"host": "sandd.localhost:8765"},
        {"host": "[::1]:8765"},
        {"host": "127.8.9.10"},
        {"host": socket.gethostname()},
        {"host": "sandd.example", "x_forwarded_for": "192.0.2.1"},
        {"host": "sandd.example", "forwarded": "for=192.0.2.1"},
    ],
    ids=str,
)
async def test_on_loopback_the_host_is_this_machine_or_a_proxys(headers: dict[str, str]) -> None:
    """By whatever name that goes by; what a proxy was asked for is its own business."""
    with trio.fail_after(10):
        async with serving() as address, raw_client(address, **headers):
            pass


def test_elsewhere_any_host_will_do() -> None:
    """Which names lead to an address that others reach is not known here; browsers are told by their Origin."""
    protocol = GuardedProtocol(ConnectionType.SERVER, max_message_bytes=1)
    reader = RequestReader(protocol, paths=("/ws",), subprotocol=SUBPROTOCOL, secure=False)
    assert isinstance(reader.feed(upgrade_request(host="sandd.example")), Upgrade)


@pytest.mark.parametrize(
    ("request_bytes", "status", "word"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404, "nothing at /"),
        (b"GET / HTTP/1.0\r\n\r\n", 404, "nothing at /"),
        (b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n", 426, "not a WebSocket handshake"),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", 404, "nothing at /x"),
        (upgrade_request(path="/other"), 404, "nothing at /other"),
        (upgrade_request(origin="http://evil.example"), 403, "browsers are not served here"),
        (upgrade_request(subprotocol=None), 400, "no subprotocol"),
        (upgrade_request(subprotocol="test.2"), 400, "no subprotocol"),
        (upgrade_request(sec_websocket_version="12"), 426, "Sec-WebSocket-Version: 13"),
        (upgrade_request(sec_websocket_version=""), 400, "faulty"),
        (upgrade_request(sec_websocket_key=""), 400, "faulty"),
        (upgrade_request(connection="close"), 400, "faulty"),
        (b"POST" + upgrade_request()[3:], 400, "method must be GET"),
        (upgrade_request(host=""), 400, "not an HTTP request"),
        (upgrade_request(host="\N{SNOWMAN}"), 400, "faulty"),
        (upgrade_request(host="evil.example:8765"), 403, "is not this machine"),
        (upgrade_request(host="127.0.0.1.evil.example"), 403, "is not this machine"),
        (upgrade_request() + frame(Op.BINARY, b"x"), 400, "before its answer"),
        (b"GET /ws HTTP/1.1\r\nX: " + b"x" * 100_000, 431, "not an HTTP request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "TLS"),
        (b"\xff\xfe\x00garbage\r\n\r\n", 400, "not an HTTP request"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n", 400, "not an HTTP request"),
    ],
    ids=[
        "GET /",
        "GET / of HTTP 1.0",
        "GET /ws",
        "POST",
        "another path",
        "a browser",
        "no subprotocol",
        "another subprotocol",
        "old version",
        "no version",
        "no key",
        "no connection header",
        "an upgrade by POST",
        "no host",
        "a host that isn't",
        "a host that isn't here",
        "a host that looks as if",
        "impatient",
        "endless header",
        "TLS",
        "garbage",
        "another protocol",
    ],
)
async def test_stray_request_gets_a_sentence_and_is_logged_once(
    request_bytes: bytes, status: int, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever knocks without a WebSocket handshake is told what this port speaks, and let go."""
    with trio.fail_after(30):
        async with serving() as address:
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                await stream.send_all(request_bytes)
                answer = await RawPeer(stream).read_all()
            await assert_works(address)
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert word in answer
    assert answer.endswith(".\nThis port speaks WebSocket, subprotocol test.1, at /ws\n")
    assert events(caplog) == ["handshake_refused"]


async def test_silent_and_leaving_clients_are_let_go(caplog: pytest.LogCaptureFixture) -> None:
    """A TCP connection and nothing, half a request, or none, end by the deadline, logged once."""
    with trio.fail_after(30):
        async with serving(handshake_timeout=0.2) as address:
            for start in (b"", b"GET /ws HT"):
                async with await trio.open_tcp_stream(address.host, address.port) as stream:
                    if start:
                        await stream.send_all(start)
                    assert await RawPeer(stream).is_closed()
                    assert events(caplog) == ["handshake_timed_out"]
                    caplog.clear()
                async with await trio.open_tcp_stream(address.host, address.port) as stream:
                    if start:
                        await stream.send_all(start)
                    await stream.send_eof()
                    assert await RawPeer(stream).is_closed()
                    assert events(caplog) == ["handshake_refused"]
                    caplog.clear()
            await assert_works(address)


async def test_stray_head_request_gets_no_body() -> None:
    """HEAD, as load balancers like it, is answered by a head alone."""
    with trio.fail_after(30):
        async with serving() as address:
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                await stream.send_all(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = await RawPeer(stream).read_all()
    assert answer.startswith("HTTP/1.1 404 ")
    assert answer.endswith("\r\n\r\n")


async def test_garbage_instead_of_tls_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    """A TLS port tells who speaks HTTP, and closes on everything else; in time, logged once."""
    presented = server_tls(CERTIFICATE, CERTIFICATE)
    with trio.fail_after(30):
        async with serving(tls=lambda: presented, handshake_timeout=0.2) as address:
            for garbage, event, answer in (
                (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "handshake_refused", "over TLS"),
                (b"SSH-2.0-OpenSSH_9.2p1\r\n", "handshake_failed", ""),
                (b"\x16\x03\x01\x02", "handshake_timed_out", ""),
            ):
                async with await trio.open_tcp_stream(address.host, address.port) as stream:
                    await stream.send_all(garbage)
                    assert answer in await read_text(stream)
                    assert events(caplog) == [event]
                    caplog.clear()


async def test_refused_peer_that_talks_on_gets_its_answer_whole() -> None:
    """A refusal isn't lost to a reset because the peer was still sending: we read it out."""
    with trio.fail_after(30):
        async with serving() as address:
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"
                await stream.send_all(request + bytes(1_000_000))
                while await stream.receive_some():  # a reset would raise
                    pass


async def read_text(stream: trio.SocketStream) -> str:
    """What can be read as text of all that comes, up to the end or a reset."""
    text = b""
    try:
        while more := await stream.receive_some():
            text += more
    except trio.BrokenResourceError:
        pass
    return text.decode("latin-1")


async def talk_on(stream: trio.SocketStream) -> None:
    """Send, and ignore what comes back."""
    while True:
        await stream.send_all(b"more")
        await trio.sleep(0.05)


async def test_refused_peer_that_lingers_is_let_go() -> None:
    """A stray client that neither reads nor leaves keeps its place for a second, not for ever."""
    with trio.fail_after(30):
        async with serving() as address:
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                with pytest.raises(trio.BrokenResourceError):
                    await talk_on(stream)


# ---- too many -----------------------------------------------------------------------------------


async def test_handshakes_beyond_the_limit_wait() -> None:
    """Silent clients that fill every place keep others waiting until their deadline, not longer."""
    with trio.fail_after(30):
        async with serving(max_handshakes=2, handshake_timeout=0.3, host="localhost") as address:
            started = trio.current_time()
            streams = [await trio.open_tcp_stream(address.host, address.port) for _ in range(3)]
            await assert_works(address)
            assert trio.current_time() - started >= 0.3
            for stream in streams:
                await stream.aclose()


async def test_connections_beyond_the_limit_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """One connection too many is answered 503, and gets in once another has gone."""
    with trio.fail_after(30):
        async with serving(max_connections=1) as address:
            async with dial(address):
                with pytest.raises(ConnectionLost, match="HTTP status 503: too many connections"):
                    async with dial(address):
                        pass
            await assert_works(address)
    assert "handshake_refused" in events(caplog)


async def test_handshakes_come_in_at_a_bounded_rate() -> None:
    """Six, at four a second and one at once: the last waits, nobody is refused, who is in is served."""
    with trio.fail_after(30):
        async with serving(admission=Admission(4.0)) as address, dial(address) as other:
            came: list[float] = []

            async def come() -> None:
                async with dial(address):
                    came.append(trio.current_time())

            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(come)
                await other.send_message(b"well?")
                assert await other.receive_message() == b"well?"
                assert len(came) < 6
            assert came[-1] - started >= 5 / 4
            assert len(came) == 6


async def test_who_waits_for_a_place_keeps_none_from_being_heard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With one handshake at a time and a place every two seconds, others are told at once."""
    with trio.fail_after(30):
        async with serving(admission=Admission(0.5), max_handshakes=1) as address:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(assert_works, address)
                await trio.testing.wait_all_tasks_blocked(0.05)
                for _ in range(2):  # places in two and in four seconds; they give them up
                    nursery.start_soon(assert_works, address)
                await trio.testing.wait_all_tasks_blocked(0.05)
                started = seconds_of_calm()
                with pytest.raises(ConnectionLost, match="503: too many at once") as caught:
                    async with dial(address):
                        pass
                async with await trio.open_tcp_stream(address.host, address.port) as stream:
                    await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert (await RawPeer(stream).read_head()).startswith("HTTP/1.1 404 ")
                assert seconds_of_calm() - started < 1.5
                assert caught.value.retry_after == LONGEST_WAIT // 2 + 1
                nursery.cancel_scope.cancel()
    assert events(caplog) == ["handshake_refused", "handshake_refused"]


async def test_strangers_take_no_places() -> None:
    """Only who asks for our WebSocket is counted."""
    with trio.fail_after(30):
        async with serving(admission=Admission(0.01)) as address:
            for request in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", upgrade_request("/other"), b""):
                async with await trio.open_tcp_stream(address.host, address.port) as stream:
                    await stream.send_all(request)
                    await stream.send_eof()
                    await RawPeer(stream).read_all()
            await assert_works(address)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (b"Retry-After: 7", 7.0),
        (b"retry-after:  0", 1.0),
        (b"Retry-After: 86400", 300.0),
        (b"Retry-After: Fri, 31 Dec 1999 23:59:59 GMT", None),
        (b"Retry-After: -1", None),
        (b"Retry-After: 99999999999999999999", None),
        (b"X: 1", None),
    ],
)
async def test_a_refusal_says_when_to_ask_again(header: bytes, seconds: float | None) -> None:
    """In seconds, and never for long: a proxy may have said it."""
    response = b"HTTP/1.1 503 Busy\r\n" + header + b"\r\nContent-Length: 0\r\n\r\n"
    with trio.fail_after(30):
        async with raw_server(lambda peer: refuse(peer, response)) as url:
            with pytest.raises(ConnectionLost, match="503") as caught:
                async with connect(url, **OPTIONS):
                    pytest.fail("it is refused")
    assert caught.value.retry_after == seconds


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on descriptors to lower")
async def test_accept_survives_that_there_are_no_descriptors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With EMFILE the loop pauses, says so once, and goes on as soon as there is one again."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with trio.fail_after(30):
        async with serving() as address:
            await assert_works(address)  # whatever is imported or opened once, is now
            caplog.clear()
            client = trio.socket.socket()
            free = os.dup(0)
            os.close(free)
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
                await client.connect((address.host, address.port))
                await trio.sleep(0.35)  # three pauses of the loop
                assert events(caplog) == ["accept_failed"]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            stream = trio.SocketStream(client)
            async with stream:
                await stream.send_all(upgrade_request())
                assert (await RawPeer(stream).read_head()).startswith("HTTP/1.1 101 ")
