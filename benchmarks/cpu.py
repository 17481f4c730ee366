"""CPU time: of this process, which is the controller's, and of the daemons'."""

from __future__ import annotations

import os
import resource
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.fleet import Fleet
    from benchmarks.report import Target


class CpuMeter:
    """Counts from now on what the fleet spends; make it while nothing runs there.

    The controller's time counts only inside of `counting`, as floors are measured in its process.
    The daemons' counts throughout: while a floor is measured they do nothing.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._processes = with_descendants(fleet.pids)
        self._daemons_before = cpu_seconds(self._processes)
        self._controller = 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the controller's time in this block."""
        before = time.process_time()
        yield
        self._controller += time.process_time() - before

    def rows(
        self, count: int, per: str, *, label: str = "", target: Target | None = None
    ) -> list[Row]:
        """The time spent for each of `count`; the target is for the controller.

        The daemons' is known on Linux only, in ticks of usually 10 ms in all: few commands show nothing.
        """
        daemons = cpu_seconds(self._processes) - self._daemons_before
        rows = [
            Row(
                what=f"{label}controller CPU per {per}",
                unit="ms",
                ours=self._controller / count * 1e3,
                target=target,
            )
        ]
        if self._processes:
            what = f"{label}daemon CPU per {per}"
            rows.append(Row(what=what, unit="ms", ours=daemons / count * 1e3))
        return rows


class OthersMeter:
    """Counts from now on how much of this machine's CPU goes to others than us: it is noise to us."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._before = self._others()

    def share(self) -> float | None:
        """Which part of all cores' time; None where it is not known. All our children have to be reaped."""
        if self._before is None or (now := self._others()) is None:
            return None
        cores = os.cpu_count() or 1  # /proc/stat is about all of them
        return max(0.0, now - self._before) / (time.monotonic() - self._started) / cores

    @staticmethod
    def _others() -> float | None:
        if sys.platform != "linux":
            return None
        everything = [
            int(each) for each in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        ]
        _user, _nice, _system, idle, waiting, *_ = everything
        busy = (sum(everything) - idle - waiting) / os.sysconf("SC_CLK_TCK")
        usages = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        return busy - sum(usage.ru_utime + usage.ru_stime for usage in usages)


def with_descendants(pids: Sequence[int]) -> list[int]:
    """The processes and all below them, which for an idle daemon is its spawner; empty but on Linux."""
    if sys.platform != "linux":
        return []
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (fields := _stat(int(name))):
            parents[int(name)] = int(fields[1])
    found, below = [], set(pids)
    while below:
        found += sorted(below)
        below = {pid for pid, parent in parents.items() if parent in below}
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes since their start, without their ended children's."""
    if sys.platform != "linux":
        return 0.0
    ticks = sum(int(fields[11]) + int(fields[12]) for pid in pids if (fields := _stat(pid)))
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on (proc(5)'s number 3); none if it has ended."""
    try:
        # The name in parentheses may itself hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
