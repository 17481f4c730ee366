"""Which limit a job went beyond, and what becomes of its cell: without processes, by what groups have counted."""

from __future__ import annotations

import errno
import itertools
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from process_tools import PATIENCE, linux_only
from test_processes_limit_cells import REQUEST, NotedGroup

if sys.platform == "win32":
    pytest.skip("POSIX process trees", allow_module_level=True)

from sandd._core.processes import limit_keeper
from sandd._core.processes.limit_cells import CellError
from sandd._core.processes.limit_groups import CONTROLLERS, Counters, LimitGroups
from sandd._core.processes.limit_keeper import LimitKeeper
from sandd._core.processes.process_table import Consumption
from sandd._core.processes.quick_fork import makes_siblings
from sandd._core.processes.spawner_messages import ProcessLimits

if TYPE_CHECKING:
    from sandd._core.processes.limit_groups import LimitGroup

pytestmark = [
    linux_only,
    pytest.mark.skipif(not makes_siblings(), reason="no cells on this machine"),
]

MEMORY = REQUEST._replace(limits=tuple(ProcessLimits(memory_bytes=1 << 26)))


class NotedGroups(LimitGroups):
    """Those of a kernel that has all controllers."""

    name = "noted"
    controllers = frozenset(CONTROLLERS)
    paths = ()
    refuses = False

    def make(self, number: int, *, with_cpu: bool) -> LimitGroup:
        """See `LimitGroups`."""
        return NotedGroup()

    def hold_all(self, limits: ProcessLimits) -> None:
        """See `LimitGroups`."""
        if self.refuses:
            raise OSError(errno.EBUSY, "it has more already")


class FakeCell:
    """Says that it has started something, or fails."""

    fails = False
    ended = False

    def __init__(self, group: NotedGroup, *, has_cpu: bool) -> None:
        self.group, self.has_cpu, self.before, self.pid = group, has_cpu, group.counters(), 55

    def launch(self, request: Any, descriptors: list[int]) -> int:
        """See `Cell`."""
        if self.fails:
            raise CellError(errno.ETIME, "no answer")
        return 77

    def end(self) -> None:
        """See `Cell`."""
        self.ended = True


def keeper_of(groups: LimitGroups, **options: Any) -> LimitKeeper:
    """One whose cells are no processes."""
    return LimitKeeper(groups, make_cell=FakeCell, **options)


def started(keeper: LimitKeeper, request: Any) -> tuple[Any, NotedGroup]:
    """What holds a new job, and the group that it is in."""
    _, guard = keeper.launch(request, {}, [], 0)
    assert guard is not None
    assert guard.cell is not None
    assert isinstance(guard.cell.group, NotedGroup)
    return guard, guard.cell.group


def test_forks_that_we_have_refused_are_no_limit() -> None:
    """What is left of a job that has ended may try to fork while it is killed."""
    keeper = keeper_of(NotedGroups())
    guard, group = started(keeper, REQUEST)
    guard.stop_forks()
    group.counted = Counters(fork_refusals=3)
    guard.stop_forks()
    assert keeper.finish(guard, (0.0, 0), None)[1] == ""
    guard, group = started(keeper, REQUEST)
    group.counted = Counters(fork_refusals=1)
    guard.stop_forks()
    assert keeper.finish(guard, (0.0, 0), None)[1] == "processes"


def test_a_look_that_finds_nobody_any_more_finds_no_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All may go between the list of them and the look; what was seen of them before still counts."""
    seen = [[Consumption(1, 0.5, 4096)], []]
    keeper = LimitKeeper(None, measure=lambda _: seen.pop(0))
    monkeypatch.setattr(limit_keeper, "launch", lambda *_: 77)
    _, guard = keeper.launch(MEMORY, {}, [], 0)
    assert guard is not None
    for _ in range(2):
        guard.due = 0.0
        assert keeper.look(lambda _: []) == []
    assert keeper.finish(guard, (0.1, 0), None) == ((0.5, 4096), "")


def test_a_limit_that_a_job_has_not_is_not_told() -> None:
    """Of forks that are refused because others have too many processes."""
    keeper = keeper_of(NotedGroups(), total=ProcessLimits(processes=5))
    guard, group = started(keeper, MEMORY)
    group.counted = Counters(fork_refusals=1)
    assert keeper.finish(guard, (0.0, 0), None)[1] == ""


def test_a_total_that_the_kernel_refuses_is_not_held() -> None:
    """That is told, and jobs can be started."""
    groups = NotedGroups()
    assert "processes" in keeper_of(groups, total=ProcessLimits(processes=5)).holds_total
    groups.refuses = True
    keeper = keeper_of(groups, total=ProcessLimits(memory_bytes=1 << 20))
    assert keeper.holds_total == frozenset()
    assert started(keeper, MEMORY)


def test_a_cell_that_is_dead_gets_no_other_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be what the kernel has chosen when memory was short: then it is in no group any more."""
    keeper = keeper_of(NotedGroups())
    for pids, is_reused in (([55], True), ([], False), ([55, 56], False)):
        monkeypatch.setattr(NotedGroup, "pids", lambda _, pids=pids: pids)
        guard, _ = started(keeper, MEMORY)
        keeper.finish(guard, (0.0, 0), None)
        keeper.tidy()
        assert guard.cell.ended is not is_reused


def test_what_a_cell_may_have_started_does_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it gave no answer, nobody knows what is in its group, and nobody would end it."""
    monkeypatch.setattr(FakeCell, "fails", True)
    with subprocess.Popen(["sleep", "100"]) as process:
        try:
            monkeypatch.setattr(NotedGroup, "pids", lambda _: [process.pid])
            with pytest.raises(CellError):
                keeper_of(NotedGroups()).launch(MEMORY, {}, [], 0)
            assert process.wait(PATIENCE) == -signal.SIGKILL
        finally:
            process.kill()


def test_looks_at_many_jobs_take_a_tenth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: by a clock on which each look takes a millisecond or more."""
    now = itertools.count(step=0.001)
    monkeypatch.setattr(limit_keeper.time, "monotonic", lambda: next(now))
    keeper = keeper_of(NotedGroups())
    guards = [started(keeper, REQUEST)[0] for _ in range(200)]
    for guard in guards:
        guard.due = 0.0
    began = next(now)
    assert keeper.look(lambda _: []) == []
    assert min(guard.due for guard in guards) >= began + 200 * 0.001 / limit_keeper.LOOK_SHARE
