"""Which daemons a controller knows: who is online, who is away, and who wants to hear of it."""

from __future__ import annotations

from collections import deque
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from sandd._core._errors import DaemonNotFound
from sandd._core.fencing import Claim, Tenure
from sandd._core.interrupts import protected_context
from sandd._core.job_info import OUTPUT_NAMES, stalls_by_name
from sandd.wire import DaemonState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from sandd import wire
    from sandd._core.client_job import ClientJob
    from sandd._core.pump import Pump
    from sandd._core.router import DaemonLink
    from sandd._core.spool import Stall
    from sandd.wire import Stream

MAX_EVENTS: Final = 1024
"""Events held for a subscriber that doesn't read; beyond it they are counted."""
MAX_DAEMONS: Final = 100_000
"""Daemons known at once, online or away."""
AWAY_LEASE: Final = 24 * 3600.0
"""Seconds after which an absent daemon is given up: its own jobs' default lease."""
GONE_MEMORY: Final = 600.0
"""Seconds for which a daemon that is gone for good is still remembered as such."""


@frozen
class DaemonInfo:
    """What a daemon said of itself when it connected. All of it is the daemon's own word."""

    id: str
    hostname: str
    platform: str
    """``sys.platform`` there: "linux", "darwin", "win32"."""
    arch: str
    """``platform.machine()`` there: "x86_64", "arm64", ..."""
    version: str
    """Of sandd, there."""
    labels: Mapping[str, str]
    instance: str
    """Random per start of the daemon; jobs belong to one instance."""
    connected_at: float
    """Unix time, by this machine's clock, of its newest connection."""


@frozen
class DaemonEvent:
    """Something happened to a daemon, or events were missed."""

    kind: str
    """"connected" (a new instance), "away" (its connection broke), "resumed" (the same instance is
    back), "lost" (it won't come back), "cloned" (its state directory and that of another daemon are
    copies of one; `info` is the one that came last), "stalled" (a command of this program has to wait,
    as the daemon has no room for its output), "flowing" (it goes on, or has ended), or "missed" (`count`
    events were dropped for a slow reader)."""
    daemon_id: str = ""
    info: DaemonInfo | None = None
    count: int = 0
    job_id: str = ""
    """Of the command, for "stalled" and "flowing"."""
    stream: str = ""
    """Which output of it: "stdout" or "stderr"."""
    stall: Stall | None = None
    """For "stalled": why."""


@define(eq=False)
class DaemonRecord:
    """One known daemon."""

    info: DaemonInfo
    state: DaemonState
    tenure: Tenure
    """Who holds the id, and who else wants it."""
    since: float
    """When the state began, by the registry's clock."""
    link: DaemonLink | None = None
    pump: Pump | None = None


@define(eq=False)
class _Subscriber:
    """The iterator that `Registry.subscribe` gives; a cancelled wait loses nothing."""

    events: deque[DaemonEvent] = field(factory=deque)
    missed: int = 0
    """Events that came while `events` was full, and none is added before they are told."""
    closed: bool = False
    changed: trio.Event = field(factory=trio.Event)

    def put(self, event: DaemonEvent) -> None:
        if self.missed or len(self.events) >= MAX_EVENTS:
            self.missed += 1
        else:
            self.events.append(event)
        self.changed.set()

    def __aiter__(self) -> AsyncIterator[DaemonEvent]:
        return self

    @trio.lowlevel.enable_ki_protection
    async def __anext__(self) -> DaemonEvent:
        await trio.lowlevel.checkpoint()
        while True:
            if self.events:
                return self.events.popleft()
            if self.missed:
                missed, self.missed = self.missed, 0
                return DaemonEvent("missed", count=missed)
            if self.closed:
                raise StopAsyncIteration
            self.changed = trio.Event()
            await self.changed.wait()


