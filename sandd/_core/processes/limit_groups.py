"""Control groups that hold limits: one for each job that has some, below one of the spawner's own (Linux).

`control_groups` has one group around all jobs, in which they are born. These are others, in the hierarchies of the
controllers that count: memory, pids, cpuacct and cpu of v1, or the single one of v2. Who is in which is `limit_cells`'
to say: nobody is moved there on a job's way, as a move takes 10 ms.

    v1   CONTROLLER/.../sandd-PID-RANDOM/N      for each controller a directory; those mounted together share it
    v2   .../sandd-PID-RANDOM/N

What is written to the upper one holds all jobs together. It is locked as the spawner's own is, so a later spawner
finds what was left, kills it and removes it.

Standard library only. Sources: the kernel's Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/memory.rst and
pids.rst; sched-bwc.rst for the quota.
"""

from __future__ import annotations

import abc
import errno
import os
import sys
from contextlib import suppress

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes import control_groups
from sandd._core.processes.control_groups import ControlGroup, read, write
from sandd._core.processes.named_tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandd._core.processes.spawner_messages import ProcessLimits

CONTROLLERS = ("memory", "pids", "cpuacct", "cpu")
"""Of v1. In v2 cpuacct is part of cpu, and can be read without it."""
OF_LIMITS = {
    "memory_bytes": "memory",
    "processes": "pids",
    "cpu_seconds": "cpuacct",
    "cpus": "cpu",
}
"""Which controller holds which limit, or counts for it."""
PERIOD_MICROSECONDS = 100_000
"""Of the processors' quota: the kernel's own choice. It takes no quota below a hundredth of that."""
UNLIMITED_V1 = "-1"
MOST_PROCESSES = 1 << 22
"""The kernel takes no larger number, as there are no more (PID_MAX_LIMIT)."""
READ_BYTES = 4096
"""More than there is in any file that is read here."""
REUSABLE_BYTES = 8 << 20
"""A group that still holds more than this, of files in tmpfs say, is not given to another job."""

RECLAIMED_BYTES = 64 << 20
"""A group that holds more is not emptied for another job: the spawner would stand still for a second for every few GiB,
and the machine would lose what it has cached of files."""


class Counters(NamedTuple):
    """What the kernel has counted in a group since it was made."""

    oom_kills: int = 0
    fork_refusals: int = 0
    cpu_seconds: float = 0.0


class LimitGroup(abc.ABC):
    """A group for one job at a time, and for the process that starts it."""

    __slots__ = ()

    @abc.abstractmethod
    def enter(self) -> None:
        """Move ourselves there, for good. OSError where that can't be."""

    @abc.abstractmethod
    def hold(self, limits: ProcessLimits, *, extra: int = 0) -> None:
        """From now on these are the limits; `extra` processes more than they say. OSError where the kernel won't."""

    @abc.abstractmethod
    def slow_down(self, cpus: float | None) -> None:
        """From now on it has so many processors, whatever `hold` has said. OSError where the kernel won't."""

    @abc.abstractmethod
    def counters(self) -> Counters:
        """What was counted so far; what can't be read is 0."""

    @abc.abstractmethod
    def pids(self) -> list[int]:
        """The processes in it, as one look shows them."""

    @abc.abstractmethod
    def is_clean(self) -> bool:
        """Whether a job that comes here finds about as much memory as in a new one."""

    @abc.abstractmethod
    def remove(self) -> bool:
        """Remove it; false if somebody is in it."""

    @abc.abstractmethod
    def stop_forks(self) -> None:
        """Nobody in it can start anything any more, as far as that can be had: `hold` again undoes it."""


class LimitGroups(abc.ABC):
    """Where the groups of one spawner are made."""

    name: str
    """For people: what holds the limits."""
    controllers: frozenset[str]
    """Those of `CONTROLLERS` that are there."""
    paths: tuple[str, ...]
    """All directories, for who removes what we have left."""

    @abc.abstractmethod
    def make(self, number: int, *, with_cpu: bool) -> LimitGroup:
        """A new group. OSError where none can be made.

        Args:
            with_cpu: it is to hold `cpus`; a group of that kind gets its share of the processors as such, and so its
                processes may wait for it where those of others would not.
        """

    @abc.abstractmethod
    def hold_all(self, limits: ProcessLimits) -> None:
        """The limits of all jobs together."""

    def remove(self) -> None:
        """Remove what is left, where nobody is in it."""
        for path in self.paths:
            ControlGroup(path).remove()


