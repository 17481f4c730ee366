"""Whom ``sandd top`` asks, and for whom it waits; without a controller."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import trio
from attrs import define, evolve, field
from test_fleet_busy import INFO, TOLD

from sandd.fleet.top import Top
from sandd.wire import DaemonState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sandd import DaemonInfo, DaemonStatistics
    from sandd.controller import Daemon


@define(eq=False)
class Teller:
    """A daemon that tells twice, and then no more."""

    id: str
    then: Callable[[], None] = lambda: None
    state: DaemonState = DaemonState.ONLINE
    asked: int = field(default=0)

    @property
    def info(self) -> DaemonInfo:
        """Which it is."""
        return evolve(INFO, id=self.id)

    @contextlib.asynccontextmanager
    async def open_statistics(self, **_: Any) -> AsyncIterator[AsyncIterator[DaemonStatistics]]:
        """As `Daemon.open_statistics`."""
        self.asked += 1
        yield self._tell()

    async def _tell(self) -> AsyncIterator[DaemonStatistics]:
        yield TOLD
        self.then()
        yield evolve(TOLD, uptime=TOLD.uptime + 1)
        await trio.sleep_forever()


async def test_a_daemon_that_comes_meanwhile_is_asked_and_waited_for() -> None:
    """Each once, and those that are away not at all: who has come is not waited for in vain."""
    late, away = Teller("late"), Teller("away", state=DaemonState.AWAY)
    there = [away]
    there.append(Teller("early", then=lambda: there.append(late)))
    options = SimpleNamespace(interval=0.01, jobs=False, sort="id")
    top = Top(lambda: cast("list[Daemon]", list(there)), cast("Any", options))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await top.wait_told(nursery)
            shown = top.round()
            nursery.cancel_scope.cancel()
    assert [(each.id, each.newest is not None) for each in shown.daemons] == [
        ("away", False),
        ("early", True),
        ("late", True),
    ]
    assert [each.asked for each in there] == [0, 1, 1]
