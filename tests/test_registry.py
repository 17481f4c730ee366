"""`Registry`: which daemons are known, what is told about them, and when they are given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import trio
import trio.testing

from sandd import DaemonNotFound, DaemonState
from sandd._core import registry as registry_module
from sandd._core.fencing import Claim
from sandd._core.registry import (
    AWAY_LEASE,
    GONE_MEMORY,
    MAX_EVENTS,
    DaemonEvent,
    DaemonInfo,
    Registry,
)
from sandd._core.router import DaemonLink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from sandd._core.pump import Pump


def info(
    daemon_id: str = "d", instance: str = "one", labels: Mapping[str, str] | None = None
) -> DaemonInfo:
    """What a daemon said of itself."""
    return DaemonInfo(daemon_id, "host", "linux", "x86_64", "1", labels or {}, instance, 0.0)


def come(
    registry: Registry,
    daemon_id: str = "d",
    instance: str = "one",
    connection: int = 1,
    labels: Mapping[str, str] | None = None,
) -> DaemonLink:
    """A daemon is online on a new link."""
    link = DaemonLink(set(), daemon_id=daemon_id, instance=instance)
    claim = Claim(instance, connection, challenged_at=0.0)
    registry.online(info(daemon_id, instance, labels), claim, link, cast("Pump", object()))
    return link


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
    registry = Registry()
    with pytest.raises(DaemonNotFound, match="none is connected; wait_for_daemon waits"):
        registry.find("d")
    link = come(registry)
    assert registry.find("d").state is DaemonState.ONLINE
    registry.offline(link, DaemonState.AWAY)
    assert registry.find("d").state is DaemonState.AWAY
    assert [record.info.id for record in registry.select(None, "*")] == ["d"]
    link = come(registry, connection=2)
    registry.offline(link, DaemonState.GONE)
    with pytest.raises(DaemonNotFound):
        registry.find("d")
    assert registry.select(None, "*") == []
    record = registry.get("d")
    assert record is not None
    assert (record.state, record.link, record.pump) == (DaemonState.GONE, None, None)


async def test_the_complaint_about_an_unknown_daemon_names_some_that_are_known() -> None:
    """Sorted, and no more than a few."""
    registry = Registry()
    for number in range(20):
        come(registry, f"d{number:02}")
    with pytest.raises(DaemonNotFound) as caught:
        registry.find("nobody")
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
    registry = Registry()
    come(registry, "a-1", labels={"env": "prod"})
    come(registry, "a-2", labels={"env": "test"})
    come(registry, "b-1", labels={"env": "prod", "zone": "x"})
    assert {record.info.id for record in registry.select(labels, match)} == found


async def test_a_superseded_links_end_changes_nothing() -> None:
    """The daemon has another by then."""
    registry = Registry()
    old = come(registry)
    new = come(registry, connection=2)
    async with registry.subscribe() as events:
        registry.offline(old, DaemonState.GONE)
        registry.offline(DaemonLink(set(), daemon_id="stranger"), DaemonState.GONE)
        assert await nothing_more(events)
        record = registry.find("d")
        assert (record.state, record.link, record.tenure.holder.connection) == (
            DaemonState.ONLINE,
            new,
            2,
        )


# ---- events -------------------------------------------------------------------------------------


async def test_events_tell_the_life_of_a_daemon() -> None:
    """connected, away, resumed; and where another instance comes, that the first is lost."""
    registry = Registry()
    async with registry.subscribe() as events:
        link = come(registry)
        registry.offline(link, DaemonState.AWAY)
        come(registry, connection=2)
        link = come(registry, instance="two")
        registry.offline(link, DaemonState.GONE)
        come(registry, instance="two", connection=2)
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
    registry = Registry()
    come(registry, "before")
    async with registry.subscribe() as one:
        come(registry, "a")
        async with registry.subscribe() as two:
            come(registry, "b")
            assert await kinds(two, 1) == ["connected b"]
        come(registry, "c")
        assert await kinds(one, 3) == ["connected a", "connected b", "connected c"]
    assert registry._subscribers == set()


async def test_a_slow_subscriber_is_told_how_many_it_missed() -> None:
    """1,024 are held; then one event counts the rest, in its place in the order."""
    registry = Registry()
    async with registry.subscribe() as events, registry.subscribe() as quick:
        for number in range(MAX_EVENTS + 5):
            come(registry, f"d{number}")
            assert await kinds(quick, 1) == [f"connected d{number}"]
        assert await kinds(events, 3) == ["connected d0", "connected d1", "connected d2"]
        come(registry, "late")  # there is room again, but it must not come before the count
        assert (await kinds(events, MAX_EVENTS - 3))[-1] == f"connected d{MAX_EVENTS - 1}"
        event = await anext(events)
        assert (event.kind, event.count, event.daemon_id, event.info) == ("missed", 6, "", None)
        assert await nothing_more(events)
        come(registry, "after")
        assert await kinds(events, 1) == ["connected after"]


async def test_a_wait_for_an_event_that_is_given_up_loses_none() -> None:
    """Cancelled at any moment."""
    registry = Registry()
    async with registry.subscribe() as events, trio.open_nursery() as nursery:
        seen = []

        @nursery.start_soon
        async def produce() -> None:
            for number in range(50):
                come(registry, f"d{number}")
                await trio.sleep(0.001)

        while len(seen) < 50:
            with trio.move_on_after(0.0007):
                seen += await kinds(events, 1)
        assert seen == [f"connected d{number}" for number in range(50)]


async def test_reading_an_event_is_a_checkpoint() -> None:
    """Also where one waits already: a busy registry starves nobody."""
    registry = Registry()
    async with registry.subscribe() as events:
        come(registry)
        with trio.testing.assert_checkpoints():
            await anext(events)


# ---- waiting ------------------------------------------------------------------------------------


async def test_waiting_ends_when_the_daemon_is_online() -> None:
    """Being away is not enough."""
    registry = Registry()
    registry.offline(come(registry), DaemonState.AWAY)
    done = []

    async def wait() -> None:
        done.append((await registry.wait_online("d")).tenure.holder.connection)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        come(registry, "other")
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        come(registry, connection=2)
    assert done == [2, 2, 2]
    with trio.testing.assert_checkpoints():
        await registry.wait_online("d")
    assert registry._arrivals == {}


async def test_one_that_comes_and_goes_at_once_is_waited_for_again() -> None:
    """The wait is for a daemon that is there, not for one that was."""
    registry = Registry()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.wait_online, "d")
        await trio.testing.wait_all_tasks_blocked()
        registry.offline(come(registry), DaemonState.AWAY)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        come(registry, connection=2)


async def test_a_wait_that_is_given_up_leaves_nothing() -> None:
    """Nothing is kept for names that nobody waits for, and the other waiters wait on."""
    registry = Registry()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.wait_online, "d")
        for name in ("d", "other"):
            with trio.move_on_after(0.001):
                await registry.wait_online(name)
        assert set(registry._arrivals) == {"d"}
        come(registry)
    assert registry._arrivals == {}


async def test_nobody_waits_for_a_closed_registry() -> None:
    """Waits end with ClosedResourceError, iterators behind what has happened."""
    registry = Registry()
    async with registry.subscribe() as events:
        come(registry)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await registry.wait_online("nobody")

            await trio.testing.wait_all_tasks_blocked()
            registry.close()
        assert await kinds(events, 1) == ["connected d"]
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    async with registry.subscribe() as late:
        with pytest.raises(StopAsyncIteration):
            await anext(late)


# ---- giving up ----------------------------------------------------------------------------------


async def test_a_daemon_that_stays_away_is_given_up_and_then_forgotten(
    mock_clock: trio.testing.MockClock,
) -> None:
    """After its lease it is lost; after some time more nothing is known of it."""
    registry = Registry()
    async with registry.subscribe() as events:
        come(registry, "stays")
        registry.offline(come(registry), DaemonState.AWAY)
        mock_clock.jump(AWAY_LEASE - 1)
        assert registry.expire() == []
        mock_clock.jump(2)
        assert registry.expire() == [("d", False)]
        assert registry.expire() == []
        assert await kinds(events, 4) == ["connected stays", "connected d", "away d", "lost d"]
        mock_clock.jump(GONE_MEMORY - 1)
        assert registry.expire() == []
        assert len(registry) == 2
        mock_clock.jump(2)
        assert registry.expire() == [("d", True)]
        assert (registry.get("d"), len(registry)) == (None, 1)
        assert registry.find("stays").state is DaemonState.ONLINE


async def test_a_daemon_that_came_back_is_not_given_up(mock_clock: trio.testing.MockClock) -> None:
    """Its absence counts from the latest cut."""
    registry = Registry()
    registry.offline(come(registry), DaemonState.AWAY)
    mock_clock.jump(AWAY_LEASE - 1)
    link = come(registry, connection=2)
    mock_clock.jump(AWAY_LEASE)
    assert registry.expire() == []
    registry.offline(link, DaemonState.AWAY)
    mock_clock.jump(AWAY_LEASE - 1)
    assert registry.expire() == []


async def test_the_limits_are_what_the_documentation_says() -> None:
    """A day for the absent, as their jobs' lease; 1,024 events."""
    assert registry_module.AWAY_LEASE == 24 * 3600
    assert registry_module.MAX_EVENTS == 1024
