"""Ending a process tree: asked first, then killed, whatever it does to get away; and nothing else."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

import pytest
import trio
from process_tools import (
    PATIENCE,
    PYTHON,
    alive,
    close_pipes,
    finish,
    is_alive,
    linux_only,
    read_line,
    request,
    run,
    shell,
    spawner_pids,
    until,
)

from sandd._core.processes import Child, ExitStatus, open_process_host, spawner_link
from sandd._core.processes.process_table import children_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX process trees")

ESCAPES = {
    "background child": "sleep 1000 & echo ready; read line",
    "setsid": "setsid sleep 1000 & echo ready; read line",
    "own group": f"{PYTHON} -c 'import os, time; os.setpgid(0, 0); time.sleep(1000)' & "
    "echo ready; read line",
    "double fork": "(setsid sh -c 'sleep 1000 & sleep 1000 &' &); echo ready; read line",
    "double fork, no marker": "(env -i setsid sh -c 'sleep 1000 & sleep 1000 &' &);"
    "echo ready; read line",
    "leader gone": "(setsid sleep 1000 &); sleep 1000 & echo ready",
    "deep": "setsid sh -c 'setsid sh -c \"setsid sleep 1000; true\"; true' & echo ready; read line",
    "stopped": "sleep 1000 & kill -STOP $!; echo ready; read line",
    "TERM ignored": "trap '' TERM; setsid sleep 1000 & echo ready; read line; read line",
}
escapes = pytest.mark.parametrize("script", ESCAPES.values(), ids=ESCAPES.keys())


# ---- kill -----------------------------------------------------------------------------------------


@escapes
async def test_kill_leaves_nothing_of_the_tree(script: str) -> None:
    """After kill() returns nobody lives, wherever in the tree, and the real status is told."""
    wanted = shell(script)
    async with open_process_host() as host:
        child = await host.spawn(wanted)
        assert await read_line(child.stdout) == b"ready"
        with trio.fail_after(PATIENCE):
            await child.kill(grace=0.1)
        assert alive(wanted.marker) == []
        status = await child.wait_exited()
        assert status.signal in (signal.SIGTERM, signal.SIGKILL) or status.code == 0
        # The pipes' ends went with the processes, also with those that carry no marker.
        assert await child.stdout.receive_some() == b""
        await child.release()
        await close_pipes(child)


async def test_kill_asks_first() -> None:
    """A program that ends on SIGTERM is not killed, and its own exit code is told at once."""
    async with open_process_host() as host:
        child = await host.spawn(shell("trap 'echo bye; exit 9' TERM; echo ready; read line"))
        assert await read_line(child.stdout) == b"ready"
        with trio.fail_after(PATIENCE):
            await child.kill(grace=60)
        assert await child.stdout.receive_some() == b"bye\n"
        assert await child.wait_exited() == ExitStatus(9, None)
        await close_pipes(child)


async def test_kill_asks_those_who_left_the_group_too() -> None:
    """SIGTERM reaches a setsid escapee, so it can clean up."""
    program = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: (print('bye'), "
        "sys.exit())); print('ready', flush=True); time.sleep(1000)"
    )
    async with open_process_host() as host:
        child = await host.spawn(shell(f'setsid {PYTHON} -c "{program}" & wait; true'))
        assert await read_line(child.stdout) == b"ready"
        with trio.fail_after(PATIENCE):
            await child.kill(grace=60)
        assert await child.stdout.receive_some() == b"bye\n"
        await close_pipes(child)


async def test_kill_reaches_a_stopped_tree_gracefully() -> None:
    """A stopped program is continued, or it could not see the request."""
    async with open_process_host() as host:
        child = await host.spawn(shell("trap 'exit 4' TERM; kill -STOP $$; true"))
        await until(lambda: b"T (stopped)" in _status(child.pid))
        with trio.fail_after(PATIENCE):
            await child.kill(grace=60)
        assert await child.wait_exited() == ExitStatus(4, None)
        await close_pipes(child)


def exists(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    return os.path.exists(f"/proc/{pid}")


def _status(pid: int) -> bytes:
    with open(f"/proc/{pid}/status", "rb") as file:
        return file.read()


async def test_kill_waits_the_grace_for_the_whole_tree() -> None:
    """The leader's exit does not cut the others' grace short; their exit does."""
    async with open_process_host() as host:
        child = await host.spawn(
            shell(
                "exec 3<&0; sh -c 'trap \"sleep 0.2; echo late; exit\" TERM; echo ready; read x' <&3 &"
                "read x"
            )
        )
        assert await read_line(child.stdout) == b"ready"
        with trio.fail_after(PATIENCE):
            await child.kill(grace=60)
        assert await child.stdout.receive_some() == b"late\n"
        await close_pipes(child)


async def test_kill_again_with_a_shorter_grace_shortens_it() -> None:
    """Of several calls the earliest deadline counts, and all return."""
    async with open_process_host() as host:
        child = await host.spawn(shell("trap '' TERM; echo ready; read line; read line"))
        assert await read_line(child.stdout) == b"ready"
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_kill, child, 1000.0)
                nursery.start_soon(_kill, child, 2000.0)
                await trio.sleep(0.05)
                assert is_alive(child.pid)
                await child.kill(grace=0.05)
        assert await child.wait_exited() == ExitStatus(None, signal.SIGKILL)
        await close_pipes(child)


async def test_kill_with_a_grace_beyond_any_timer_ends_nobody_else() -> None:
    """31 years are more than epoll can wait for; the spawner goes on, and so does every other job."""
    async with open_process_host() as host:
        stubborn = await host.spawn(shell("trap '' TERM; echo ready; read line; read line"))
        other = await host.spawn(shell("echo ready; read line"))
        for child in (stubborn, other):
            assert await read_line(child.stdout) == b"ready"
        before = spawner_pids()
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_kill, stubborn, 1e9)
                await trio.sleep(0.05)
                assert (await run(host, shell("echo later"))).stdout == b"later\n"
                assert spawner_pids() == before
                assert is_alive(stubborn.pid)
                assert is_alive(other.pid)
                await stubborn.kill(grace=0.0)
            await other.kill(grace=0.0)
        for child in (stubborn, other):
            await close_pipes(child)


async def _kill(child: Child, grace: float) -> None:
    await child.kill(grace=grace)


async def test_kill_goes_on_when_it_is_cancelled() -> None:
    """Cancelling kill() stops the waiting, not the killing."""
    async with open_process_host() as host:
        child = await host.spawn(shell("trap '' TERM; echo ready; read line; read line"))
        assert await read_line(child.stdout) == b"ready"
        with trio.move_on_after(0.02) as scope:
            await child.kill(grace=0.1)
        assert scope.cancelled_caught
        with trio.fail_after(PATIENCE):
            assert await child.wait_exited() == ExitStatus(None, signal.SIGKILL)
            await child.release()
        await close_pipes(child)


async def test_kill_is_idempotent_and_harmless_after_the_end() -> None:
    """kill, signal and release of what is gone do nothing, at once."""
    async with open_process_host() as host:
        child = await host.spawn(shell("exit 2"))
        await child.wait_exited()
        with trio.fail_after(PATIENCE):
            await child.release()
            await child.kill(grace=60)
            await child.kill(grace=0)
            await child.release(sweep=False)
        child.signal(signal.SIGTERM)
        assert await child.wait_exited() == ExitStatus(2, None)
        await close_pipes(child)


@linux_only
async def test_kill_wins_against_a_fork_storm() -> None:
    """A tree that forks all the time, in and out of sessions, is gone after the grace."""
    # Each process forks once and lives 2 ms longer than that takes: three or four in each of 13 chains.
    storm = """
