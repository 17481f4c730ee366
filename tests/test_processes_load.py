"""Many jobs at once, spawns cancelled in the middle, and a spawner that does not keep up."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import weakref
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from process_tools import (
    PATIENCE,
    Outcome,
    alive,
    close_pipes,
    finish,
    linux_only,
    read_line,
    request,
    run,
    shell,
    the_spawner,
    until,
)

from sandd._core._errors import SpawnFailed
from sandd._core.processes import ExitStatus, ProcessHost, open_process_host
from sandd._core.processes.process_table import children_of

if TYPE_CHECKING:
    from sandd._core.processes import Child

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX process trees"),
    linux_only,
]


def open_files(pid: int | str = "self") -> int:
    """How many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


async def settled_files(pid: int) -> int:
    """How many it has while it does nothing: the least of several looks.

    One more, if somebody else had the processor all the time while it had a file of /proc open; so it is
    compared with ``<=``.
    """
    counts = []
    for _ in range(5):
        counts.append(open_files(pid))
        await trio.sleep(0.002)
    return min(counts)


async def test_who_asked_is_let_go_of_when_told() -> None:
    """Who has asked has the child; had that one who asked, both would stay until cycles are looked for."""

    class Asker:
        def __init__(self) -> None:
            self.child: Child | None = None
            self.told = trio.Event()

        def answered(self, _alone: bool) -> None:
            self.told.set()

    async with open_process_host() as host:
        asker = Asker()
        asker.child = host.begin(shell("true"), asker.answered)
        assert asker.child is not None
        await asker.told.wait()
        await asker.child.wait_exited()
        asker.child.close_pipes()
        await asker.child.release()
        gone = weakref.ref(asker)
        gc.disable()
        try:
            del asker
            assert gone() is None
        finally:
            gc.enable()


async def test_no_descriptor_is_kept_for_a_job() -> None:
    """Fifty jobs and fifty failures later daemon and spawner hold what they held after the first."""
    async with open_process_host() as host:
        await run(host, shell("true"))
        spawner = await the_spawner()
        before = open_files(), await settled_files(spawner)
        for _ in range(50):
            await run(host, shell("true"))
            with pytest.raises(SpawnFailed):
                await host.spawn(request("/no/such/program"))
        assert open_files() == before[0]
        await until(lambda: open_files(spawner) <= before[1])


async def test_three_hundred_jobs_at_once_get_their_own_results() -> None:
    """Each has its own output and status, with a bounded number of descriptors, none of them left."""
    results: dict[int, tuple[bytes, ExitStatus]] = {}
    async with open_process_host() as host:
        await run(host, shell("true"))
        spawner = await the_spawner()
        before = open_files(), await settled_files(spawner)

        async def run_one(number: int) -> None:
            outcome = await run(host, shell(f"read l; echo {number}; exit {number % 200}"))
            results[number] = outcome.stdout, outcome.status

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(run_one, number)
        assert open_files() == before[0]
        await until(lambda: open_files(spawner) <= before[1])
    assert results == {n: (b"%d\n" % n, ExitStatus(n % 200, None)) for n in range(300)}


async def test_three_hundred_jobs_alive_at_once_are_killed_together() -> None:
    """All run at the same time, cost the spawner one descriptor each, and die at one call each."""
    async with open_process_host() as host:
        requests = [request("sleep", "1000", stdin=False) for _ in range(300)]
        children: list[Child] = []

        async def spawn_one(index: int) -> None:
            children.append(await host.spawn(requests[index]))

        async with trio.open_nursery() as nursery:
            for index in range(300):
                nursery.start_soon(spawn_one, index)
        spawner = await the_spawner()
        assert len(children_of(spawner, threads=1)) == 300
        assert open_files(spawner) < 330
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for child in children:
                    nursery.start_soon(_kill, child)
        assert children_of(spawner, threads=1) == []
        for child in children:
            assert (await child.wait_exited()).signal in (signal.SIGTERM, signal.SIGKILL)
            await close_pipes(child)


async def _kill(child: Child) -> None:
    await child.kill(grace=1)


# ---- a spawner that does not keep up --------------------------------------------------------------


async def test_requests_beyond_the_sockets_buffer_wait_their_turn() -> None:
    """With the spawner stopped megabytes of requests queue; once it goes on all are served right."""
    results = []
    async with open_process_host() as host:
        await run(host, shell("true"))
        spawner = await the_spawner()
        os.kill(spawner, signal.SIGSTOP)
        before = open_files()

        async def run_one(number: int) -> None:
            text = f"{number:03}" + "x" * 60_000
            outcome = await run(host, request("/bin/echo", text))
            results.append(outcome.stdout == text.encode() + b"\n")

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(run_one, number)
            await trio.testing.wait_all_tasks_blocked(0.02)
            # 20 requests fill the 1 MiB that may be unsent; the others hold nothing yet.
            assert open_files() - before < 150  # six for each of them
            os.kill(spawner, signal.SIGCONT)
    assert results == [True] * 60


