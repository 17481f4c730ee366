"""When somebody who waits for a daemon is told that it is away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing
from attrs import define

from sandd import DaemonState
from sandd.command_line.outages import tell_outages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@define(eq=False, slots=False)
class FakeDaemon:
    """Comes and goes as the test says."""

    state: DaemonState = DaemonState.ONLINE
    id: str = "worker-1"

    def __attrs_post_init__(self) -> None:
        self._put, self._events = trio.open_memory_channel[None](100)
        self.said: list[str] = []

    def becomes(self, state: DaemonState) -> None:
        """Something happens to it."""
        self.state = state
        self._put.send_nowait(None)

    async def tell(self, after: float = 0.5) -> None:
        """Gather what is told of it."""

        async def say(text: str) -> None:
            await trio.lowlevel.checkpoint()
            self.said.append(text)

        events: AsyncIterator[object] = self._events.__aiter__()
        await tell_outages(self, events, say, meaning="it goes on there", after=after)


async def test_an_outage_is_told_once_and_its_end(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """One line when it has lasted a moment, one when it is over; other events change nothing."""
    daemon = FakeDaemon()
    nursery.start_soon(daemon.tell)
    daemon.becomes(DaemonState.AWAY)
    await trio.sleep(0.3)
    assert daemon.said == []
    daemon.becomes(DaemonState.AWAY)  # something happened to another daemon
    await trio.sleep(0.3)
    daemon.becomes(DaemonState.AWAY)
    await trio.sleep(60)
    assert daemon.said == ["[worker-1 is away; it goes on there]"]
    daemon.becomes(DaemonState.ONLINE)
    daemon.becomes(DaemonState.ONLINE)
    await trio.sleep(1)
    assert daemon.said[1:] == ["[worker-1 is back]"]
    nursery.cancel_scope.cancel()


async def test_a_short_outage_is_not_worth_a_line(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Nor are many of them; of a lost daemon others tell."""
    daemon = FakeDaemon()
    nursery.start_soon(daemon.tell, 2.0)
    for _ in range(5):
        daemon.becomes(DaemonState.AWAY)
        await trio.sleep(1.9)
        daemon.becomes(DaemonState.ONLINE)
        await trio.sleep(1.9)
    daemon.becomes(DaemonState.GONE)
    await trio.sleep(60)

    assert daemon.said == []
    nursery.cancel_scope.cancel()