# --- v1 -------------------------------------------------------------------------------------------


class GroupsV1(LimitGroups):
    """Below our own group, in the hierarchy of each controller that is mounted."""

    def __init__(self, roots: Mapping[str, str]) -> None:
        self._roots = roots
        self.controllers = frozenset(roots)
        self.paths = tuple(dict.fromkeys(roots.values()))
        self.name = f"cgroup v1 ({', '.join(each for each in CONTROLLERS if each in roots)})"

    def make(self, number: int, *, with_cpu: bool) -> GroupV1:
        places = {
            controller: f"{root}/{number}"
            for controller, root in self._roots.items()
            if with_cpu or controller != "cpu"
        }
        for path in dict.fromkeys(places.values()):
            os.mkdir(path)
        return GroupV1(places)

    def hold_all(self, limits: ProcessLimits) -> None:
        GroupV1(self._roots).hold(limits)


class GroupV1(LimitGroup):
    """See `LimitGroup`: a directory for each controller."""

    __slots__ = ("_held", "_places", "_reader")

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places
        self._reader = _Reader()
        self._held: object = None
        """What `hold` was told last."""

    def enter(self) -> None:
        for path in dict.fromkeys(self._places.values()):
            control_groups.move_to(path)

    def hold(self, limits: ProcessLimits, *, extra: int = 0) -> None:
        if self._held == (limits, extra):
            return  # as for one job after the other of the same kind
        self._held = None
        places = self._places
        if "memory" in places:
            memory = UNLIMITED_V1 if limits.memory_bytes is None else str(limits.memory_bytes)
            with_swap = f"{places['memory']}/memory.memsw.limit_in_bytes"
            has_swap = os.path.exists(with_swap)
            if has_swap:
                write(with_swap, UNLIMITED_V1)  # never to be lower than the other
            write(f"{places['memory']}/memory.limit_in_bytes", memory)
            if has_swap:
                write(with_swap, memory)
        if "pids" in places:
            write(f"{places['pids']}/pids.max", _most_processes(limits, extra))
        self.slow_down(limits.cpus)
        self._held = (limits, extra)

    def slow_down(self, cpus: float | None) -> None:
        self._held = None
        if "cpu" not in self._places:
            return
        quota = UNLIMITED_V1 if cpus is None else str(round(cpus * PERIOD_MICROSECONDS))
        path = self._places["cpu"]
        write(f"{path}/cpu.cfs_period_us", str(PERIOD_MICROSECONDS))
        try:
            write(f"{path}/cpu.cfs_quota_us", quota)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # More than a group above has: that one's counts, and v1 wants to hear no more than that.
            write(f"{path}/cpu.cfs_quota_us", UNLIMITED_V1)

    def stop_forks(self) -> None:
        self._held = None
        if "pids" in self._places:
            with suppress(OSError):
                write(f"{self._places['pids']}/pids.max", "0")

    def counters(self) -> Counters:
        return Counters(
            oom_kills=self._count("memory", "memory.oom_control", "oom_kill"),
            fork_refusals=self._count("pids", "pids.events", "max"),
            cpu_seconds=self._number("cpuacct", "cpuacct.usage") / 1e9,
        )

    def pids(self) -> list[int]:
        return _pids_in(next(iter(self._places.values())))

    def is_clean(self) -> bool:
        if "memory" not in self._places:
            return True
        if REUSABLE_BYTES < self._number("memory", "memory.usage_in_bytes") <= RECLAIMED_BYTES:
            with suppress(OSError):  # pages of files, mostly, that the kernel keeps in case of need
                write(f"{self._places['memory']}/memory.force_empty", "0")
        return self._number("memory", "memory.usage_in_bytes") <= REUSABLE_BYTES

    def remove(self) -> bool:
        self._reader.close()
        left = [
            path for path in dict.fromkeys(self._places.values()) if not ControlGroup(path).remove()
        ]
        return not left

    def _count(self, controller: str, file: str, key: str) -> int:
        if controller not in self._places:
            return 0
        return self._reader.counted(f"{self._places[controller]}/{file}", key)

    def _number(self, controller: str, file: str) -> int:
        with suppress(OSError, ValueError, KeyError):
            return int(self._reader.read(f"{self._places[controller]}/{file}"))
        return 0


