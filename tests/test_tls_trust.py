"""By what a peer knows its controller: on first contact by a pin, later by what it was told by whom it knew."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define, field
from raw_peer import MIB, OPTIONS, RawPeer, raw_server, serving
from tls_peers import pem_of, server_pair, write_pair

from sandd._core._errors import ConfigurationError, ConnectionLost
from sandd._core.tls import authority
from sandd._core.tls.authority import issue_client, new_authority
from sandd._core.tls.contexts import ServerTls, client_context, digest_of, server_tls
from sandd._core.tls.pins import Pin, read_certificates
from sandd._core.tls.trust import Trust
from sandd._core.tls.trust_options import TrustOptions
from sandd._core.transport import BUNDLE_PATH, connect, fetch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sandd._core.tls.key_pair import KeyPair

OLD, NEW, OTHER = (new_authority(time.time()) for _ in range(3))


def pin_of(ca: KeyPair) -> Pin:
    """As the controller prints it."""
    return authority.read_facts(ca.certificate).pin


@define
class Server:
    """A controller, as far as TLS goes."""

    directory: Path
    presented: ServerTls = field(init=False)
    url: str = ""
    asked: int = 0
    """Connections so far."""

    def present(self, issuer: KeyPair, *trusted: KeyPair) -> None:
        """Be of this CA from now on, and tell peers to trust these."""
        path = write_pair(server_pair(issuer), self.directory, "server.pem")
        self.presented = server_tls(path, path, bundle=b"".join(map(pem_of, trusted)))


@asynccontextmanager
async def server_of(directory: Path, issuer: KeyPair, *trusted: KeyPair) -> AsyncIterator[Server]:
    """One of this CA."""
    server = Server(directory)
    server.present(issuer, *trusted)

    def present() -> ServerTls:
        server.asked += 1
        return server.presented

    with trio.fail_after(30):
        async with serving(tls=present) as address:
            server.url = f"wss://127.0.0.1:{address.port}/ws"
            yield server


def trust_in(
    server: Server, *pinned: KeyPair, directory: Path | None = None, **options: Any
) -> Trust:
    """A peer's, with pins."""
    pins = tuple(sorted(map(pin_of, pinned)))
    return Trust(server.url, TrustOptions(pins=pins, **options), directory)


async def reaches(trust: Trust) -> bool:
    """Whether the next dial finds the controller that is known."""
    try:
        async with connect(trust.url, ssl_context=await trust.context(), **OPTIONS):
            return True
    except ConnectionLost:
        return False


# ---- first contact ------------------------------------------------------------------------------


async def test_a_pin_is_enough(tmp_path: Path) -> None:
    """The certificate is read once, and kept while the program runs."""
    async with server_of(tmp_path, OLD, OLD) as server:
        trust = trust_in(server, OLD)
        assert await reaches(trust)
        assert server.asked == 2
        assert await reaches(trust)
        assert server.asked == 3


async def test_of_several_pins_one_is_enough(tmp_path: Path) -> None:
    """Who is set up in a rotation has both."""
    async with server_of(tmp_path, OLD, OLD) as server:
        assert await reaches(trust_in(server, OLD, NEW))
        server.present(NEW, NEW, OLD)
        assert await reaches(trust_in(server, OLD, NEW))


async def test_another_pin_is_told_with_what_there_is(tmp_path: Path) -> None:
    """And nothing but a question for the certificate was sent."""
    async with server_of(tmp_path, OTHER, OTHER) as server:
        trust = trust_in(server, OLD)
        with pytest.raises(ConnectionLost) as caught:
            await trust.context()
        assert str(pin_of(OTHER)) in str(caught.value)
        assert "sandd ca show" in str(caught.value)
        assert server.asked == 1


async def test_the_first_contact_says_nothing_of_us(tmp_path: Path) -> None:
    """Whoever has taken the controller's place gets one question, the same from everybody."""
    heard = b""
    path = write_pair(server_pair(OTHER), tmp_path)
    presented = server_tls(path, path)

    async def listen(peer: RawPeer) -> None:
        nonlocal heard
        stream = trio.SSLStream(
            peer.stream, presented.context, server_side=True, https_compatible=True
        )
        heard += await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
        while part := await stream.receive_some():
            heard += part

    with trio.fail_after(30):
        async with raw_server(listen) as url:
            trust = Trust(url.replace("ws:", "wss:"), TrustOptions(pins=(pin_of(OLD),)))
            with pytest.raises(ConnectionLost, match="404"):
                await trust.context()
    host = url.partition("//")[2].partition("/")[0]
    lines = [f"GET {BUNDLE_PATH} HTTP/1.1", f"Host: {host}", "Connection: close", "", ""]
    assert heard.decode().lower().split("\r\n") == [line.lower() for line in lines]


