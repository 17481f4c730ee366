"""How a daemon tells how busy it is: without processes and without a wire."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from attrs import define, field
from scripted import drain
from test_requests import ALICE, Daemon, end_of, records

from sandd import wire
from sandd._core import statistics_requests
from sandd._core.daemon_statistics import StatisticsReader
from sandd._core.machine import Machine
from sandd._core.metrics.link_bytes import LinkBytes
from sandd._core.processes import TreeUsage
from sandd._core.statistics_requests import SHARED_SECONDS, StatisticsRequests
from sandd.wire import FailedCode, JobState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from sandd._core.daemon_statistics import DaemonStatistics


@define
class Seen:
    """What the machine and the trees are like, and how often somebody looked."""

    looks: int = 0
    measured: list[list[int]] = field(factory=list)
    may_go_on: trio.Event | None = None
    takes: float = 0.0
    """Seconds, of a look at the trees."""

    async def read(self) -> Machine:
        """The machine."""
        await trio.lowlevel.checkpoint()
        self.looks += 1
        return Machine(4, (1.0, 2.0, 3.0), 10.0 * self.looks, 1000, 400, 0.5, 50)

    async def measure(self, pids: Collection[int]) -> Mapping[int, TreeUsage]:
        """The trees."""
        self.measured.append(list(pids))
        await trio.lowlevel.checkpoint()
        if self.may_go_on is not None:
            await self.may_go_on.wait()
        await trio.sleep(self.takes)
        return {pid: TreeUsage(2.5, 600, 3) for pid in pids}


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[Daemon, Seen]]:
    """A daemon that can tell."""
    async with trio.open_nursery() as nursery:
        daemon, seen = Daemon(nursery), Seen()
        requests = StatisticsRequests(
            daemon.table, measure=seen.measure, meter=LinkBytes(70, 80), read=seen.read
        )
        daemon.requests.offer(requests.doers)
        yield daemon, seen
        nursery.cancel_scope.cancel()


async def rounds(daemon: Daemon, *channels: int) -> list[DaemonStatistics]:
    """What was told since the last time on these channels."""
    await trio.testing.wait_all_tasks_blocked()
    said: dict[int, list[Any]] = {channel: [] for channel in channels}
    for channel, each in drain(daemon.link.scheduler):
        said.setdefault(channel, []).append(each)
    return [each for c in channels for each in StatisticsReader().take(records(said[c]))]


async def test_a_daemon_tells_of_itself_and_of_the_tenants_jobs() -> None:
    """Of those that have not ended; of one that waits for its turn, no usage."""
    async with running() as (daemon, seen):
        job = daemon.command()
        other = daemon.command()
        ended = daemon.command()
        daemon.end(ended)
        other.pid = 0
        other.state = JobState.QUEUED
        (told,) = await rounds(daemon, daemon.ask(wire.StatisticsSpec()))
    assert [each.info.job_id for each in told.jobs] == [job.key[1], other.key[1]]
    mine, queued = told.jobs
    assert (mine.cpu_seconds, mine.rss_bytes, mine.processes) == (2.5, 600, 3)
    assert (queued.cpu_seconds, queued.rss_bytes, queued.processes) == (None, None, None)
    assert (told.jobs_running, told.jobs_queued) == (1, 1)
    assert (told.cpus, told.load, told.busy_seconds) == (4, (1.0, 2.0, 3.0), 10.0)
    assert (told.memory_bytes, told.memory_available_bytes) == (1000, 400)
    assert (told.cpu_seconds, told.rss_bytes) == (0.5, 50)
    assert (told.bytes_in, told.bytes_out, told.spool_bytes) == (70, 80, 0)
    assert seen.measured == [[7]]


async def test_another_tenants_jobs_are_not_told_of() -> None:
    """Neither by name nor by number."""
    async with running() as (daemon, _):
        job = daemon.command()
        del daemon.table.jobs[job.key]
        job.key = ("another", job.key[1])
        daemon.table.jobs[job.key] = job
        (told,) = await rounds(daemon, daemon.ask(wire.StatisticsSpec()))
    assert (told.jobs, told.jobs_running) == ((), 0)


async def test_who_wants_no_jobs_costs_no_look_at_processes() -> None:
    """But they are counted."""
    async with running() as (daemon, seen):
        daemon.command()
        (told,) = await rounds(daemon, daemon.ask(wire.StatisticsSpec(jobs=False)))
    assert (told.jobs, told.jobs_running) == ((), 1)
    assert seen.measured == []


async def test_many_who_ask_share_a_look(autojump_clock: object) -> None:
    """One that wants jobs takes none that has no trees."""
    async with running() as (daemon, seen):
        channels = [daemon.ask(wire.StatisticsSpec(jobs=False)) for _ in range(5)]
        channels += [daemon.ask(wire.StatisticsSpec()) for _ in range(5)]
        assert len(await rounds(daemon, *channels)) == 10
        assert seen.looks <= 2  # one for those without jobs, if they came first
        assert len(seen.measured) == 1
        await trio.sleep(1)
        daemon.command()
        (first,) = await rounds(daemon, daemon.ask(wire.StatisticsSpec(jobs=False)))
        (second,) = await rounds(daemon, daemon.ask(wire.StatisticsSpec()))
        assert first.jobs == ()
        assert second.jobs[0].processes == 3


@pytest.mark.parametrize(("takes", "looks"), [(0.0, 50), (0.2, 5), (3.0, 2)])
async def test_a_look_that_takes_long_is_good_for_long(
    autojump_clock: object, takes: float, looks: int
) -> None:
    """Who has thousands of processes, and asks as often as may be, costs a tenth of a processor; for five seconds."""
    async with running() as (daemon, seen):
        seen.takes = takes
        daemon.command()
        daemon.ask(wire.StatisticsSpec(interval=SHARED_SECONDS, jobs=True))
        await trio.sleep(50 * SHARED_SECONDS)
        assert looks * 0.8 - 1 <= len(seen.measured) <= looks + 1


async def test_with_an_interval_it_goes_on_until_it_is_left(autojump_clock: object) -> None:
    """A round each time, in one request; no shorter than a look is good for."""
    async with running() as (daemon, seen):
        channel = daemon.ask(wire.StatisticsSpec(jobs=False, interval=0.0))
        uptimes: list[float] = []
        while len(uptimes) < 3:
            await trio.sleep(SHARED_SECONDS / 2)
            uptimes += [each.uptime for each in await rounds(daemon, channel)]
        gaps = [later - earlier for earlier, later in itertools.pairwise(uptimes)]
        assert all(gap >= SHARED_SECONDS * 0.999 for gap in gaps)
        request = daemon.job(channel)
        daemon.receive(channel, wire.End("d", request.key[1], client=ALICE, tenant="t"))
        await trio.sleep(1)
        assert isinstance(request.result, wire.Failed)
        assert request.result.code is FailedCode.CANCELLED
        looks = seen.looks
        await trio.sleep(10)
        assert seen.looks == looks


async def test_only_so_many_are_told_again_and_again(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is declined, until one of them has left; whoever asks once is answered all the same."""
    monkeypatch.setattr(statistics_requests, "MAX_STREAMS", 2)
    spec = wire.StatisticsSpec(jobs=False, interval=1.0)
    async with running() as (daemon, _):
        first, _, third = (daemon.job(daemon.ask(spec)) for _ in range(3))
        await trio.sleep(0.5)
        (declined,) = [job for job in daemon.table.jobs.values() if job.result is not None]
        assert isinstance(declined.result, wire.Failed)
        assert declined.result.code is FailedCode.DECLINED
        assert "ask it once" in declined.result.message
        once = daemon.job(daemon.ask(wire.StatisticsSpec()))
        left = third if declined is first else first
        number = int(left.key[1].rpartition(".")[2])
        daemon.receive(number, wire.End("d", left.key[1], client=ALICE, tenant="t"))
        await trio.sleep(0.5)
        assert isinstance(once.result, wire.Exited)
        again = daemon.job(daemon.ask(spec))
        await trio.sleep(0.5)
        assert again.result is None


