"""How busy a daemon is, its machine and its jobs: told there, read here.

Sans-IO. The daemon answers with `wire.JobUsage` and `wire.DaemonUsage`; the client makes a `DaemonStatistics` of those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from sandd import wire
from sandd._core.job_info import JobInfo

if TYPE_CHECKING:
    from collections.abc import Iterable


@frozen
class JobStatistics:
    """One job that has not ended, and what its process tree takes at that moment."""

    info: JobInfo
    """What `Daemon.jobs` says of it; how much it has written is in `JobInfo.kept`."""
    cpu_seconds: float | None = None
    """Seconds of processor that were used by the processes that live, and by children they have waited for; None: not
    known, as of one that waits for its turn."""
    rss_bytes: int | None = None
    """In memory; what several of its processes share counts for each. None: not known."""
    processes: int | None = None
    """That live. None: not known."""


@frozen
class DaemonStatistics:
    """How busy a daemon, its machine and its jobs are, as it said at one moment.

    What counts from a start rises: two of these, and the `uptime` between them, make a rate.
    """

    uptime: float
    """Seconds from the daemon's start to the moment that all of this is of."""
    cpus: int
    """Processors of its machine."""
    load: tuple[float, ...]
    """The machine's averages over 1, 5 and 15 minutes; empty where there is no such thing (Windows)."""
    busy_seconds: float | None
    """Seconds that its machine's processors were not idle, all of them together; None: not known (macOS)."""
    memory_bytes: int | None
    """That its machine has; None: not known."""
    memory_available_bytes: int | None
    """That programs on its machine could still take; None: not known."""
    cpu_seconds: float
    """Seconds of processor that the daemon itself has used."""
    rss_bytes: int | None
    """That the daemon itself has in memory; None: not known."""
    jobs_running: int
    """Of the tenant's."""
    jobs_queued: int
    """Of the tenant's, those that wait for their turn."""
    bytes_in: int
    """Bytes that came from the controller since the daemon's start."""
    bytes_out: int
    """Bytes that went to the controller since the daemon's start."""
    spool_bytes: int
    """Bytes of output that are on its disk, as nobody has read them yet."""
    jobs: tuple[JobStatistics, ...] = ()
    """The tenant's that have not ended, in the order in which they were asked for."""


class StatisticsReader:
    """Answers as they come, into the rounds that they belong to."""

    def __init__(self) -> None:
        self._jobs: list[JobStatistics] = []

    def take(self, answers: Iterable[wire.Answer | wire.Unknown]) -> list[DaemonStatistics]:
        """The rounds that are whole by now, the oldest first."""
        whole = []
        for answer in answers:
            if isinstance(answer, wire.JobUsage):
                self._jobs.append(_of_job(answer))
            elif isinstance(answer, wire.DaemonUsage):
                whole.append(_of_daemon(answer, tuple(self._jobs)))
                self._jobs = []
        return whole


def _of_job(told: wire.JobUsage) -> JobStatistics:
    return JobStatistics(
        JobInfo.from_record(told.job), told.cpu_seconds, told.rss_bytes, told.processes
    )


def _of_daemon(told: wire.DaemonUsage, jobs: tuple[JobStatistics, ...]) -> DaemonStatistics:
    return DaemonStatistics(
        uptime=told.uptime,
        cpus=told.cpus,
        load=told.load,
        busy_seconds=told.busy_seconds,
        memory_bytes=told.memory_bytes,
        memory_available_bytes=told.memory_available_bytes,
        cpu_seconds=told.cpu_seconds,
        rss_bytes=told.rss_bytes,
        jobs_running=told.jobs_running,
        jobs_queued=told.jobs_queued,
        bytes_in=told.bytes_in,
        bytes_out=told.bytes_out,
        spool_bytes=told.spool_bytes,
        jobs=jobs,
    )
