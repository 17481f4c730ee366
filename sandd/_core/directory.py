"""The daemons that a client's controller knows, as it tells the client: who is online, away, and what happens."""

from __future__ import annotations

import time
from collections import deque
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from sandd import wire
from sandd._core._errors import DaemonNotFound, RemoteProtocolError
from sandd._core.arguments import check_daemon_id, check_labels, check_text
from sandd._core.interrupts import protected_context
from sandd._core.job_info import OUTPUT_NAMES, stalls_by_name
from sandd.wire import DaemonState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from sandd._core.client_job import ClientJob
    from sandd._core.spool import Stall
    from sandd.wire import Stream

MAX_EVENTS: Final = 1024
"""Events held for a subscriber that doesn't read; beyond it they are counted."""
MAX_ENTRIES: Final = 100_000
"""Daemons that a controller may tell of: as many as it may know."""
MAX_ENTRIES_CHARACTERS: Final = 256 * wire.MIB
"""Of all that these say of themselves: some 2,700 each, if there are so many."""
AWAY_LEASE: Final = 24 * 3600.0
"""Seconds after which an absent daemon is given up: its own jobs' default lease."""


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
    isolation: str = "none"
    """What its jobs are kept apart from, at least: "none", "user", "landlock" or "bwrap"."""
    isolation_levels: tuple[str, ...] = ("none",)
    """Those that may be asked for. Without `isolation` among them, it runs nothing."""


@frozen
class DaemonEvent:
    """Something happened to a daemon, or events were missed."""

    kind: str
    """"connected" (a new instance), "away" (its connection broke, or that to a remote controller), "resumed" (the
    same instance is back), "lost" (it won't come back), "cloned" (its state directory and that of another daemon
    are copies of one; `info` is the one that came last), "stalled" (a command of this program has to wait,
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
class Entry:
    """One daemon that is online or away."""

    info: DaemonInfo
    state: DaemonState
    since: float
    """When the state began, by the directory's clock."""


@define(eq=False)
class _Subscriber:
    """The iterator that `Directory.subscribe` gives; a cancelled wait loses nothing."""

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


