"""What a daemon is asked about how busy it is: once, or again and again for whoever looks on.

However many ask, the machine is looked at no more often than every `SHARED_SECONDS`, one look at a time, and seldomer
where looking takes long; whoever asks in between gets what was seen last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from attrs import evolve, field, frozen

from sandd import wire
from sandd._core.job_info import describe
from sandd._core.machine import Machine, read_machine
from sandd._core.requests import RequestFailedError
from sandd.wire import FailedCode, JobState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from sandd._core.jobs import JobTable
    from sandd._core.metrics.link_bytes import LinkBytes
    from sandd._core.processes import TreeUsage
    from sandd._core.requests import Doer, Doing

    Measure = Callable[[Collection[int]], Awaitable[Mapping[int, TreeUsage]]]

SHARED_SECONDS: Final = 0.2
"""A look is good for so long; so it is the shortest interval, too."""
LOOK_SHARE: Final = 10.0
"""And for so many times what it took, which with thousands of processes is a third of a second: so those who ask,
however many and often, cost a tenth of a processor."""
LONGEST_SHARED_SECONDS: Final = 5.0
"""But no longer, as on a machine that is busy with others a look may take any time."""
MAX_STREAMS: Final = 64
"""Of those who want it again and again: a viewer may, and must not take the places of all other requests."""
JOBS_A_TURN: Final = 64
"""So many answers are made before everybody else has a turn: 1 ms."""


@frozen
class Look:
    """What was seen of the machine, and of the trees of all jobs that have a process; all of it at one moment."""

    at: float
    good_until: float
    machine: Machine
    traffic: LinkBytes
    trees: Mapping[int, TreeUsage] = field(factory=dict)
    """By process ids of the jobs' first processes."""
    has_trees: bool = False
    """They were looked at."""


class StatisticsRequests:
    """Does requests about how busy the daemon is.

    Args:
        measure: `ProcessHost.measure`.
        meter: of the daemon's links.
        read: what looks at the machine.
    """

    def __init__(
        self,
        table: JobTable,
        *,
        measure: Measure,
        meter: LinkBytes,
        read: Callable[[], Awaitable[Machine]] | None = None,
    ) -> None:
        self._table = table
        self._measure = measure
        self._meter = meter
        self._read = _read_in_thread if read is None else read
        self._began_at = trio.current_time()
        self._streams = 0
        """Requests that go on."""
        self._looking = trio.Lock()
        self._last: Look | None = None

    @property
    def doers(self) -> Mapping[type[wire.Request], Doer]:
        """For `Requests.offer`."""
        return {wire.StatisticsSpec: self._tell}

    async def _tell(self, doing: Doing, spec: wire.StatisticsSpec) -> None:
        if spec.interval is None:
            await self._tell_once(doing, with_jobs=spec.jobs)
            return
        if self._streams >= MAX_STREAMS:
            raise RequestFailedError(
                FailedCode.DECLINED,
                f"it tells {MAX_STREAMS} others how busy it is, and takes no more; ask it once",
            )
        self._streams += 1
        try:
            while True:
                await self._tell_once(doing, with_jobs=spec.jobs)
                doing.send()
                await trio.sleep(max(spec.interval, SHARED_SECONDS))
        finally:
            self._streams -= 1

    async def _tell_once(self, doing: Doing, *, with_jobs: bool) -> None:
        look = await self._look(with_jobs=with_jobs)
        counts = dict.fromkeys(JobState, 0)
        for index, job in enumerate(self._table.commands(doing.tenant)):
            if index and index % JOBS_A_TURN == 0:
                await trio.lowlevel.checkpoint()
            counts[job.state] += 1
            if (
                with_jobs
                and job.state is not JobState.ENDED
                and self._table.jobs.get(job.key) is job
            ):
                usage = look.trees.get(job.pid) if job.pid else None
                record = describe(job, trio.current_time())
                told = wire.JobUsage(record)
                if usage is not None:
                    told = evolve(
                        told,
                        cpu_seconds=usage.cpu_seconds,
                        rss_bytes=usage.rss_bytes,
                        processes=usage.processes,
                    )
                await doing.answer(told)
        machine, spool = look.machine, self._table.spool
        await doing.answer(
            wire.DaemonUsage(
                uptime=look.at - self._began_at,
                cpus=machine.cpus,
                load=machine.load,
                busy_seconds=machine.busy_seconds,
                memory_bytes=machine.memory_bytes,
                memory_available_bytes=machine.memory_available_bytes,
                cpu_seconds=machine.own_cpu_seconds,
                rss_bytes=machine.own_rss_bytes,
                jobs_running=counts[JobState.RUNNING],
                jobs_queued=counts[JobState.QUEUED],
                bytes_in=look.traffic.received,
                bytes_out=look.traffic.sent,
                spool_bytes=0 if spool is None else spool.used,
            )
        )

    async def _look(self, *, with_jobs: bool) -> Look:
        """One that is recent enough. Cancelling it leaves the next one to look."""
        async with self._looking:
            now, last = trio.current_time(), self._last
            if last is not None and now < last.good_until and (last.has_trees or not with_jobs):
                return last
            machine = await self._read()
            trees: Mapping[int, TreeUsage] = {}
            if with_jobs:
                # Of all tenants: whoever asks next finds it done.
                trees = await self._measure([each.pid for each in self._table.living()])
            # As of its end: what a tree has used by then is in it.
            at = trio.current_time()
            good_for = min(max(SHARED_SECONDS, LOOK_SHARE * (at - now)), LONGEST_SHARED_SECONDS)
            self._last = Look(
                at, at + good_for, machine, evolve(self._meter), trees, has_trees=with_jobs
            )
            return self._last


async def _read_in_thread() -> Machine:
    return await trio.to_thread.run_sync(read_machine)