async def test_requests_queued_when_the_spawner_dies_have_not_run() -> None:
    """Those that were never sent go to the next spawner, the others are lost; no descriptor stays."""
    async with open_process_host() as host:
        await run(host, shell("true"))
        before = open_files()
        spawner = await the_spawner()
        os.kill(spawner, signal.SIGSTOP)
        ended: list[Outcome | str] = []

        async def run_one() -> None:
            try:
                ended.append(await run(host, request("/bin/echo", "x" * 60_000)))
            except Exception as error:  # what it was is looked at below
                ended.append(type(error).__name__)

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(run_one)
            await trio.testing.wait_all_tasks_blocked(0.02)
            os.kill(spawner, signal.SIGKILL)
        assert len(ended) == 40
        lost = [end for end in ended if isinstance(end, str)]
        assert set(lost) == {"ChildLost"}
        assert 10 <= len(lost) < 40
        assert open_files() == before


async def test_spawn_gives_up_on_a_hung_spawner(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the queue full, a further spawn is EAGAIN after a while, and nothing ran."""
    monkeypatch.setattr("sandd._core.processes.posix.WAIT_SECONDS", 0.1)
    async with open_process_host() as host:
        await run(host, shell("true"))
        spawner = await the_spawner()
        os.kill(spawner, signal.SIGSTOP)
        outcomes = []

        async def run_one() -> None:
            outcomes.append(await run(host, request("/bin/echo", *["x" * 100_000] * 14)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_one)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(SpawnFailed, match="does not come up"):
                await host.spawn(shell("echo ran"))
            os.kill(spawner, signal.SIGCONT)
        assert outcomes[0].status == ExitStatus(0, None)


# ---- cancellation ---------------------------------------------------------------------------------


async def test_cancelled_spawn_leaves_no_process_and_no_descriptor() -> None:
    """Cancelled while the spawner works on it: what got started is dead when Cancelled comes out."""
    async with open_process_host() as host:
        await run(host, shell("true"))
        spawner = await the_spawner()
        before = open_files(), await settled_files(spawner)
        for delay in [0.0, 0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003] * 5:
            wanted = shell("setsid sleep 1000 & sleep 1000")
            child = None
            with trio.CancelScope(deadline=trio.current_time() + delay):
                child = await host.spawn(wanted)
            if child is not None:
                await child.kill(grace=0)
                await close_pipes(child)
            assert alive(wanted.marker) == []
            assert open_files() == before[0]
            # The spawner may have a file of /proc open just now.
            await until(lambda: open_files(spawner) <= before[1])


async def test_spawn_cancelled_before_it_starts_starts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled with the spawner stopped: nothing runs once it goes on."""
    monkeypatch.setattr("sandd._core.processes.posix.ABANDON_SECONDS", 0.05)
    async with open_process_host() as host:
        await run(host, shell("true"))
        spawner = await the_spawner()
        before = open_files()
        os.kill(spawner, signal.SIGSTOP)
        wanted = shell("setsid sleep 1000 & sleep 1000")
        with trio.move_on_after(0.05) as scope:
            await host.spawn(wanted)
        assert scope.cancelled_caught
        assert open_files() == before
        os.kill(spawner, signal.SIGCONT)
        assert (await run(host, shell("echo fine"))).stdout == b"fine\n"
        await until(lambda: alive(wanted.marker) == [])


async def test_cancelled_user_lookup_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user database that does not answer holds up nobody who gives up on it."""
    answer, answered = threading.Event(), threading.Event()

    def hang(user: str) -> None:
        answer.wait(30)
        answered.set()

    monkeypatch.setattr("sandd._core.processes.posix.resolve_user", hang)
    async with open_process_host() as host:
        with trio.move_on_after(0.05) as scope:
            await host.spawn(shell("echo ran", user="somebody"))
        assert scope.cancelled_caught
        assert not answered.is_set()
        assert host._children == {}  # type: ignore[attr-defined]
        answer.set()
        await until(answered.is_set)


async def test_waiting_can_be_cancelled_everywhere() -> None:
    """wait_exited, kill and release leave everything as it was when cancelled; later calls work."""
    async with open_process_host() as host:
        child = await host.spawn(shell("trap '' TERM; setsid sleep 1000 & echo ready; read line"))
        await read_line(child.stdout)
        for wait in (child.wait_exited, lambda: child.kill(grace=1000)):
            with trio.move_on_after(0.02) as scope:
                await wait()
            assert scope.cancelled_caught
        assert child.stdin is not None
        await child.stdin.send_all(b"\n")
        assert await child.wait_exited() == ExitStatus(0, None)
        with trio.CancelScope() as scope:
            scope.cancel()
            await child.release()
        assert scope.cancelled_caught
        with trio.fail_after(PATIENCE):
            await child.release()
        await close_pipes(child)


async def test_neighbours_are_served_while_a_tree_is_killed_slowly() -> None:
    """Twenty commands run while one tree waits out its grace, which would last for a quarter of an hour."""
    async with open_process_host() as host:
        stubborn = await host.spawn(shell("trap '' TERM; echo ready; read line; read line"))
        await read_line(stubborn.stdout)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stubborn.kill(grace=1000))
            await _run_many(host, 20)
            nursery.cancel_scope.cancel()
        await stubborn.kill(grace=0)
        assert (await finish(stubborn)).status.signal == signal.SIGKILL


async def _run_many(host: ProcessHost, count: int) -> None:
    with trio.fail_after(PATIENCE):
        for number in range(count):
            assert (await run(host, shell(f"echo {number}"))).stdout == b"%d\n" % number
