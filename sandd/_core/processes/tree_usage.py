"""What process trees take: processor time, memory and processes, as one look at the process table shows it.

For the daemon, which asks while jobs run; what a job has used in the end is told by its exit. A look takes some 60 us a
process on Linux, where everything comes from /proc, and 10 ms in all on macOS, by ps(1): so it belongs into a thread.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes.interface import TreeUsage
from sandd._core.processes.process_table import (
    children_of,
    consumption_in,
    process_in,
    read_brand,
    seconds_by_ps,
    stat_fields,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

MOST_PROCESSES = 5_000
"""That one look counts: a third of a second. Of a fork bomb the rest is left out, and that it is one shows anyway."""


class Taken(NamedTuple):
    """One process, and what it takes."""

    pid: int
    parent: int
    session: int
    threads: int
    is_dead: bool
    cpu_seconds: float
    """Its own, and of those children that it has waited for."""
    rss_bytes: int


# --- Linux ----------------------------------------------------------------------------------------


def measure_below(
    spawner: int,
    leaders: Collection[int],
    *,
    read: Callable[[int], Taken | None] | None = None,
    children: Callable[[int, int], list[int]] | None = None,
    brand_of: Callable[[int], int | None] = read_brand,
) -> Mapping[int, TreeUsage]:
    """What the trees of these children of the spawner take. Whoever is no longer there is left out.

    A process is of its parent's tree. One whose parent is gone is the spawner's child by now: it is told by its
    session, or by its brand (see `process_table.brand_children`); one with neither is nobody's here.

    Args:
        spawner: the process that all jobs are below.
        leaders: the direct children that are asked about.
        read, children, brand_of: the system's functions, for tests to replace.
    """
    read = read or read_taken
    children = children or (lambda pid, threads: children_of(pid, threads=threads))
    wanted = frozenset(leaders)
    sums = _Sums()
    brands: dict[int, int] | None = None
    looked = 0
    pending = [(pid, pid if pid in wanted else None) for pid in children(spawner, 1)]
    while pending and looked < MOST_PROCESSES:
        pid, owner = pending.pop()
        entry = read(pid)
        looked += 1
        if entry is None:
            continue
        if owner is None and entry.parent == spawner:
            if entry.session in wanted:
                owner = entry.session
            else:
                if brands is None:
                    brands = _brands(wanted, brand_of)
                brand = brand_of(pid) if brands else None
                owner = None if brand is None else brands.get(brand)
        if owner is None:
            continue
        sums.add(owner, entry)
        pending += [(child, owner) for child in children(pid, entry.threads)]
    return sums.result


def _brands(leaders: Iterable[int], brand_of: Callable[[int], int | None]) -> dict[int, int]:
    found = {leader: brand_of(leader) for leader in leaders}
    return {brand: leader for leader, brand in found.items() if brand is not None}


def read_taken(pid: int) -> Taken | None:
    """What process ``pid`` takes; None if there is none. Source: proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return parse_stat(pid, file.read(4096))
    except OSError:
        return None


def parse_stat(pid: int, text: bytes) -> Taken | None:
    """What a line of /proc/PID/stat tells; None where it is cut short."""
    fields = stat_fields(text)
    if len(fields) < 22:
        return None
    process, used = process_in(pid, fields), consumption_in(fields)
    return Taken(
        pid=pid,
        parent=process.parent,
        session=process.session,
        threads=process.threads,
        is_dead=process.is_dead,
        cpu_seconds=used.cpu_seconds,
        rss_bytes=0 if process.is_dead else used.resident_bytes,
    )


# --- macOS ----------------------------------------------------------------------------------------


def measure_by_ps(
    leaders: Collection[int],
    run: Callable[[list[str]], bytes] = subprocess.check_output,
) -> Mapping[int, TreeUsage]:
    """As `measure_below`, as ps(1) tells it: descendants of the leaders, and whoever is in a leader's group."""
    command = ["/bin/ps", "-axo", "pid=,ppid=,pgid=,stat=,time=,rss="]
    entries: dict[int, tuple[int, Taken]] = {}
    for line in run(command).splitlines():
        words = line.split()
        if len(words) != 6 or not words[0].isdigit():
            continue
        pid, parent, group = (int(word) for word in words[:3])
        is_dead = words[3].startswith(b"Z")
        taken = Taken(
            *(pid, parent, group, 1, is_dead),
            seconds_by_ps(words[4]),
            0 if is_dead else int(words[5]) * 1024,
        )
        entries[pid] = (group, taken)
    wanted, sums = frozenset(leaders), _Sums()
    for group, taken in entries.values():
        owner = _ancestor(taken.pid, wanted, entries) or (group if group in wanted else None)
        if owner is not None:
            sums.add(owner, taken)
    return sums.result


def _ancestor(
    pid: int, wanted: Collection[int], entries: Mapping[int, tuple[int, Taken]]
) -> int | None:
    """The nearest of those that are wanted, itself included."""
    seen: set[int] = set()  # the table changes while it is read: there may be a circle in it
    while pid not in wanted:
        if pid in seen or pid not in entries:
            return None
        seen.add(pid)
        pid = entries[pid][1].parent
    return pid


# --- both -----------------------------------------------------------------------------------------


class _Sums:
    """What was met so far, by trees."""

    def __init__(self) -> None:
        self._sums: dict[int, list[float]] = {}

    def add(self, leader: int, taken: Taken) -> None:
        sums = self._sums.setdefault(leader, [0.0, 0, 0])
        sums[0] += taken.cpu_seconds
        sums[1] += taken.rss_bytes
        sums[2] += not taken.is_dead

    @property
    def result(self) -> Mapping[int, TreeUsage]:
        return {
            leader: TreeUsage(cpu, int(rss), int(count))
            for leader, (cpu, rss, count) in self._sums.items()
        }
