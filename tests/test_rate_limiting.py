"""Limits of a controller that runs: on strangers, by where they come from, and on operators, by what they start."""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from raw_peer import loris, raw_client, upgrade_request
from tls_peers import why_unreachable

import sandd
from sandd import wire
from sandd._core import dialer, reception
from sandd._core.identity.introductions import answer_challenge
from sandd._core.identity.proofs import SharedSecret
from sandd._core.link import Identity
from sandd._core.pump import receive_control, send_control
from sandd._core.rate_limits.credentials import FailedCredentials
from sandd._core.transport import ListenAddress, _client, connect, serve
from sandd._core.transport._streams import Address
from sandd.testing import DOWN, open_daemon_cores, open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sandd.testing import DaemonCores

TOKEN: Final = "an operator's"
OPTIONS: Final[dict[str, Any]] = {
    "subprotocol": wire.SUBPROTOCOL,
    "max_message_bytes": wire.MAX_MESSAGE_BYTES,
}


def where(controller: sandd.Controller) -> ListenAddress:
    """The address to dial."""
    host, _, port = controller.address.rpartition(":")
    return ListenAddress(host, int(port))


@contextlib.asynccontextmanager
async def fleet(
    count: int = 2, **options: Any
) -> AsyncIterator[tuple[sandd.Controller, DaemonCores]]:
    """A controller that lets operators in, and daemons."""
    with trio.fail_after(90):  # the machine may be busy
        async with (
            sandd.open_controller(port=0, operator_token=TOKEN, **options) as host,
            open_daemon_cores(host.url, count) as cores,
        ):
            await cores.wait_live()
            yield host, cores


# ---- what operators start -----------------------------------------------------------------------


async def test_one_more_than_the_burst_is_refused_until_the_time_that_is_told() -> None:
    """Nothing of it ran; then exactly one is let pass again."""
    limits = sandd.RateLimits(operator=sandd.Rate(0.5, burst=3))
    async with (
        fleet(rate_limits=limits) as (host, cores),
        sandd.connect_controller(host.url, token=TOKEN) as controller,
    ):
        daemons = [await controller.wait_for_daemon(f"core-{number}") for number in range(2)]
        for number in range(3):
            assert (await daemons[number % 2].run("true")).success
        for _ in range(3):
            with pytest.raises(sandd.RateLimited, match="of this operator") as caught:
                await daemons[0].run("true")
        assert caught.value.scope == "operator"
        assert 0.0 < caught.value.retry_after <= 2.0
        assert sum(core.host.started for core in cores) == 3
        await trio.sleep(caught.value.retry_after)
        assert (await daemons[0].run("true")).success
        with pytest.raises(sandd.RateLimited):
            await daemons[0].run("true")


async def test_requests_are_not_limited_and_sessions_are() -> None:
    """Who may start nothing for now can still look after what runs."""
    limits = sandd.RateLimits(daemon=sandd.Rate(0.01, burst=1))
    async with (
        fleet(rate_limits=limits) as (host, _),
        sandd.connect_controller(host.url, token=TOKEN) as controller,
    ):
        daemon = await controller.wait_for_daemon("core-0")
        async with daemon.open_process(["sleep", "100"]) as process:
            with pytest.raises(sandd.RateLimited, match="there were started"):
                async with daemon.open_session(["cat"]):
                    pytest.fail("it was started")
            assert [job.job_id for job in await daemon.jobs()] == [process.job_id]
            await daemon.kill(process.job_id)


async def test_the_agents_own_program_is_not_limited_unless_it_is_said() -> None:
    """It shares no allowance with operators, either."""
    limits = sandd.RateLimits(daemon=sandd.Rate(0.01, burst=1))
    async with fleet(rate_limits=limits) as (host, _):
        for _ in range(5):
            assert (await host.daemon("core-0").run("true")).success
        async with sandd.connect_controller(host.url, token=TOKEN) as controller:
            assert (await (await controller.wait_for_daemon("core-0")).run("true")).success
    limits = sandd.RateLimits(daemon=sandd.Rate(0.01, burst=1), includes_agent=True)
    async with fleet(rate_limits=limits) as (host, _):
        results = await host.broadcast("true")
        assert all(not isinstance(each, sandd.SanddError) for each in results.values())
        results = await host.broadcast("true")
        assert all(isinstance(each, sandd.RateLimited) for each in results.values())


