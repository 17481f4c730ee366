"""Abuse of what is counted: names made up by the thousand, and whoever asks for figures and should not."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import evolve
from metrics_client import ask, connect
from peers_with_credentials import guarded
from raw_daemon import raw_daemon
from scripted import control, drain

import sandd
from sandd import wire
from sandd._core.identity.rights import Principal
from sandd._core.metrics import listener
from sandd._core.metrics.tallies import MOST_TENANTS
from sandd._core.reception import Greeting
from sandd._core.router_links import ClientLink
from sandd._core.services import LocalService
from sandd.testing.daemon_cores import open_daemon_cores

if TYPE_CHECKING:
    from pathlib import Path

FAKE_NAMES = 10_000
HELLO = wire.Hello(1, "d", "i", 1)


class Stranger:
    """A connection from another machine, as far as a desk looks at one."""

    is_loopback = False
    channel_binding = b""
    peer_identity = None
    path = wire.DAEMON_PATH

    def __init__(self, number: int) -> None:
        self.host = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        self.remote = f"{self.host}:1"


async def series_of(controller: sandd.Controller) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """All the time series that there are, but for their values."""
    assert controller.metrics_address is not None
    return set((await ask(controller.metrics_address)).samples)


def service_of(controller: sandd.Controller) -> LocalService:
    """What stands behind it."""
    assert isinstance(controller._service, LocalService)
    return controller._service


async def refuse(controller: sandd.Controller, numbers: range) -> None:
    """Strangers say hello, each by another name and tenant, and none of them is let in."""
    service = service_of(controller)
    challenge = wire.Challenge(bytes(32), "c")
    for number in numbers:
        name = f"tenant-{number}/daemon-{number}" if number % 2 else f"daemon-{number}"
        hello: wire.Hello | wire.OperatorHello
        match number % 3:
            case 0:
                hello = evolve(HELLO, daemon_id=name, hostname=name, platform=name, arch=name)
            case 1:
                key = wire.CredentialKind.KEY
                hello = evolve(HELLO, daemon_id=f"d{number}", credential=key, key_id=name)
            case _:
                hello = wire.OperatorHello(1, f"{number:032x}", 1, name)
        desk = service.desk if isinstance(hello, wire.OperatorHello) else service.acceptor
        fake: Any = Stranger(number)
        assert await desk._greet(fake, Greeting(challenge, 0.0, hello)) is not None


@pytest.fixture
def _always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is made anew."""
    monkeypatch.setattr(listener, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(listener, "FRESH_SHARE", 0.0)


@pytest.mark.usefixtures("_always_fresh")
async def test_ten_thousand_fake_names_leave_the_series_count_flat(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of daemons, tenants, hosts, platforms and operators, at hellos that prove nothing; real ones among them."""
    caplog.set_level(logging.ERROR, "sandd")  # a line for each is what takes long
    async with guarded(tmp_path, token="secret", metrics="127.0.0.1:0") as controller:
        await refuse(controller, range(6))
        async with raw_daemon(controller.url, "somebody-else", token=b"wrong"):
            pass
        before = await series_of(controller)
        await refuse(controller, range(6, FAKE_NAMES))
        for number in range(5):
            async with raw_daemon(controller.url, f"fake-{number}", token=b"wrong") as daemon:
                assert isinstance(daemon.answer, wire.Reject)
        assert await series_of(controller) == before
        counted = (await ask(controller.metrics_address or "")).value(
            "sandd_controller_logins_refused_total", peer="operator", reason="unauthenticated"
        )
        assert counted == FAKE_NAMES // 3


@pytest.mark.usefixtures("_always_fresh")
async def test_what_those_say_who_are_in_makes_no_series(tmp_path: Path) -> None:
    """Ids of daemons and jobs, commands, platforms; only a tenant has its own, and there are 200 of them."""
    async with guarded(tmp_path, metrics="127.0.0.1:0") as controller:
        router = service_of(controller).router

        def daemon(number: int, tenant: str) -> None:
            about = wire.DaemonDescription(hostname=f"h{number}", platform=f"p{number}")
            link = router.add_daemon(f"{tenant}/d{number}", f"i{number}", about)
            client = router.add_client(principal=Principal(f"o{number}", tenant))
            spec = wire.encode_spec(wire.CommandSpec((b"command-%d" % number,)))
            said = wire.Attach(f"d{number}", f"j{number}", "c", (), spec, f"i{number}")
            router.receive(client, control(1, said))
            drain(link.scheduler)
            router.remove_client(client)
            assert isinstance(client, ClientLink)
            router.remove_daemon(link, wire.DaemonState.GONE)
            router.forget_daemon(link.daemon_id)

        daemon(0, "acme")
        before = await series_of(controller)
        for number in range(1, 1000):
            daemon(number, "acme")
        assert await series_of(controller) == before

        of_tenants = {name for name, labels in before if "tenant" in dict(labels)}
        for number in range(2 * MOST_TENANTS):
            daemon(number, f"tenant-{number}")
        after = await series_of(controller)
        tenants = {dict(labels).get("tenant") for _, labels in after} - {None}
        assert len(tenants) == MOST_TENANTS + 1
        assert "other" in tenants
        assert {name for name, labels in after if "tenant" in dict(labels)} == of_tenants
        assert not any(
            word in value
            for _, labels in after
            for _, value in labels
            for word in ("command", "d1")
        )


async def test_a_crowd_that_wants_figures_delays_no_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds who connect and say nothing, or ask and don't read, keep commands and probes from nothing."""
    monkeypatch.setattr(listener, "REQUEST_SECONDS", 3600.0)
    async with (
        sandd.open_controller(port=0, metrics="127.0.0.1:0") as controller,
        open_daemon_cores(controller.url, 1) as cores,
    ):
        await cores.wait_live()
        address = controller.metrics_address or ""
        crowd = [await connect(address) for _ in range(200)]
        for number, stream in enumerate(crowd):
            if number % 2:
                try:
                    await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
                except trio.BrokenResourceError:
                    pass  # it has made way
        with trio.fail_after(60):
            for _ in range(5):
                assert (await controller.daemon("core-0").run("echo hello")).stdout
                assert (await ask(address, "/healthz")).status == 200
        for stream in crowd:
            await trio.aclose_forcefully(stream)
