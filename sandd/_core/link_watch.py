"""One timer for all links of a controller: a task for each, with its stack and deadline, would be two KiB a link.

And a turn of the loop for each look: with 5,000 idle links that was a tenth of a core. Here those that are due within
a tenth of their interval are looked at in one turn.
"""

from __future__ import annotations

import heapq
import math
from typing import Final, Protocol

import trio

PARTS: Final = 10
"""Links with one interval are looked at in so many turns: of thousands, no turn has to do with all."""


class Watched(Protocol):
    """What is looked at from time to time."""

    interval: float
    """Seconds between two looks."""

    def look(self, now: float, late: float) -> bool:
        """See whether anything is due, `late` seconds behind the plan; False: never look again. Raises nothing."""


class LinkWatch:
    """All that is watched together; `run` does it, in the nursery of whoever owns the links."""

    def __init__(self) -> None:
        self._planned: dict[tuple[float, float], list[Watched]] = {}
        """What is to be looked at: by when, and its interval."""
        self._times: list[tuple[float, float]] = []
        """The keys of `_planned`, as a heap."""
        self._pause = trio.CancelScope()
        """The task's sleep."""

    def add(self, watched: Watched) -> None:
        """Look at it from now on, until it says that it is over."""
        self._plan([watched], watched.interval, trio.current_time())
        self._pause.deadline = min(self._pause.deadline, self._times[0][0])

    def _plan(self, several: list[Watched], interval: float, now: float) -> None:
        step = interval / PARTS
        due = (math.ceil((now + interval) / step) * step, interval)
        known = self._planned.get(due)
        if known is None:
            self._planned[due] = several
            heapq.heappush(self._times, due)
        else:
            known += several

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Look at each when it is due, until cancelled."""
        while True:
            due = self._times[0][0] if self._times else math.inf
            with trio.CancelScope(deadline=due) as self._pause:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._times and self._times[0][0] <= now:
                planned, interval = due_now = heapq.heappop(self._times)
                late = now - planned
                again = [each for each in self._planned.pop(due_now) if each.look(now, late)]
                if again:
                    self._plan(again, interval, now)