async def test_a_command_that_may_run_already_is_asked_for_until_it_is_let_pass() -> None:
    """After a cut its start is said again: refused then, it would be said not to have run, and it has."""
    limits = sandd.RateLimits(daemon=sandd.Rate(1.0, burst=1))
    async with (
        fleet(1, rate_limits=limits) as (host, cores),
        open_fault_proxy(host.address) as proxy,
        sandd.connect_controller(proxy.url, token=TOKEN) as controller,
    ):
        daemon = await controller.wait_for_daemon("core-0")
        results = []
        async with trio.open_nursery() as nursery:
            proxy.blackhole(DOWN)

            @nursery.start_soon
            async def run() -> None:
                results.append(await daemon.run("echo hi"))

            while not cores[0].host.started:
                await trio.sleep(0.01)
            started = trio.current_time()
            proxy.cut()
            proxy.release()
        assert results[0].stdout == "hi\n"
        assert cores[0].host.started == 1
        assert trio.current_time() - started > 0.5, "nobody was held back"


async def test_a_command_that_is_held_back_can_be_cancelled() -> None:
    """Nobody asks for it any more."""
    limits = sandd.RateLimits(daemon=sandd.Rate(0.01, burst=1))
    async with (
        fleet(1, rate_limits=limits) as (host, cores),
        open_fault_proxy(host.address) as proxy,
        sandd.connect_controller(proxy.url, token=TOKEN) as controller,
    ):
        daemon = await controller.wait_for_daemon("core-0")
        proxy.blackhole(DOWN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.run, "sleep 100")
            while not cores[0].host.started:
                await trio.sleep(0.01)
            proxy.cut()
            proxy.release()
            await proxy.wait_accepted(2)
            await controller.wait_for_daemon("core-0")
            nursery.cancel_scope.cancel()
        assert controller.statistics().jobs == 0
        while await host.daemon("core-0").jobs():
            await trio.sleep(0.01)


# ---- who fails to prove who it is ---------------------------------------------------------------


@pytest.fixture
def _far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """No address counts as loopback."""
    monkeypatch.setattr(Address, "is_loopback", property(lambda _: False))


async def try_token(url: str, token: str) -> str:
    """What becomes of an operator with that token."""
    try:
        async with sandd.connect_controller(url, token=token, connect_timeout=30.0):
            return "let in"
    except sandd.SanddError as error:
        return f"{type(error).__name__}: {error}"


async def try_daemon(url: str, daemon_id: str, token: bytes) -> str:
    """What becomes of a daemon that claims that id, by hand."""
    try:
        async with connect(url, **OPTIONS) as connection:
            challenge = await receive_control(connection)
            credential = SharedSecret(token) if token else None
            hello = answer_challenge(challenge, Identity(daemon_id, "one"), 1, credential)
            await send_control(connection, hello)
            return type(await receive_control(connection)).__name__
    except sandd.SanddError as error:
        return str(error)


@pytest.mark.usefixtures("_far_away")
async def test_an_address_whose_credentials_fail_is_barred_and_told_for_how_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Then not even the right one is looked at; daemons from there are no part of it."""
    async with fleet(1, insecure=True) as (host, _):
        for _ in range(6):
            assert "AuthenticationFailed" in await try_token(host.url, "wrong")
        answer = await why_unreachable(host.url, token=TOKEN)
        assert "HTTP status 429: too many credentials from this address were wrong" in answer
        assert await try_daemon(host.url, "another", b"") == "Welcome"
        barred = [each.msg for each in caplog.records if "address_barred" in str(each.msg)]
        assert [each["seconds"] for each in barred] == [60.0]  # type: ignore[index]


async def test_loopback_is_never_barred() -> None:
    """Behind it may be a proxy, and everybody; a local program's mistake locks nobody out."""
    async with fleet(1) as (host, _):
        for _ in range(8):
            assert "AuthenticationFailed" in await try_token(host.url, "wrong")
        assert await try_token(host.url, TOKEN) == "let in"


