"""Holds a spawner's jobs to their limits, and says which one a job went beyond.

Who holds which limit, in this order:

- the process itself: see `child_limits`;
- a control group of the job's own, where the system lets us have one (`limit_groups`, `limit_cells`): the kernel
  refuses, or kills, at the very limit, and counts what it did;
- else a look at all processes of the job, from time to time. Between two looks a job may go beyond.

What the kernel only refuses, or only counts, is looked at as well: a job that was refused a process, or has had its
processor time, is ended. It is the spawner that ends it; here is only said when.

Standard library only; it runs in the spawner.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from contextlib import suppress

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes import child_limits
from sandd._core.processes.launcher import launch
from sandd._core.processes.limit_cells import Cell, CellError
from sandd._core.processes.limit_groups import OF_LIMITS
from sandd._core.processes.process_table import consumption_by_ps, read_consumption
from sandd._core.processes.quick_fork import makes_siblings
from sandd._core.processes.spawner_messages import ProcessLimits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from sandd._core.processes.limit_groups import LimitGroup, LimitGroups
    from sandd._core.processes.process_table import Consumption, Process
    from sandd._core.processes.spawner_messages import Spawn

LOOK_SECONDS = 0.05
"""Between two looks at a job: 64 MiB become 600 in that time if somebody writes as fast as memory takes it. A look at
a counter takes 0.04 ms, one at a process 0.02."""
LONGEST_LOOK_SECONDS = 1.0
"""Until the next look at a job that can't have used up its processor time before."""
LOOK_SHARE = 0.1
"""At most this part of the time goes to looking: jobs are looked at less often where there are thousands, and one that
has thousands of processes is, too."""
MOST_IDLE_CELLS = 4
"""Cells that wait for a job; each holds 2 MiB. More at once are started anew, 20 ms each."""
WATCHED = frozenset({"cpu_seconds", "memory_bytes", "processes"})
"""What a look at the processes can hold."""
_INF = float("inf")
_NO_CELLS: frozenset[int] = frozenset()


class LimitsUnheldError(OSError):
    """Nothing here can hold what must be held. Nothing ran; the text is for people."""


class Guard:
    """What holds one job to its limits, and what was seen of it."""

    __slots__ = ("cell", "due", "hit", "limits", "refusals", "seen", "unheld", "watched")

    def __init__(self, limits: ProcessLimits, cell: Cell | None, watched: frozenset[str]) -> None:
        self.limits = limits
        self.cell = cell
        self.watched = watched
        """Which are held by looking at its processes."""
        self.unheld: tuple[str, ...] = ()
        self.hit = ""
        """The limit that it was seen beyond."""
        self.seen = (0.0, 0)
        """Its processor time in seconds, and the resident bytes of its largest process, at most at any look: of those
        that are killed with it the system tells no more."""
        self.refusals: int | None = None
        """Forks that its group had refused when it was us who stopped them all; those behind that tell nothing."""
        self.due = _INF
        """Monotonic time of the next look."""

    def stop_forks(self) -> None:
        """Its processes can start no others any more, where that can be had."""
        if self.cell is not None:
            if self.refusals is None:
                self.refusals = self.cell.group.counters().fork_refusals
            self.cell.group.stop_forks()