import os, time
while True:
    if os.fork() == 0:
        if time.monotonic_ns() % 2:
            os.setsid()
    else:
        time.sleep(0.002)
        os._exit(0)
"""
    script = 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do $0 -c "$1" & done; echo ready; read line'
    wanted = request("/bin/sh", "-c", script, PYTHON, storm)
    async with open_process_host() as host:
        child = await host.spawn(wanted)
        assert await read_line(child.stdout) == b"ready"
        await until(lambda: len(alive(wanted.marker)) > 10)
        await trio.sleep(0.1)  # let it storm
        with trio.fail_after(PATIENCE):
            await child.kill(grace=0.05)
        assert alive(wanted.marker) == []
        await close_pipes(child)


@linux_only
@pytest.mark.parametrize("choice", ["v2", "v1", "off"])
async def test_tree_that_outruns_us_is_killed_and_its_neighbours_go_on(
    choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every round is taken for a lost race, so the group is frozen, if there is one: nobody stays so."""
    monkeypatch.setenv("SANDD_CONTROL_GROUPS", choice)
    monkeypatch.setattr(
        spawner_link,
        "_BOOT",
        spawner_link._BOOT.replace(
            "from sandd._core.processes.spawner import main",
            "from sandd._core.processes import culling\n"
            "culling.Race.is_being_lost = True\n"
            "from sandd._core.processes.spawner import main",
        ),
    )
    wanted = shell("(env -i setsid sleep 1000 &); setsid sleep 1000 & echo ready; read line")
    async with open_process_host() as host:
        child, neighbour = await host.spawn(wanted), await host.spawn(shell("read l; echo $l"))
        assert await read_line(child.stdout) == b"ready"
        with trio.fail_after(PATIENCE):
            await child.kill(grace=0)
        assert await child.stdout.receive_some() == b""
        assert alive(wanted.marker) == []
        assert neighbour.stdin is not None
        await neighbour.stdin.send_all(b"on\n")
        with trio.fail_after(PATIENCE):
            assert (await finish(neighbour)).stdout == b"on\n"
            assert (await run(host, shell("echo next"))).stdout == b"next\n"
        await close_pipes(child)


