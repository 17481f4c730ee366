"""Abuse by whoever reaches a running controller's port, or stands where one should: it takes no credential."""

from __future__ import annotations

import contextlib
import ssl
import time
from typing import TYPE_CHECKING, Final

import pytest
import trio
from daemons import open_daemon
from peers_with_credentials import OPTIONS, guarded
from raw_peer import RawPeer, loris, raw_server, serving, upgrade_request
from tls_peers import pem_of, server_pair, strict_client, why_unreachable, write_pair

import sandd
from sandd import wire
from sandd._core import reception
from sandd._core.tls.authority import new_authority
from sandd._core.tls.contexts import server_tls
from sandd._core.tls.pins import Pin, read_certificates
from sandd._core.transport import ListenAddress, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandd._core.transport import Connection

TOKEN: Final = "an operator's"
CROWD: Final = 300
"""More than the 256 strangers that a controller waits for at a time."""


def where(controller: sandd.Controller) -> ListenAddress:
    """The address to dial."""
    host, _, port = controller.address.rpartition(":")
    return ListenAddress(host, int(port))


# ---- an older TLS -------------------------------------------------------------------------------


async def test_tls_1_2_lets_nobody_in_and_nothing_out(tmp_path: Path) -> None:
    """A controller refuses a peer that speaks no other, and a daemon such a controller, though it trusts its CA."""
    async with guarded(tmp_path / "state", tls="auto") as controller:
        older = strict_client(None, maximum_version=ssl.TLSVersion.TLSv1_2)
        older.load_verify_locations(tmp_path / "state" / "tls" / "ca.pem")
        address = where(controller)
        async with await trio.open_tcp_stream(address.host, address.port) as stream:
            tls = trio.SSLStream(stream, older, server_hostname="localhost")
            with pytest.raises(trio.BrokenResourceError) as refused:
                await tls.do_handshake()
            assert "PROTOCOL_VERSION" in str(refused.value.__cause__)

    ca = new_authority(time.time())
    pair = write_pair(server_pair(ca), tmp_path)
    presented = server_tls(pair, pair)
    presented.context.minimum_version = ssl.TLSVersion.TLSv1_2
    presented.context.maximum_version = ssl.TLSVersion.TLSv1_2
    (tmp_path / "ca.pem").write_bytes(pem_of(ca))
    (tmp_path / "token").write_text("a token")
    came: list[Connection] = []

    async def note(connection: Connection) -> None:
        came.append(connection)

    async with serving(note, tls=lambda: presented, **OPTIONS) as address:
        arguments = ["--ca-file", str(tmp_path / "ca.pem"), "--token-file", str(tmp_path / "token")]
        async with open_daemon(f"wss://127.0.0.1:{address.port}/ws", arguments=arguments) as daemon:
            log = await daemon.wait_for_log("dial_failed")
            assert "protocol" in log.lower()
    assert came == []


# ---- another in the controller's place ----------------------------------------------------------


@contextlib.asynccontextmanager
async def impostor(directory: Path, heard: list[bytes]) -> AsyncIterator[str]:
    """A server with a CA of its own, which it offers as a controller does; keeps each request, and yields its URL."""
    ca = new_authority(time.time())
    pair = write_pair(server_pair(ca), directory, "impostor.pem")
    context = server_tls(pair, pair).context
    body = pem_of(ca)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
        len(body), body,
    )  # fmt: skip

    async def treat(peer: RawPeer) -> None:
        stream = trio.SSLStream(peer.stream, context, server_side=True, https_compatible=True)
        said = b""
        while b"\r\n\r\n" not in said and (more := await stream.receive_some()):
            said += more
        heard.append(said)
        await stream.send_all(answer)
        heard.append(await stream.receive_some())

    async with raw_server(treat) as url:
        yield url.replace("ws:", "wss:")


async def test_a_pin_of_another_lets_no_byte_of_a_token_out(tmp_path: Path) -> None:
    """Whoever stands in the controller's place hears one question, which says nothing, from daemons and operators."""
    pin = str(Pin.of(read_certificates(pem_of(new_authority(time.time())))[0]))
    (tmp_path / "token").write_text(TOKEN)
    heard: list[bytes] = []
    with trio.fail_after(60):
        async with impostor(tmp_path, heard) as url:
            arguments = ["--token-file", str(tmp_path / "token"), "--ca-pin", pin]
            async with open_daemon(url, arguments=arguments) as daemon:
                await daemon.wait_for_log("is not the controller that the CA pin is of")
            asked_by_daemon = len(heard)
            assert "CA pin" in await why_unreachable(url, token=TOKEN, ca_pin=pin)
    assert 0 < asked_by_daemon < len(heard)
    questions = {each.lower() for each in heard if each}
    (question,) = questions
    assert question.startswith(b"get /ca.pem http/1.1\r\n")
    assert b"worker" not in question


# ---- browsers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [wire.DAEMON_PATH, wire.OPERATOR_PATH])
async def test_no_web_page_talks_to_a_controller(tmp_path: Path, path: str) -> None:
    """From wherever it is, this machine included, and by whatever name; nor is a name of its own taken for ours."""
    async with guarded(tmp_path) as controller:
        own = f"http://{controller.address}"
        pages = ["http://evil.example", "null", own, "http://localhost", ""]
        requests = [{"origin": each or " "} for each in pages]
        requests += [{"host": f"evil.example:{where(controller).port}"}, {"host": "localhost.evil"}]
        for headers, answer in [*((each, "403") for each in requests), ({}, "101")]:
            async with await trio.open_tcp_stream(*_pair(controller)) as stream:
                peer = RawPeer(stream)
                request = upgrade_request(path, wire.SUBPROTOCOL, **headers)
                await peer.send(request)
                head = await peer.read_head()
                assert head.startswith(f"HTTP/1.1 {answer} "), (headers, head)


def _pair(controller: sandd.Controller) -> tuple[str, int]:
    address = where(controller)
    return address.host, address.port


# ---- who begins, and never gets on with it ------------------------------------------------------


@pytest.mark.parametrize(
    ("tls", "beginning"),
    [
        pytest.param(None, b"", id="nothing"),
        pytest.param(None, b"GET /operator HTTP/1.1\r\nHost: 127.0.0.1\r\n", id="half a request"),
        pytest.param("auto", b"\x16\x03\x01\x02\x00\x01", id="half a TLS hello"),
        pytest.param(None, upgrade_request(subprotocol=wire.SUBPROTOCOL), id="no Hello"),
    ],
)
async def test_a_crowd_that_never_gets_on_keeps_no_operator_out(
    tmp_path: Path, tls: str | None, beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They make way for whoever is quicker: long before their time is over, which is out of reach here."""
    monkeypatch.setitem(serve.__kwdefaults__, "handshake_timeout", 1000.0)
    monkeypatch.setattr(reception, "HANDSHAKE_SECONDS", 1000.0)
    options = {"tls": tls, "operator_token": TOKEN, "max_handshakes_per_second": 100_000}
    with trio.fail_after(60):
        async with sandd.open_controller(
            port=0, state_dir=tmp_path / "state", **options
        ) as controller:
            async with loris(where(controller), CROWD, beginning):
                async with sandd.connect_controller(
                    controller.url, token=TOKEN, ca_pin=controller.ca_pin, connect_timeout=30
                ) as connected:
                    assert connected.daemons() == []
