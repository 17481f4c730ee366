"""Places of those who shake hands: silence keeps nobody out, and neither does a crowd behind one address."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from raw_peer import RawPeer, assert_works, dial, loris, raw_client, serving, upgrade_request

from sandd._core._errors import ConnectionLost
from sandd._core.admission import Admission
from sandd._core.transport import _places
from sandd._core.transport._places import PATIENCE, SHARE, HandshakePlaces, Hearing, Place

if TYPE_CHECKING:
    from sandd._core.transport import Connection

Clock = trio.testing.MockClock


async def silent(
    places: HandshakePlaces, network: str, dismissed: list[str] | None = None
) -> Place:
    """A place whose holder says nothing, and leaves when it has to make way."""
    place = await places.take(network)
    place.hear(lambda: None if dismissed is None else dismissed.append(network))
    return place


# ---- who makes way ------------------------------------------------------------------------------


async def test_a_network_may_take_all_places_that_nobody_else_wants(
    autojump_clock: Clock,
) -> None:
    """A fleet behind one address comes back as fast as others: none of it waits, or is sent away."""
    places, dismissed = HandshakePlaces(256), list[str]()
    for _ in range(256):
        await silent(places, "fleet", dismissed)
    assert (trio.current_time(), dismissed) == (0.0, [])


async def test_a_crowd_behind_one_address_makes_way_at_once_for_others(
    autojump_clock: Clock,
) -> None:
    """Whoever comes from elsewhere waits for nothing, until its network has its share."""
    places, dismissed = HandshakePlaces(256), list[str]()
    for _ in range(256):
        await silent(places, "crowd", dismissed)
    for number in range(SHARE):
        await silent(places, "other", dismissed)
        assert dismissed == ["crowd"] * (number + 1)
    assert trio.current_time() == 0.0
    assert places.taken == {"crowd": 256 - SHARE, "other": SHARE}
    await silent(places, "other", dismissed)  # beyond its share it waits, as everybody does
    assert trio.current_time() == pytest.approx(PATIENCE)


async def test_a_network_keeps_its_share(autojump_clock: Clock) -> None:
    """Nobody takes it away before a second of silence, however many there are."""
    places, dismissed = HandshakePlaces(2 * SHARE), list[str]()
    for network in ("one", "other"):
        for _ in range(SHARE):
            await silent(places, network, dismissed)
    await silent(places, "third", dismissed)
    assert (trio.current_time(), dismissed) == (pytest.approx(PATIENCE), ["one"])


async def test_who_is_not_waited_for_makes_way_for_nobody(autojump_clock: Clock) -> None:
    """What takes long there is ours: so the newcomer waits until one has left."""
    places = HandshakePlaces(1)
    place = await silent(places, "one")
    place.heard()
    with trio.move_on_after(100) as patience:
        await places.take("other")
    assert patience.cancelled_caught
    place.leave()
    place.leave()
    await places.take("other")
    assert places.taken == {"other": 1}


async def test_a_place_that_was_given_up_is_not_given_twice(autojump_clock: Clock) -> None:
    """Whoever had to make way leaves when it comes to it, and that frees nothing."""
    places = HandshakePlaces(1)
    first = await silent(places, "one")
    second = await places.take("other")  # after PATIENCE
    first.leave()
    assert places.taken == {"other": 1}
    with trio.move_on_after(10) as patience:
        await places.take("third")
    assert patience.cancelled_caught
    second.leave()
    assert places.taken == {}


async def test_waiting_for_a_place_can_be_cancelled(autojump_clock: Clock) -> None:
    """And then it is nobody's, so that it can be had."""
    places = HandshakePlaces(1)
    place = await places.take("one")
    for seconds in (0.0, 0.5, 3.5):
        with trio.move_on_after(seconds):
            await places.take("other")
    place.leave()
    assert places.taken == {}
    with trio.fail_after(0.5):
        await places.take("third")


