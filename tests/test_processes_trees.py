"""Which process belongs to which job: the rules by themselves, on made-up process tables."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from process_tools import linux_only, until_sync

if sys.platform == "win32":
    pytest.skip("POSIX process trees", allow_module_level=True)

import resource

from sandd._core.processes import culling, job_trees, process_table
from sandd._core.processes.job_trees import ProcessGroupTrees, SubreaperTrees, Tree
from sandd._core.processes.process_table import Process, read_marker

if TYPE_CHECKING:
    from collections.abc import Callable

SPAWNER = 1


class Machine:
    """A made-up process table, as `SubreaperTrees` sees it."""

    def __init__(self) -> None:
        self.table: dict[int, Process] = {}
        self.brands: dict[int, int] = {}
        self.markers: dict[int, bytes] = {}
        self.trees = SubreaperTrees(
            children=self.children,
            entry=self.table.get,
            brand_of=self.brands.get,
            marker_of=self.markers.get,
            collect=self.collect,
            descend=self.descend,
        )

    def add(
        self,
        pid: int,
        *,
        parent: int = SPAWNER,
        session: int | None = None,
        began: int = 100,
        brand: int | None = None,
        marker: bytes | None = None,
        dead: bool = False,
    ) -> None:
        """A process, with a session of its own unless told otherwise."""
        session = session or pid
        self.table[pid] = Process(pid, parent, session, session, began, dead, 1)
        if brand is not None:
            self.brands[pid] = brand
        if marker is not None:
            self.markers[pid] = marker

    def die(self, pid: int) -> None:
        """It becomes a zombie, and its children the spawner's."""
        self.table[pid] = self.table[pid]._replace(is_dead=True)
        for child in [each for each in self.table.values() if each.parent == pid]:
            self.table[child.pid] = child._replace(parent=SPAWNER)

    def children(self) -> list[int]:
        """The spawner's, zombies included."""
        return [each.pid for each in self.table.values() if each.parent == SPAWNER]

    def collect(self, pid: int) -> bool:
        """Reap it if it is dead."""
        if self.table[pid].is_dead:
            del self.table[pid]
            return True
        return False

    def descend(self, roots: list[int]) -> list[Process]:
        """The living below these, and they."""
        found = [self.table[pid] for pid in roots if not self.table[pid].is_dead]
        for process in found:
            found += [each for each in self.table.values() if each.parent == process.pid]
        return found

    def start(self, pid: int, *, began: int = 100) -> Tree:
        """A job's leader."""
        self.add(pid, began=began, marker=b"job-%d" % pid)
        return self.trees.add(pid, b"job-%d" % pid, began, 7000 + pid)

    def is_empty(self, tree: Tree) -> bool:
        """After a look."""
        self.trees.refresh()
        return self.trees.is_empty(tree)

    def members(self, tree: Tree) -> set[int]:
        """Their pids."""
        return {process.pid for process in self.trees.members(tree)}


@pytest.fixture
def machine() -> Machine:
    """An empty one."""
    return Machine()


def test_tree_is_empty_when_its_dead_leader_left_no_orphan(machine: Machine) -> None:
    """Other jobs' processes, and those below living leaders, don't count."""
    tree, other = machine.start(10), machine.start(20)
    machine.add(21, parent=20, marker=b"job-20")
    machine.die(10)
    assert machine.is_empty(tree)
    machine.die(20)
    assert not machine.is_empty(other)
    assert machine.is_empty(tree)


@pytest.mark.parametrize("sign", ["session", "brand", "marker", "elimination"])
def test_orphan_belongs_to_its_job_by(machine: Machine, sign: str) -> None:
    """Its leader's session, its brand, its marker, or because no other job was there at its birth."""
    tree, other = machine.start(10), machine.start(20, began=200 if sign == "elimination" else 50)
    session = 10 if sign == "session" else 11
    brand = 7010 if sign == "brand" else None
    marker = b"job-10" if sign == "marker" else None
    machine.add(11, parent=10, session=session, brand=brand, marker=marker, began=150)
    machine.die(10)
    assert not machine.is_empty(tree)
    assert machine.is_empty(other)
    assert machine.members(tree) == {11}


