"""Connections over TLS: what both ends know of each other, what a refused one is told, and who can't hold up others."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from raw_peer import MIB, OPTIONS, RawPeer, echo, raw_server, serving, shake_hands
from tls_peers import pem_of, server_pair, strict_client, write_pair

from sandd._core._errors import ConfigurationError, ConnectionLost
from sandd._core.tls.authority import issue_client, new_authority
from sandd._core.tls.contexts import ServerTls, client_context, server_tls, unverified_context
from sandd._core.tls.pins import read_certificates
from sandd._core.transport import BUNDLE_PATH, Connection, _places, connect, fetch
from sandd._core.transport._secure_stream import ALERT_TIMEOUT
from sandd._core.transport._streams import MeteredStream

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sandd._core.tls.contexts import ClientCertificates
    from sandd._core.transport import ListenAddress

CA = new_authority(time.time())
TRUSTING = client_context(authorities=pem_of(CA))


def presented_by(directory: Path, how: ClientCertificates = "off") -> ServerTls:
    """A server of our CA."""
    path = write_pair(server_pair(CA), directory)
    return server_tls(
        path, path, bundle=pem_of(CA), client_authorities=pem_of(CA), client_certificates=how
    )


@pytest.fixture
def presented(tmp_path: Path) -> ServerTls:
    """One that asks nobody for a certificate."""
    return presented_by(tmp_path)


def url_of(address: ListenAddress) -> str:
    """For a client of TLS."""
    return f"wss://127.0.0.1:{address.port}/ws"


def dial(
    address: ListenAddress, context: ssl.SSLContext = TRUSTING, **options: Any
) -> AbstractAsyncContextManager[Connection]:
    """A client of ours."""
    return connect(url_of(address), ssl_context=context, **(OPTIONS | options))


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Why handshakes failed, of the log so far."""
    return [
        str(record.msg.get("reason"))  # type: ignore[union-attr] # structlog's
        for record in caplog.records
        if record.name == "sandd.transport"
    ]


@pytest.fixture(autouse=True)
def _log_what_matters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sandd.transport")


# ---- what both ends know ------------------------------------------------------------------------


async def test_both_ends_have_the_same_binding(presented: ServerTls, tmp_path: Path) -> None:
    """The hash of the server's certificate; without TLS it is empty, on both."""
    accepted: list[Connection] = []

    async def handler(connection: Connection) -> None:
        accepted.append(connection)
        await echo(connection)

    certificate = read_certificates((tmp_path / "pair.pem").read_bytes())[0]
    with trio.fail_after(30):
        async with serving(handler, tls=lambda: presented) as address, dial(address) as ours:
            await ours.send_message(b"x" * MIB)
            assert await ours.receive_message() == b"x" * MIB
            assert ours.channel_binding == hashlib.sha256(certificate).digest()
            assert accepted[0].channel_binding == ours.channel_binding
            assert ours.bundle_digest == presented.bundle_digest
        async with (
            serving(handler) as address,
            connect(f"ws://127.0.0.1:{address.port}/ws", **OPTIONS) as ours,
        ):
            assert (ours.channel_binding, accepted[1].channel_binding) == (b"", b"")
            assert ours.bundle_digest == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no write(2) on sockets")
async def test_messages_sent_without_waiting_keep_their_order(presented: ServerTls) -> None:
    """Between the others, and what the kernel takes nothing, or but a part of, before all that follows."""
    with trio.fail_after(30):
        async with serving(tls=lambda: presented) as address, dial(address) as connection:
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


