"""Time for state machines that are handed clock readings: it passes when it is told to.

::

    clock = VirtualClock()
    clock.call_later(5, table_ticks)
    clock.advance(3600)         # every timer fires at its own time, in order, within microseconds
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Callable


@define(order=True)
class Timer:
    """Something that is going to happen, unless it is cancelled."""

    when: float
    _number: int
    """Of two timers for the same moment, the one set first fires first."""
    _action: Callable[[], None] | None = field(order=False)

    @property
    def is_pending(self) -> bool:
        """It has neither fired nor been cancelled."""
        return self._action is not None

    def cancel(self) -> None:
        """It will not fire any more; nothing happens if it has."""
        self._action = None

    def _fire(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()


class VirtualClock:
    """A monotonic clock in seconds, which stands still between calls of `advance`."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        """Seconds."""
        self._timers: list[Timer] = []
        self._count = 0

    def __repr__(self) -> str:
        return f"<VirtualClock at {self.now:.3f} s, {len(self._timers)} timers>"

    def call_at(self, when: float, action: Callable[[], None]) -> Timer:
        """Have the action called once the clock shows `when`: with the next advance if that is past."""
        self._count += 1
        timer = Timer(when, self._count, action)
        heappush(self._timers, timer)
        return timer

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Have the action called `seconds` from now."""
        return self.call_at(self.now + seconds, action)

    @property
    def next_at(self) -> float | None:
        """When the next timer fires; None when there is none."""
        timers = self._timers
        while timers and not timers[0].is_pending:
            heappop(timers)
        return timers[0].when if timers else None

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; what is due in them fires in order, each when the clock shows its time."""
        self.advance_to(self.now + seconds)

    def advance_to(self, when: float) -> None:
        """Let time pass until the clock shows `when`; it never goes back."""
        while (due := self.next_at) is not None and due <= when:
            timer = heappop(self._timers)
            self.now = max(self.now, due)
            timer._fire()
        self.now = max(self.now, when)
