"""How busy a daemon says that it is, by all APIs, with a real daemon and real processes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import trio
from aio_world import aio_worker
from process_tools import linux_only
from standing_daemon import StandingDaemon, standing_daemon

import sandd
from sandd.testing import open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share; each leaves it without a job."""
    with standing_daemon() as daemon:
        yield daemon


@linux_only
async def test_a_job_has_all_that_its_tree_takes(daemon: StandingDaemon) -> None:
    """Who left its session and its parent included; and of another job nothing."""
    work = "(setsid sleep 300 &); while :; do :; done"
    async with daemon.worker() as worker:
        async with worker.open_process(work) as busy, worker.open_process("sleep 300") as idle:

            async def is_seen() -> bool:
                jobs = {each.info.job_id: each for each in (await worker.statistics()).jobs}
                mine, other = jobs[busy.job_id], jobs[idle.job_id]
                assert other.cpu_seconds is not None
                assert other.cpu_seconds < 0.2
                return (
                    (mine.processes, other.processes) in {(2, 1), (2, 2)}  # dash forks for sleep
                    and (mine.cpu_seconds or 0) > 0.1
                    and (mine.rss_bytes or 0) > 500_000
                )

            while not await is_seen():
                await trio.sleep(0.05)
        told = await worker.statistics()
        assert told.jobs == ()
        assert told.bytes_out > told.bytes_in > 0
        assert told.uptime > 0
        assert (await worker.statistics(jobs=False)).jobs_running == 0


async def test_it_goes_on_over_a_cut(daemon: StandingDaemon) -> None:
    """In the same block, and each round is later than the one before."""
    with trio.fail_after(25):
        async with (
            sandd.open_controller(port=0) as controller,
            open_fault_proxy(int(controller.address.rpartition(":")[2]), port=daemon.port) as relay,
        ):
            worker = await controller.wait_for_daemon("worker-1")
            async with worker.open_statistics(interval=0.2, jobs=False) as rounds:
                uptimes = [(await anext(rounds)).uptime for _ in range(2)]
                relay.cut()
                uptimes += [(await anext(rounds)).uptime for _ in range(3)]
            assert uptimes == sorted(set(uptimes))
            with pytest.raises(trio.ClosedResourceError):
                await anext(rounds)


async def test_an_interval_has_bounds(daemon: StandingDaemon) -> None:
    """And is a number: told before anything is asked for."""
    async with daemon.worker() as worker:
        for interval in (0.0, 0.1, 3601.0, float("nan")):
            with pytest.raises(ValueError, match=r"interval is .* from 0.2 to 3600 seconds"):
                async with worker.open_statistics(interval=interval):
                    pass
        with pytest.raises(TypeError, match="interval is 'often'"):
            async with worker.open_statistics(interval="often"):  # type: ignore[arg-type]
                pass


@pytest.mark.anyio
async def test_other_event_loops_have_it(daemon: StandingDaemon) -> None:
    """Once, and again and again."""
    async with aio_worker(daemon) as worker:
        assert (await worker.statistics()).jobs == ()
        async with worker.open_statistics(interval=0.2) as rounds:
            first, second = await anext(rounds), await anext(rounds)
        assert second.uptime > first.uptime


def test_synchronous_code_has_it(daemon: StandingDaemon) -> None:
    """By the daemon's id."""
    with sandd.Server(port=daemon.port) as server:
        assert server.wait_for_daemon("worker-1", timeout=25)
        told = server.daemon_statistics("worker-1")
        assert (told.jobs, told.jobs_running) == ((), 0)
        with pytest.raises(sandd.DaemonNotFound):
            server.daemon_statistics("nobody")
