"""Whoever dies - the spawner, the daemon, or just the host's block - takes every job along, at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from process_tools import (
    PATIENCE,
    PYTHON,
    Outcome,
    alive,
    at_once,
    close_pipes,
    is_alive,
    linux_only,
    read_line,
    run,
    shell,
    spawner_pids,
    the_spawner,
    until,
    until_sync,
)

from sandd._core._errors import SpawnFailed
from sandd._core.processes import (
    Child,
    ChildLost,
    ExitStatus,
    ProcessHost,
    control_groups,
    open_process_host,
    process_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX process trees"),
    linux_only,
]

TREES = [
    "setsid sleep 1000 & sleep 1000 & echo ready; read line",
    "(setsid sh -c 'sleep 1000 & sleep 1000 &' &); echo ready; read line",
    "(env -i setsid sh -c 'sleep 1000 & sleep 1000 &' &); echo ready; read line",
    "trap '' TERM INT HUP; sleep 1000 & echo ready; read line",
    "sleep 1000 & kill -STOP $!; echo ready; read line",
]


async def start_trees(host: ProcessHost) -> tuple[list[Child], list[bytes], list[int]]:
    """Children with trees of all kinds, their markers, and the pids of all there is."""
    children, markers = [], []
    spawner = await the_spawner()
    for script in TREES:
        wanted = shell(script)
        child = await host.spawn(wanted)
        assert await read_line(child.stdout) == b"ready"
        children.append(child)
        markers.append(wanted.marker)
    await until(lambda: len(below(spawner)) >= 13)
    return children, markers, below(spawner)


def below(ancestor: int) -> list[int]:
    """All living descendants, marked or not."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] != b"Z":
                parents[int(name)] = int(fields[1])
    found, todo = [], [ancestor]
    while todo:
        above = todo.pop()
        children = [pid for pid, parent in parents.items() if parent == above]
        found += children
        todo += children
    return found


# ---- the spawner dies -----------------------------------------------------------------------------


async def test_death_of_the_spawner_kills_every_job_and_loses_each_child() -> None:
    """All trees are dead within a second, every waiter hears ChildLost, and the streams just end."""
    async with open_process_host() as host:
        children, markers, pids = await start_trees(host)
        spawner = await the_spawner()
        with at_once(), trio.fail_after(PATIENCE):
            os.kill(spawner, signal.SIGKILL)
            for child in children:
                with pytest.raises(ChildLost, match=f"process {child.pid} "):
                    await child.wait_exited()
        assert [pid for pid in pids if is_alive(pid)] == []
        assert [alive(marker) for marker in markers] == [[]] * len(markers)
        for child in children:
            assert await child.stdout.receive_some() == b""
            await close_pipes(child)