async def test_nobody_adds_an_authority_of_his_own(tmp_path: Path) -> None:
    """Who stands in between may put his CA beside the right one: it has no pin, and is not kept."""
    async with server_of(tmp_path, OTHER, OLD, OTHER) as server:
        trust = trust_in(server, OLD)
        await trust.context()
        assert not await reaches(trust)


async def test_what_has_the_pin_and_is_no_certificate_is_refused(tmp_path: Path) -> None:
    """It can't be, but by whoever made the pin; and it is no traceback then, either."""
    junk = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    async with server_of(tmp_path, OLD, OLD) as server:
        server.presented = ServerTls(
            server.presented.context, server.presented.channel_binding, junk
        )
        pin = Pin.of(read_certificates(junk)[0])
        with pytest.raises(ConnectionLost, match="can't be used"):
            await Trust(server.url, TrustOptions(pins=(pin,))).context()


async def test_without_a_pin_a_file_or_the_system_says_whom_to_trust(tmp_path: Path) -> None:
    """The file alone, where there is one; it is read anew for each dial."""
    file = tmp_path / "ca.pem"
    file.write_bytes(pem_of(OLD))
    async with server_of(tmp_path, OLD) as server:
        by_file = Trust(server.url, TrustOptions(ca_file=file))
        by_file.check()
        assert await reaches(by_file)
        assert not await reaches(Trust(server.url, TrustOptions()))
        file.write_bytes(pem_of(OTHER))
        assert not await reaches(by_file)
        file.unlink()
        with pytest.raises(ConnectionLost, match="can't read the CA file"):
            await by_file.context()