async def test_an_interrupted_hearing_keeps_no_place(autojump_clock: Clock) -> None:
    """While it waits for its turn others have it; it has one again after that, or none where it is cancelled."""
    places = HandshakePlaces(1)
    hearing = Hearing(places, await places.take("one"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hearing.interrupt, 5.0)
        await trio.testing.wait_all_tasks_blocked()
        (await places.take("other")).leave()
        assert trio.current_time() == 0.0, "it had to wait for it"
    assert places.taken == {"one": 1}
    with trio.move_on_after(1.0):
        await hearing.interrupt(5.0)
    hearing.end()
    assert places.taken == {}


# ---- over sockets -------------------------------------------------------------------------------


@pytest.fixture
def less_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for it is most of what a test does that has a crowd of silent ones."""
    monkeypatch.setattr(_places, "PATIENCE", 0.4)


async def admitting(connection: Connection) -> None:
    """A handler that wants to hear something before it admits anybody, and echoes then."""
    message = await connection.receive_message()
    connection.admit()
    while True:
        await connection.send_message(message)
        message = await connection.receive_message()


@pytest.mark.parametrize("start", [b"GET /ws HT", upgrade_request()], ids=["request", "greeting"])
@pytest.mark.parametrize("places", [256, 16], ids=["room for all", "room for some"])
@pytest.mark.usefixtures("less_patience")
async def test_fifty_slow_clients_keep_no_good_one_out(start: bytes, places: int) -> None:
    """Neither while they dawdle over the request nor over what is to come behind it."""
    with trio.fail_after(60):
        async with serving(admitting, max_handshakes=places, until_admitted=True) as address:
            async with loris(address, 50, start):
                for _ in range(3):
                    with trio.fail_after(8 * PATIENCE):
                        await assert_works(address)


async def test_who_is_admitted_takes_no_place() -> None:
    """However silent it is from then on: the next one comes in before anybody's patience is out."""
    with trio.fail_after(30):
        async with serving(admitting, max_handshakes=1, until_admitted=True) as address:
            async with dial(address) as first:
                await first.send_message(b"me")
                assert await first.receive_message() == b"me"
                started = trio.current_time()
                await assert_works(address)
                assert trio.current_time() - started < PATIENCE
                await first.send_message(b"still")
                assert await first.receive_message() == b"still"


async def test_who_says_too_little_is_told_that_others_wait() -> None:
    """By a close frame of 1013, "try again later", where it has a WebSocket already."""
    with trio.fail_after(30):
        async with serving(admitting, max_handshakes=1, until_admitted=True) as address:
            async with raw_client(address) as peer:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(assert_works, address)
                    assert await peer.read_close() == 1013


@pytest.mark.usefixtures("less_patience")
async def test_who_waits_for_its_turn_does_not_take_a_place_with_it() -> None:
    """With one place, and turns that are further apart than patience lasts, all come in, in order."""
    with trio.fail_after(30):
        options = {"max_handshakes": 1, "until_admitted": True, "admission": Admission(1.25)}
        async with serving(admitting, **options) as address, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(assert_works, address)


# ---- who is not heard ---------------------------------------------------------------------------


async def test_who_is_barred_is_told_by_429_and_when_to_ask_again() -> None:
    """In whole seconds, and not before the time; another path, or address, is another thing."""
    asked: list[tuple[str, str]] = []

    def barred_for(host: str, path: str) -> float:
        asked.append((host, path))
        return 41.5

    admission = Admission(0.01)
    with trio.fail_after(30):
        async with serving(barred_for=barred_for, admission=admission) as address:
            with pytest.raises(ConnectionLost, match="HTTP status 429: too many cred") as caught:
                async with dial(address):
                    pytest.fail("it is barred")
            assert caught.value.retry_after == 42.0
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                await stream.send_all(upgrade_request("/other"))
                assert (await RawPeer(stream).read_head()).startswith("HTTP/1.1 404 ")
    assert asked == [("127.0.0.1", "/ws")]
    assert admission.ask(trio.current_time()).wait == 0.0, "it took nobody's turn"  # type: ignore[union-attr]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 has to be set up first")
async def test_a_crowd_at_one_address_delays_no_other() -> None:
    """With sockets: all places are taken from one address, and another comes in before anybody's patience is out."""
    with trio.fail_after(30):
        async with (
            serving(max_handshakes=SHARE + 4) as address,
            contextlib.AsyncExitStack() as all_,
        ):
            for _ in range(SHARE + 4):
                await all_.enter_async_context(
                    await trio.open_tcp_stream(
                        address.host, address.port, local_address="127.0.0.2"
                    )
                )
            await trio.testing.wait_all_tasks_blocked(0.05)
            started = trio.current_time()
            await assert_works(address)
            assert trio.current_time() - started < PATIENCE