async def test_death_of_the_spawner_is_logged_when_everything_is_dead() -> None:
    """A line may take its time, such as the first one, or one into a pipe that is full: no kill waits for it."""
    told: list[tuple[str, list[int], set[bool]]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            alive = [pid for pid in pids if is_alive(pid)]
            told.append((record.msg["event"], alive, {child.has_exited for child in children}))

    handler, logger = Handler(), logging.getLogger("sandd.processes")
    logger.addHandler(handler)
    try:
        async with open_process_host() as host:
            children, _, pids = await start_trees(host)
            os.kill(await the_spawner(), signal.SIGKILL)
            for child in children:
                with pytest.raises(ChildLost):
                    await child.wait_exited()
                await close_pipes(child)
            await until(lambda: len(told) == 2)
    finally:
        logger.removeHandler(handler)
    assert told == [("jobs_lost", [], {True}), ("spawner_died", [], {True})]


async def test_next_spawner_takes_over() -> None:
    """After the spawner's death spawns work as before, also those that were waiting for it."""
    async with open_process_host() as host:
        for _ in range(3):
            await run(host, shell("true"))  # or the spawner may not be up yet
            spawner = await the_spawner()
            os.kill(spawner, signal.SIGKILL)
            with trio.fail_after(PATIENCE):
                assert (await run_again(host)).stdout == b"fine\n"
            assert spawner_pids() != [spawner]


async def run_again(host: ProcessHost) -> Outcome:
    """Run a command; once more if the spawner died under it."""
    try:
        return await run(host, shell("echo fine"))
    except ChildLost:
        return await run(host, shell("echo fine"))


async def test_lost_child_answers_everything_at_once() -> None:
    """kill, release and signal of a lost child do nothing and wait for nothing."""
    async with open_process_host() as host:
        child = await host.spawn(shell("read line"))
        spawner = await the_spawner()
        os.kill(spawner, signal.SIGKILL)
        child.signal(signal.SIGTERM)
        with at_once(), trio.fail_after(PATIENCE):
            await child.kill(grace=100)
            await child.release()
        with pytest.raises(ChildLost):
            await child.wait_exited()
        await close_pipes(child)


async def test_status_known_before_the_spawner_died_stays_known() -> None:
    """A child that had exited keeps its status, and what it left behind is dead."""
    wanted = shell("setsid sleep 1000 & exit 3")
    async with open_process_host() as host:
        child = await host.spawn(wanted)
        assert await child.wait_exited() == ExitStatus(3, None)
        spawner = await the_spawner()
        os.kill(spawner, signal.SIGKILL)
        with at_once(), trio.fail_after(PATIENCE):
            await child.release()
        assert await child.wait_exited() == ExitStatus(3, None)
        assert alive(wanted.marker) == []
        await close_pipes(child)


async def test_spawner_stopped_in_the_middle_of_a_spawn_and_killed_loses_that_spawn() -> None:
    """A spawn whose spawner dies under it is ChildLost - it may have run - and nothing lives."""
    wanted = shell("sleep 1000")
    async with open_process_host() as host:
        await run(host, shell("true"))
        spawner = await the_spawner()
        os.kill(spawner, signal.SIGSTOP)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:

                async def spawn() -> None:
                    with pytest.raises(ChildLost, match="was starting"):
                        await host.spawn(wanted)

                nursery.start_soon(spawn)
                await trio.testing.wait_all_tasks_blocked()
                os.kill(spawner, signal.SIGKILL)
        assert alive(wanted.marker) == []


async def test_terminal_and_service_manager_signals_do_not_reach_the_spawner() -> None:
    """Ctrl-C and a SIGTERM to all processes leave it running: the daemon decides."""
    async with open_process_host() as host:
        await run(host, shell("true"))
        spawner = await the_spawner()
        assert os.getsid(spawner) == spawner
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT:
            os.kill(spawner, number)
        assert (await run(host, shell("echo fine"))).stdout == b"fine\n"
        assert spawner_pids() == [spawner]


def start_sleep(*, start_new_session: bool = False) -> subprocess.Popen[bytes]:
    """A child of the test's own."""
    return subprocess.Popen(["sleep", "1000"], start_new_session=start_new_session)


async def test_processes_of_the_daemons_own_survive_the_spawners_death() -> None:
    """The daemon's program may have children; only the spawner's are killed."""
    before = start_sleep(start_new_session=True)
    async with open_process_host() as host:
        during = start_sleep()
        child = await host.spawn(shell("read line"))
        spawner = await the_spawner()
        os.kill(spawner, signal.SIGKILL)
        with pytest.raises(ChildLost):
            await child.wait_exited()
        await close_pipes(child)
        assert (before.poll(), during.poll()) == (None, None)
    for process in before, during:
        process.kill()
        process.wait()


async def test_two_hosts_in_one_process_do_not_disturb_each_other() -> None:
    """The death of one spawner leaves the other's jobs, and the other spawner, alone."""
    async with open_process_host() as first:
        first_spawner = await the_spawner()
        async with open_process_host() as second:
            lost = await first.spawn(shell("read line"))
            kept = await second.spawn(shell("setsid sleep 1000 & read line"))
            os.kill(first_spawner, signal.SIGKILL)
            with pytest.raises(ChildLost):
                await lost.wait_exited()
            assert is_alive(kept.pid)
            assert (await run(first, shell("echo fine"))).stdout == b"fine\n"
            await kept.kill(grace=0)
            for child in lost, kept:
                await close_pipes(child)


async def test_spawner_that_does_not_come_up_fails_spawns_with_nothing_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A spawn is refused (EAGAIN) when the spawner dies before it served anybody; later ones work."""
    good = sys.executable
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    monkeypatch.setattr("sandd._core.processes.posix.WAIT_SECONDS", 0.3)
    async with open_process_host() as host:
        with trio.fail_after(PATIENCE):
            with pytest.raises(SpawnFailed, match="does not come up") as caught:
                await host.spawn(shell("echo ran"))
            assert caught.value.errno == 11
            monkeypatch.setattr(sys, "executable", good)
            while True:
                try:
                    outcome = await run(host, shell("echo fine"))
                except SpawnFailed:
                    continue
                break
            assert outcome.stdout == b"fine\n"


async def test_host_that_cannot_start_a_spawner_is_not_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Opening fails with the interpreter's name, and leaves nothing behind."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(SpawnFailed) as caught:
        async with open_process_host():
            pytest.fail("opened")
    assert caught.value.filename == "/no/such/python"


async def test_spawner_that_cannot_be_started_again_is_tried_until_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it can't, spawns wait; once it can, they go through."""
    async with open_process_host() as host:
        assert (await run(host, shell("echo fine"))).stdout == b"fine\n"
        good = sys.executable
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        spawner = await the_spawner()
        os.kill(spawner, signal.SIGKILL)
        await until(lambda: not is_alive(spawner))
        outcomes = []

        async def run_when_possible() -> None:
            outcomes.append(await run_again(host))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_when_possible)
            await trio.sleep(0.3)
            assert outcomes == []
            monkeypatch.setattr(sys, "executable", good)
        assert outcomes[0].stdout == b"fine\n"


