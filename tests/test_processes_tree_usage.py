"""What process trees take: on made-up tables, and once by the system's own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from process_tools import linux_only, until_sync

if sys.platform == "win32":
    pytest.skip("POSIX process trees", allow_module_level=True)

from sandd._core.processes import TreeUsage, tree_usage
from sandd._core.processes.process_table import children_of
from sandd._core.processes.tree_usage import (
    Taken,
    measure_below,
    measure_by_ps,
    parse_stat,
    read_taken,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

SPAWNER = 1


class Table:
    """A made-up process table."""

    def __init__(self) -> None:
        self.entries: dict[int, Taken] = {}
        self.brands: dict[int, int] = {}

    def add(
        self,
        pid: int,
        parent: int = SPAWNER,
        *,
        session: int | None = None,
        dead: bool = False,
        brand: int | None = None,
    ) -> None:
        """A process that takes 1 s and, while it lives, 100 bytes."""
        session = session or pid
        self.entries[pid] = Taken(pid, parent, session, 1, dead, 1.0, 0 if dead else 100)
        if brand is not None:
            self.brands[pid] = brand

    def children(self, pid: int, _threads: int) -> list[int]:
        """Of one process."""
        return [each.pid for each in self.entries.values() if each.parent == pid]

    def measure(self, *leaders: int) -> Mapping[int, TreeUsage]:
        """What is found."""
        return measure_below(
            SPAWNER,
            leaders,
            read=self.entries.get,
            children=self.children,
            brand_of=self.brands.get,
        )


def test_a_tree_is_all_below_its_leader() -> None:
    """Each process counts for the leader that it descends from, and for no other."""
    table = Table()
    for pid, parent in ((10, 1), (11, 10), (12, 11), (20, 1), (21, 20)):
        table.add(pid, parent)
    assert table.measure(10, 20) == {10: TreeUsage(3.0, 300, 3), 20: TreeUsage(2.0, 200, 2)}
    assert table.measure(20) == {20: TreeUsage(2.0, 200, 2)}
    assert table.measure() == {}


def test_who_left_its_parent_is_found_by_session_or_brand() -> None:
    """And with it whatever is below; who has neither is nobody's."""
    table = Table()
    table.add(10, brand=7)
    table.add(11, session=10)
    table.add(12, 11)
    table.add(13, brand=7)
    table.add(14, brand=8)
    table.add(15)
    assert table.measure(10) == {10: TreeUsage(4.0, 400, 4)}


def test_the_dead_have_used_time_and_hold_nothing() -> None:
    """A leader that is a zombie still stands for its tree."""
    table = Table()
    table.add(10, dead=True)
    table.add(11, session=10)
    assert table.measure(10) == {10: TreeUsage(2.0, 100, 1)}


def test_a_look_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many a tree has: the rest is left out."""
    monkeypatch.setattr(tree_usage, "MOST_PROCESSES", 3)
    table = Table()
    table.add(10)
    for pid in range(11, 20):
        table.add(pid, 10)
    assert table.measure(10) == {10: TreeUsage(3.0, 300, 3)}


def test_a_name_may_hold_anything() -> None:
    """Of the fields of /proc/PID/stat it is the only one; what is cut short is no process."""
    line = b"7 (a ) R 1) S 3 4 5 0 -1 0 1 1 1 1 100 50 25 25 20 0 2 0 99 4096 10 0\n"
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    assert parse_stat(7, line) == Taken(7, 3, 5, 2, False, 200 / ticks, 10 * page)
    zombie = line.replace(b") S", b") Z").replace(b" 2 0 99", b" 1 0 99")
    assert parse_stat(7, zombie) == Taken(7, 3, 5, 1, True, 200 / ticks, 0)
    assert parse_stat(7, b"7 (a) S 3 4") is None


@linux_only
def test_what_the_kernel_says_is_read() -> None:
    """Of a child that works, below this process: it has used time and memory, and a process that is gone is none."""
    with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as child:
        try:

            def used() -> TreeUsage | None:
                return measure_below(os.getpid(), [child.pid]).get(child.pid)

            until_sync(lambda: (now := used()) is not None and now.cpu_seconds > 0.05)
            usage = used()
            assert usage is not None
            assert usage.processes == 1
            assert usage.rss_bytes > 100_000
            assert child.pid in children_of(os.getpid(), threads=0)
        finally:
            child.kill()
    assert read_taken(child.pid) is None


PS = b"""\
    1     0     1 Ss      1:00.00   1000
   10     1    10 S       0:01.50    100
   11    10    10 S    1-02:03:04.50 20
   12     1    10 S       0:00.25    30
   13    11    13 Z       0:00.10      0
   20     1    20 R       0:00.01     40
garbage
"""


def test_macos_is_told_by_ps() -> None:
    """Descendants, wherever they are, and whoever is in the leader's group; times of any length."""
    commands = []

    def run(command: list[str]) -> bytes:
        commands.append(command)
        return PS

    day = 86_400 + 2 * 3600 + 3 * 60 + 4.5
    assert measure_by_ps([10], run) == {
        10: TreeUsage(1.5 + day + 0.25 + 0.1, 150 * 1024, 3),
    }
    assert commands == [["/bin/ps", "-axo", "pid=,ppid=,pgid=,stat=,time=,rss="]]


def test_a_circle_in_a_table_that_changes_is_no_trap() -> None:
    """A process id that was used again meanwhile may make one."""
    table = b"5 6 5 S 0:00.01 1\n6 5 6 S 0:00.01 1\n"
    assert measure_by_ps([10], lambda _: table) == {}
