"""What a cell's spawner does when the cell answers, and when it doesn't; real ones are in test_processes_limits."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from process_tools import linux_only

if sys.platform == "win32":
    pytest.skip("POSIX process trees", allow_module_level=True)

from sandd._core.processes import limit_cells
from sandd._core.processes.limit_cells import Cell, CellError
from sandd._core.processes.limit_groups import Counters, LimitGroup
from sandd._core.processes.spawner_messages import (
    MessageReader,
    ProcessLimits,
    Ready,
    Spawn,
    Started,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = linux_only

READY = encode(Ready(is_subreaper=False, group=None))
LIMITS = ProcessLimits(cpus=0.01, processes=9)
REQUEST = Spawn(
    *(1, (b"true",), {}, b"m", None, None, False, False, False, None), limits=tuple(LIMITS)
)


class NotedGroup(LimitGroup):
    """One that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.counted = Counters()

    def enter(self) -> None:
        """See `LimitGroup`."""
        raise AssertionError("nobody is forked here")

    def hold(self, limits: ProcessLimits, *, extra: int = 0) -> None:
        """See `LimitGroup`."""
        self.told.append((limits, extra))

    def slow_down(self, cpus: float | None) -> None:
        """See `LimitGroup`."""
        self.told.append(cpus)

    def counters(self) -> Counters:
        """See `LimitGroup`."""
        return self.counted

    def pids(self) -> list[int]:
        """See `LimitGroup`."""
        return []

    def is_clean(self) -> bool:
        """See `LimitGroup`."""
        return True

    def remove(self) -> bool:
        """See `LimitGroup`."""
        return True

    def stop_forks(self) -> None:
        """See `LimitGroup`."""
        self.told.append("no forks")


@pytest.fixture
def group() -> NotedGroup:
    """Where the cell is."""
    return NotedGroup()


@pytest.fixture
def cell(
    group: NotedGroup, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Cell, socket.socket]]:
    """A cell without code of ours, and its end of the link."""
    process = subprocess.Popen(["sleep", "100"])
    ours, theirs = socket.socketpair()
    end = theirs.dup()
    monkeypatch.setattr(limit_cells.os, "fork", lambda: process.pid)
    monkeypatch.setattr(limit_cells._socket, "socketpair", lambda: (ours, theirs))
    monkeypatch.setattr(limit_cells, "ANSWER_SECONDS", 0.05)
    made = Cell(group, has_cpu=True)
    yield made, end
    made.end()
    process.returncode = 0
    end.close()


def test_a_cell_is_not_slowed_down_before_it_has_answered(
    cell: tuple[Cell, socket.socket], group: NotedGroup
) -> None:
    """The spawner waits for it, and all other jobs for the spawner."""
    cell[1].sendall(READY + encode(Started(1, 77)))
    assert cell[0].launch(REQUEST, []) == 77
    assert group.told == [(LIMITS._replace(cpus=None), 1), 0.01]


def test_what_may_run_is_not_tried_again(cell: tuple[Cell, socket.socket]) -> None:
    """A cell that does not come up has started nothing; one that does not answer may have."""
    with pytest.raises(CellError) as caught:
        cell[0].launch(REQUEST, [])
    assert caught.value.errno == errno.EAGAIN
    cell[1].sendall(READY)
    with pytest.raises(CellError) as caught:
        cell[0].launch(REQUEST, [])
    assert caught.value.errno == errno.ETIME


def test_too_little_memory_for_a_start_is_told(
    cell: tuple[Cell, socket.socket], group: NotedGroup
) -> None:
    """By the kernel's counter: the cell itself was chosen."""
    cell[1].sendall(READY)
    group.counted = Counters(oom_kills=1)
    with pytest.raises(CellError, match="limit of memory"):
        cell[0].launch(REQUEST, [])


def test_a_cell_without_a_way_back_serves_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the daemon's directory can't be opened by who the daemon is, jobs are started there all the same."""

    def refuse(path: str, flags: int) -> int:
        if path == ".":
            raise PermissionError(errno.EACCES, path)
        return -1

    monkeypatch.setattr(limit_cells.os, "open", refuse)
    monkeypatch.setattr(limit_cells.process_table, "brand_children", lambda brand: True)
    monkeypatch.setattr(limit_cells, "launch_forked", lambda *_, **__: 77)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode(REQUEST))
        limit_cells._serve(theirs, lambda: 0)
        assert MessageReader(ours).receive() == (Started(1, 77), [], True)
