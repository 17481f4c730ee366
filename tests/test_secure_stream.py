"""TLS by itself: what any stream does, and what is its own. What connections do over it is in test_transport_tls."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_peer import open_metered
from tls_peers import pem_of, server_pair, write_pair

from sandd._core.tls.authority import new_authority
from sandd._core.tls.contexts import client_context, server_tls
from sandd._core.transport._secure_stream import SENT_AT_ONCE, SecureStream
from sandd._core.transport._streams import MeteredStream
from sandd._core.transport._tls import PIECE_BYTES, RECORD_BYTES, TlsEnd

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CA = new_authority(time.time())
TRUSTING = client_context(authorities=pem_of(CA))
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's context; it sends no tickets, as ours never do."""
    return _context_of_server(tmp_path_factory.mktemp("tls"))


def _context_of_server(directory: Path) -> ssl.SSLContext:
    path = write_pair(server_pair(CA), directory)
    return server_tls(path, path).context


def two_ends(server_context: ssl.SSLContext) -> tuple[TlsEnd, TlsEnd]:
    """A client and its server, who have shaken hands."""
    client = TlsEnd(TRUSTING, server_hostname="localhost")
    server = TlsEnd(server_context)
    finished: set[TlsEnd] = set()
    while len(finished) < 2:
        for one, other in ((client, server), (server, client)):
            if one not in finished and one.shake_hands():
                finished.add(one)
            if said := one.take_outgoing():
                other.feed(said)
    return client, server


def decrypted(end: TlsEnd, limit: int = MIB) -> bytes:
    """All that can be had of what was fed."""
    parts: list[bytes] = []
    while end.has_more and (more := end.decrypt(limit)):
        assert sum(map(len, more)) <= limit
        parts += more
    return b"".join(parts)


async def open_pair(server_context: ssl.SSLContext) -> tuple[SecureStream, SecureStream]:
    """A client's stream and its server's."""
    near, far = await open_metered()
    client = SecureStream(near, TRUSTING, server_hostname="127.0.0.1")
    server = SecureStream(MeteredStream(far), server_context)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        nursery.start_soon(server.do_handshake)
    return client, server


# ---- the stream ---------------------------------------------------------------------------------


async def test_secure_stream_is_a_trio_stream(serving: ssl.SSLContext) -> None:
    """It passes trio's own suite for streams."""

    async def make_pair() -> tuple[SecureStream, SecureStream]:
        return await open_pair(serving)

    async def make_clogged_pair() -> tuple[SecureStream, SecureStream]:
        pair = await make_pair()
        for stream in pair:
            for size in (
                64 * MIB,
                1000,
            ):  # the kernel says that it has no room when it has for a little yet
                with trio.CancelScope() as filling:
                    while True:
                        filling.deadline = trio.current_time() + 0.1
                        await stream.send_all(bytes(size))
        return pair

    with trio.fail_after(60):
        await trio.testing.check_two_way_stream(make_pair, make_clogged_pair)


@pytest.mark.parametrize(
    "size", [1, RECORD_BYTES, PIECE_BYTES, PIECE_BYTES + 1, SENT_AT_ONCE + 1, 5 * MIB + 7]
)
async def test_any_number_of_bytes_arrives(size: int, serving: ssl.SSLContext) -> None:
    """Sent with and without waiting, and read in pieces of the stream's choice."""
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]
    client, server = await open_pair(serving)

    async def send() -> None:
        if client.send_nowait(b"head", data):
            await client.send_all(b"")
        else:  # where nothing is sent without waiting
            await client.send_all(b"head" + data)
        await client.send_all(bytearray(data))
        await client.send_all(memoryview(data))
        await client.aclose()

    received = bytearray()
    with trio.fail_after(30):
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while part := await server.receive_some():
                received += part
    assert received == b"head" + data * 3


async def test_after_a_cancelled_send_nothing_is_sent(serving: ssl.SSLContext) -> None:
    """Part of a record may be gone: whoever looks at the meter knows."""
    client, server = await open_pair(serving)
    with trio.fail_after(30):
        async with client, server:
            meter = client._meter
            with trio.CancelScope() as scope:
                scope.cancel()
                await client.send_all(b"x")
            assert not meter.torn  # it had not begun
            with trio.move_on_after(0.1) as scope:
                await client.send_all(bytes(64 * MIB))
            assert scope.cancelled_caught
            assert meter.torn


