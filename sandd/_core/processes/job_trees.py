"""Which process belongs to which job, and whether anything of a job is left.

Standard library only; it runs in the spawner, which is the parent of every job's first process (its
*leader*).

Linux. The spawner is a child subreaper: when a parent dies, its children become the spawner's. So
every process of every job is, at any time, below a child of the spawner, and such a child is either
a leader or an *orphan*. Hence the one fact everything here rests on: **a job whose leader is dead
and that owns no orphan has no process left at all** - one read of one small file tells. An orphan
belongs to a job by the first that fits:

1. its session is that of a leader (leaders stay zombies until their tree is empty, so the number is
   theirs);
2. the brand it was born with (see `process_table.brand_children`), which is as good as a control group
   of the job's own;
3. the ``SANDD_JOB`` it was started with;
4. its session or group was seen in that job's tree before;
5. elimination: no other job was there when it was born. So a process that hid from 1 to 4 is still
   found, when the last of the jobs that may have made it is released.

macOS has no subreapers: orphans go to launchd. There a job has the processes of its group, those
with its marker (hidden for some programs) and what descends from either.
"""

from __future__ import annotations

import abc
import os
import sys
import time
from contextlib import suppress

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes.process_table import (
    NOT_YET,
    OwnChildren,
    Process,
    has_marker,
    list_by_ps,
    read_brand,
    read_marker,
    read_process,
    reap,
    walk,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK") if sys.platform != "win32" else 100
_REFRESH_SHARE = 0.1
"""At most this part of the time is spent on looking after orphans: 10,000 take 10 ms a look."""
MOST_PASSES = 20
"""Passes over the orphans in one look; in a storm of exits the next look goes on."""
EXECUTION_SECONDS = 1.0
"""How long a process without a readable environment passes for one in the middle of execve(2), and
so for everybody's. One whose main thread has ended looks the same for good."""


class Tree:
    """What is known of one job's processes."""

    __slots__ = ("began", "brand", "leader", "marker", "seen")

    def __init__(self, leader: int, marker: bytes, began: int, brand: int | None) -> None:
        self.leader = leader
        self.marker = marker
        self.brand = brand
        self.began = began
        """Clock ticks since boot when the leader can have started at the earliest."""
        self.seen: set[int] = set()
        """Sessions and groups that processes of this job were met in."""

    def __repr__(self) -> str:
        return f"<Tree of {self.leader} ({self.marker!r})>"


class JobTrees(abc.ABC):
    """All the trees of one spawner."""

    def __init__(self) -> None:
        self._trees: dict[int, Tree] = {}

    def add(self, leader: int, marker: bytes, began: int, brand: int | None = None) -> Tree:
        """Know the tree of a new job."""
        tree = self._trees[leader] = Tree(leader, marker, began, brand)
        return tree

    def discard(self, tree: Tree) -> None:
        """Forget a tree whose leader is about to be reaped; what is left of it becomes nobody's."""
        del self._trees[tree.leader]

    @abc.abstractmethod
    def refresh(self) -> None:
        """Look again, and reap dead orphans. `is_empty` answers for the moment of the last call."""

    @abc.abstractmethod
    def refresh_due(self, now: float) -> float:
        """Seconds until `refresh` should be called for orphans' sake; 0: now."""

    @abc.abstractmethod
    def is_empty(self, tree: Tree) -> bool:
        """Whether nothing of a tree *whose leader is dead* was left at the last `refresh`.

        Reliable on Linux; as good as ps(1) on macOS.
        """

    @abc.abstractmethod
    def members(self, tree: Tree) -> list[Process]:
        """The tree's living processes, as one look shows them: all, or fewer, but no stranger."""

    @abc.abstractmethod
    def is_all_gone(self) -> bool:
        """Reap what is dead, leaders too; whether nobody is left, of discarded trees either."""

    @abc.abstractmethod
    def everybody(self) -> list[Process]:
        """The living processes of all trees, those left alone included."""


class _Orphan:
    __slots__ = ("entry", "found_at", "is_classified", "owner")

    def __init__(self, entry: Process) -> None:
        self.entry = entry
        self.found_at = time.monotonic()
        self.owner: Tree | None = None
        self.is_classified = False  # by 1 to 4, which don't change; elimination is asked each time


class SubreaperTrees(JobTrees):
    """Linux: all processes are below us.

    Args:
        children: all children of this process, which has one thread.
        no_jobs: those of them that belong to no job.
        entry, brand_of, marker_of, collect, descend: the system's functions, for tests to replace.
    """

    def __init__(
        self,
        *,
        children: Callable[[], list[int]],
        no_jobs: Callable[[], Collection[int]] = frozenset,
        entry: Callable[[int], Process | None] = read_process,
        brand_of: Callable[[int], int | None] = read_brand,
        marker_of: Callable[[int], bytes | None] = read_marker,
        collect: Callable[[int], bool] = reap,
        descend: Callable[[list[int]], list[Process]] = walk,
    ) -> None:
        super().__init__()
        self._children = children
        self._no_jobs = no_jobs
        self._entry = entry
        self._brand_of = brand_of
        self._marker_of = marker_of
        self._collect = collect
        self._descend = descend
        self._orphans: dict[int, _Orphan] = {}
        self._is_sure = True
        """The last `refresh` has seen every orphan there was."""
        self._left_alone_since: int | None = None
        """The earliest `Tree.began` of those that were discarded with processes left."""
        self._next_refresh = 0.0

    def discard(self, tree: Tree) -> None:
        if not self.is_empty(tree) and (
            self._left_alone_since is None or tree.began < self._left_alone_since
        ):
            self._left_alone_since = tree.began
        del self._trees[tree.leader]
        for orphan in self._orphans.values():
            if orphan.owner is tree:
                orphan.owner = None

    def refresh(self) -> None:
        started = time.monotonic()
        # One that died between the list and the reaping may have left children who are not in the
        # list. Nobody but us takes anyone off it, so a pass that reaps nobody has seen all.
        for _ in range(MOST_PASSES):
            self._is_sure = True
            orphans: dict[int, _Orphan] = {}
            for pid in self._of_jobs():
                if pid in self._trees:
                    continue
                if self._collect(pid):
                    self._is_sure = False
                    continue
                known = self._orphans.get(pid)
                if known is None:
                    entry = self._entry(pid)
                    if entry is None:
                        self._is_sure = False
                        continue
                    known = _Orphan(entry)
                orphans[pid] = known
            self._orphans = orphans
            if self._is_sure:
                break
        if not orphans:
            self._left_alone_since = None
        ended = time.monotonic()
        self._next_refresh = ended + (ended - started) / _REFRESH_SHARE

    def refresh_due(self, now: float) -> float:
        return max(0.0, self._next_refresh - now)

    def is_empty(self, tree: Tree) -> bool:
        if not self._orphans:  # as mostly; and nobody's wait for an exit is for a look at no one
            return self._is_sure
        return self._is_sure and not any(
            self._owner(orphan) is tree
            or (not orphan.is_classified and orphan.entry.began >= tree.began)
            for orphan in self._orphans.values()
        )

    def members(self, tree: Tree) -> list[Process]:
        self.refresh()
        orphans = [pid for pid, orphan in self._orphans.items() if self._owner(orphan) is tree]
        found = self._descend([tree.leader, *orphans])
        for process in found:
            tree.seen.update((process.session, process.group))
        return found

    def is_all_gone(self) -> bool:
        # Until the list is empty: whoever is reaped may have left children that were not in it.
        while pids := self._of_jobs():
            reaped = [pid for pid in pids if self._collect(pid)]
            if not reaped:
                return False
        return True

    def everybody(self) -> list[Process]:
        return self._descend(self._of_jobs())

    def _of_jobs(self) -> list[int]:
        others = self._no_jobs()
        return (
            [pid for pid in self._children() if pid not in others] if others else self._children()
        )

    def _owner(self, orphan: _Orphan) -> Tree | None:
        if not orphan.is_classified:
            orphan.owner = self._classify(orphan)
            if orphan.owner is not None:
                orphan.owner.seen.update((orphan.entry.session, orphan.entry.group))
        if orphan.owner is None and orphan.is_classified:
            return self._eliminate(orphan.entry)
        return orphan.owner

    def _classify(self, orphan: _Orphan) -> Tree | None:
        entry = orphan.entry
        orphan.is_classified = True
        tree = self._trees.get(entry.session)
        if tree is not None:
            return tree
        brand = self._brand_of(entry.pid)
        if brand is not None:
            for tree in self._trees.values():
                if tree.brand == brand:
                    return tree
        marker = self._marker_of(entry.pid)
        if marker == NOT_YET and time.monotonic() < orphan.found_at + EXECUTION_SECONDS:
            orphan.is_classified = False
            return None
        for tree in self._trees.values():
            if tree.marker == marker:
                return tree
        for tree in self._trees.values():
            if entry.session in tree.seen or entry.group in tree.seen:
                return tree
        return None

    def _eliminate(self, process: Process) -> Tree | None:
        if self._left_alone_since is not None and self._left_alone_since <= process.began:
            return None  # it may be from a job that was told to leave its processes alone
        possible = [tree for tree in self._trees.values() if tree.began <= process.began]
        return possible[0] if len(possible) == 1 else None


class ProcessGroupTrees(JobTrees):
    """macOS: what ps(1) shows, at 10 ms a look.

    Args:
        table: lists all processes with their markers, for tests to replace.
    """

    def __init__(self, *, table: Callable[[], list[tuple[Process, bytes]]] = list_by_ps) -> None:
        super().__init__()
        self._table = table
        self._latest: list[tuple[Process, bytes]] = []
        self._left_alone: list[Tree] = []

    def discard(self, tree: Tree) -> None:
        if not self.is_empty(tree):
            self._left_alone.append(tree)
        super().discard(tree)

    def refresh(self) -> None:
        # Without ps, for want of processes, the last look has to do: better than to end all jobs.
        with suppress(OSError):
            self._latest = [row for row in self._table() if not row[0].is_dead]

    def refresh_due(self, now: float) -> float:
        return float("inf")  # there are no orphans to look after

    def is_empty(self, tree: Tree) -> bool:
        return not self._find(tree)

    def members(self, tree: Tree) -> list[Process]:
        self.refresh()
        return self._find(tree)

    def is_all_gone(self) -> bool:
        return not self.everybody()

    def everybody(self) -> list[Process]:
        self.refresh()
        return [
            process
            for tree in (*self._trees.values(), *self._left_alone)
            for process in self._find(tree)
        ]

    def _find(self, tree: Tree) -> list[Process]:
        found: dict[int, Process] = {}
        grew = True
        while grew:  # ps lists in no useful order, so descendants may need more than one pass
            grew = False
            for process, text in self._latest:
                belongs = (
                    process.group == tree.leader
                    or process.parent in found
                    or has_marker(text, tree.marker)
                )
                if belongs and process.pid not in found:
                    found[process.pid] = process
                    grew = True
        return list(found.values())


def ticks_since_boot() -> int:
    """The present in the unit of `Process.began`; 0 where that is unknown."""
    if sys.platform == "linux":
        return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS_PER_SECOND)
    return 0


def open_job_trees(*, no_jobs: Callable[[], Collection[int]] = frozenset) -> JobTrees:
    """The trees of this system.

    Args:
        no_jobs: process ids of children of ours that belong to no job.
    """
    if sys.platform == "linux":
        return SubreaperTrees(children=OwnChildren(), no_jobs=no_jobs)
    return ProcessGroupTrees()
