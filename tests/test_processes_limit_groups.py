"""Groups that hold limits, by the files that the kernel has for them; those of v2, whose controllers few machines
have free, in a tree of plain files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from process_tools import linux_only

if sys.platform == "win32":
    pytest.skip("POSIX process trees", allow_module_level=True)

from sandd._core.processes.control_groups import ControlGroup, own_directory
from sandd._core.processes.limit_groups import (
    Counters,
    GroupsV1,
    GroupsV2,
    LimitGroups,
    open_limit_groups,
)
from sandd._core.processes.spawner_messages import ProcessLimits

pytestmark = linux_only

MIB = 1 << 20
SOME = ProcessLimits(memory_bytes=64 * MIB, processes=9, cpus=1.5)


def files_of(directory: Path) -> dict[str, str]:
    """What was written there."""
    return {each.name: each.read_text() for each in directory.iterdir() if each.is_file()}


def make_v1(directory: Path) -> GroupsV1:
    """Hierarchies of which two are mounted together, as in most systems."""
    (directory / "memory").mkdir()
    (directory / "cpu,cpuacct").mkdir()
    (directory / "pids").mkdir()
    cpu = str(directory / "cpu,cpuacct")
    return GroupsV1(
        {
            "memory": str(directory / "memory"),
            "pids": str(directory / "pids"),
            "cpuacct": cpu,
            "cpu": cpu,
        }
    )


def touch(directory: Path, *names: str) -> None:
    """The kernel's files, which are there before anybody writes."""
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_text("")


def make_v2(directory: Path) -> GroupsV2:
    """Where all controllers are handed on."""
    (directory / "cgroup.subtree_control").write_text("cpu memory pids")
    return GroupsV2(str(directory))


def test_limits_of_v1_are_written_to_its_controllers(tmp_path: Path) -> None:
    """The bound with swap after the one without, as it may never be lower."""
    groups = make_v1(tmp_path)
    group = groups.make(3, with_cpu=True)
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    touch(tmp_path / "memory/3", *names)
    touch(tmp_path / "pids/3", "pids.max")
    touch(tmp_path / "cpu,cpuacct/3", "cpu.cfs_period_us", "cpu.cfs_quota_us")
    group.hold(SOME, extra=1)
    assert files_of(tmp_path / "memory/3")["memory.limit_in_bytes"] == str(64 * MIB)
    assert files_of(tmp_path / "memory/3")["memory.memsw.limit_in_bytes"] == str(64 * MIB)
    assert files_of(tmp_path / "pids/3") == {"pids.max": "10"}
    assert files_of(tmp_path / "cpu,cpuacct/3")["cpu.cfs_quota_us"] == "150000"


def test_a_group_of_v1_without_quota_stays_out_of_cpu(tmp_path: Path) -> None:
    """There it would be one among others for the scheduler; mounted with cpuacct, it can't."""
    for name in ("cpu", "cpuacct"):
        (tmp_path / name).mkdir()
    groups = GroupsV1({name: str(tmp_path / name) for name in ("cpu", "cpuacct")})
    groups.make(1, with_cpu=False)
    assert not (tmp_path / "cpu/1").exists()
    assert (tmp_path / "cpuacct/1").exists()


def test_counters_of_v1_are_those_of_the_kernel(tmp_path: Path) -> None:
    """OOM kills, refused forks and nanoseconds; what isn't there is 0."""
    groups = make_v1(tmp_path)
    group = groups.make(1, with_cpu=False)
    assert group.counters() == Counters()
    (tmp_path / "memory/1/memory.oom_control").write_text("oom_kill_disable 0\noom_kill 2\n")
    (tmp_path / "pids/1/pids.events").write_text("max 7\n")
    (tmp_path / "cpu,cpuacct/1/cpuacct.usage").write_text("2500000000\n")
    assert group.counters() == Counters(2, 7, 2.5)
    group.remove()


