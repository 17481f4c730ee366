"""What an audit log has written, and how long requests waited for that. Pure."""

from __future__ import annotations

from attrs import define, field

from sandd._core.metrics.histograms import DISK_BOUNDS, Histogram


@define(eq=False)
class AuditCounts:
    """Of one log, since it was opened."""

    records: int = 0
    """That are in its file."""
    hold: Histogram = field(factory=lambda: Histogram(DISK_BOUNDS))
    """How long those waited that somebody waited for."""
    failures: int = 0
    """Times that its disk began to fail."""
