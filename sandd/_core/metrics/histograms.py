"""How often something took how long. Pure."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds an event loop is late: below 10 ms nobody notices; beyond 5 s peers begin to take us for dead."""
DISK_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Seconds until something is on the disk: an SSD takes some milliseconds, a group commit 20 at most."""


@frozen
class Observed:
    """What a histogram was at one moment."""

    buckets: tuple[tuple[float, int], ...]
    """(bound, observations up to it), of which the last is (inf, all of them)."""
    sum: float


class Histogram:
    """Counts of observations, in seconds, below each of some bounds."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        """Between each two bounds; the last is beyond all."""
        self.sum = 0.0

    def __repr__(self) -> str:
        return f"<Histogram of {self.count} observations>"

    def observe(self, seconds: float) -> None:
        """Count one. A bound belongs to what is below it, as Prometheus has it."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self._counts)

    def snapshot(self) -> Observed:
        """What it is now."""
        return Observed(tuple(self._buckets()), self.sum)

    def _buckets(self) -> Iterator[tuple[float, int]]:
        so_far = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            so_far += count
            yield bound, so_far