# --- v2 -------------------------------------------------------------------------------------------


class GroupsV2(LimitGroups):
    """Below our own group, as far as that hands its controllers on."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.paths = (root,)
        there = set(read(f"{root}/cgroup.subtree_control").split())
        self.controllers = frozenset({"cpuacct", *(there & set(CONTROLLERS))})
        self.name = f"cgroup v2 ({', '.join(each for each in CONTROLLERS if each in there)})"

    def make(self, number: int, *, with_cpu: bool) -> GroupV2:
        path = f"{self._root}/{number}"
        os.mkdir(path)
        return GroupV2(path)

    def hold_all(self, limits: ProcessLimits) -> None:
        GroupV2(self._root).hold(limits)


class GroupV2(LimitGroup):
    """See `LimitGroup`: one directory."""

    __slots__ = ("_held", "_path", "_reader")

    def __init__(self, path: str) -> None:
        self._path = path
        self._reader = _Reader()
        self._held: object = None

    def enter(self) -> None:
        control_groups.move_to(self._path)

    def hold(self, limits: ProcessLimits, *, extra: int = 0) -> None:
        if self._held == (limits, extra):
            return
        self._held = None
        memory = "max" if limits.memory_bytes is None else str(limits.memory_bytes)
        self._set("memory.max", memory)
        # Without swap: else a hog would slow down the whole machine instead of being ended.
        self._set("memory.swap.max", "max" if limits.memory_bytes is None else "0")
        self._set("pids.max", _most_processes(limits, extra))
        self.slow_down(limits.cpus)
        self._held = (limits, extra)

    def slow_down(self, cpus: float | None) -> None:
        self._held = None
        quota = "max" if cpus is None else str(round(cpus * PERIOD_MICROSECONDS))
        self._set("cpu.max", f"{quota} {PERIOD_MICROSECONDS}")

    def _set(self, file: str, text: str) -> None:
        if os.path.exists(f"{self._path}/{file}"):
            write(f"{self._path}/{file}", text)

    def stop_forks(self) -> None:
        self._held = None
        with suppress(OSError):
            self._set("pids.max", "0")

    def counters(self) -> Counters:
        return Counters(
            oom_kills=self._reader.counted(f"{self._path}/memory.events", "oom_kill"),
            fork_refusals=self._reader.counted(f"{self._path}/pids.events", "max"),
            cpu_seconds=self._reader.counted(f"{self._path}/cpu.stat", "usage_usec") / 1e6,
        )

    def pids(self) -> list[int]:
        return _pids_in(self._path)

    def is_clean(self) -> bool:
        try:
            held = self._memory()
            if REUSABLE_BYTES < held <= RECLAIMED_BYTES:
                with suppress(OSError):  # Linux 5.19; it says EAGAIN where less was to be had
                    write(f"{self._path}/memory.reclaim", str(held))
                held = self._memory()
            return held <= REUSABLE_BYTES
        except FileNotFoundError:
            return True  # no memory controller
        except (OSError, ValueError):
            return False

    def _memory(self) -> int:
        return int(self._reader.read(f"{self._path}/memory.current"))

    def remove(self) -> bool:
        self._reader.close()
        return ControlGroup(self._path).remove()


def _most_processes(limits: ProcessLimits, extra: int) -> str:
    return "max" if limits.processes is None else str(min(limits.processes + extra, MOST_PROCESSES))


def _pids_in(path: str) -> list[int]:
    # Opened anew: v1 answers a second read by the same descriptor from what it had a second ago.
    return [int(word) for word in read(f"{path}/cgroup.procs").split()]


class _Reader:
    """Files of a group that are read again and again: they stay open, which saves most of the time of a look."""

    __slots__ = ("_opened",)

    def __init__(self) -> None:
        self._opened: dict[str, int] = {}

    def read(self, path: str) -> bytes:
        """All of it. OSError where it can't be read, FileNotFoundError where it isn't there."""
        descriptor = self._opened.get(path)
        if descriptor is None:
            descriptor = self._opened[path] = os.open(path, os.O_RDONLY)
        return os.pread(descriptor, READ_BYTES, 0)

    def counted(self, path: str, key: str) -> int:
        """The number behind a key in a file of lines; 0 where there is none."""
        with suppress(OSError, ValueError):
            for line in self.read(path).splitlines():
                name, _, number = line.partition(b" ")
                if name == key.encode():
                    return int(number)
        return 0

    def close(self) -> None:
        """Let go of them all."""
        while self._opened:
            os.close(self._opened.popitem()[1])


# --- which of them --------------------------------------------------------------------------------


def open_limit_groups(choice: str = "", *, proc: str = "/proc/self") -> LimitGroups | None:
    """The groups of this machine that hold the most limits; None where there are none to be had.

    Args:
        choice: see `control_groups.CHOICE_VARIABLE`.
        proc: see `control_groups.enter_new_group`.
    """
    if sys.platform != "linux" or choice == "off":
        return None
    for version in ("v2", "v1") if choice not in ("v2", "v1") else (choice,):
        try:
            groups = _open_v2(proc) if version == "v2" else _open_v1(proc)
        except (OSError, ValueError):
            continue  # read-only, not ours, half a kernel: whatever it is, we live without
        if groups is not None:
            return groups
    return None


def _open_v1(proc: str) -> GroupsV1 | None:
    roots: dict[str, str] = {}
    made: dict[str, str] = {}
    for controller in CONTROLLERS:
        parent = control_groups.own_directory("v1", proc, controller=controller)
        if parent is None:
            continue
        with suppress(OSError):
            if parent not in made:
                control_groups.remove_stale(parent)
                made[parent], _ = control_groups.make_locked(parent)  # locked until we end
            roots[controller] = made[parent]
    return GroupsV1(roots) if roots else None


def _open_v2(proc: str) -> GroupsV2 | None:
    parent = control_groups.own_directory("v2", proc)
    if parent is None:
        return None
    if os.path.basename(parent).startswith(control_groups.PREFIX):
        parent = os.path.dirname(parent)  # the spawner has moved into its own
    if not control_groups.may_have_groups(parent, "v2"):
        return None
    wanted: list[str] = [
        each for each in ("memory", "pids", "cpu") if each in _controllers_of(parent)
    ]
    if not wanted:
        return None
    try:
        _hand_on(parent, wanted)
    except OSError as error:
        if error.errno != errno.EBUSY or not _vacate(parent):
            raise
        _hand_on(parent, wanted)
    root, _ = control_groups.make_locked(parent)
    try:
        _hand_on(root, wanted)
        return GroupsV2(root)
    except OSError:
        os.rmdir(root)
        raise


def _controllers_of(path: str) -> list[str]:
    return read(f"{path}/cgroup.controllers").split()


def _vacate(parent: str) -> bool:
    """Move our daemon one group down, as v2 has groups for processes or for groups; false if others are there."""
    ours = {os.getpid(), os.getppid()}
    left = {int(word) for word in read(f"{parent}/cgroup.procs").split()}
    if not left <= ours:
        return False
    place = f"{parent}/{control_groups.DAEMONS_OWN}"
    with suppress(FileExistsError):
        os.mkdir(place)
    for pid in left:
        write(f"{place}/cgroup.procs", str(pid))
    return True


def _hand_on(path: str, controllers: list[str]) -> None:
    there = read(f"{path}/cgroup.subtree_control").split()
    missing = [f"+{each}" for each in controllers if each not in there]
    if missing:
        write(f"{path}/cgroup.subtree_control", " ".join(missing))