def test_files_that_can_not_be_used_are_told_at_once(tmp_path: Path) -> None:
    """Before the first dial: whoever has typed them is still there."""
    (tmp_path / "empty").write_text("")
    for options, words in (
        (TrustOptions(ca_file=tmp_path / "empty"), "no certificate in the CA file"),
        (TrustOptions(ca_file=tmp_path / "none"), "can't read the CA file"),
        (TrustOptions(pins=(pin_of(OLD),), client_certificate=tmp_path / "none"), "client cert"),
        (TrustOptions(client_certificate=tmp_path / "empty"), "client certificate"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            Trust("wss://h/", options).check()


# ---- later --------------------------------------------------------------------------------------


def kept_in(directory: Path) -> list[Path]:
    """What was learned and outlives the program."""
    return list(directory.glob("controller-ca-*"))


async def look_until(trust: Trust, offered: str, condition: Callable[[], object]) -> None:
    """Have it look after itself, as it does while it is connected, until the condition holds."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trust.look_after, offered)
        while not condition():
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()


async def test_what_is_known_outlives_the_program(tmp_path: Path) -> None:
    """The next start needs no first contact; another pin begins anew."""
    async with server_of(tmp_path, OLD, OLD) as server:
        first = trust_in(server, OLD, directory=tmp_path)
        await first.context()
        await look_until(first, server.presented.bundle_digest, lambda: kept_in(tmp_path))
        asked = server.asked
        second = trust_in(server, OLD, directory=tmp_path)
        await second.context()
        assert server.asked == asked
        third = trust_in(server, OLD, NEW, directory=tmp_path)
        await third.context()
        assert server.asked == asked + 1


async def test_what_is_kept_and_damaged_is_found_out_again(tmp_path: Path) -> None:
    """The pin is still there."""
    async with server_of(tmp_path, OLD, OLD) as server:
        for _ in range(2):
            trust = trust_in(server, OLD, directory=tmp_path)
            assert await reaches(trust)
            await trust.learn()
            (kept,) = kept_in(tmp_path)
            assert kept.read_bytes() == pem_of(OLD)
            kept.write_text("damaged")


async def test_a_rotation_is_followed(tmp_path: Path) -> None:
    """Whoever was there after each step reaches the controller after all of them; and the old CA is forgotten."""
    async with server_of(tmp_path, OLD, OLD) as server:
        trust = trust_in(server, OLD, directory=tmp_path)
        absent = trust_in(server, OLD)
        assert await reaches(absent)
        for issuer, trusted in ((OLD, (OLD, NEW)), (NEW, (NEW, OLD)), (NEW, (NEW,))):
            server.present(issuer, *trusted)
            assert await reaches(trust)
            await trust.learn()
        server.present(OLD, OLD)
        assert not await reaches(trust)
        # Who has missed it all has to be given the new pin.
        server.present(NEW, NEW)
        assert not await reaches(absent)
        assert not await reaches(trust_in(server, OLD))
        again = trust_in(server, OLD, directory=tmp_path)
        assert await reaches(again)


async def test_only_who_is_known_can_tell_of_another(tmp_path: Path) -> None:
    """Over a connection that proves nothing, nothing is learned."""
    async with server_of(tmp_path, OLD, OLD) as server:
        trust = trust_in(server, OLD)
        await trust.context()
        server.present(OTHER, OTHER)
        with pytest.raises(ConnectionLost, match="verify failed"):
            await trust.learn()
        server.present(OLD, OLD)
        assert await reaches(trust)


@pytest.mark.parametrize("bundle", ["another's", "empty", "junk"])
async def test_what_would_lock_us_out_is_not_taken_over(bundle: str, tmp_path: Path) -> None:
    """Whatever the controller says: by what is new it must be known itself."""
    async with server_of(tmp_path, OLD, OLD) as server:
        trust = trust_in(server, OLD)
        await trust.context()
        content = {"another's": pem_of(OTHER), "empty": b"", "junk": b"junk"}[bundle]
        shown = server.presented
        server.presented = ServerTls(shown.context, shown.channel_binding, content)
        with pytest.raises(ConnectionLost):
            await trust.learn()
        server.present(OLD, OLD)
        assert await reaches(trust)


async def test_who_stays_connected_asks_from_time_to_time(tmp_path: Path) -> None:
    """And at once if the controller says that there is something new; not if it has what we have."""
    async with server_of(tmp_path, OLD, OLD) as server:
        trust = trust_in(server, OLD)
        await trust.context()
        asked = server.asked
        with trio.move_on_after(0.05):
            await trust.look_after(digest_of(pem_of(OLD)))
        assert server.asked == asked
        with trio.move_on_after(0.05):
            await trust.look_after("")
        assert server.asked == asked
        server.present(OLD, OLD, NEW)
        await look_until(trust, server.presented.bundle_digest, lambda: server.asked == asked + 2)
        trust.refresh_seconds = 0.01
        server.present(OLD, OLD)  # a rotation that was undone, say
        await look_until(trust, "", lambda: server.asked >= asked + 5)


async def test_errors_of_learning_are_logged_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that works is not given up for them."""
    async with server_of(tmp_path, OLD, OLD) as server:
        trust = trust_in(server, OLD)
        await trust.context()
        server.present(OTHER, OTHER)
        await look_until(trust, "what is new", lambda: caplog.records)
        (record,) = caplog.records
        assert record.msg["event"] == "ca_not_learned"  # type: ignore[index] # structlog's


async def test_without_a_pin_there_is_nothing_to_learn(tmp_path: Path) -> None:
    """Whoever gave a file looks after it."""
    async with server_of(tmp_path, OLD, OLD) as server:
        trust = Trust(server.url, TrustOptions())
        trust.refresh_seconds = 0.001
        with trio.move_on_after(0.05):
            await trust.look_after("new")
        assert server.asked == 0


async def test_our_own_certificate_is_shown_and_may_be_replaced(tmp_path: Path) -> None:
    """Read anew for each dial; one that has gone bad is told, and the next one counts."""
    now = time.time()
    file = write_pair(issue_client(OLD, "sandd:daemon:u", now), tmp_path, "client.pem")
    async with server_of(tmp_path, OLD, OLD) as server:
        path = tmp_path / "server.pem"
        server.presented = server_tls(
            *(path, path),
            bundle=pem_of(OLD),
            client_authorities=pem_of(OLD),
            client_certificates="optional",
        )
        trust = trust_in(server, OLD, client_certificate=file)
        assert await reaches(trust)
        file.write_text("bad")
        with pytest.raises(ConnectionLost, match="client certificate"):
            await trust.context()
        with pytest.raises(ConnectionLost, match="client certificate"):
            await trust.learn()
        write_pair(issue_client(OLD, "sandd:daemon:u", now), tmp_path, "client.pem")
        assert await reaches(trust)
        known = client_context(authorities=pem_of(OLD))
        assert await fetch(server.url, BUNDLE_PATH, ssl_context=known, max_bytes=MIB)
