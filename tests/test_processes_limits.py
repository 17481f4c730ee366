"""Jobs held to limits, by the kernel's groups where there are some and by a look at their processes, with real ones."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from process_tools import PATIENCE, PYTHON, is_alive, linux_only, request, shell, until

if sys.platform == "win32":
    pytest.skip("POSIX process trees", allow_module_level=True)

from sandd import Limits
from sandd._core._errors import SpawnFailed
from sandd._core.processes import ProcessHost, control_groups, open_process_host
from sandd._core.processes.control_groups import read
from sandd._core.processes.limit_groups import open_limit_groups
from sandd._core.processes.posix import PosixProcessHost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sandd._core.processes import Child, SpawnRequest

pytestmark = linux_only

MIB = 1 << 20


def _has_groups() -> bool:
    groups = open_limit_groups()
    if groups is None:
        return False
    held = groups.controllers
    groups.remove()
    return {"memory", "pids", "cpuacct"} <= held


needs_groups = pytest.mark.skipif(
    not (sys.platform == "linux" and _has_groups()),
    reason="needs control groups with the controllers memory and pids",
)
DRIVERS = [pytest.param("", marks=needs_groups, id="groups"), pytest.param("off", id="watchdog")]


@contextlib.asynccontextmanager
async def opened(driver: str = "", **options: Limits) -> AsyncIterator[ProcessHost]:
    """A process host whose limits are held by that."""
    before = os.environ.get(control_groups.CHOICE_VARIABLE)
    os.environ[control_groups.CHOICE_VARIABLE] = driver
    try:
        with trio.fail_after(3 * PATIENCE):
            async with open_process_host(**options) as host:
                yield host
    finally:
        del os.environ[control_groups.CHOICE_VARIABLE]
        if before is not None:
            os.environ[control_groups.CHOICE_VARIABLE] = before


async def ended(host: ProcessHost, asked: SpawnRequest) -> tuple[Child, bytes]:
    """The job, when nothing is left of it, and what it has written to both its outputs."""
    child = await host.spawn(asked)
    output = b""
    while data := await child.stdout.receive_some():
        output += data
    await child.wait_exited()
    await child.release()
    child.close_pipes()
    return child, output


def left_of(paths: tuple[str, ...]) -> list[str]:
    """Those directories that are there."""
    return [path for path in paths if os.path.exists(path)]


def hog(megabytes: int) -> SpawnRequest:
    """A shell that hides how its child ends, which wants that much memory, and keeps it."""
    text = (
        f"{PYTHON} -S -c 'import time; x = b\"x\" * ({megabytes} << 20); time.sleep(100)'; exit 0"
    )
    return shell(text, stdin=False, merge_stderr=True, limits=Limits(memory_bytes=64 * MIB))


def job(text: str, limits: Limits, **options: bool) -> SpawnRequest:
    """A shell script that is held to limits."""
    return shell(text, stdin=False, merge_stderr=True, limits=limits, **options)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_limit_is_told_by_its_counter(driver: str) -> None:
    """Of memory behind a shell that exits with 0, of processes, of processor time: each by its name."""
    async with opened(driver) as host:
        child, _ = await ended(host, hog(200))
        assert child.limit == "memory_bytes"
        child, _ = await ended(
            host, job("for i in 1 2 3 4 5 6 7 8; do sleep 100 & done; wait", Limits(processes=4))
        )
        assert child.limit == "processes"
        assert child.ended is not None
        child, _ = await ended(host, job("while :; do :; done", Limits(cpu_seconds=0.2)))
        assert child.limit == "cpu_seconds"
        assert child.used.cpu_seconds >= 0.2


@pytest.mark.parametrize("driver", DRIVERS)
async def test_what_the_killed_have_used_counts(driver: str) -> None:
    """Of those, too, that nobody in the job has waited for."""
    async with opened(driver) as host:
        burners = "while :; do :; done & while :; do :; done"
        child, _ = await ended(host, job(burners, Limits(cpu_seconds=0.4)))
        assert child.limit == "cpu_seconds"
        assert child.used.cpu_seconds >= 0.4
        child, _ = await ended(host, hog(200))
        assert child.limit == "memory_bytes"
        assert child.used.max_rss_bytes > 32 * MIB


@pytest.mark.parametrize("driver", DRIVERS)
async def test_who_stays_within_its_limits_is_left_alone(driver: str) -> None:
    """And told what it has used, as is a job without limits."""
    limits = Limits(memory_bytes=512 * MIB, processes=50, cpu_seconds=50.0)
    async with opened(driver) as host:
        for each in (limits, Limits()):
            child, output = await ended(host, job("echo $(echo hi)", each))
            assert (child.limit, output) == ("", b"hi\n")
            assert 0 < child.used.cpu_seconds < 50
            assert child.used.max_rss_bytes > MIB


@pytest.mark.parametrize("driver", DRIVERS)
async def test_limits_of_a_process_are_its_own_from_the_start(driver: str) -> None:
    """Descriptors, the size of a file and the priority; the signal for a file that is too large tells its limit."""
    async with opened(driver) as host:
        text = "ulimit -Hn; nice; ulimit -Hf"
        limits = Limits(open_files=40, nice=12, file_bytes=1024, processes=30)
        _, output = await ended(host, job(text, limits))
        nice = max(12, os.getpriority(os.PRIO_PROCESS, 0))  # never back to what is higher than ours
        assert output.split() == [b"40", b"%d" % nice, b"2"]
        big = request(
            *("dd", "if=/dev/zero", "of=/dev/shm/sandd-limits-test", "bs=2048", "count=1"),
            stdin=False,
            limits=limits,
        )
        try:
            child, _ = await ended(host, big)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink("/dev/shm/sandd-limits-test")
        assert child.limit == "file_bytes"


async def test_what_can_not_be_held_is_told_or_not_started() -> None:
    """Without groups nothing holds a share of processors: it is said at the start, or is a reason for none."""
    async with opened("off") as host:
        assert await host.unheld(Limits(cpus=0.5, processes=3, wall=1.0)) == ("cpus",)
        assert await host.unheld_total(Limits(memory_bytes=MIB)) == ("memory_bytes",)
        child, _ = await ended(host, job("true", Limits(cpus=0.5, processes=9)))
        assert child.unheld == ("cpus",)
        with pytest.raises(SpawnFailed, match="can't be held to cpus"):
            await host.spawn(job("true", Limits(cpus=0.5), must_hold=True))


async def test_what_can_be_held_is_known_however_late_the_spawner_comes_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine where much is starting is no reason not to start, as a daemon with limits would have it."""
    slow = tmp_path / "slow"
    slow.write_text(f'#!/bin/sh\nsleep 0.3\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr("sandd._core.processes.posix.WAIT_SECONDS", 0.01)
    async with opened("off") as host:
        assert await host.unheld(Limits(cpus=0.5, processes=3)) == ("cpus",)
    async with opened("off") as host:
        assert await host.unheld_total(Limits(memory_bytes=MIB)) == ("memory_bytes",)


@needs_groups
async def test_errors_of_a_start_are_the_same_with_limits() -> None:
    """What isn't there, what can't be executed, and where nobody can be; a job after them starts as ever."""
    limits = Limits(processes=30)
    async with opened() as host:
        for argv, options in (
            (("/nonesuch",), {}),
            (("nonesuch",), {}),
            (("/etc/passwd",), {}),
            (("true",), {"cwd": b"/nonesuch"}),
            (("true",), {"cwd": b"/etc/passwd"}),
        ):
            errors = []
            for each in (Limits(), limits):
                with pytest.raises(SpawnFailed) as caught:
                    await host.spawn(request(*argv, limits=each, **options))
                errors.append((caught.value.errno, caught.value.filename))
            assert errors[0] == errors[1]
        _, output = await ended(host, job("pwd", limits))
        assert output.strip() == os.fsencode(os.getcwd())


@needs_groups
async def test_a_job_gets_the_same_with_limits_and_without() -> None:
    """Its descriptors, signals, session and directory."""
    # But for signals 32 and 33, which only posix_spawn(3) leaves ignored: see `launcher`.
    look = (
        "ls /proc/self/fd; grep -E 'Sig(Blk|Cgt)' /proc/self/status; "
        "sed -n 's/^SigIgn:.*\\(.......\\)$/\\1/p' /proc/self/status; pwd; cat /proc/self/oom_score_adj"
    )
    async with opened() as host:
        outputs = [
            (await ended(host, shell(look, stdin=False, cwd=b"/usr", limits=each)))[1]
            for each in (Limits(), Limits(processes=30), Limits())
        ]
        assert outputs[0] == outputs[1] == outputs[2]


@needs_groups
async def test_one_group_serves_one_job_after_the_other() -> None:
    """Each held to its own limits, and none by what was counted of another."""
    async with opened() as host:
        for _ in range(2):
            child, _ = await ended(host, hog(200))
            assert child.limit == "memory_bytes"
            child, _ = await ended(host, job("true", Limits(memory_bytes=256 * MIB, processes=9)))
            assert child.limit == ""
        text = "for i in 1 2 3 4 5; do sleep 0 & done; wait; echo ok"
        _, output = await ended(host, job(text, Limits(memory_bytes=256 * MIB)))
        assert output == b"ok\n"


@needs_groups
async def test_a_cell_keeps_nothing_of_its_jobs() -> None:
    """It has as many files open after some of them as after the first. (A slow machine has a second one by then.)"""
    async with opened() as host:
        assert isinstance(host, PosixProcessHost)
        counts = set()
        for _ in range(6):
            _, output = await ended(host, job("cat /proc/self/cgroup", Limits(processes=9)))
            place = next(line for line in output.decode().splitlines() if "sandd-" in line)
            _, name, number = place.rsplit("/", 2)
            roots = (await host.keeper.wait_ready()).limit_groups
            pids = read(f"{next(each for each in roots if name in each)}/{number}/cgroup.procs")
            counts.add((place, *(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids.split())))
        assert len(counts) == len({place for place, *_ in counts}) <= 2


@needs_groups
async def test_more_processors_than_all_jobs_have_are_no_error() -> None:
    """The least counts, also where the kernel would rather not be asked."""
    async with opened(total=Limits(cpus=1.0)) as host:
        child, output = await ended(host, job("echo ok", Limits(cpus=2.0)))
        assert (output, child.limit) == (b"ok\n", "")


@needs_groups
async def test_what_a_job_leaves_in_tmpfs_is_not_the_next_ones() -> None:
    """It counts as memory of its group for as long as it is there: that group is nobody's any more."""
    limits = Limits(memory_bytes=64 * MIB)
    name = f"/dev/shm/sandd-limits-{os.getpid()}"
    async with opened() as host:
        try:
            await ended(host, job(f"head -c 50000000 /dev/zero > {name}", limits))
            child, _ = await ended(host, job(f"{PYTHON} -S -c 'x = b\"x\" * (40 << 20)'", limits))
            assert child.limit == ""
        finally:
            os.unlink(name)


@needs_groups
async def test_many_jobs_with_limits_run_at_once() -> None:
    """Each in a group of its own."""
    async with opened() as host, trio.open_nursery() as nursery:
        outputs = []

        async def one(number: int) -> None:
            child, output = await ended(host, job(f"sleep 0.1; echo {number}", Limits(processes=9)))
            assert child.limit == ""
            outputs.append(int(output))

        for number in range(8):
            nursery.start_soon(one, number)
    assert sorted(outputs) == list(range(8))


@needs_groups
async def test_all_jobs_together_are_held_to_a_total() -> None:
    """Also those that have no limits of their own."""
    async with opened(total=Limits(processes=12)) as host:
        assert await host.unheld_total(Limits(processes=12, memory_bytes=MIB)) == ()
        text = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do sleep 100 & done; echo $?; wait"
        _, output = await ended(host, job(f"({text}) 2>&1; kill 0", Limits()))
        assert b"fork" in output


@needs_groups
async def test_groups_end_with_the_host() -> None:
    """Nothing is left in any hierarchy."""
    async with opened() as host:
        await ended(host, job("true", Limits(processes=9)))
        assert isinstance(host, PosixProcessHost)
        ready = await host.keeper.wait_ready()
        assert left_of(ready.limit_groups)
    assert not left_of(ready.limit_groups)


@needs_groups
async def test_jobs_in_groups_end_with_their_spawner() -> None:
    """Killed as it is, with its cells; the next one has groups of its own."""
    async with opened() as host:
        assert isinstance(host, PosixProcessHost)
        child = await host.spawn(job("setsid sleep 100 & sleep 100", Limits(processes=9)))
        first = await host.keeper.wait_ready()
        assert host.keeper.link is not None
        os.kill(host.keeper.link.process.pid, signal.SIGKILL)
        with trio.fail_after(PATIENCE):
            await child.release() if child.has_exited else await child.kill(grace=0)
            child.close_pipes()
        await until(lambda: not is_alive(child.pid))
        await until(lambda: not left_of(first.limit_groups))
        child, _ = await ended(host, job("true", Limits(processes=9)))
        assert child.limit == ""


@needs_groups
@pytest.mark.parametrize("moment", ["at once", "running"])
async def test_a_cancelled_start_leaves_nothing(moment: str) -> None:
    """Neither the job nor its group is lost."""
    async with opened() as host:
        with trio.CancelScope() as scope:
            if moment == "at once":
                scope.cancel()
            child = await host.spawn(job("sleep 100", Limits(processes=9)))
            scope.cancel()
            try:
                await child.wait_exited()
            finally:
                with trio.CancelScope(shield=True):
                    await child.kill(grace=0)
                    child.close_pipes()
        child, output = await ended(host, job("echo ok", Limits(processes=9)))
        assert output == b"ok\n"