# ---- the daemon dies ------------------------------------------------------------------------------

DAEMON = """
import os, sys, trio
from sandd._core.processes import SpawnRequest, open_process_host
marker = sys.argv[1].encode()
async def main():
    async with open_process_host() as host:
        for script in sys.argv[2:]:
            argv = (b"/bin/sh", b"-c", script.encode())
            env = {**os.environb, b"SANDD_JOB": marker}
            child = await host.spawn(SpawnRequest(argv=argv, env=env, marker=marker))
            print((await child.stdout.receive_some()).decode(), end="", flush=True)
        print("all up", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.fixture
def daemon() -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """A daemon in a process of its own, with all kinds of trees, and their marker."""
    marker = os.urandom(8).hex()
    process = subprocess.Popen(
        [PYTHON, "-c", DAEMON, marker, *TREES], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) != b"all up\n":
        assert line == b"ready\n", process.communicate()
    yield process, marker.encode()
    if process.poll() is None:
        process.kill()
    process.communicate()


def groups_of(spawner: int) -> list[str]:
    """The control groups that a spawner made and that are still there, wherever it may make any."""
    places = [control_groups.own_directory(version) for version in ("v2", "v1")]
    return [
        name
        for place in places
        if place is not None and os.path.isdir(place)
        for name in os.listdir(place)
        if name.startswith(f"{control_groups.PREFIX}{spawner}-")
    ]


@pytest.mark.parametrize("name", ["KILL", "SEGV"])
def test_death_of_the_daemon_kills_every_job(
    daemon: tuple[subprocess.Popen[bytes], bytes], name: str
) -> None:
    """However it dies, every process of every job is dead within a second, and so is the spawner."""
    process, marker = daemon
    until_sync(lambda: len(below(process.pid)) >= 14)
    (spawner,) = spawner_pids(of=process.pid)
    pids = below(process.pid)
    with at_once():
        process.send_signal(signal.Signals[f"SIG{name}"])
        until_sync(lambda: not any(is_alive(pid) for pid in pids))
        assert alive(marker) == []
    assert groups_of(spawner) == []


DYING = """
import ctypes, os, socket, subprocess, sys, threading, time