class Registry:
    """All daemons of one controller."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._records: dict[str, DaemonRecord] = {}
        self._subscribers: set[_Subscriber] = set()
        self._arrivals: dict[str, trio.Event] = {}
        self._closed = False

    def __iter__(self) -> Iterator[DaemonRecord]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def get(self, daemon_id: str) -> DaemonRecord | None:
        """The record of a daemon that is online, away, or was lost lately."""
        return self._records.get(daemon_id)

    def find(self, daemon_id: str) -> DaemonRecord:
        """The record of a daemon that is online or away; DaemonNotFound otherwise."""
        record = self._records.get(daemon_id)
        if record is None or record.state is DaemonState.GONE:
            known = sorted(r.info.id for r in self if r.state is not DaemonState.GONE)
            hint = (
                f"known are {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}"
                if known
                else "none is connected; wait_for_daemon waits for one to dial in"
            )
            raise DaemonNotFound(f"daemon {daemon_id!r} not found: {hint}")
        return record

    def select(self, labels: Mapping[str, str] | None, match: str) -> list[DaemonRecord]:
        """Daemons, online or away, whose labels include all of `labels` and whose id matches the glob."""
        wanted = (labels or {}).items()
        return [
            record
            for record in self
            if record.state is not DaemonState.GONE
            and fnmatchcase(record.info.id, match)
            and wanted <= record.info.labels.items()
        ]

    @trio.lowlevel.enable_ki_protection
    async def wait_online(self, daemon_id: str) -> DaemonRecord:
        """The record, as soon as the daemon is online."""
        await trio.lowlevel.checkpoint()
        while True:
            record = self._records.get(daemon_id)
            if record is not None and record.state is DaemonState.ONLINE:
                return record
            if self._closed:
                raise trio.ClosedResourceError("this controller is closed")
            arrival = self._arrivals.setdefault(daemon_id, trio.Event())
            try:
                await arrival.wait()
            finally:
                # The last of the waiters, or the first that was woken: nobody is left on this event.
                if not arrival.is_set() and arrival.statistics().tasks_waiting == 0:
                    self._arrivals.pop(daemon_id, None)

    @protected_context
    async def subscribe(self) -> AsyncIterator[AsyncIterator[DaemonEvent]]:
        """An iterator over what happens from now on; it ends when the controller closes."""
        subscriber = _Subscriber(closed=self._closed)
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)

    def close(self) -> None:
        """The controller closes: iterators end behind what has happened, and nobody waits any more."""
        self._closed = True
        for subscriber in self._subscribers:
            subscriber.closed = True
            subscriber.changed.set()
        for arrival in self._arrivals.values():
            arrival.set()

    # -- changes

    def online(self, info: DaemonInfo, claim: Claim, link: DaemonLink, pump: Pump) -> None:
        """The daemon has a live link, perhaps its first, perhaps in the place of another."""
        known = self._records.get(info.id)
        resumed = (
            known is not None
            and known.state is not DaemonState.GONE
            and known.info.instance == info.instance
        )
        if known is not None and not resumed and known.state is not DaemonState.GONE:
            self._tell(DaemonEvent("lost", info.id, known.info))
        tenure = Tenure(claim) if known is None else known.tenure
        tenure.succeed(claim)
        self._records[info.id] = DaemonRecord(
            info, DaemonState.ONLINE, tenure, self._clock(), link, pump
        )
        self._tell(DaemonEvent("resumed" if resumed else "connected", info.id, info))
        arrival = self._arrivals.pop(info.id, None)
        if arrival is not None:
            arrival.set()

    def offline(self, link: DaemonLink, state: DaemonState) -> None:
        """This link is gone; no matter if the daemon has another by now."""
        record = self._records.get(link.daemon_id)
        if record is None or record.link is not link:
            return
        record.link = record.pump = None
        record.state = state
        record.since = self._clock()
        self._tell(
            DaemonEvent(
                "away" if state is DaemonState.AWAY else "lost", link.daemon_id, record.info
            )
        )

    def tell_cloned(self, info: DaemonInfo) -> None:
        """Two daemons have copies of one state directory; this one came last."""
        self._tell(DaemonEvent("cloned", info.id, info))

    def tell_stalls(self, job: ClientJob, before: Mapping[Stream, wire.Stalled]) -> None:
        """What keeps a job's outputs from flowing is not what it was `before`."""
        record = self._records.get(job.daemon_id)
        info = None if record is None else record.info
        was, now = stalls_by_name(before), stalls_by_name(job.stalls)
        for name in OUTPUT_NAMES.values():
            if was.get(name) != now.get(name):
                stall = now.get(name)
                kind = "flowing" if stall is None else "stalled"
                event = DaemonEvent(
                    kind, job.daemon_id, info, job_id=job.id, stream=name, stall=stall
                )
                self._tell(event)

    def expire(self) -> list[tuple[str, bool]]:
        """(id, forgotten) of daemons that were away too long, or gone long enough to be forgotten."""
        now = self._clock()
        changed = []
        for record in list(self._records.values()):
            age = now - record.since
            if record.state is DaemonState.AWAY and age >= AWAY_LEASE:
                record.state, record.since = DaemonState.GONE, now
                self._tell(DaemonEvent("lost", record.info.id, record.info))
                changed.append((record.info.id, False))
            elif record.state is DaemonState.GONE and age >= GONE_MEMORY:
                del self._records[record.info.id]
                changed.append((record.info.id, True))
        return changed

    def _tell(self, event: DaemonEvent) -> None:
        for subscriber in self._subscribers:
            subscriber.put(event)