def test_limits_of_v2_are_written_to_its_files(tmp_path: Path) -> None:
    """Memory without swap; and all of them are taken back by who has none."""
    groups = make_v2(tmp_path)
    group = groups.make(1, with_cpu=False)
    touch(tmp_path / "1", "memory.max", "memory.swap.max", "pids.max", "cpu.max")
    group.hold(SOME, extra=1)
    assert files_of(tmp_path / "1") == {
        "memory.max": str(64 * MIB),
        "memory.swap.max": "0",
        "pids.max": "10",
        "cpu.max": "150000 100000",
    }
    touch(tmp_path / "1", "memory.max", "memory.swap.max", "pids.max", "cpu.max")
    group.hold(ProcessLimits())
    assert files_of(tmp_path / "1") == {
        "memory.max": "max",
        "memory.swap.max": "max",
        "pids.max": "max",
        "cpu.max": "max 100000",
    }


def test_counters_of_v2_are_those_of_the_kernel(tmp_path: Path) -> None:
    """OOM kills, refused forks and microseconds."""
    group = make_v2(tmp_path).make(1, with_cpu=False)
    assert group.counters() == Counters()
    (tmp_path / "1/memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (tmp_path / "1/pids.events").write_text("max 7\n")
    (tmp_path / "1/cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    assert group.counters() == Counters(2, 7, 2.5)
    group.remove()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_group_in_which_memory_is_left_is_not_clean(version: str, tmp_path: Path) -> None:
    """What a job has put into tmpfs would be the next one's."""
    groups: LimitGroups = make_v1(tmp_path) if version == "v1" else make_v2(tmp_path)
    group = groups.make(1, with_cpu=False)
    file = tmp_path / ("memory/1/memory.usage_in_bytes" if version == "v1" else "1/memory.current")
    file.write_text(str(2 * MIB))
    assert group.is_clean()
    file.write_text(str(60 * MIB))
    assert not group.is_clean()
    group.remove()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_forks_that_were_stopped_may_be_had_again(version: str, tmp_path: Path) -> None:
    """By the same limits as before, though they were written once already."""
    groups: LimitGroups = make_v1(tmp_path) if version == "v1" else make_v2(tmp_path)
    group = groups.make(1, with_cpu=False)
    directory = tmp_path / ("pids/1" if version == "v1" else "1")
    touch(directory, "pids.max")
    if version == "v1":
        touch(tmp_path / "memory/1", "memory.limit_in_bytes")
    group.hold(SOME, extra=1)
    group.stop_forks()
    assert files_of(directory)["pids.max"].startswith("0")
    touch(directory, "pids.max")
    group.hold(SOME, extra=1)
    assert files_of(directory)["pids.max"] == "10"


def proc_of_v2(
    tmp_path: Path, *, controllers: str, procs: str, place: str = "/ours"
) -> tuple[str, Path]:
    """A process' view of a tree of v2, and the group that it is in."""
    group = tmp_path / f"tree{place}"
    group.mkdir(parents=True)
    (group / "cgroup.controllers").write_text(controllers)
    (group / "cgroup.subtree_control").write_text("")
    (group / "cgroup.procs").write_text(procs)
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(f"0::{place}\n")
    (proc / "mountinfo").write_text(f"1 0 0:1 / {tmp_path}/tree rw - cgroup2 none rw\n")
    return str(proc), group


def make_unlocked(parent: str) -> tuple[str, int]:
    """As `make_locked`, in a tree of plain files."""
    group = Path(parent) / "sandd-1-11111111"
    group.mkdir()
    (group / "cgroup.subtree_control").touch()
    return str(group), -1


def test_v2_without_controllers_holds_nothing(tmp_path: Path) -> None:
    """As where v1 has them all: then that is to be asked."""
    proc, _ = proc_of_v2(tmp_path, controllers="", procs="")
    assert open_limit_groups("v2", proc=proc) is None


def test_v2_hands_its_controllers_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the spawner's group, and from that to those of jobs."""
    monkeypatch.setattr("sandd._core.processes.control_groups.SYSTEMD", str(tmp_path / "none"))
    proc, group = proc_of_v2(tmp_path, controllers="cpu io memory pids", procs="")
    wanted = "+memory +pids +cpu"

    monkeypatch.setattr("sandd._core.processes.control_groups.make_locked", make_unlocked)
    assert open_limit_groups("v2", proc=proc) is not None
    assert (group / "cgroup.subtree_control").read_text() == wanted
    assert (group / "sandd-1-11111111/cgroup.subtree_control").read_text() == wanted


def test_below_systemd_the_mark_is_on_the_units_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not on the spawner's own below that, in which it is by then."""
    monkeypatch.setattr("sandd._core.processes.control_groups.SYSTEMD", str(tmp_path))
    proc, group = proc_of_v2(
        tmp_path, controllers="memory pids", procs="", place="/unit/sandd-1-00000000"
    )
    unit = group.parent
    for name, text in (("controllers", "memory pids"), ("subtree_control", ""), ("procs", "")):
        (unit / f"cgroup.{name}").write_text(text)

    def mark(path: str, name: str) -> bytes:
        if path == str(unit) and name == "user.delegate":
            return b"1"
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), path)

    monkeypatch.setattr(os, "getxattr", mark)

    monkeypatch.setattr("sandd._core.processes.control_groups.make_locked", make_unlocked)
    assert open_limit_groups("v2", proc=proc) is not None
    assert (unit / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_groups_can_be_switched_off() -> None:
    """By the same word as the spawner's own."""
    assert open_limit_groups("off") is None


def test_the_most_that_can_be_said_of_processes_is_said(tmp_path: Path) -> None:
    """The kernel takes no more, though a cell comes on top."""
    group = make_v2(tmp_path).make(1, with_cpu=False)
    touch(tmp_path / "1", "pids.max")
    group.hold(ProcessLimits(processes=1 << 22), extra=1)
    assert files_of(tmp_path / "1") == {"pids.max": str(1 << 22)}


def test_a_second_look_at_a_group_is_a_new_one() -> None:
    """Of v1 a descriptor that stays open tells for a second who was there before."""
    parent = own_directory("v1", controller="pids")
    if parent is None or not os.access(parent, os.W_OK):
        pytest.skip("needs control groups of v1 that are ours")
    root = f"{parent}/looked-at-{os.getpid()}"
    os.mkdir(root)
    try:
        group = GroupsV1({"pids": root}).make(1, with_cpu=False)
        assert group.pids() == []
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, preexec_fn=group.enter) as process:
            assert group.pids() == [process.pid]
        group.remove()
    finally:
        ControlGroup(root).remove()