@pytest.mark.usefixtures("_far_away")
async def test_where_somebody_is_in_a_neighbours_failures_bar_nobody() -> None:
    """Behind one address there may be a fleet, and one of it with a stale token."""
    with trio.fail_after(30):
        async with (
            sandd.open_controller(port=0, token="daemons'") as host,
            open_daemon_cores(host.url, 1, token=b"daemons'") as cores,
        ):
            await cores.wait_live()
            for _ in range(8):
                assert await try_daemon(host.url, "bad", b"stale") == "Reject"
            assert await try_daemon(host.url, "newcomer", b"daemons'") == "Welcome"


async def test_somebody_counts_as_at_home_from_the_end_of_its_link_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have lasted for weeks: all behind one address are cut at once, and all come back."""
    proven: list[str] = []
    monkeypatch.setattr(
        FailedCredentials, "proven", lambda _self, _host, door, _now: proven.append(door)
    )
    async with fleet(0) as (host, _):
        assert await try_daemon(host.url, "by-hand", b"") == "Welcome"
        assert await try_token(host.url, TOKEN) == "let in"
        while len(proven) < 4:
            await trio.sleep(0.01)
        assert sorted(proven) == 2 * [wire.OPERATOR_PATH] + 2 * [wire.DAEMON_PATH]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 has to be set up first")
@pytest.mark.usefixtures("_far_away")
async def test_failures_that_name_a_victim_do_not_keep_it_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They count against where they come from, and that is barred; whose name they take makes no difference."""
    elsewhere = functools.partial(trio.open_tcp_stream, local_address="127.0.0.2")
    with trio.fail_after(30):
        async with sandd.open_controller(port=0, token="daemons'") as host:
            with monkeypatch.context() as patch:
                patch.setattr(_client.trio, "open_tcp_stream", elsewhere)
                answers = [await try_daemon(host.url, "victim", b"guess") for _ in range(8)]
            assert answers[:6] == ["Reject"] * 6
            assert all("HTTP status 429" in each for each in answers[6:])
            assert await try_daemon(host.url, "victim", b"daemons'") == "Welcome"


# ---- who says nothing ---------------------------------------------------------------------------


@pytest.fixture
def _no_hello_is_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is: who is turned away was not too slow."""
    for module in (reception, dialer):
        monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 300.0)
    monkeypatch.setitem(connect.__wrapped__.__kwdefaults__, "timeout", 300.0)  # type: ignore[attr-defined]
    monkeypatch.setitem(serve.__kwdefaults__, "handshake_timeout", 300.0)


async def test_fifty_who_never_introduce_themselves_keep_no_operator_out() -> None:
    """They have their WebSocket, and say no Hello; places are for those who are quicker."""
    async with fleet(1) as (host, _):
        request = upgrade_request(subprotocol=wire.SUBPROTOCOL)
        async with loris(where(host), 50, request):
            assert await try_token(host.url, TOKEN) == "let in"
            assert (await host.daemon("core-0").run("true")).success


@pytest.mark.usefixtures("_no_hello_is_overdue")
async def test_no_more_than_256_strangers_are_waited_for() -> None:
    """Each beyond has the oldest one make way, long before the Hello is overdue; who is in counts no more."""
    async with fleet(20, max_handshakes_per_second=100_000) as (host, _):
        closed: list[int] = []

        async def be_silent() -> None:
            async with raw_client(where(host), subprotocol=wire.SUBPROTOCOL) as peer:
                closed.append(await peer.read_close())

        async with trio.open_nursery() as nursery:
            for _ in range(256 + 4):
                nursery.start_soon(be_silent)
            while len(closed) < 4:
                await trio.sleep(0.01)
            assert closed == [1013] * 4
            nursery.cancel_scope.cancel()
        assert host.statistics().daemons_online == 20


@pytest.mark.usefixtures("_no_hello_is_overdue")
async def test_hundreds_from_one_address_are_in_at_once() -> None:
    """A fleet behind one address is not held to one address' share while there is room."""
    async with fleet(260, max_handshakes_per_second=100_000) as (
        host,
        _,
    ):  # 256 may be on their way
        assert host.statistics().daemons_online == 260