async def test_what_was_encrypted_is_sent_even_if_the_socket_takes_nothing(
    presented: ServerTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records are numbered: one that was thrown away would end the connection."""
    with trio.fail_after(30):
        async with serving(tls=lambda: presented) as address, dial(address) as connection:
            with monkeypatch.context() as patched:
                patched.setattr(MeteredStream, "send_nowait", lambda *_: False)
                assert connection.send_message_nowait(b"first")
                assert connection.has_unsent
                assert not connection.send_message_nowait(b"not before that is gone")
            await connection.flush()
            assert connection.send_message_nowait(b"second")
            assert await connection.receive_message() == b"first"
            assert await connection.receive_message() == b"second"


async def test_nothing_is_sent_into_the_middle_of_another_message(presented: ServerTls) -> None:
    """Nor into what was cut short."""

    async def never_read(peer: RawPeer) -> None:
        stream = trio.SSLStream(
            peer.stream, presented.context, server_side=True, https_compatible=True
        )
        await shake_hands(RawPeer(stream))  # type: ignore[arg-type] # it reads and writes the same
        await trio.sleep_forever()

    with trio.fail_after(30):
        async with raw_server(never_read) as url:
            secure = url.replace("ws:", "wss:")
            async with connect(secure, ssl_context=TRUSTING, **OPTIONS) as connection:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connection.send_message, bytes(64 * MIB))
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    assert not connection.send_message_nowait(b"x")
                    nursery.cancel_scope.cancel()
                assert not connection.send_message_nowait(b"x")


@pytest.mark.parametrize("how", ["off", "optional", "required"])
async def test_a_verified_client_certificate_is_known_by_its_uri(
    how: ClientCertificates, tmp_path: Path
) -> None:
    """One that wasn't asked for is nobody's, and none is None."""
    identities: list[str | None] = []

    async def handler(connection: Connection) -> None:
        identities.append(connection.peer_identity)

    pair = issue_client(CA, "sandd:daemon:u-1", time.time())
    shown = client_context(
        authorities=pem_of(CA), certificate_file=write_pair(pair, tmp_path, "client")
    )
    with trio.fail_after(30):
        presented = presented_by(tmp_path, how)
        async with serving(handler, tls=lambda: presented) as address:
            for context in (shown, TRUSTING):
                if context is TRUSTING and how == "required":
                    continue
                async with dial(address, context) as connection:
                    with pytest.raises(ConnectionLost):
                        await connection.receive_message()
    named = "sandd:daemon:u-1"
    assert identities == {"off": [None, None], "optional": [named, None], "required": [named]}[how]


async def test_new_connections_get_the_new_certificate(tmp_path: Path) -> None:
    """Those that are open go on with the old one, and handshakes that have begun do."""
    presented = presented_by(tmp_path)
    with trio.fail_after(30):
        async with serving(tls=lambda: presented) as address, dial(address) as before:
            presented = presented_by(tmp_path)
            async with dial(address) as after:
                for connection in (before, after):
                    await connection.send_message(b"x")
                    assert await connection.receive_message() == b"x"
                assert after.channel_binding == presented.channel_binding
                assert after.channel_binding != before.channel_binding


# ---- who is refused is told ---------------------------------------------------------------------


async def test_a_client_without_its_certificate_is_told_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In TLS 1.3 it has finished its handshake by then: without the alert all was well, and then it ended."""
    past = issue_client(CA, "sandd:daemon:u", time.time() - 1000, seconds=500)
    late = client_context(
        authorities=pem_of(CA), certificate_file=write_pair(past, tmp_path, "past")
    )
    other = issue_client(new_authority(time.time()), "sandd:daemon:u", time.time())
    stranger = client_context(
        authorities=pem_of(CA), certificate_file=write_pair(other, tmp_path, "other")
    )
    presented = presented_by(tmp_path, "required")
    with trio.fail_after(30):
        async with serving(tls=lambda: presented) as address:
            # On first contact by a pin there is none to be shown yet.
            assert await fetch(
                url_of(address), BUNDLE_PATH, ssl_context=unverified_context(), max_bytes=MIB
            )
            for context, told, logged in (
                (TRUSTING, "403.* certificate is required here: --client-cert", "is required"),
                (late, "certificate expired", "certificate has expired"),
                (stranger, "unknown ca", "unable to get local issuer"),
            ):
                with pytest.raises(ConnectionLost, match=f"(?i){told}"):
                    async with dial(address, context):
                        pass
                while not reasons(caplog):
                    await trio.sleep(0.001)
                (reason,) = reasons(caplog)
                assert logged in reason
                caplog.clear()


async def test_a_server_that_is_refused_is_told_why(
    presented: ServerTls, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log names the reason, so whoever looks there needn't go to the client."""
    stranger = client_context(authorities=pem_of(new_authority(time.time())))
    with trio.fail_after(30):
        async with serving(tls=lambda: presented) as address:
            with pytest.raises(ConnectionLost, match=r"no TLS handshake.*verify failed"):
                async with dial(address, stranger):
                    pass
            while not reasons(caplog):
                await trio.sleep(0.001)
            assert "unknown ca" in reasons(caplog)[0].lower()


async def test_tls_1_2_is_refused(presented: ServerTls, caplog: pytest.LogCaptureFixture) -> None:
    """And told as what it is."""
    older = strict_client(CA, maximum_version=ssl.TLSVersion.TLSv1_2)
    with trio.fail_after(30):
        async with serving(tls=lambda: presented) as address:
            with pytest.raises(ConnectionLost, match=r"(?i)protocol version"):
                async with dial(address, older):
                    pass
            while not reasons(caplog):
                await trio.sleep(0.001)
            assert "unsupported protocol" in reasons(caplog)[0].lower()


def hello_of_tls_1_2() -> bytes:
    """What is answered with an alert. (Garbage is not.)"""
    near, far = ssl.MemoryBIO(), ssl.MemoryBIO()
    older = strict_client(CA, maximum_version=ssl.TLSVersion.TLSv1_2)
    with contextlib.suppress(ssl.SSLWantReadError):
        older.wrap_bio(near, far, server_hostname="localhost").do_handshake()
    return far.read()


async def test_an_alert_waits_for_nobody(
    presented: ServerTls, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is refused and stays keeps the server for a second at most; the handshake's own limit is ten."""
    with trio.fail_after(30):
        async with serving(tls=lambda: presented) as address:
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                begun = trio.current_time()
                await stream.send_all(hello_of_tls_1_2())
                while not reasons(caplog):
                    await trio.sleep(0.001)
                assert trio.current_time() - begun < ALERT_TIMEOUT + 4


async def test_an_alert_arrives_though_the_peer_talks_on(presented: ServerTls) -> None:
    """A socket that is closed with bytes unread resets the connection, and the alert would be lost with it."""
    alert = 0x15  # RFC 8446 s. 5.1
    with trio.fail_after(30):
        async with serving(tls=lambda: presented) as address:
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                await stream.send_all(hello_of_tls_1_2() + bytes(1_000_000))
                heard = b""
                while part := await stream.receive_some():  # a reset would raise
                    heard += part
                assert heard[0] == alert


# ---- the server's CA ----------------------------------------------------------------------------


async def test_the_bundle_is_there_for_everybody(presented: ServerTls) -> None:
    """Who doesn't trust it yet reads it; GET and HEAD only."""
    with trio.fail_after(30):
        async with serving(tls=lambda: presented) as address:
            unverified = unverified_context()
            got = await fetch(url_of(address), BUNDLE_PATH, ssl_context=unverified, max_bytes=MIB)
            assert got == pem_of(CA)
            for method, status in (("HEAD", "200"), ("POST", "405")):
                stream = await trio.open_ssl_over_tcp_stream(
                    "127.0.0.1", address.port, ssl_context=unverified, https_compatible=True
                )
                async with stream:
                    await stream.send_all(
                        f"{method} {BUNDLE_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
                    )
                    answer = b""
                    while part := await stream.receive_some():
                        answer += part
                assert answer.startswith(f"HTTP/1.1 {status} ".encode())
                assert b"CERTIFICATE" not in answer


async def test_without_a_ca_of_its_own_nothing_is_there(tmp_path: Path) -> None:
    """Nor without TLS, where anybody could have put something else in its place."""
    path = write_pair(server_pair(CA), tmp_path)
    bare = server_tls(path, path)
    with trio.fail_after(30):
        async with serving(tls=lambda: bare) as address:
            with pytest.raises(ConnectionLost, match=r"nothing at /ca\.pem: HTTP status 404"):
                await fetch(url_of(address), BUNDLE_PATH, ssl_context=TRUSTING, max_bytes=MIB)
        async with serving() as address:
            with pytest.raises(ConnectionLost, match="no TLS handshake"):
                await fetch(url_of(address), BUNDLE_PATH, ssl_context=TRUSTING, max_bytes=MIB)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(2000), "more than 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2000), "more than 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n", "is no HTTP"),
        (b"nonsense\r\n\r\n", "is no HTTP"),
        (b"", "is no HTTP|broke"),
        (b"x" * 100_000, "is no HTTP"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n", "status 302"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_whatever_answers_a_fetch_it_ends(
    answer: bytes, words: str, presented: ServerTls
) -> None:
    """With a word on it, in bounded memory; nothing is followed elsewhere."""

    async def behave(peer: RawPeer) -> None:
        stream = trio.SSLStream(
            peer.stream, presented.context, server_side=True, https_compatible=True
        )
        await stream.receive_some()
        await stream.send_all(answer)

    with trio.fail_after(30):
        async with raw_server(behave) as url:
            with pytest.raises(ConnectionLost, match=words):
                await fetch(url.replace("ws:", "wss:"), "/x", ssl_context=TRUSTING, max_bytes=1000)


async def test_a_fetch_is_for_tls_alone() -> None:
    """A URL without it is a mistake of the caller's."""
    with pytest.raises(ConfigurationError, match="use wss://"):
        await fetch("ws://127.0.0.1:1/ws", "/x", ssl_context=TRUSTING, max_bytes=1)


# ---- time and cancellation ----------------------------------------------------------------------


async def test_whoever_says_half_a_hello_keeps_nobody_out(
    presented: ServerTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty of them make way for one that speaks, though a server takes but eight handshakes at a time."""
    monkeypatch.setattr(_places, "PATIENCE", 0.4)
    with trio.fail_after(60):
        async with (
            serving(tls=lambda: presented, max_handshakes=8) as address,
            AsyncExitStack() as stack,
        ):
            for number in range(50):
                stream = await trio.open_tcp_stream(address.host, address.port)
                await stack.enter_async_context(stream)
                if number % 2:
                    await stream.send_all(b"\x16\x03\x01\x02\x00\x01")
            async with dial(address, timeout=30) as connection:
                await connection.send_message(b"x")
                assert await connection.receive_message() == b"x"


async def test_nothing_is_left_of_a_handshake_that_was_cancelled(presented: ServerTls) -> None:
    """At either end, in dialling and in fetching: the socket is closed at once, and the other end sees it."""
    ended = trio.Event()

    async def say_nothing(peer: RawPeer) -> None:
        await peer.is_closed()
        ended.set()

    async def dial_in_vain(url: str) -> None:
        async with connect(url, ssl_context=TRUSTING, **OPTIONS):
            pass

    with trio.fail_after(30):
        async with raw_server(say_nothing) as url:
            secure = url.replace("ws:", "wss:")
            attempt = partial(fetch, secure, "/x", ssl_context=TRUSTING, max_bytes=1)
            for act in (partial(dial_in_vain, secure), attempt):
                ended = trio.Event()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(act)
                    await trio.testing.wait_all_tasks_blocked(0.02)
                    nursery.cancel_scope.cancel()
                await ended.wait()
        stream = None
        async with serving(tls=lambda: presented) as address:
            stream = await trio.open_tcp_stream(address.host, address.port)
            await stream.send_all(b"\x16\x03\x01\x02\x00\x01")
            await trio.testing.wait_all_tasks_blocked(0.02)
        async with stream:
            assert await RawPeer(stream).is_closed()


async def test_a_server_that_never_answers_is_given_up(presented: ServerTls) -> None:
    """In the time that was given for all of it."""

    async def say_nothing(peer: RawPeer) -> None:
        await peer.is_closed()

    with trio.fail_after(30):
        async with raw_server(say_nothing) as url:
            secure = url.replace("ws:", "wss:")
            with pytest.raises(ConnectionLost, match=r"no TLS handshake within 0\.1 s"):
                async with connect(secure, ssl_context=TRUSTING, timeout=0.1, **OPTIONS):
                    pass
            with pytest.raises(ConnectionLost, match=r"no TLS handshake within 0\.1 s"):
                await fetch(secure, "/x", ssl_context=TRUSTING, timeout=0.1, max_bytes=1)


async def test_another_task_may_close_what_its_owner_reads(presented: ServerTls) -> None:
    """The goodbye is said: two tasks never read one stream of TLS, whichever of them comes first."""
    open_now: list[Connection] = []

    async def read(connection: Connection) -> None:
        open_now.append(connection)
        await connection.send_message(b"hello")
        await connection.receive_message()

    async def dial_and_wait(address: ListenAddress) -> None:
        async with dial(address) as connection:
            assert await connection.receive_message() == b"hello"
            with pytest.raises(ConnectionLost, match="code 1008"):
                await connection.receive_message()

    with trio.fail_after(30):
        async with (
            serving(read, tls=lambda: presented, until_admitted=True) as address,
            trio.open_nursery() as nursery,
        ):
            for _ in range(8):
                nursery.start_soon(dial_and_wait, address)
            while len(open_now) < 8:
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for connection in open_now:
                nursery.start_soon(connection.aclose, 1008)
