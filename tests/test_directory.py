"""`Directory`: which daemons a client knows, what is told about them, and when they are given up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from sandd import DaemonNotFound, DaemonState, RemoteProtocolError, wire
from sandd._core.directory import AWAY_LEASE, MAX_EVENTS, DaemonEvent, Directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


def status(
    state: DaemonState = DaemonState.ONLINE,
    daemon_id: str = "d",
    instance: str = "one",
    labels: Mapping[str, str] | None = None,
    connected_for: float = 0.0,
) -> wire.DaemonStatus:
    """What the controller says of a daemon."""
    about = wire.DaemonDescription("host", "linux", "x86_64", "1", labels or {})
    return wire.DaemonStatus(daemon_id, state, instance, about, connected_for)


def come(
    directory: Directory,
    daemon_id: str = "d",
    instance: str = "one",
    labels: Mapping[str, str] | None = None,
) -> None:
    """A daemon is online."""
    directory.take(status(DaemonState.ONLINE, daemon_id, instance, labels))


def go(directory: Directory, state: DaemonState, instance: str = "one") -> None:
    """The daemon is away, or gone."""
    directory.take(status(state, "d", instance))


async def kinds(events: AsyncIterator[DaemonEvent], count: int) -> list[str]:
    """What the next events say, as "kind id"."""
    with trio.fail_after(5):
        seen = [await anext(events) for _ in range(count)]
    return [f"{each.kind} {each.daemon_id}".strip() for each in seen]


async def nothing_more(events: AsyncIterator[DaemonEvent]) -> bool:
    """Whether the next event is yet to happen."""
    with trio.move_on_after(0.01) as scope:
        await anext(events)
    return scope.cancelled_caught


# ---- who is known -------------------------------------------------------------------------------


async def test_a_daemon_is_known_while_it_is_online_or_away() -> None:
    """Found, selected and counted; gone, it is remembered as such and no longer found."""
    directory = Directory()
    with pytest.raises(DaemonNotFound, match="none is connected; wait_for_daemon waits"):
        directory.find("d")
    come(directory)
    assert directory.find("d").state is DaemonState.ONLINE
    go(directory, DaemonState.AWAY)
    assert directory.find("d").state is DaemonState.AWAY
    assert [entry.info.id for entry in directory.select(None, "*")] == ["d"]
    come(directory)
    go(directory, DaemonState.GONE)
    with pytest.raises(DaemonNotFound):
        directory.find("d")
    assert directory.select(None, "*") == []
    assert directory.get("d") is None


async def test_the_complaint_about_an_unknown_daemon_names_some_that_are_known() -> None:
    """Sorted, and no more than a few."""
    directory = Directory()
    for number in range(20):
        come(directory, f"d{number:02}")
    with pytest.raises(DaemonNotFound) as caught:
        directory.find("nobody")
    assert "'nobody' not found" in str(caught.value)
    assert "d00, d01, d02" in str(caught.value)
    assert "d19" not in str(caught.value)
    assert "..." in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "match", "found"),
    [
        (None, "*", {"a-1", "a-2", "b-1"}),
        ({}, "a-?", {"a-1", "a-2"}),
        ({"env": "prod"}, "*", {"a-1", "b-1"}),
        ({"env": "prod", "zone": "x"}, "*", {"b-1"}),
        ({"env": "prod"}, "a-*", {"a-1"}),
        ({"env": ""}, "*", set()),
        (None, "[ab]-1", {"a-1", "b-1"}),
        (None, "", set()),
    ],
)
async def test_selection_is_by_all_labels_and_a_glob(
    labels: dict[str, str] | None, match: str, found: set[str]
) -> None:
    """A label that isn't there is not the empty one."""
    directory = Directory()
    come(directory, "a-1", labels={"env": "prod"})
    come(directory, "a-2", labels={"env": "test"})
    come(directory, "b-1", labels={"env": "prod", "zone": "x"})
    assert {record.info.id for record in directory.select(labels, match)} == found


async def test_what_a_daemon_said_of_itself_is_known() -> None:
    """And since when it is connected, by this machine's clock."""
    directory = Directory()
    before = time.time()
    directory.take(status(labels={"env": "prod"}, connected_for=100.0))
    info = directory.find("d").info
    assert (info.id, info.hostname, info.platform, info.arch) == ("d", "host", "linux", "x86_64")
    assert (info.version, info.labels, info.instance) == ("1", {"env": "prod"}, "one")
    assert before - 100.0 <= info.connected_at <= time.time() - 100.0


