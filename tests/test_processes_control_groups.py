"""One control group around a spawner and its jobs: made, frozen, killed, removed, and done without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from process_tools import PYTHON, alive, is_alive, linux_only, read_line, run, shell, until_sync

if sys.platform == "win32":
    pytest.skip("POSIX process trees", allow_module_level=True)

from sandd._core.processes import control_groups, open_process_host
from sandd._core.processes.control_groups import ControlGroup, OwnGroup, enter_new_group

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = linux_only

ENTER = """
import sys
from sandd._core.processes.control_groups import enter_new_group
group = enter_new_group(sys.argv[1])
print("" if group is None else group.path, flush=True)
import subprocess
jobs = [subprocess.Popen(["sleep", "1000"], start_new_session=True) for _ in range(3)]
print(*(job.pid for job in jobs), flush=True)
for line in sys.stdin:
    if line.strip() == "out":
        with group.outside() as is_outside:
            with group.frozen() as is_frozen:
                print(is_outside, is_frozen, flush=True)
            group.kill()
        for job in jobs:
            job.wait()
        print(*(job.returncode for job in jobs), flush=True)
"""


class Spawner:
    """A process that is in a group of its own, with three jobs."""

    def __init__(self, choice: str) -> None:
        self.process = subprocess.Popen(
            [PYTHON, "-c", ENTER, choice],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.path = self.read()
        self.jobs = [int(word) for word in self.read().split()]

    def read(self) -> str:
        """A line of its."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def ask(self, text: str) -> None:
        """Write it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """Leave nothing of it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        for pid in self.jobs:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        if self.path:
            until_sync(lambda: ControlGroup(self.path).remove())


@pytest.fixture(params=["v2", "v1"])
def spawner(request: pytest.FixtureRequest) -> Iterator[Spawner]:
    """One in a group of each kind that this machine lets us have."""
    one = Spawner(request.param)
    try:
        if not one.path:
            pytest.skip(f"no control groups {request.param} that are ours to make here")
        yield one
    finally:
        one.close()


def test_children_are_born_into_the_group(spawner: Spawner) -> None:
    """None of them had to be moved."""
    found = ControlGroup(spawner.path).pids()
    assert sorted(found) == sorted([spawner.process.pid, *spawner.jobs])


def test_who_steps_out_can_freeze_and_kill_all_others(spawner: Spawner) -> None:
    """In one step each; it is in the group again afterwards."""
    spawner.ask("out")
    assert spawner.read() == "True True"
    assert spawner.read() == "-9 -9 -9"
    assert ControlGroup(spawner.path).pids() == [spawner.process.pid]


def test_frozen_processes_are_killed_and_a_group_in_use_stays(spawner: Spawner) -> None:
    """From outside, as the daemon does it; what is gone by then is no error."""
    group = ControlGroup(spawner.path)
    assert not group.remove()
    with group.frozen() as is_frozen:
        assert is_frozen
        group.kill()
    until_sync(lambda: not any(is_alive(pid) for pid in [spawner.process.pid, *spawner.jobs]))
    spawner.process.wait()
    until_sync(group.remove)
    assert not os.path.exists(spawner.path)
    assert group.remove()
    group.kill()
    assert group.pids() == []


def test_group_is_dissolved_when_the_dead_have_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be reaped, and in it for a moment yet; for who stays it isn't waited long."""
    group = tmp_path / "group"
    (group / "somebody").mkdir(parents=True)
    (group / "somebody" / "dead").touch()  # a directory that isn't empty can't be removed either
    monkeypatch.setattr(control_groups, "REMOVE_SECONDS", 0.02)
    OwnGroup(str(group), -1).dissolve()
    assert group.exists()
    monkeypatch.setattr(control_groups, "REMOVE_SECONDS", 20.0)
    monkeypatch.setattr(
        "sandd._core.processes.control_groups.time.sleep",
        lambda _: (group / "somebody" / "dead").unlink(),
    )
    OwnGroup(str(group), -1).dissolve()
    assert not group.exists()


def test_group_of_a_dead_spawner_is_killed_and_removed_by_the_next(spawner: Spawner) -> None:
    """Its jobs had survived it, as its daemon was dead, too; a living one's are left alone."""
    kind = "v1" if os.path.exists(f"{spawner.path}/freezer.state") else "v2"
    neighbour = Spawner(kind)
    try:
        assert all(is_alive(pid) for pid in spawner.jobs)
        spawner.process.kill()
        spawner.process.wait()
        third = Spawner(kind)
        try:
            until_sync(lambda: not any(is_alive(pid) for pid in spawner.jobs))
            assert not os.path.exists(spawner.path)
            assert all(is_alive(pid) for pid in neighbour.jobs)
        finally:
            third.close()
    finally:
        neighbour.close()


def test_group_that_somebody_else_calls_by_our_name_is_left_alone(spawner: Spawner) -> None:
    """As an administrator may, who puts each daemon into a group of its own."""
    kind = "v1" if os.path.exists(f"{spawner.path}/freezer.state") else "v2"
    theirs = ControlGroup(f"{os.path.dirname(spawner.path)}/sandd-worker-1")
    os.mkdir(theirs.path)
    try:
        with subprocess.Popen(["sleep", "1000"]) as sleeper:
            try:
                control_groups.write(f"{theirs.path}/cgroup.procs", str(sleeper.pid))
                Spawner(kind).close()
                assert sleeper.poll() is None
                assert theirs.pids() == [sleeper.pid]
            finally:
                sleeper.kill()
    finally:
        until_sync(theirs.remove)