def rest():
    ours, theirs = socket.socketpair()
    command = "import sys; from sandd._core.processes.spawner import main; main(*map(int, sys.argv[1:]), None)"
    numbers = str(theirs.fileno()), str(os.getpid())
    spawner = subprocess.Popen([sys.executable, "-c", command, *numbers], pass_fds=[theirs.fileno()])
    theirs.close()
    ours.recv(1 << 16)
    print(spawner.pid, flush=True)
    sys.stdin.readline()
    ours.close()
    time.sleep(1000)

threading.Thread(target=rest).start()
ctypes.CDLL(None).syscall(60, 0)  # exit(2): this thread only
"""


def test_spawner_of_a_daemon_that_takes_long_to_die_leaves_no_control_group() -> None:
    """Its end of the socket has gone, and it is still the parent; but it removes nothing any more."""
    # Between the two, a process that is killed stays for as long as others have the processors. One whose main thread
    # alone has died is in the same state to whoever looks at it, for as long as is wanted.
    process = subprocess.Popen([PYTHON, "-c", DYING], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            spawner = int(process.stdout.readline())
            if not groups_of(spawner):
                pytest.skip("there are no control groups to be had here")
            until_sync(lambda: process_table.is_exiting(process.pid))
            process.stdin.write(b"\n")
            process.stdin.flush()
            until_sync(lambda: not is_alive(spawner))
            assert groups_of(spawner) == []
        finally:
            process.kill()


def test_death_of_the_daemon_is_noticed_though_a_fork_of_it_keeps_its_socket(
    daemon: tuple[subprocess.Popen[bytes], bytes],
) -> None:
    """The spawner watches the process, not only the socket."""
    process, _ = daemon
    (spawner,) = spawner_pids(of=process.pid)
    # pidfd_getfd(2): what a fork that the daemon's program made would hold, its end of that socket among it.
    import ctypes

    with contextlib.ExitStack() as stack:
        pidfd = os.pidfd_open(process.pid)
        stack.callback(os.close, pidfd)
        copies = 0
        for name in os.listdir(f"/proc/{process.pid}/fd"):
            if os.readlink(f"/proc/{process.pid}/fd/{name}").startswith("socket:"):
                copy = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, int(name), 0)
                assert copy >= 0, os.strerror(ctypes.get_errno())
                stack.callback(os.close, copy)
                copies += 1
        assert copies
        pids = below(process.pid)
        assert spawner in pids
        with at_once():
            process.kill()
            until_sync(lambda: not any(is_alive(pid) for pid in pids))


def test_stopped_daemon_loses_nothing(daemon: tuple[subprocess.Popen[bytes], bytes]) -> None:
    """SIGSTOP of the daemon ends no job."""
    process, _ = daemon

    def sleeping() -> set[int]:
        return {pid for pid in below(process.pid) if _name(pid) == "sleep"}

    # The shells between them come and go, and one may have been stopped before it was a sleep.
    until_sync(lambda: len(sleeping()) >= 7)
    before = sleeping()
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.1)
    assert sleeping() >= before


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


# ---- the host is left -----------------------------------------------------------------------------


async def test_leaving_the_host_kills_and_reaps_every_tree() -> None:
    """After the block there is no process of any job, and no spawner."""
    async with open_process_host() as host:
        children, markers, pids = await start_trees(host)
    assert [pid for pid in pids if is_alive(pid)] == []
    assert [alive(marker) for marker in markers] == [[]] * len(markers)
    assert spawner_pids() == []
    for child in children:
        with pytest.raises(ChildLost):
            await child.wait_exited()
        await close_pipes(child)
    with pytest.raises(trio.ClosedResourceError):
        await host.spawn(shell("echo ran"))


async def test_leaving_the_host_under_cancellation_is_as_thorough() -> None:
    """Cancelled from outside, it still kills everything, within bounded time."""
    with trio.CancelScope() as scope:
        async with open_process_host() as host:
            children, _, pids = await start_trees(host)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert [pid for pid in pids if is_alive(pid)] == []
    for child in children:
        await close_pipes(child)


async def test_exception_in_the_body_comes_out_as_itself() -> None:
    """No exception group around it, no context, also when it is a group itself."""
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with open_process_host():
            raise error
    assert caught.value is error
    assert error.__context__ is None
    group = ExceptionGroup("mine", [ValueError(1), KeyError(2)])
    with pytest.raises(ExceptionGroup) as caught_group:
        async with open_process_host():
            raise group
    assert caught_group.value is group


async def test_a_mistake_of_ours_surfaces_and_leaves_no_process() -> None:
    """A crash of the task that hears of the jobs cancels the body, and comes out as itself when everything is dead."""
    error = RuntimeError("a mistake of ours")
    children: list[Child] = []
    pids: list[int] = []

    def crash(_: bool) -> None:
        raise error

    with trio.fail_after(PATIENCE), pytest.raises(RuntimeError) as caught:  # noqa: PT012 - the block is what is tested
        async with open_process_host() as host:
            started, _, pids = await start_trees(host)
            children += started
            child = host.begin(shell("sleep 1000"), crash)
            assert child is not None
            children.append(child)
            await trio.sleep_forever()
    assert caught.value is error
    assert [pid for pid in pids if is_alive(pid)] == []
    assert spawner_pids() == []
    for child in children:
        with pytest.raises(ChildLost):
            await child.wait_exited()
        await close_pipes(child)


async def test_a_mistake_of_ours_is_told_beside_the_bodys_own() -> None:
    """The body's exception is what comes out; the crash beside it is a note on it."""
    error = KeyError("mine")

    def crash(_: bool) -> None:
        raise RuntimeError("a mistake of ours")

    with trio.fail_after(PATIENCE), pytest.raises(KeyError) as caught:  # noqa: PT012 - the block is what is tested
        async with open_process_host() as host:
            child = host.begin(shell("true"), crash)
            assert child is not None
            try:
                await trio.sleep_forever()
            finally:
                child.close_pipes()
                raise error
    assert caught.value is error
    assert error.__notes__ == ["beside it, this failed: RuntimeError('a mistake of ours')"]


