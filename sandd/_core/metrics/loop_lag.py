"""How late an event loop is: when to look, and what it says. Pure; the clock is who calls."""

from __future__ import annotations

from attrs import define, field

from sandd._core.metrics.histograms import LAG_BOUNDS, Histogram


@define(eq=False)
class LoopLag:
    """Looks at a loop, one after the other.

    ``sleep_until(lag.due(now))``, then ``lag.woke(now)``, for ever.
    """

    interval: float
    """Seconds between two looks."""
    latest: float = 0.0
    """Seconds that the loop was late at the last look."""
    histogram: Histogram = field(factory=lambda: Histogram(LAG_BOUNDS))
    _due: float = 0.0

    def due(self, now: float) -> float:
        """When to look next."""
        self._due = now + self.interval
        return self._due

    def woke(self, now: float) -> float:
        """The loop came to it now; seconds that it was late."""
        self.latest = max(0.0, now - self._due)
        self.histogram.observe(self.latest)
        return self.latest
