"""A daemon that is away while a command waits for it: that is told, and after a while it is given up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import define, field

from sandd._core.interrupts import protected_context
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.command_line import telling
from sandd.command_line.stopping import Failure
from sandd.wire import DaemonState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from sandd.command_line.telling import Say

NOTICE_SECONDS: Final = 2.0
"""How long a daemon may be away before somebody is told: most cuts are shorter."""
WAITING: Final = "waiting for it"
"""What an outage means to whoever has asked for something, and hasn't got it yet."""


class Watched(Protocol):
    """What is needed of a `sandd.Daemon`."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def state(self) -> DaemonState:
        """Whether it is there."""


class Watching(Protocol):
    """What is needed of its `sandd.Controller`."""

    def open_events(self) -> AbstractAsyncContextManager[AsyncIterator[object]]:
        """What happens from now on."""


@define(eq=False)
class Outages:
    """What is said and done while one daemon is away."""

    _daemon: Watched
    _wait: float | None
    _say: Say
    _meaning: str
    _after: float
    _away_since: float | None = None
    _told: bool = False
    _resting: trio.CancelScope = field(factory=trio.CancelScope)

    def begun(self, meaning: str, *, say: Say | None = None, after: float | None = None) -> None:
        """What was asked for runs there: from now on it isn't given up, and an outage means this."""
        self._wait = None
        self._meaning = meaning
        self._say = say or self._say
        self._after = self._after if after is None else after
        self._resting.cancel()  # with new deadlines

    async def mind(self, events: AsyncIterator[object]) -> None:
        """Tell each outage once, and its end, until there are no more events.

        These only say that it is time to look: nothing is missed where some of them are.

        Raises:
            Failure: an outage has lasted too long.
        """
        while True:
            await self._look()
            with trio.CancelScope(deadline=self._deadline) as self._resting:
                try:
                    await anext(events)
                except StopAsyncIteration:  # the controller is closed, and others tell that
                    return

    @property
    def _deadline(self) -> float:
        if self._away_since is None:
            return math.inf
        notice = math.inf if self._told else self._away_since + self._after
        return min(notice, math.inf if self._wait is None else self._away_since + self._wait)

    async def _look(self) -> None:
        state, now = self._daemon.state, trio.current_time()
        if state is not DaemonState.AWAY:
            self._away_since = None
            if self._told and state is DaemonState.ONLINE:
                self._told = False
                await self._say(f"[{self._daemon.id} is back]")
            return
        if self._away_since is None:
            self._away_since = now
        if self._wait is not None and now >= self._away_since + self._wait:
            raise Failure(
                f"{self._daemon.id} is away, and was not back within {self._wait:g} s (--wait)"
            )
        if not self._told and now >= self._away_since + self._after:
            self._told = True
            await self._say(describe_outage(self._daemon, self._meaning))


@protected_context
async def minding_outages(
    controller: Watching,
    daemon: Watched,
    *,
    wait: float | None,
    say: Say | None = None,
    meaning: str = WAITING,
    after: float = NOTICE_SECONDS,
) -> AsyncIterator[Outages]:
    """While the block lasts outages of the daemon are told, whoever waits for it in there.

    Args:
        controller: tells when to look.
        daemon: the one that is waited for.
        wait: seconds, of ``--wait``: an outage that lasts longer ends the block. None: none does.
        say: puts out a line; by default on stderr.
        meaning: what an outage means, in the line's own words.
        after: seconds that an outage has to last to be told.

    Raises:
        Failure: an outage has lasted too long.
    """
    async with controller.open_events() as events, open_unwrapping_nursery() as nursery:
        outages = Outages(daemon, wait, say or telling.say, meaning, after)
        nursery.start_soon(outages.mind, events)
        yield outages
        nursery.cancel_scope.cancel()


def describe_outage(daemon: Watched, meaning: str = WAITING) -> str:
    """The line that tells it."""
    return f"[{daemon.id} is away; {meaning}]"