def test_orphan_belongs_to_its_job_by_a_session_seen_before(machine: Machine) -> None:
    """A process without marker is known by the session it was met in while its parent lived."""
    tree, _ = machine.start(10), machine.start(20)
    machine.add(11, parent=10, session=11)
    machine.add(12, parent=11, session=11)
    assert machine.members(tree) == {10, 11, 12}
    machine.die(10)
    machine.die(11)
    assert not machine.is_empty(tree)
    assert machine.members(tree) == {12}


def test_brand_counts_more_than_a_marker(machine: Machine) -> None:
    """A program may give its children another environment, but hardly another brand."""
    tree, other = machine.start(10), machine.start(20)
    machine.add(11, parent=10, session=11, brand=7010, marker=b"job-20")
    machine.add(12, parent=10, session=12, brand=7010, marker=process_table.NOT_YET)
    machine.die(10)
    machine.die(20)
    assert machine.is_empty(other)
    assert machine.members(tree) == {11, 12}


def test_strangers_brand_says_nothing(machine: Machine) -> None:
    """A job that has a spawner of its own brands its children itself; the other signs count."""
    tree, other = machine.start(10), machine.start(20)
    machine.add(11, parent=10, session=11, brand=1, marker=b"job-10")
    machine.die(10)
    machine.die(20)
    assert machine.is_empty(other)
    assert machine.members(tree) == {11}


def test_marker_counts_more_than_a_session_seen_before(machine: Machine) -> None:
    """A session's number may be in use again by another job; its marker can't be."""
    tree, other = machine.start(10), machine.start(20)
    machine.add(11, parent=10, session=11)
    assert machine.members(tree) == {10, 11}
    machine.die(11)
    machine.trees.refresh()
    machine.table.pop(11)
    machine.add(30, session=11, marker=b"job-20")
    machine.die(10)
    machine.die(20)
    assert machine.is_empty(tree)
    assert not machine.is_empty(other)


def test_orphan_of_one_of_two_jobs_is_found_when_the_second_is_released(machine: Machine) -> None:
    """Neither is blamed while both may have made it; the one that is left then is."""
    first, second = machine.start(10), machine.start(20)
    machine.add(11, session=11, began=150)
    machine.die(10)
    machine.die(20)
    assert machine.is_empty(first)
    machine.trees.discard(first)
    machine.collect(10)
    assert not machine.is_empty(second)
    assert machine.members(second) == {11}