async def test_kill_touches_no_other_job() -> None:
    """A neighbour with the same kind of tree lives on."""
    script = "setsid sleep 1000 & sleep 1000 & echo ready; read line"
    victim_request, neighbour_request = shell(script), shell(script)
    async with open_process_host() as host:
        victim = await host.spawn(victim_request)
        neighbour = await host.spawn(neighbour_request)
        await read_line(victim.stdout)
        await read_line(neighbour.stdout)
        await victim.kill(grace=0)
        assert alive(victim_request.marker) == []
        # Not `==` at once: the first may be in the middle of execve(2), where it has no environment.
        await until(lambda: len(alive(neighbour_request.marker)) == 3)
        await neighbour.kill(grace=0)
        assert alive(neighbour_request.marker) == []
        for child in victim, neighbour:
            await close_pipes(child)


@linux_only
@pytest.mark.parametrize("is_asked", [True, False], ids=["kill", "sweep"])
async def test_who_hides_among_several_jobs_is_found(is_asked: bool) -> None:
    """Out of session, parent and environment, never seen before, and more than one job may have made it."""
    # The pipe's end tells: nothing else shows whose such a process is.
    hidden = f"(env -i setsid {PYTHON} -c 'import time; time.sleep(1000)' &); echo ready; read line"
    async with open_process_host() as host:
        before = await host.spawn(shell(hidden))
        victim = await host.spawn(shell(hidden))
        after = await host.spawn(shell(hidden))
        for child in before, victim, after:
            assert await read_line(child.stdout) == b"ready"
        if is_asked:
            with trio.fail_after(PATIENCE):
                await victim.kill(grace=0)
        else:
            assert victim.stdin is not None
            await victim.stdin.aclose()
            await victim.wait_exited()
            with trio.fail_after(PATIENCE):
                await victim.release()
        with trio.fail_after(PATIENCE):
            assert await victim.stdout.receive_some() == b""
        for child in before, after:
            with trio.move_on_after(0.05) as scope:
                await child.stdout.receive_some()
            assert scope.cancelled_caught, "a neighbour's process was killed"
        for child in before, victim, after:
            await child.kill(grace=0)
            await close_pipes(child)


async def test_kill_of_many_at_once_delays_no_other_spawn() -> None:
    """While 30 trees wait out their grace, which is long, a new job starts and ends as usual."""
    async with open_process_host() as host:
        children = [
            await host.spawn(shell("trap '' TERM; setsid sleep 1000 & echo ready; read l; read l"))
            for _ in range(30)
        ]
        for child in children:
            await read_line(child.stdout)
        with trio.fail_after(2 * PATIENCE):
            async with trio.open_nursery() as nursery:
                for child in children:
                    nursery.start_soon(_kill, child, 1000.0)
                with trio.fail_after(PATIENCE):
                    assert (await run(host, shell("echo quick"))).stdout == b"quick\n"
                assert all(is_alive(child.pid) for child in children)
                for child in children:
                    nursery.start_soon(_kill, child, 0.0)
        for child in children:
            await close_pipes(child)


# ---- signal ---------------------------------------------------------------------------------------