async def test_leaving_the_host_does_not_wait_for_a_hung_spawner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stopped spawner is killed after a while, and what was below it is swept."""
    monkeypatch.setattr("sandd._core.processes.spawner_keeper.LEAVE_SECONDS", 0.2)
    async with open_process_host() as host:
        children, _, pids = await start_trees(host)
        spawner = await the_spawner()
        os.kill(spawner, signal.SIGSTOP)
    assert [pid for pid in pids if is_alive(pid)] == []
    for child in children:
        await close_pipes(child)


async def test_subreaper_flag_is_given_back() -> None:
    """A program that opens a host and leaves it is what it was before."""
    from sandd._core.processes.process_table import set_subreaper

    assert set_subreaper(False) is False
    async with open_process_host(), open_process_host():
        pass
    assert set_subreaper(False) is False


async def test_reprs_tell_the_state() -> None:
    """A person with a debugger sees what is going on."""
    async with open_process_host() as host:
        child = await host.spawn(shell("sleep 1000 & read line"))
        assert repr(child) == f"<PosixChild {child.pid}, running>"
        spawner = await the_spawner()
        expected = f"<SpawnerLink to process {spawner}, 0 bytes to send>"
        assert repr(host) == f"<PosixProcessHost with 1 children, <SpawnerKeeper with {expected}>>"
        assert child.stdin is not None
        await child.stdin.aclose()
        await child.wait_exited()
        assert repr(child).endswith(", ended by ExitStatus(code=1, signal=None)>")
        await child.release()
        assert repr(child).endswith(", ended by ExitStatus(code=1, signal=None), gone>")
        child.close_pipes()
        lost = await host.spawn(shell("read line"))
        os.kill(spawner, signal.SIGKILL)
        await lost.kill(grace=0)
        assert repr(lost).endswith(", lost>")
        lost.close_pipes()