async def test_nobody_reads_and_nothing_piles_up(autojump_clock: object) -> None:
    """Without credit it waits for room, at a bound; and then goes on."""
    async with running() as (daemon, seen):
        channel = daemon.ask(wire.StatisticsSpec(jobs=False, interval=1.0), credit=0)
        with trio.fail_after(100_000):
            before = -1
            while seen.looks != before:
                before = seen.looks
                await trio.sleep(60)
        assert daemon.job(channel).room(wire.Stream.OUTPUT) < 1000
        assert seen.looks * 10 < wire.StatisticsSpec.window


async def test_a_look_that_is_given_up_keeps_nobody_waiting() -> None:
    """Whoever asks next looks for itself."""
    async with running() as (daemon, seen):
        daemon.command()
        seen.may_go_on = trio.Event()
        first = daemon.ask(wire.StatisticsSpec())
        await trio.testing.wait_all_tasks_blocked()
        assert len(seen.measured) == 1
        second = daemon.ask(wire.StatisticsSpec())
        request = daemon.job(first)
        daemon.receive(first, wire.End("d", request.key[1], client=ALICE, tenant="t"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(seen.measured) == 2
        seen.may_go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(daemon.job(second).result, wire.Exited)
        assert isinstance(request.result, wire.Failed)


async def test_answers_are_told_apart_by_rounds() -> None:
    """Jobs stand before the daemon that they are of; what isn't known, in whatever answer, does no harm."""
    reader = StatisticsReader()
    job = wire.JobUsage(wire.JobRecord("j", JobState.RUNNING, (b"x",)), 1.0, 2, 3)
    daemon = wire.DaemonUsage(1.0, 2)
    assert reader.take([job, wire.Unknown("new"), daemon, job]) != []
    (second,) = reader.take([job, daemon])
    assert [each.processes for each in second.jobs] == [3, 3]


async def test_the_answer_ends_well() -> None:
    """With code 0, as of any other request."""
    async with running() as (daemon, _):
        channel = daemon.ask(wire.StatisticsSpec())
        request = daemon.job(channel)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(request.result, wire.Exited)
        assert end_of(daemon.heard(channel)).code == 0
