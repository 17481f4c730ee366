"""`Registry`: which daemons a controller knows, who holds each id, and when they are given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from sandd import DaemonState, wire
from sandd._core.directory import AWAY_LEASE
from sandd._core.fencing import Claim
from sandd._core.registry import GONE_MEMORY, DaemonRecord, Registry
from sandd._core.router_links import DaemonLink

if TYPE_CHECKING:
    from sandd._core.pump import Pump


def come(
    registry: Registry, daemon_id: str = "d", instance: str = "one", connection: int = 1
) -> DaemonLink:
    """A daemon is online on a new link."""
    link = DaemonLink(set(), daemon_id=daemon_id, instance=instance)
    claim = Claim(instance, connection, challenged_at=0.0)
    registry.online(daemon_id, wire.UNDESCRIBED, claim, link, cast("Pump", object()))
    return link


def found(registry: Registry, daemon_id: str = "d") -> DaemonRecord:
    """The record, which is there."""
    record = registry.get(daemon_id)
    assert record is not None
    return record


def test_a_daemon_is_remembered_when_it_is_gone() -> None:
    """Without a link; and another connection of it has the same tenure."""
    registry = Registry(lambda: 0.0)
    assert registry.get("d") is None
    link = come(registry)
    tenure = found(registry).tenure
    registry.offline(link, DaemonState.GONE)
    record = found(registry)
    assert (record.state, record.link, record.pump) == (DaemonState.GONE, None, None)
    come(registry, connection=2)
    assert found(registry).state is DaemonState.ONLINE
    assert found(registry).tenure is tenure
    assert tenure.holder.connection == 2


def test_a_superseded_links_end_changes_nothing() -> None:
    """The daemon has another by then."""
    registry = Registry(lambda: 0.0)
    old = come(registry)
    new = come(registry, connection=2)
    registry.offline(old, DaemonState.GONE)
    registry.offline(DaemonLink(set(), daemon_id="stranger"), DaemonState.GONE)
    record = found(registry)
    assert (record.state, record.link) == (DaemonState.ONLINE, new)


def test_one_that_stays_away_is_given_up_and_then_forgotten() -> None:
    """After its lease it is lost; after some time more nothing is known of it."""
    now = 0.0
    registry = Registry(lambda: now)
    come(registry, "stays")
    registry.offline(come(registry), DaemonState.AWAY)
    now = AWAY_LEASE - 1
    assert registry.expire() == []
    now = AWAY_LEASE + 1
    assert registry.expire() == [("d", False)]
    assert registry.expire() == []
    assert found(registry).state is DaemonState.GONE
    now += GONE_MEMORY - 2
    assert registry.expire() == []
    assert len(registry) == 2
    now += 3
    assert registry.expire() == [("d", True)]
    assert [record.id for record in registry] == ["stays"]


@pytest.mark.parametrize("state", [DaemonState.AWAY, DaemonState.GONE])
def test_one_that_came_back_is_not_given_up(state: DaemonState) -> None:
    """However long ago it was lost; when it is lost again, its time begins anew."""
    now = 0.0
    registry = Registry(lambda: now)
    registry.offline(come(registry), state)
    link = come(registry, connection=2)
    now += AWAY_LEASE + GONE_MEMORY + 1
    assert registry.expire() == []
    assert found(registry).state is DaemonState.ONLINE
    registry.offline(link, DaemonState.GONE)
    now += GONE_MEMORY - 1
    assert registry.expire() == []
    now += 2
    assert registry.expire() == [("d", True)]
    assert registry.expire() == []
    come(registry, connection=3)
    assert registry.expire() == []