class Directory:
    """What one client has been told of daemons."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._subscribers: set[_Subscriber] = set()
        self._arrivals: dict[str, trio.Event] = {}
        self._characters = 0
        """Of all that is kept of daemons."""
        self._closed = False
        self.told = trio.Event()
        """Every daemon that the controller knew when we came is in here."""

    def __iter__(self) -> Iterator[Entry]:
        # Of this moment, in one step: `sandd.aio` looks from other threads.
        return iter(list(self._entries.values()))

    def get(self, daemon_id: str) -> Entry | None:
        """A daemon that is online or away."""
        return self._entries.get(daemon_id)

    def find(self, daemon_id: str) -> Entry:
        """A daemon that is online or away; DaemonNotFound if none of that id is."""
        check_daemon_id(daemon_id)
        entry = self._entries.get(daemon_id)
        if entry is None:
            known = sorted(self._entries)
            hint = (
                f"known are {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}"
                if known
                else "none is connected; wait_for_daemon waits for one to dial in"
            )
            raise DaemonNotFound(f"daemon {daemon_id!r} not found: {hint}")
        return entry

    def select(self, labels: Mapping[str, str] | None, match: str) -> list[Entry]:
        """Daemons, online or away, whose labels include all of `labels` and whose id matches the glob."""
        wanted = check_labels(labels).items()
        check_text("match", match, what="a glob, such as 'worker-*'")
        return [
            entry
            for entry in self
            if fnmatchcase(entry.info.id, match) and wanted <= entry.info.labels.items()
        ]

    @trio.lowlevel.enable_ki_protection
    async def wait_online(self, daemon_id: str) -> Entry:
        """The daemon, as soon as it is online."""
        check_daemon_id(daemon_id)
        await trio.lowlevel.checkpoint()
        while True:
            entry = self._entries.get(daemon_id)
            if entry is not None and entry.state is DaemonState.ONLINE:
                return entry
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
        self.told.set()

    # -- changes

    def take(self, news: wire.News) -> None:
        """What the controller tells.

        RemoteProtocolError where that is of more daemons than there can be: it would fill our memory.
        """
        match news:
            case wire.DaemonStatus():
                self._take_status(news)
            case wire.DaemonCloned():
                info = _info(news.daemon_id, news.instance, news.about, time.time())
                self._tell(DaemonEvent("cloned", news.daemon_id, info))
            case wire.DaemonsTold():
                self.told.set()

    def _take_status(self, status: wire.DaemonStatus) -> None:
        known = self._entries.get(status.daemon_id)
        if status.state is DaemonState.GONE:
            self._lose(known)
            return
        if known is not None and known.info.instance != status.instance:
            self._lose(known)
            known = None
        was = None if known is None else known.state
        connected_at = time.time() - status.connected_for
        if known is not None and was is DaemonState.ONLINE and status.state is DaemonState.AWAY:
            connected_at = known.info.connected_at  # what tells of a change doesn't
        info = _info(status.daemon_id, status.instance, status.about, connected_at)
        more = _characters(info) - (0 if known is None else _characters(known.info))
        if (known is None and len(self._entries) >= MAX_ENTRIES) or (
            self._characters + more > MAX_ENTRIES_CHARACTERS
        ):
            raise RemoteProtocolError(
                f"the controller tells of more than {MAX_ENTRIES} daemons, or too much of them"
            )
        self._characters += more
        if known is not None and was is status.state is DaemonState.AWAY:
            known.info = info
            return
        self._entries[info.id] = Entry(info, status.state, self._clock())
        if status.state is DaemonState.ONLINE:
            self._tell(DaemonEvent("connected" if known is None else "resumed", info.id, info))
            arrival = self._arrivals.pop(info.id, None)
            if arrival is not None:
                arrival.set()
        elif was is DaemonState.ONLINE:
            self._tell(DaemonEvent("away", info.id, info))

    def lose_sight(self) -> None:
        """The connection to the controller is lost: for us, all daemons are away."""
        for entry in self:
            if entry.state is DaemonState.ONLINE:
                entry.state, entry.since = DaemonState.AWAY, self._clock()
                self._tell(DaemonEvent("away", entry.info.id, entry.info))

    def expired(self) -> list[wire.DaemonStatus]:
        """Daemons that have been away too long to be waited for, as they are to be taken from now on."""
        now = self._clock()
        return [
            wire.DaemonStatus(entry.info.id, DaemonState.GONE, entry.info.instance)
            for entry in self
            if entry.state is DaemonState.AWAY and now - entry.since >= AWAY_LEASE
        ]

    def tell_stalls(self, job: ClientJob, before: Mapping[Stream, wire.Stalled]) -> None:
        """What keeps a job's outputs from flowing is not what it was `before`."""
        entry = self._entries.get(job.daemon_id)
        info = None if entry is None else entry.info
        was, now = stalls_by_name(before), stalls_by_name(job.stalls)
        for name in OUTPUT_NAMES.values():
            if was.get(name) != now.get(name):
                stall = now.get(name)
                kind = "flowing" if stall is None else "stalled"
                event = DaemonEvent(
                    kind, job.daemon_id, info, job_id=job.id, stream=name, stall=stall
                )
                self._tell(event)

    def _lose(self, entry: Entry | None) -> None:
        if entry is not None:
            del self._entries[entry.info.id]
            self._characters -= _characters(entry.info)
            self._tell(DaemonEvent("lost", entry.info.id, entry.info))

    def _tell(self, event: DaemonEvent) -> None:
        for subscriber in self._subscribers:
            subscriber.put(event)


def _characters(info: DaemonInfo) -> int:
    """What is kept of a daemon."""
    labels = sum(len(key) + len(value) for key, value in info.labels.items())
    texts = (info.id, info.hostname, info.platform, info.arch, info.version, info.instance)
    return labels + sum(map(len, texts))


def _info(
    daemon_id: str, instance: str, about: wire.DaemonDescription, connected_at: float
) -> DaemonInfo:
    return DaemonInfo(
        id=daemon_id,
        hostname=about.hostname,
        platform=about.platform,
        arch=about.arch,
        version=about.version,
        labels=dict(about.labels),
        instance=instance,
        connected_at=connected_at,
        isolation=str(about.isolation),
        isolation_levels=tuple(map(str, about.isolation_levels)),
    )
