"""How many daemons a router knows, by tenant and state, and on what platforms. Pure.

Kept as they come and go: to count a hundred thousand of them each time somebody looks would take a tenth of a second.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from sandd._core.identity.rights import split_name
from sandd._core.metrics.tallies import OTHER
from sandd.wire import DaemonState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandd import wire

PLATFORMS: Final = ("linux", "darwin", "win32", OTHER)
"""What a daemon says it runs on is its own word, so only these are told apart."""
STATES: Final = (DaemonState.ONLINE, DaemonState.AWAY)


class Population:
    """The daemons that are online or away."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, DaemonState]] = Counter()
        """By tenant and state; no zeros."""
        self.platforms = dict.fromkeys(PLATFORMS, 0)
        self.reconnects = 0
        """Times that a daemon came back that was away, or came anew while it was here."""

    def __iter__(self) -> Iterator[tuple[str, DaemonState, int]]:
        """Tenant, state and number."""
        for (tenant, state), count in self._counts.items():
            yield tenant, state, count

    def total(self, state: DaemonState) -> int:
        """How many are in that state."""
        return sum(count for _, each, count in self if each is state)

    def moved(self, before: wire.DaemonStatus | None, after: wire.DaemonStatus) -> None:
        """What is known of one daemon is not what it was."""
        if before is not None:
            self._count(before, -1)
        self._count(after, +1)
        was_here = before is not None and before.state in STATES
        self.reconnects += was_here and after.state is DaemonState.ONLINE

    def forgotten(self, status: wire.DaemonStatus | None) -> None:
        """Nothing is known of a daemon any more."""
        if status is not None:
            self._count(status, -1)

    def _count(self, status: wire.DaemonStatus, step: int) -> None:
        if status.state not in STATES:
            return  # it is gone
        key = split_name(status.daemon_id)[0], status.state
        self._counts[key] += step
        if not self._counts[key]:
            del self._counts[key]
        platform = status.about.platform
        self.platforms[platform if platform in self.platforms else OTHER] += step