def test_a_daemon_that_was_moved_down_finds_its_place_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next spawner is where it is, and has its groups where the first had them."""
    proc, group = proc_of_v2(tmp_path, controllers="cpu memory pids", procs="")
    assert own_directory("v2", proc) == str(group)
    (tmp_path / "proc/cgroup").write_text("0::/ours/sandd-daemon\n")
    assert own_directory("v2", proc) == str(group)


@pytest.mark.parametrize(
    ("version", "usage", "order"),
    [
        ("v1", "memory/1/memory.usage_in_bytes", "memory.force_empty"),
        ("v2", "1/memory.current", "memory.reclaim"),
    ],
)
def test_what_the_machine_has_cached_is_not_thrown_away(
    version: str, usage: str, order: str, tmp_path: Path
) -> None:
    """A little is reclaimed, so that the group can be used again; of a job that has read much, nothing."""
    groups: LimitGroups = make_v1(tmp_path) if version == "v1" else make_v2(tmp_path)
    group = groups.make(1, with_cpu=False)
    held = tmp_path / usage
    touch(held.parent, held.name, order)
    held.write_text(str(5 << 30))
    assert not group.is_clean()
    assert files_of(held.parent)[order] == ""
    held.write_text(f"{20 << 20}" + "\n" * 10)
    assert not group.is_clean()
    assert files_of(held.parent)[order] == ("0" if version == "v1" else str(20 << 20))
    group.remove()