async def test_what_a_server_says_besides_goes_with_its_first_bytes(tmp_path: Path) -> None:
    """Tickets, in TLS 1.3: a client that has ended without reading them would be reset."""
    talkative = _context_of_server(tmp_path)
    talkative.num_tickets = 2
    client, server = await open_pair(talkative)
    with trio.fail_after(30):
        async with client, server:
            await client.send_all(b"all that I have to say")
            assert await server.receive_some() == b"all that I have to say"
            before = client._meter.bytes_received
            await server.send_all(b"heard")
            assert await client.receive_some() == b"heard"
            assert client._meter.bytes_received - before > 200  # the tickets, too


async def test_a_stream_that_is_broken_tells_what_came_before_first(
    serving: ssl.SSLContext,
) -> None:
    """Then why, to whoever reads, and does so every time."""
    client, server = await open_pair(serving)
    with trio.fail_after(30):
        async with client, server:
            good = client._tls.encrypt(b"good")
            bad = bytearray(client._tls.encrypt(b"bad")[0])
            bad[-1] ^= 1
            await client._meter.send_all(good[0] + bytes(bad))
            assert await server.receive_some() == b"good"
            for _ in range(2):
                with pytest.raises(trio.BrokenResourceError, match=r"(?i)bad.record"):
                    await server.receive_some()


async def test_the_end_is_told_every_time(serving: ssl.SSLContext) -> None:
    """Whether the peer says so, as we don't, or not; and also after it was met without waiting."""
    for says_so in (False, True):
        client, server = await open_pair(serving)
        with trio.fail_after(30):
            async with client, server:
                await client.send_all(b"x" * (3 * RECORD_BYTES))
                if says_so:
                    with pytest.raises(ssl.SSLWantReadError):
                        client._tls._end.unwrap()
                    await client._meter.send_all(client._tls.take_outgoing())
                else:
                    await client.aclose()
                received = 0
                while received < 3 * RECORD_BYTES:
                    received += len(await server.receive_some())
                for _ in range(2):
                    assert await server.receive_some() == b""


# ---- what it is made of, without I/O ------------------------------------------------------------


@settings(deadline=None)
@given(
    messages=st.lists(
        st.tuples(st.integers(0, 14), st.integers(0, 3 * RECORD_BYTES)), min_size=1, max_size=5
    ),
    cuts=st.lists(st.integers(0, 200_000), max_size=8),
    limit=st.sampled_from([1000, RECORD_BYTES, MIB]),
)
def test_however_it_is_cut_the_same_comes_out(
    serving: ssl.SSLContext, messages: list[tuple[int, int]], cuts: list[int], limit: int
) -> None:
    """In order and all of it, each as soon as its record is whole."""
    client, server = two_ends(serving)
    plain, encrypted = b"", b""
    for number, (head, body) in enumerate(messages, 1):
        parts = bytes([number]) * (head + 1), bytes([100 + number]) * body
        plain += b"".join(parts)
        encrypted += b"".join(client.encrypt(*parts))
    received = b""
    for piece in _cut(encrypted, cuts):
        server.feed(piece)
        received += decrypted(server, limit)
    assert received == plain


def _cut(data: bytes, cuts: Iterable[int]) -> Iterable[bytes]:
    last = 0
    for cut in [*sorted(each for each in cuts if each < len(data)), len(data)]:
        if cut > last:
            yield data[last:cut]
            last = cut


def test_half_a_record_is_nothing_yet(serving: ssl.SSLContext) -> None:
    """And is no end, either."""
    client, server = two_ends(serving)
    (encrypted,) = client.encrypt(b"word")
    server.feed(encrypted[:10])
    assert server.decrypt(100) is None
    server.feed(encrypted[10:])
    assert server.decrypt(100) == [b"word"]
    server.feed(b"")
    assert server.decrypt(100) == []
    assert server.decrypt(100) == []


def test_full_records_are_taken_until_there_is_no_whole_one(serving: ssl.SSLContext) -> None:
    """Be it that nothing is behind them, half of one, or the peer's end."""
    client, server = two_ends(serving)
    full = bytes(RECORD_BYTES)
    first, second = (client.encrypt(full)[0] for _ in range(2))
    server.feed(first)
    assert server.decrypt(MIB) == [full]
    assert server.decrypt(MIB) is None
    server.feed(second + client.encrypt(b"word")[0][:10])
    assert server.decrypt(MIB) == [full]
    assert server.decrypt(MIB) is None
    server.feed(b"")
    assert server.decrypt(MIB) == []


def test_a_large_message_is_encrypted_in_pieces(serving: ssl.SSLContext) -> None:
    """So no buffer of OpenSSL's grows with it, which would stay as large."""
    client, _ = two_ends(serving)
    pieces = client.encrypt(b"head", bytes(10 * PIECE_BYTES))
    assert len(pieces) > 9
    assert max(map(len, pieces)) < PIECE_BYTES + 2 * RECORD_BYTES