# ---- where there is none ------------------------------------------------------------------------


def fake_proc(directory: Path, groups: str, mounts: str) -> str:
    """A /proc/self that tells of these groups and mounts."""
    (directory / "cgroup").write_text(groups)
    (directory / "mountinfo").write_text(mounts)
    return str(directory)


@pytest.mark.parametrize(
    ("groups", "mounts"),
    [
        pytest.param("", "", id="none"),
        pytest.param("0::/a\n", "", id="not mounted"),
        pytest.param("0::/../a\n", "1 0 0:1 / TREE rw - cgroup2 c rw\n", id="outside"),
        pytest.param("0::/a\n", "1 0 0:1 /b TREE rw - cgroup2 c rw\n", id="another part shown"),
        pytest.param("0::/no\n", "1 0 0:1 / TREE rw - cgroup2 c rw\n", id="not there"),
        pytest.param("0::/\n", "1 0 0:1 / TREE rw - cgroup2 c rw\n", id="no files in it"),
        pytest.param("7:cpu:/\n", "1 0 0:1 / TREE rw - cgroup c rw,cpu\n", id="no freezer"),
        pytest.param("garbage\n", "", id="garbage"),
    ],
)
def test_without_a_usable_tree_there_is_no_group(tmp_path: Path, groups: str, mounts: str) -> None:
    """And nothing of ours is left in it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    proc = fake_proc(tmp_path, groups, mounts.replace("TREE", str(tree)))
    assert enter_new_group(proc=proc) is None
    assert list(tree.iterdir()) == []


def test_read_only_tree_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers have it."""

    def refuse(_: str) -> None:
        raise OSError(30, "Read-only file system")

    proc = fake_proc(tmp_path, "0::/\n", f"1 0 0:1 / {tmp_path} rw - cgroup2 c rw\n")
    monkeypatch.setattr(os, "mkdir", refuse)
    assert enter_new_group(proc=proc) is None


def test_place_of_our_group_is_read_from_the_mounts(tmp_path: Path) -> None:
    """Also where a container sees a part of the tree, and in names with blanks."""
    mounts = (
        "1 0 0:1 / /proc rw - proc proc rw\n"
        "2 0 0:2 /docker/x /sys/fs/a\\040b rw shared:1 - cgroup2 c rw\n"
        "3 0 0:3 / /sys/fs/freezer rw - cgroup c rw,freezer\n"
    )
    proc = fake_proc(tmp_path, "6:freezer:/f\n0::/docker/x/y\n", mounts)
    assert control_groups.own_directory("v2", proc) == "/sys/fs/a b/y"
    assert control_groups.own_directory("v1", proc) == "/sys/fs/freezer/f"


def test_systemds_tree_is_ours_only_where_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the mark of delegation no group is made in v2; v1's freezer is not its business."""
    monkeypatch.setattr(control_groups, "SYSTEMD", str(tmp_path))
    assert not control_groups.may_have_groups(str(tmp_path), "v2")
    assert control_groups.may_have_groups(str(tmp_path), "v1")
    monkeypatch.setattr(os, "getxattr", lambda *_: b"1")
    assert control_groups.may_have_groups(str(tmp_path), "v2")


def groups_beside(path: str) -> list[str]:
    """The groups in the same parent."""
    parent = os.path.dirname(path)
    return [f"{parent}/{name}" for name in os.listdir(parent)]


@pytest.mark.parametrize("choice", ["v2", "v1", "off"])
async def test_host_leaves_no_group_and_no_process_with_or_without(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its spawner ends in good order or is killed, and whatever kind of group there is."""
    monkeypatch.setenv("SANDD_CONTROL_GROUPS", choice)
    wanted = shell("(env -i setsid sleep 1000 &); sleep 1000 & echo ready; read line")
    async with open_process_host() as host:
        await run(host, shell("true"))
        groups = host.keeper._groups  # type: ignore[attr-defined]
        assert not groups or choice != "off"
        child = await host.spawn(wanted)
        assert await read_line(child.stdout) == b"ready"
        os.kill(host.keeper.link.process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        await child.kill(grace=0)
        assert await child.stdout.receive_some() == b""
        child.close_pipes()
        await run(host, shell("true"))
    assert alive(wanted.marker) == []
    for group in groups:
        assert group.path not in groups_beside(group.path)


def test_a_group_that_another_spawner_took_for_a_stale_one_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its lock anybody may remove it: it is there when it is ours."""
    removed: list[str] = []

    def lock(descriptor: int, operation: int) -> None:
        if not removed:
            removed.extend(os.listdir(tmp_path))
            os.rmdir(tmp_path / removed[0])

    monkeypatch.setattr(control_groups.fcntl, "flock", lock)
    path, descriptor = control_groups.make_locked(str(tmp_path))
    os.close(descriptor)
    assert removed
    assert os.listdir(tmp_path) == [os.path.basename(path)]
