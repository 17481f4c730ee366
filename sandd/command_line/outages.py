"""That a daemon has gone away, and that it is back: told to whoever waits for it, once each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

from sandd.wire import DaemonState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

NOTICE_SECONDS: Final = 0.5
"""An outage that is over before is not worth a line across somebody's editor."""


class Watched(Protocol):
    """What is needed of a `sandd.Daemon`."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def state(self) -> DaemonState:
        """Whether it is there."""


async def tell_outages(
    daemon: Watched,
    events: AsyncIterator[object],
    say: Callable[[str], Awaitable[None]],
    *,
    meaning: str,
    after: float = NOTICE_SECONDS,
) -> None:
    """Say once that the daemon has gone away, and once that it is back; for ever.

    Events only say that it is time to look: nothing is missed where some of them are.

    Args:
        daemon: the one that is waited for.
        events: of its controller.
        say: puts out a line.
        meaning: what the outage means, in the line's own words.
        after: seconds that the outage has to last.
    """
    told = False
    away_since: float | None = None
    while True:
        state = daemon.state
        if state is not DaemonState.AWAY:
            away_since = None
            if told and state is DaemonState.ONLINE:
                told = False
                await say(f"[{daemon.id} is back]")
        elif away_since is None:
            away_since = trio.current_time()
        due = away_since is not None and not told
        deadline = away_since + after if away_since is not None and due else float("inf")
        with trio.CancelScope(deadline=deadline) as scope:
            await anext(events)
        if scope.cancelled_caught and daemon.state is DaemonState.AWAY:
            told = True
            await say(f"[{daemon.id} is away; {meaning}]")