async def test_who_is_away_was_connected_when_it_came() -> None:
    """Not when it went; on its return it is the new connection that counts."""
    directory = Directory()
    directory.take(status(connected_for=100.0))
    came_at = directory.find("d").info.connected_at
    async with directory.subscribe() as events:
        directory.take(status(DaemonState.AWAY))
        assert directory.find("d").info.connected_at == came_at
        event = await events.__anext__()
        assert (event.kind, event.info.connected_at) == ("away", came_at)
    directory.take(status())
    assert directory.find("d").info.connected_at >= came_at + 100.0
    directory.lose_sight()
    directory.take(status(DaemonState.AWAY, connected_for=200.0))  # as who comes later is told
    assert directory.find("d").info.connected_at < came_at


@pytest.mark.parametrize("bound", ["MAX_ENTRIES", "MAX_ENTRIES_CHARACTERS"])
async def test_a_controller_cannot_fill_our_memory_with_daemons(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """Neither by their number nor by what they say; what has gone makes room, and a change of one needs none."""
    directory = Directory()
    come(directory)
    most = 2 if bound == "MAX_ENTRIES" else 2 * directory._characters
    monkeypatch.setattr(f"sandd._core.directory.{bound}", most)
    come(directory, "e")
    with pytest.raises(RemoteProtocolError, match=r"more than .* daemons, or too much of them"):
        come(directory, "f")
    if bound == "MAX_ENTRIES_CHARACTERS":
        with pytest.raises(RemoteProtocolError):
            come(directory, "e", labels={"a": ""})
    assert {entry.info.id for entry in directory} == {"d", "e"}
    for _ in range(3):
        go(directory, DaemonState.AWAY)
        come(directory)
    go(directory, DaemonState.GONE)
    come(directory, "f")
    assert {entry.info.id for entry in directory} == {"e", "f"}


# ---- events -------------------------------------------------------------------------------------


async def test_events_tell_the_life_of_a_daemon() -> None:
    """connected, away, resumed; and where another instance comes, that the first is lost."""
    directory = Directory()
    async with directory.subscribe() as events:
        come(directory)
        go(directory, DaemonState.AWAY)
        go(directory, DaemonState.AWAY)  # told again, it is no news
        come(directory)
        come(directory, instance="two")
        go(directory, DaemonState.GONE, "two")
        go(directory, DaemonState.GONE, "two")
        come(directory, instance="two")
        assert await kinds(events, 7) == [
            "connected d",
            "away d",
            "resumed d",
            "lost d",
            "connected d",
            "lost d",
            "connected d",
        ]
        assert await nothing_more(events)


async def test_each_subscriber_has_all_events_from_its_beginning() -> None:
    """At its own pace, and nothing after its end is kept for it."""
    directory = Directory()
    come(directory, "before")
    async with directory.subscribe() as one:
        come(directory, "a")
        async with directory.subscribe() as two:
            come(directory, "b")
            assert await kinds(two, 1) == ["connected b"]
        come(directory, "c")
        assert await kinds(one, 3) == ["connected a", "connected b", "connected c"]
    assert directory._subscribers == set()


async def test_a_slow_subscriber_is_told_how_many_it_missed() -> None:
    """1,024 are held; then one event counts the rest, in its place in the order."""
    directory = Directory()
    async with directory.subscribe() as events, directory.subscribe() as quick:
        for number in range(MAX_EVENTS + 5):
            come(directory, f"d{number}")
            assert await kinds(quick, 1) == [f"connected d{number}"]
        assert await kinds(events, 3) == ["connected d0", "connected d1", "connected d2"]
        come(directory, "late")  # there is room again, but it must not come before the count
        assert (await kinds(events, MAX_EVENTS - 3))[-1] == f"connected d{MAX_EVENTS - 1}"
        event = await anext(events)
        assert (event.kind, event.count, event.daemon_id, event.info) == ("missed", 6, "", None)
        assert await nothing_more(events)
        come(directory, "after")
        assert await kinds(events, 1) == ["connected after"]


async def test_a_wait_for_an_event_that_is_given_up_loses_none() -> None:
    """Cancelled at any moment."""
    directory = Directory()
    async with directory.subscribe() as events, trio.open_nursery() as nursery:
        seen = []

        @nursery.start_soon
        async def produce() -> None:
            for number in range(50):
                come(directory, f"d{number}")
                await trio.sleep(0.001)

        while len(seen) < 50:
            with trio.move_on_after(0.0007):
                seen += await kinds(events, 1)
        assert seen == [f"connected d{number}" for number in range(50)]


async def test_reading_an_event_is_a_checkpoint() -> None:
    """Also where one waits already: a busy directory starves nobody."""
    directory = Directory()
    async with directory.subscribe() as events:
        come(directory)
        with trio.testing.assert_checkpoints():
            await anext(events)


# ---- waiting ------------------------------------------------------------------------------------


async def test_waiting_ends_when_the_daemon_is_online() -> None:
    """Being away is not enough."""
    directory = Directory()
    come(directory)
    go(directory, DaemonState.AWAY)
    done = []

    async def wait() -> None:
        done.append((await directory.wait_online("d")).info.instance)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        come(directory, "other")
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        come(directory)
    assert done == ["one"] * 3
    with trio.testing.assert_checkpoints():
        await directory.wait_online("d")
    assert directory._arrivals == {}


async def test_one_that_comes_and_goes_at_once_is_waited_for_again() -> None:
    """The wait is for a daemon that is there, not for one that was."""
    directory = Directory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(directory.wait_online, "d")
        await trio.testing.wait_all_tasks_blocked()
        come(directory)
        go(directory, DaemonState.AWAY)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        come(directory)


async def test_a_wait_that_is_given_up_leaves_nothing() -> None:
    """Nothing is kept for names that nobody waits for, and the other waiters wait on."""
    directory = Directory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(directory.wait_online, "d")
        for name in ("d", "other"):
            with trio.move_on_after(0.001):
                await directory.wait_online(name)
        assert set(directory._arrivals) == {"d"}
        come(directory)
    assert directory._arrivals == {}


async def test_nobody_waits_for_a_closed_directory() -> None:
    """Waits end with ClosedResourceError, iterators behind what has happened."""
    directory = Directory()
    async with directory.subscribe() as events:
        come(directory)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await directory.wait_online("nobody")

            await trio.testing.wait_all_tasks_blocked()
            directory.close()
        assert await kinds(events, 1) == ["connected d"]
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    async with directory.subscribe() as late:
        with pytest.raises(StopAsyncIteration):
            await anext(late)


# ---- giving up ----------------------------------------------------------------------------------


async def test_one_that_stays_away_is_to_be_given_up(mock_clock: trio.testing.MockClock) -> None:
    """After its lease, counted anew whenever it was there."""
    directory = Directory()
    async with directory.subscribe() as events:
        come(directory, "stays")
        come(directory)
        go(directory, DaemonState.AWAY)
        mock_clock.jump(AWAY_LEASE - 1)
        assert directory.expired() == []
        mock_clock.jump(2)
        (expired,) = directory.expired()
        assert (expired.daemon_id, expired.state) == ("d", DaemonState.GONE)
        directory.take(expired)
        assert directory.expired() == []
        assert await kinds(events, 4) == ["connected stays", "connected d", "away d", "lost d"]


async def test_out_of_sight_all_are_away() -> None:
    """A client whose connection breaks knows of nobody that it is there; who was away before, still is."""
    directory = Directory()
    come(directory, "absent")
    directory.take(status(DaemonState.AWAY, "absent"))
    come(directory)
    async with directory.subscribe() as events:
        directory.lose_sight()
        directory.lose_sight()
        assert {entry.state for entry in directory} == {DaemonState.AWAY}
        come(directory)
        directory.take(status(DaemonState.AWAY, "absent"))
        assert await kinds(events, 2) == ["away d", "resumed d"]
        assert await nothing_more(events)


async def test_a_copied_state_directory_is_told() -> None:
    """With what the one that came last says of itself; who is known stays."""
    directory = Directory()
    come(directory)
    async with directory.subscribe() as events:
        directory.take(wire.DaemonCloned("d", "two", wire.DaemonDescription("elsewhere")))
        event = await anext(events)
        assert event.info is not None
        assert (event.kind, event.info.instance, event.info.hostname) == (
            "cloned",
            "two",
            "elsewhere",
        )
    assert directory.find("d").info.instance == "one"


async def test_who_has_been_told_all_knows_it() -> None:
    """The list of those that were there before us has an end."""
    directory = Directory()
    come(directory)
    assert not directory.told.is_set()
    directory.take(wire.DaemonsTold())
    assert directory.told.is_set()
