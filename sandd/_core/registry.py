"""Which daemons a controller knows, and who holds each id: for the acceptor, who has to decide on that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from sandd._core.directory import AWAY_LEASE
from sandd._core.fencing import Claim, Tenure
from sandd.wire import DaemonState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandd import wire
    from sandd._core.pump import Pump
    from sandd._core.router_links import DaemonLink

MAX_DAEMONS: Final = 100_000
"""Daemons known at once, online or away."""
GONE_MEMORY: Final = 600.0
"""Seconds for which a daemon that is gone for good is still remembered as such."""


@define(eq=False)
class DaemonRecord:
    """One known daemon."""

    id: str
    about: wire.DaemonDescription
    state: DaemonState
    tenure: Tenure
    """Who holds the id, and who else wants it."""
    since: float
    """When the state began, by the registry's clock."""
    link: DaemonLink | None = None
    pump: Pump | None = None


class Registry:
    """All daemons of one controller."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._records: dict[str, DaemonRecord] = {}
        self._absent: dict[str, DaemonRecord] = {}
        """Those of them that are not online: to look at 5,000 that are, every second, was 2 ms (m)."""

    def __iter__(self) -> Iterator[DaemonRecord]:
        # Of this moment, in one step: `sandd.aio` looks from other threads.
        return iter(list(self._records.values()))

    def __len__(self) -> int:
        return len(self._records)

    def get(self, daemon_id: str) -> DaemonRecord | None:
        """The record of a daemon that is online, away, or was lost lately."""
        return self._records.get(daemon_id)

    def online(
        self,
        daemon_id: str,
        about: wire.DaemonDescription,
        claim: Claim,
        link: DaemonLink,
        pump: Pump,
    ) -> None:
        """The daemon has a live link, perhaps its first, perhaps in the place of another."""
        known = self._records.get(daemon_id)
        tenure = Tenure(claim) if known is None else known.tenure
        tenure.succeed(claim)
        self._absent.pop(daemon_id, None)
        self._records[daemon_id] = DaemonRecord(
            daemon_id, about, DaemonState.ONLINE, tenure, self._clock(), link, pump
        )

    def offline(self, link: DaemonLink, state: DaemonState) -> None:
        """This link is gone; no matter if the daemon has another by now."""
        record = self._records.get(link.daemon_id)
        if record is None or record.link is not link:
            return
        record.link = record.pump = None
        record.state = state
        record.since = self._clock()
        self._absent[record.id] = record

    def expire(self) -> list[tuple[str, bool]]:
        """(id, forgotten) of daemons that were away too long, or gone long enough to be forgotten."""
        now = self._clock()
        changed = []
        for record in list(self._absent.values()):
            age = now - record.since
            if record.state is DaemonState.AWAY and age >= AWAY_LEASE:
                record.state, record.since = DaemonState.GONE, now
                changed.append((record.id, False))
            elif record.state is DaemonState.GONE and age >= GONE_MEMORY:
                del self._records[record.id], self._absent[record.id]
                changed.append((record.id, True))
        return changed