class LimitKeeper:
    """All guards of a spawner, and the cells that they have in common.

    Args:
        groups: where control groups for limits are made; None: nowhere.
        total: the limits of all jobs together.
        make_cell: see `Cell`, for tests to replace.
        measure: what processes use, for tests to replace.
    """

    def __init__(
        self,
        groups: LimitGroups | None,
        total: ProcessLimits | None = None,
        *,
        make_cell: Callable[..., Cell] = Cell,
        measure: Callable[[Iterable[int]], list[Consumption]] | None = None,
    ) -> None:
        self._groups = groups if groups is not None and makes_siblings() else None
        self._make_cell = make_cell
        self._measure = measure or _measure
        self._idle: list[Cell] = []
        self._busy: set[Cell] = set()
        self._used: list[Cell] = []
        """Those of `_busy` whose job is gone."""
        self._left: list[LimitGroup] = []
        """Groups without a cell, in which somebody is, or was a moment ago."""
        self._last_group = 0
        self._spare_due = _INF
        self._guards: set[Guard] = set()
        self._has_total = False
        if total is not None and any(value is not None for value in total) and self._groups:
            with suppress(
                OSError
            ):  # then `holds_total` says so: without a spawner there would be nothing
                self._groups.hold_all(total)
                self._has_total = True
        self._total_failed = total is not None and not self._has_total

    @property
    def driver(self) -> str:
        """What holds limits here, for people."""
        if self._groups is None:
            return "rlimits and a watchdog"
        return f"{self._groups.name}, rlimits"

    @property
    def holds(self) -> frozenset[str]:
        """The names of the limits that can be held."""
        there = frozenset() if self._groups is None else self._groups.controllers
        return (
            child_limits.NAMES
            | WATCHED
            | {name for name, controller in OF_LIMITS.items() if controller in there}
        )

    @property
    def holds_total(self) -> frozenset[str]:
        """The names of the limits that all jobs together can be held to: no watchdog could choose whom to end."""
        return frozenset() if self._total_failed else self._held_by_group - {"cpu_seconds"}

    @property
    def directories(self) -> tuple[str, ...]:
        """Of all groups, for who removes what we have left."""
        return () if self._groups is None else self._groups.paths

    def cells(self) -> Collection[int]:
        """Process ids of our children that are no jobs."""
        if not (self._idle or self._busy):
            return _NO_CELLS  # as mostly, and it is asked at each exit
        return {cell.pid for cell in (*self._idle, *self._busy)}

    def launch(
        self, request: Spawn, env: dict[bytes, bytes], descriptors: list[int], brand: int
    ) -> tuple[int, Guard | None]:
        """Start a job; the process id of its leader, and what holds it to its limits, if it has any.

        Raises:
            LimitsUnheldError: it must be held to what nothing here can hold. Nothing ran.
            OSError, ValueError: as `launcher.launch`.
        """
        if request.limits is None and not self._has_total:
            return launch(request, env, descriptors), None
        limits = ProcessLimits() if request.limits is None else ProcessLimits(*request.limits)
        given = frozenset(
            name
            for name, value in zip(ProcessLimits._fields, limits, strict=True)
            if value is not None
        )
        unheld = tuple(sorted(given - self.holds))
        if unheld and request.must_hold:
            raise LimitsUnheldError(
                errno.ENOTSUP,
                f"what is to be held to limits here ({self.driver}) can't be held to {', '.join(unheld)}",
            )
        cell = self._take_cell(given)
        by_group = self._held_by_group if cell is not None else frozenset[str]()
        if unheld:
            limits = limits._replace(**dict.fromkeys(unheld))
        request = request._replace(limits=tuple(limits))
        guard = Guard(limits, cell, (given & WATCHED) - by_group)
        guard.unheld = unheld
        if cell is None:
            pid = launch(request, env, descriptors)
        else:
            pid = self._launch_in_cell(
                cell, request._replace(env=env, base=None, brand=brand), descriptors
            )
        guard.due = self._next_look(guard, time.monotonic(), 0.0)
        self._guards.add(guard)
        return pid, guard

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to look at, or to tidy."""
        return bool(self._guards or self._used or self._spare_due != _INF)

    def seconds_to_next_look(self, now: float) -> float:
        """When `look` has something to do."""
        due = min((guard.due for guard in self._guards), default=_INF)
        return max(0.0, min(due, self._spare_due) - now)

    def look(self, members: Callable[[Guard], list[Process]]) -> list[Guard]:
        """Those that have gone beyond a limit since the last look; and see to it that a cell is at hand."""
        now = time.monotonic()
        if now >= self._spare_due:
            self._spare_due = _INF
            with suppress(OSError):
                if not self._idle and self._groups is not None:
                    self._idle.append(self._new_cell(has_cpu=False))
        beyond = []
        for guard in [each for each in self._guards if each.due <= now]:
            guard.hit = self._seen_beyond(guard, members)
            if guard.hit:
                guard.due = _INF
                beyond.append(guard)
        return beyond

    def finish(
        self, guard: Guard, usage: tuple[float, int], by_signal: int | None
    ) -> tuple[tuple[float, int], str]:
        """What a job used whose tree is gone, or left alone, and the limit that it went beyond, or ""."""
        self._guards.discard(guard)
        seconds, resident = max(usage[0], guard.seen[0]), max(usage[1], guard.seen[1])
        limit = guard.hit
        limits = guard.limits
        if guard.cell is not None:
            counted, before = guard.cell.group.counters(), guard.cell.before
            guard.cell.before = counted
            seconds = max(seconds, counted.cpu_seconds - before.cpu_seconds)
            if counted.oom_kills > before.oom_kills:
                limit = "memory_bytes"
            elif not limit and limits.processes is not None:
                refusals = counted.fork_refusals if guard.refusals is None else guard.refusals
                if refusals > before.fork_refusals:
                    limit = "processes"
            self._used.append(guard.cell)
        if (
            limits.cpu_seconds is not None
            and not limit
            and (seconds >= limits.cpu_seconds or by_signal == signal.SIGXCPU)
        ):
            limit = "cpu_seconds"
        if limits.file_bytes is not None and not limit and by_signal == signal.SIGXFSZ:
            limit = "file_bytes"
        return (seconds, resident), limit

    def tidy(self) -> None:
        """Have cells whose job is gone ready for others: for when nobody waits for anything else."""
        while self._used:
            self._give_back(self._used.pop())

    def end(self) -> None:
        """Let go of all cells; nobody starts anything any more. Call `remove` when all are dead."""
        for cell in (*self._busy, *self._idle):
            cell.group.stop_forks()
            cell.end()
        self._idle.clear()
        self._busy.clear()
        self._used.clear()

    def remove(self) -> None:
        """Remove all groups in which nobody is."""
        if self._groups is not None:
            self._groups.remove()

    # --- cells ---

    @property
    def _held_by_group(self) -> frozenset[str]:
        there = frozenset() if self._groups is None else self._groups.controllers
        return frozenset(name for name, controller in OF_LIMITS.items() if controller in there)

    def _take_cell(self, given: frozenset[str]) -> Cell | None:
        if self._groups is None or not (self._has_total or given & self._held_by_group):
            return None
        self.tidy()
        needs_cpu = "cpus" in given
        for cell in self._idle:
            if cell.has_cpu == needs_cpu:
                self._idle.remove(cell)
                break
        else:
            cell = self._new_cell(has_cpu=needs_cpu)
        if not self._idle:
            self._spare_due = time.monotonic() + LOOK_SECONDS
        self._busy.add(cell)
        return cell

    def _new_cell(self, *, has_cpu: bool) -> Cell:
        assert self._groups is not None
        self._left = [group for group in self._left if not group.remove()]
        self._last_group += 1
        group = self._groups.make(self._last_group, with_cpu=has_cpu)
        try:
            return self._make_cell(group, has_cpu=has_cpu)
        except OSError:
            group.remove()
            raise

    def _launch_in_cell(self, cell: Cell, request: Spawn, descriptors: list[int]) -> int:
        try:
            return cell.launch(request, descriptors)
        except CellError:
            _kill_all_in(cell)
            self._discard(cell)
            raise
        except BaseException:
            self._give_back(cell)
            raise

    def _give_back(self, cell: Cell) -> None:
        self._busy.discard(cell)
        try:
            is_usable = (
                len(self._idle) < MOST_IDLE_CELLS
                and cell.group.pids() == [cell.pid]  # without it: the kernel has chosen the cell
                and cell.group.is_clean()
            )
        except OSError:
            is_usable = False
        if is_usable:
            self._idle.append(cell)
        else:
            self._discard(cell)

    def _discard(self, cell: Cell) -> None:
        self._busy.discard(cell)
        cell.end()
        if not cell.group.remove():
            self._left.append(cell.group)  # a dead one takes a moment to leave

    # --- looks ---

    def _seen_beyond(self, guard: Guard, members: Callable[[Guard], list[Process]]) -> str:
        """The limit that it is beyond now, or ""; and when to look again."""
        began = time.monotonic()
        limits, seconds = guard.limits, 0.0
        if guard.cell is not None:
            counted, before = guard.cell.group.counters(), guard.cell.before
            if limits.processes is not None and counted.fork_refusals > before.fork_refusals:
                return "processes"
            seconds = counted.cpu_seconds - before.cpu_seconds
        if guard.watched:
            used = self._measure(process.pid for process in members(guard))
            guard.seen = (
                max(guard.seen[0], sum(each.cpu_seconds for each in used)),
                max(guard.seen[1], max((each.resident_bytes for each in used), default=0)),
            )
            if "cpu_seconds" in guard.watched:
                seconds = sum(each.cpu_seconds for each in used)
            # First: those who fork too much have soon got too much of all else.
            if (
                limits.processes is not None
                and "processes" in guard.watched
                and sum(each.threads for each in used) > limits.processes
            ):
                return "processes"
            if (
                limits.memory_bytes is not None
                and "memory_bytes" in guard.watched
                and sum(each.resident_bytes for each in used) > limits.memory_bytes
            ):
                return "memory_bytes"
        if limits.cpu_seconds is not None and seconds >= limits.cpu_seconds:
            return "cpu_seconds"
        now = time.monotonic()
        # As if all looks took as long as this one.
        pause = (now - began) * max(1, len(self._guards)) / LOOK_SHARE
        guard.due = max(self._next_look(guard, now, seconds), now + pause)
        return ""

    def _next_look(self, guard: Guard, now: float, seconds: float) -> float:
        limits, due = guard.limits, _INF
        if guard.watched or (guard.cell is not None and limits.processes is not None):
            due = now + LOOK_SECONDS
        if limits.cpu_seconds is not None:
            # So long it takes at least, with all processors.
            rest = (limits.cpu_seconds - seconds) / (os.cpu_count() or 1)
            due = min(due, now + min(max(rest, LOOK_SECONDS), LONGEST_LOOK_SECONDS))
        return due


def _kill_all_in(cell: Cell) -> None:
    """Kill what a cell may have started that we have not heard of; the group is this one job's."""
    cell.group.stop_forks()
    with suppress(OSError):
        for pid in cell.group.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _measure(pids: Iterable[int]) -> list[Consumption]:
    if sys.platform == "linux":
        return [found for found in map(read_consumption, pids) if found is not None]
    with suppress(OSError):
        return list(consumption_by_ps(pids).values())
    return []