async def test_signal_reaches_the_whole_group() -> None:
    """Leader and background child both hear it."""
    async with open_process_host() as host:
        child = await host.spawn(
            shell(
                "exec 3<&0; trap 'echo leader; wait; exit' USR1;"
                "sh -c 'trap \"echo child; exit\" USR1; echo ready; read x' <&3 & read y"
            )
        )
        await read_line(child.stdout)
        child.signal(signal.SIGUSR1)
        heard = {await read_line(child.stdout), await read_line(child.stdout)}
        await finish(child)
    assert heard == {b"child", b"leader"}


@pytest.mark.parametrize("number", [0, -1, 65, 1000])
async def test_signal_that_does_not_exist_is_refused(number: int) -> None:
    """ValueError, and nothing is sent."""
    async with open_process_host() as host:
        child = await host.spawn(shell("read line"))
        with pytest.raises(ValueError, match="no signal"):
            child.signal(number)
        assert (await finish(child)).status.code == 1


# ---- release --------------------------------------------------------------------------------------


@escapes
async def test_release_with_sweep_leaves_nothing_of_the_tree(script: str) -> None:
    """What a job leaves behind after its exit is killed, wherever it went."""
    wanted = shell(script)
    async with open_process_host() as host:
        child = await host.spawn(wanted)
        assert await read_line(child.stdout) == b"ready"
        assert child.stdin is not None
        with suppress(trio.BrokenResourceError):  # the leader may be gone already
            await child.stdin.send_all(b"\n\n")
        assert await child.wait_exited() == ExitStatus(0, None)
        with trio.fail_after(PATIENCE):
            await child.release(sweep=True)
        assert alive(wanted.marker) == []
        assert await child.stdout.receive_some() == b""
        await close_pipes(child)


async def test_release_without_sweep_leaves_the_others_alone_until_the_host_ends() -> None:
    """A detached job's processes live on, and end with the host."""
    wanted = shell("(setsid sleep 1000 &); sleep 1000 & echo ready")
    async with open_process_host() as host:
        child = await host.spawn(wanted)
        await child.wait_exited()
        with trio.fail_after(PATIENCE):
            await child.release(sweep=False)
        assert not is_alive(child.pid)
        # ... also when other jobs come, are swept, and go.
        for _ in range(3):
            await run(host, shell("setsid sleep 1000 <&- >&- 2>&- &"))
        await until(lambda: len(alive(wanted.marker)) == 2)
        await close_pipes(child)
    assert alive(wanted.marker) == []


async def test_release_before_the_exit_is_refused() -> None:
    """It would leave a process behind that nobody owns."""
    async with open_process_host() as host:
        child = await host.spawn(shell("read line"))
        with pytest.raises(RuntimeError, match="has not exited"):
            await child.release()
        await finish(child)


@linux_only
async def test_pid_of_the_leader_is_not_free_before_its_tree_is_gone() -> None:
    """While something of its group lives, a dead leader stays a zombie: its number is taken."""
    async with open_process_host() as host:
        child = await host.spawn(shell("sleep 1000 & exit 3"))
        assert await child.wait_exited() == ExitStatus(3, None)
        assert b"Z (zombie)" in _status(child.pid)
        await child.release()
        assert not exists(child.pid)
        await close_pipes(child)


@linux_only
async def test_exit_of_a_lone_process_is_its_release() -> None:
    """Where nothing else is left the leader is reaped at once; release() needs no answer."""
    async with open_process_host() as host:
        child = await host.spawn(shell("exit 3"))
        await child.wait_exited()
        assert not exists(child.pid)
        with trio.CancelScope() as scope:
            scope.cancel()
            with trio.CancelScope(shield=True):
                await child.release()
        await close_pipes(child)


@linux_only
async def test_orphans_of_a_running_job_are_reaped_as_they_die() -> None:
    """No zombie piles up below the spawner, and the job's own status is not taken."""
    script = (
        "i=0; while [ $i -lt 200 ]; do (true &); i=$((i+1)); done; echo ready; read line; exit 6"
    )
    async with open_process_host() as host:
        child = await host.spawn(shell(script))
        assert await read_line(child.stdout) == b"ready"
        (spawner,) = spawner_pids()
        await until(lambda: children_of(spawner, threads=1) == [child.pid])
        assert (await finish(child)).status.code == 6