def test_orphan_in_the_middle_of_execve_may_be_everybodys(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its environment is being replaced no job is empty and nobody kills it; then it is known."""
    first, second = machine.start(10), machine.start(20)
    machine.add(11, session=11, began=150, marker=process_table.NOT_YET)
    machine.die(10)
    machine.die(20)
    assert not machine.is_empty(first)
    assert not machine.is_empty(second)
    assert machine.members(first) == machine.members(second) == set()
    machine.markers[11] = b"job-20"
    assert machine.is_empty(first)
    assert machine.members(second) == {11}
    # One that stays like that for good is nobody's after a second.
    machine.add(12, session=12, began=150, marker=process_table.NOT_YET)
    assert not machine.is_empty(first)
    monkeypatch.setattr(job_trees, "EXECUTION_SECONDS", 0.0)
    assert machine.is_empty(first)


def test_orphans_that_were_to_be_left_alone_are_nobody_elses(machine: Machine) -> None:
    """After a release without sweep, what hides its origin may be that job's: it is spared."""
    detached = machine.start(10)
    machine.add(11, session=11, began=150)
    machine.add(12, session=10, began=150)
    machine.die(10)
    machine.trees.refresh()
    machine.trees.discard(detached)
    machine.collect(10)
    later = machine.start(20, began=140)
    machine.die(20)
    assert machine.is_empty(later)
    assert machine.members(later) == set()
    # Once they are gone, elimination is allowed again.
    machine.die(11)
    machine.die(12)
    machine.trees.refresh()
    machine.add(21, session=21, began=160)
    assert not machine.is_empty(later)


def test_dead_orphans_are_reaped_and_leaders_are_not(machine: Machine) -> None:
    """A leader's number stays taken until its tree is discarded."""
    machine.start(10)
    machine.add(11, session=11, dead=True)
    machine.die(10)
    machine.trees.refresh()
    assert list(machine.table) == [10]
    assert machine.trees.is_all_gone()
    assert machine.table == {}


def test_looking_after_orphans_takes_a_tenth_of_the_time(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a look that took 10 ms the next one is due 100 ms later."""
    clock = iter([5.0, 5.01])
    monkeypatch.setattr(job_trees, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    machine.trees.refresh()
    assert machine.trees.refresh_due(5.01) == pytest.approx(0.1)
    assert machine.trees.refresh_due(6.0) == 0


def test_repr_of_a_tree_tells_whose_it_is(machine: Machine) -> None:
    """Leader and marker."""
    assert repr(machine.start(10)) == "<Tree of 10 (b'job-10')>"


# ---- macOS ----------------------------------------------------------------------------------------

PS = b"""\
    1     0     1 Ss   /sbin/launchd
  500     1   500 Ss   /bin/sh -c x PATH=/bin SANDD_JOB=a/1 HOME=/
  501   500   500 S    sleep 1000 SANDD_JOB=a/1
  502     1   502 Ss   sleep 1000 LANG=C SANDD_JOB=a/1
  503   502   503 S    env -i hidden
  504     1   504 Z    (zombie)
  600     1   600 Ss   sleep 1000 SANDD_JOB=a/10
garbage
"""


def test_ps_output_is_read_with_its_markers() -> None:
    """pid, parent, group, state and marker; lines that are none are left out."""
    rows = process_table.list_by_ps(run=lambda _: PS)
    assert [row.pid for row, _ in rows] == [1, 500, 501, 502, 503, 504, 600]
    assert [row.is_dead for row, _ in rows] == [False] * 5 + [True, False]
    assert rows[1][0].parent == 1
    assert rows[1][0].group == 500
    assert [process_table.has_marker(text, b"a/1") for _, text in rows] == [
        *(False, True, True, True, False, False, False)
    ]


def test_ps_tells_what_processes_have_used() -> None:
    """Of those that are asked about and are there, however long they have run."""
    table = b"    1  1000    1:00.00\n   10    20 1-02:03:04.50\n   11    30    0:00.25\ngarbage\n"
    day = 86_400 + 2 * 3600 + 3 * 60 + 4.5
    assert process_table.consumption_by_ps([10, 11, 12], lambda _: table) == {
        10: (1, day, 20 * 1024),
        11: (1, 0.25, 30 * 1024),
    }


def test_group_trees_find_group_marker_and_descendants() -> None:
    """A job has its group, those with its marker, and what descends from either; no zombies."""
    trees = ProcessGroupTrees(table=lambda: process_table.list_by_ps(run=lambda _: PS))
    tree, other = trees.add(500, b"a/1", 0), trees.add(600, b"a/10", 0)
    assert {process.pid for process in trees.members(tree)} == {500, 501, 502, 503}
    assert {process.pid for process in trees.everybody()} == {500, 501, 502, 503, 600}
    assert not trees.is_empty(tree)
    trees.discard(tree)
    trees.discard(other)
    assert not trees.is_all_gone()
    assert trees.refresh_due(0.0) == float("inf")


@pytest.mark.parametrize("command", [["sh", "-c", "exit 1"], ["/no/such/ps"]])
def test_a_failing_ps_is_an_error_of_the_system(command: list[str]) -> None:
    """Whether it can't be run or ends badly."""
    with pytest.raises(OSError, match=r"sh ended with 1|No such file"):
        process_table.run_ps(command)


def test_group_trees_survive_a_failing_ps() -> None:
    """What was seen last counts, and the spawner goes on."""
    outputs = iter([PS])

    def run_ps(command: list[str]) -> bytes:
        for output in outputs:
            return output
        raise OSError(errno.EIO, f"{command[0]} ended with 1")

    trees = ProcessGroupTrees(table=lambda: process_table.list_by_ps(run=run_ps))
    tree = trees.add(500, b"a/1", 0)
    assert len(trees.members(tree)) == len(trees.members(tree)) == 4


# ---- the real table -------------------------------------------------------------------------------


@linux_only
def test_entry_of_a_process_with_brackets_in_its_name(tmp_path: object) -> None:
    """Blanks and brackets in a name don't shift the fields."""
    odd = os.path.join(str(tmp_path), "a) Z (b")
    os.symlink("/bin/sleep", odd)
    process = subprocess.Popen([odd, "1000"], start_new_session=True)
    try:
        entry = process_table.read_process(process.pid)
        assert entry is not None
        assert (entry.pid, entry.parent, entry.session) == (process.pid, os.getpid(), process.pid)
        assert not entry.is_dead
        assert not process_table.is_exiting(process.pid)
        process.kill()
        until_sync(lambda: _is_dead(process.pid))
        assert process_table.is_exiting(process.pid)
    finally:
        process.kill()
        process.wait()
    assert process_table.read_process(process.pid) is None
    assert not process_table.is_exiting(process.pid)


def _is_dead(pid: int) -> bool:
    entry = process_table.read_process(pid)
    return entry is not None and entry.is_dead


@linux_only
def test_process_whose_main_thread_ended_is_alive() -> None:
    """State Z with other threads is no zombie: it can still fork."""
    program = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
ctypes.CDLL(None).syscall(60, 0)  # exit(2): this thread only
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    try:

        def state() -> bytes:
            with open(f"/proc/{process.pid}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].split()[0]

        until_sync(lambda: state() == b"Z")
        assert not _is_dead(process.pid)
    finally:
        process.kill()
        process.wait()


@linux_only
@pytest.mark.parametrize("has_files", [True, False], ids=["children files", "without them"])
def test_children_are_found_with_and_without_the_kernels_lists(
    has_files: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel without CONFIG_PROC_CHILDREN only makes it slower."""
    if not has_files:
        read = process_table._read

        def read_without(path: str, *size: int) -> bytes:
            if path.endswith("/children"):
                raise FileNotFoundError(path)
            return read(path, *size)

        monkeypatch.setattr(process_table, "_read", read_without)
        monkeypatch.setattr(process_table, "_has_children_files", lambda: False)
    process = subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000; true"])
    try:
        until_sync(lambda: len(process_table.walk([process.pid])) == 3)
        assert process.pid in process_table.own_children()
        found = process_table.walk([process.pid])
        assert [each.parent for each in found] == [os.getpid(), process.pid, process.pid]
    finally:
        for each in process_table.walk([process.pid]):
            process_table.send_signal(each, signal.SIGKILL)
        process.wait()
    assert process_table.children_of(process.pid, threads=1) == []


@linux_only
@pytest.mark.parametrize("has_file", [True, False])
def test_own_children_are_the_same_by_a_file_that_stays_open(
    has_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Look after look, however many there are, and where the kernel has no such file."""
    monkeypatch.setattr(process_table, "_CHILDREN_BYTES", 7)  # as if there were thousands
    if not has_file:
        monkeypatch.setattr(os, "open", partial(_no_children_file, os.open))
        monkeypatch.setattr(process_table, "_has_children_files", lambda: False)
    look = process_table.OwnChildren()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(4):
            processes.append(subprocess.Popen(["sleep", "1000"]))
            assert {each.pid for each in processes} <= set(look())
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not {each.pid for each in processes} & set(look())
    look.close()
    look.close()


def _no_children_file(open_it: Callable[..., int], path: str, *arguments: int) -> int:
    if path.endswith("/children"):
        raise FileNotFoundError(path)
    return open_it(path, *arguments)


@linux_only
def test_signal_does_not_reach_a_newer_process_with_the_same_pid() -> None:
    """An entry whose start time is another's is nobody's: nothing is sent, with or without pidfd."""
    process = subprocess.Popen(["sleep", "1000"])
    try:
        entry = process_table.read_process(process.pid)
        assert entry is not None
        process_table.send_signal(entry._replace(began=entry.began - 1), signal.SIGKILL)
        assert process.poll() is None
        process_table.send_signal(entry, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process_table.send_signal(entry, signal.SIGKILL)  # gone: no error
    finally:
        process.kill()
        process.wait()


@linux_only
def test_signal_works_without_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an old kernel, or with no descriptor left, kill(2) is used after the same check."""

    def refuse(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    test_signal_does_not_reach_a_newer_process_with_the_same_pid()


@linux_only
def test_marker_is_read_from_the_first_and_from_later_variables() -> None:
    """Where it stands in the environment does not matter; one that only ends in the name is none."""
    for env, expected in (
        ({"SANDD_JOB": "a/1", "X": "y"}, b"a/1"),
        ({"X": "y", "SANDD_JOB": "a/1"}, b"a/1"),
        ({"NO_SANDD_JOB": "a/1"}, None),
        ({}, None),
    ):
        process = subprocess.Popen(["/bin/sleep", "1000"], env=env)
        try:
            # Popen returns in the middle of execve(2).
            until_sync(partial(_has_executed, process.pid))
            assert read_marker(process.pid) == expected
        finally:
            process.kill()
            process.wait()
    assert read_marker(process.pid) is None


def _has_executed(pid: int) -> bool:
    return read_marker(pid) != process_table.NOT_YET


@linux_only
def test_brand_stays_on_whoever_leaves_everything_else_behind() -> None:
    """Session, parent and environment are new, the brand is its maker's; ours is not read as another's."""
    limits = resource.getrlimit(process_table._RLIMIT_LOCKS)
    assert process_table.read_brand(os.getpid()) is None
    ended = []
    try:
        for brand in 1, 2**62:
            assert process_table.brand_children(brand)
            script = "env -i setsid sleep 1000 & echo $!"
            with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as shell:
                assert shell.stdout is not None
                pid = int(shell.stdout.readline())
                try:
                    until_sync(partial(_is_without_environment, pid))
                    assert process_table.read_brand(pid) == brand
                finally:
                    os.kill(pid, signal.SIGKILL)
            ended.append(pid)
        # Process 1 may take its time to reap them.
        until_sync(lambda: all(process_table.read_brand(pid) is None for pid in ended))
    finally:
        resource.setrlimit(process_table._RLIMIT_LOCKS, limits)


def _is_without_environment(pid: int) -> bool:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().startswith(b"sleep")


@linux_only
def test_where_the_limit_is_not_ours_to_set_there_are_no_brands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lower hard limit, or a kernel of another make: the other signs have to do."""
    for error in ValueError("not allowed to raise maximum limit"), OSError(22, "Invalid argument"):

        def refuse(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(resource, "setrlimit", refuse)
        assert not process_table.brand_children(1)


# ---- culling --------------------------------------------------------------------------------------


def test_cull_stops_everybody_before_it_kills_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks until it finds nobody new, so a child born meanwhile is stopped and killed too."""
    sent: list[tuple[int, int]] = []
    looks = iter([[10, 11], [10, 11, 12], [12, 11]])
    monkeypatch.setattr(culling, "send_signal", lambda who, number: sent.append((who.pid, number)))
    monkeypatch.setattr(culling, "read_process", lambda _: None)
    assert culling.cull(_finder(lambda: next(looks))) == []
    stopped = [(pid, signal.SIGSTOP) for pid in (10, 11, 12)]
    assert sent == [*stopped, *((pid, signal.SIGKILL) for pid in (10, 11, 12))]


def test_cull_against_an_endless_storm_ends_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """It kills what it has after 50 ms: other jobs wait no longer than that."""
    pids = iter(range(10, 10_000_000))
    clock = iter(number / 100 for number in range(1000))
    killed: list[int] = []
    monkeypatch.setattr(culling, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(
        culling,
        "send_signal",
        lambda who, number: killed.append(who.pid) if number == signal.SIGKILL else None,
    )
    monkeypatch.setattr(culling, "read_process", lambda _: None)
    culling.cull(_finder(lambda: [next(pids)]))
    assert 3 <= len(killed) <= 7


def test_cull_tells_whom_it_has_no_power_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of another user are returned; the others are killed all the same."""
    killed: list[int] = []

    def send(who: Process, number: int) -> None:
        if who.pid == 11:
            raise PermissionError
        if number == signal.SIGKILL:
            killed.append(who.pid)

    monkeypatch.setattr(culling, "send_signal", send)
    monkeypatch.setattr(culling, "read_process", lambda _: None)
    powerless = culling.cull(_finder(lambda: [10, 11, 12]))
    assert [process.pid for process in powerless] == [11]
    assert killed == [10, 12]


def test_race_is_lost_by_meeting_somebody_new_again_and_again() -> None:
    """The first round meets everybody anew, the second may by bad luck, a third one doesn't."""
    race = culling.Race()
    for found, is_lost in (
        ([1, 2], False),
        ([2, 3], False),
        ([4], True),
        ([4], False),
        ([5], False),
        ([6], True),
    ):
        race.note_round((pid, 0) for pid in found)
        assert race.is_being_lost is is_lost


def test_cull_stops_and_kills_the_leaders_group_at_a_stroke(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anybody has looked; groups that were met later are stopped as a whole, too."""
    sent: list[tuple[str, int, int]] = []
    entries = {12: Process(12, 1, 12, 12, 0, False, 1)}
    looks = iter([[10, 12], [10, 12]])

    def look() -> list[int]:
        sent.append(("look", 0, 0))
        return next(looks)

    monkeypatch.setattr(culling, "read_process", entries.get)
    monkeypatch.setattr(culling, "signal_group", lambda *what: sent.append(("group", *what)))
    monkeypatch.setattr(
        culling, "send_signal", lambda who, number: sent.append(("one", who.pid, number))
    )
    culling.cull(_finder(look), [10])
    stop, kill = signal.SIGSTOP, signal.SIGKILL
    assert sent == [
        *[("group", 10, stop), ("look", 0, 0), ("one", 10, stop), ("one", 12, stop)],
        *[("group", 12, stop), ("look", 0, 0), ("group", 10, kill)],
        *[("one", 10, kill), ("one", 12, kill)],
    ]


def test_frozen_are_killed_without_being_stopped_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a look finds nobody new: what was born before the freeze may show late."""
    sent: list[tuple[int, int]] = []
    looks = iter([[10], [10, 11], [11]])
    monkeypatch.setattr(culling, "send_signal", lambda who, number: sent.append((who.pid, number)))
    culling.cull_frozen(_finder(lambda: next(looks)))
    assert sent == [(10, signal.SIGKILL), (11, signal.SIGKILL)]


def test_pauses_between_rounds_double_to_a_tenth_of_a_second() -> None:
    """1 ms, 2 ms, ... and never more than 100 ms."""
    pauses = culling.pauses()
    assert [round(next(pauses), 3) for _ in range(9)] == [
        *(0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.1, 0.1)
    ]


def _finder(pids: Callable[[], list[int]]) -> Callable[[], list[Process]]:
    return lambda: [Process(pid, 1, pid, pid, 0, False, 1) for pid in pids()]


def test_child_of_one_that_died_during_the_look_is_found(machine: Machine) -> None:
    """An orphan that was listed alive, and died before it was looked at, left a child in no list yet."""
    tree = machine.start(10)
    machine.add(11, session=10, began=101)
    machine.add(12, parent=11, session=10, began=102)
    machine.die(10)
    listed = machine.children

    def children() -> list[int]:
        pids = listed()
        if 11 in pids:
            machine.die(11)  # behind the list's back
        return pids

    machine.trees._children = children
    assert not machine.is_empty(tree)
    assert machine.members(tree) == {12}


def test_nobody_is_left_only_when_the_list_is_empty(machine: Machine) -> None:
    """The same at the very end, when everybody must be gone before the spawner is."""
    machine.add(11)
    machine.add(12, parent=11)
    listed = machine.children

    def children() -> list[int]:
        pids = listed()
        if 11 in pids:
            machine.die(11)
        return pids

    machine.trees._children = children
    assert not machine.trees.is_all_gone()
    machine.die(12)
    assert machine.trees.is_all_gone()


def test_a_storm_of_exits_is_never_taken_for_emptiness(machine: Machine) -> None:
    """While each pass reaps somebody, nothing is said for sure."""
    tree = machine.start(10)
    machine.die(10)
    births = iter(range(100, 10_000))

    def children() -> list[int]:
        pid = next(births)
        machine.add(pid, session=10, began=200, dead=True)
        return list(machine.table)

    machine.trees._children = children
    assert not machine.is_empty(tree)
