"""How busy daemons and jobs are: rates out of what two looks have told, in order, as rows and as objects. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, frozen

from sandd._core.logs import printable
from sandd.fleet.tables import MOST_OF_A_COMMAND, command_line, span
from sandd.wire import DaemonState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sandd._core.daemon_statistics import DaemonStatistics, JobStatistics
    from sandd._core.directory import DaemonInfo
    from sandd.controller import ControllerStatistics

DAEMON_HEADER: Final = (
    *("DAEMON", "STATE", "CPU", "MEMORY", "LOAD", "JOBS", "IN/S", "OUT/S", "SPOOL", "LINK"),
)
JOB_HEADER: Final = (
    *("JOB", "STATE", "CPU", "TIME", "MEMORY", "PROCS", "OUTPUT", "RUNTIME", "COMMAND"),
)
UNKNOWN: Final = "-"
"""In a table, for what isn't known."""


@frozen
class DaemonLine:
    """A daemon, and how busy it is; what isn't known is None."""

    id: str
    state: DaemonState
    link_age: float
    """Seconds since its newest connection."""
    newest: DaemonStatistics | None = None
    cpu: float | None = None
    """Of its machine's processors, in percent: 100 is all of them."""
    bytes_in: float | None = None
    """A second, from the controller."""
    bytes_out: float | None = None
    """A second, to the controller."""
    unanswered: str = ""
    """Why nothing is known."""

    @property
    def memory_used(self) -> int | None:
        """Bytes of its machine's memory."""
        told = self.newest
        if told is None or told.memory_bytes is None or told.memory_available_bytes is None:
            return None
        return told.memory_bytes - told.memory_available_bytes


@frozen
class JobLine:
    """A job that has not ended, and what it takes."""

    daemon_id: str
    job: JobStatistics
    cpu: float | None = None
    """In percent: 100 is one processor."""

    @property
    def output_bytes(self) -> int:
        """What it has written so far."""
        return sum(kept.end for kept in self.job.info.kept.values())

    @property
    def runtime(self) -> float | None:
        """Seconds since its process was started."""
        return self.job.info.started_age


@define
class Gauge:
    """What one daemon has told last, and before that."""

    newest: DaemonStatistics | None = None
    before: DaemonStatistics | None = None
    came_at: float = 0.0
    """The newest, by the clock of `take`."""
    failure: str = ""
    """Why it tells nothing."""

    def take(self, told: DaemonStatistics, now: float) -> None:
        """It has told more."""
        if self.newest is not None and told.uptime != self.newest.uptime:
            self.before = self.newest if told.uptime > self.newest.uptime else None
        self.newest, self.came_at, self.failure = told, now, ""

    @property
    def has_rates(self) -> bool:
        """It has told twice."""
        return self.before is not None

    def line(self, info: DaemonInfo, state: DaemonState, link_age: float) -> DaemonLine:
        """The daemon as it stands; of one that isn't here nothing is known that would still be true."""
        newest, before = self.newest, self.before
        if state is not DaemonState.ONLINE or newest is None:
            why = state.value if state is not DaemonState.ONLINE else self.failure or "no answer"
            return DaemonLine(info.id, state, link_age, unanswered=why)
        cpu = _rate(newest, before, lambda told: told.busy_seconds)
        return DaemonLine(
            info.id,
            state,
            link_age,
            newest,
            cpu=None if cpu is None else min(100.0, 100 * cpu / max(1, newest.cpus)),
            bytes_in=_rate(newest, before, lambda told: told.bytes_in),
            bytes_out=_rate(newest, before, lambda told: told.bytes_out),
        )

    def job_lines(self, daemon_id: str) -> list[JobLine]:
        """Its jobs."""
        newest, before = self.newest, self.before
        if newest is None:
            return []
        earlier = {} if before is None else {each.info.job_id: each for each in before.jobs}
        lines = []
        for job in newest.jobs:
            was, cpu = earlier.get(job.info.job_id), None
            if (
                before is not None
                and was is not None
                and was.cpu_seconds is not None
                and job.cpu_seconds is not None
            ):
                # What an orphan has used goes with it.
                used = max(0.0, job.cpu_seconds - was.cpu_seconds)
                cpu = 100 * used / (newest.uptime - before.uptime)
            lines.append(JobLine(daemon_id, job, cpu))
        return lines


def _rate(
    newest: DaemonStatistics,
    before: DaemonStatistics | None,
    count: Callable[[DaemonStatistics], float | None],
) -> float | None:
    """A second, of what rises from a start."""
    if before is None or (now := count(newest)) is None or (then := count(before)) is None:
        return None
    return max(0.0, now - then) / (newest.uptime - before.uptime)


# ---- their order ----------------------------------------------------------------------------------


def _known(value: float | None) -> float:
    return -1.0 if value is None else value


_DAEMON_KEYS: Final[Mapping[str, Callable[[DaemonLine], float]]] = {
    "cpu": lambda line: _known(line.cpu),
    "memory": lambda line: _known(line.memory_used),
    "load": lambda line: line.newest.load[0] if line.newest and line.newest.load else -1.0,
    "jobs": lambda line: -1 if line.newest is None else line.newest.jobs_running,
    "in": lambda line: _known(line.bytes_in),
    "out": lambda line: _known(line.bytes_out),
    "link": lambda line: line.link_age,
}
_JOB_KEYS: Final[Mapping[str, Callable[[JobLine], float]]] = {
    "cpu": lambda line: _known(line.cpu),
    "memory": lambda line: _known(line.job.rss_bytes),
    "time": lambda line: _known(line.job.cpu_seconds),
    "processes": lambda line: _known(line.job.processes),
    "output": lambda line: line.output_bytes,
    "runtime": lambda line: _known(line.runtime),
}
DAEMON_SORTS: Final = ("id", *_DAEMON_KEYS)
JOB_SORTS: Final = ("id", *_JOB_KEYS)


def sort_daemons(lines: Iterable[DaemonLine], key: str) -> list[DaemonLine]:
    """By id; or the largest first, and by id where they are equal."""
    by_id = sorted(lines, key=lambda line: line.id)
    return by_id if key == "id" else sorted(by_id, key=_DAEMON_KEYS[key], reverse=True)


def sort_jobs(lines: Iterable[JobLine], key: str) -> list[JobLine]:
    """By daemon and age; or the largest first."""
    by_id = sorted(lines, key=lambda line: (line.daemon_id, -line.job.info.age))
    return by_id if key == "id" else sorted(by_id, key=_JOB_KEYS[key], reverse=True)


# ---- as rows --------------------------------------------------------------------------------------


def daemon_row(line: DaemonLine) -> tuple[str, ...]:
    """Of the table of daemons."""
    told, used = line.newest, line.memory_used
    state = line.state.value
    if told is None:
        if line.unanswered != state:
            state = f"{state} ({line.unanswered})"
        rest: Sequence[str] = (UNKNOWN,) * 7
    else:
        memory = UNKNOWN
        if used is not None and told.memory_bytes is not None:
            memory = f"{size(used)}/{size(told.memory_bytes)}"
        rest = (
            percent(line.cpu),
            memory,
            f"{told.load[0]:.2f}" if told.load else UNKNOWN,
            f"{told.jobs_running}" + (f"+{told.jobs_queued}" if told.jobs_queued else ""),
            size(line.bytes_in),
            size(line.bytes_out),
            size(told.spool_bytes),
        )
    return tuple(map(printable, (line.id, state, *rest, span(line.link_age))))


def job_row(line: JobLine) -> tuple[str, ...]:
    """Of the table of jobs."""
    info, job = line.job.info, line.job
    command = command_line(info)
    if len(command) > MOST_OF_A_COMMAND:
        command = f"{command[:MOST_OF_A_COMMAND]}..."
    cells = (
        f"{line.daemon_id}/{info.job_id}",
        info.state.value,
        percent(line.cpu),
        UNKNOWN if job.cpu_seconds is None else f"{job.cpu_seconds:.1f}s",
        size(job.rss_bytes),
        UNKNOWN if job.processes is None else str(job.processes),
        size(line.output_bytes),
        UNKNOWN if line.runtime is None else span(line.runtime),
        command,
    )
    return tuple(map(printable, cells))


def unanswered_row(line: DaemonLine) -> tuple[str, ...]:
    """Of the table of jobs, for a daemon whose jobs are not known."""
    cells = (f"{line.id}/?", f"({line.unanswered})", *[""] * (len(JOB_HEADER) - 2))
    return tuple(map(printable, cells))


def percent(value: float | None) -> str:
    """Without decimals from 100 on."""
    return UNKNOWN if value is None else f"{value:.0f}%" if value >= 99.95 else f"{value:.1f}%"


def size(value: float | None) -> str:
    """Bytes, by the largest unit that leaves 1 or more, of 1,024 each."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "K", "M", "G", "T"):
        if value < 1000 or unit == "T":  # 1,000 to 1,023 are four digits
            break
        value /= 1024
    return f"{value:.0f}{unit}" if value >= 9.95 or unit == "B" else f"{value:.1f}{unit}"


# ---- as objects for JSON --------------------------------------------------------------------------


def daemon_object(line: DaemonLine) -> dict[str, object]:
    """Sizes in bytes, times in seconds, rates a second; what isn't known is null."""
    told = line.newest
    return {
        "daemon": line.id,
        "state": line.state.value,
        "unanswered": line.unanswered or None,
        "link_age": line.link_age,
        "cpu_percent": line.cpu,
        "bytes_in_per_second": line.bytes_in,
        "bytes_out_per_second": line.bytes_out,
        **{name: getattr(told, name, None) for name in _TOLD},
    }


_TOLD: Final = (
    *("uptime", "cpus", "load", "busy_seconds", "memory_bytes", "memory_available_bytes"),
    *("cpu_seconds", "rss_bytes", "jobs_running", "jobs_queued"),
    *("bytes_in", "bytes_out", "spool_bytes"),
)


def job_object(line: JobLine) -> dict[str, object]:
    """As `daemon_object`."""
    info, job = line.job.info, line.job
    return {
        "daemon": line.daemon_id,
        "id": info.job_id,
        "state": info.state.value,
        "command": info.command,
        "pid": info.pid,
        "age": info.age,
        "runtime": line.runtime,
        "cpu_percent": line.cpu,
        "cpu_seconds": job.cpu_seconds,
        "rss_bytes": job.rss_bytes,
        "processes": job.processes,
        "output_bytes": line.output_bytes,
    }


def unanswered_object(line: DaemonLine) -> dict[str, object]:
    """Of a daemon whose jobs are not known: it has no id, and so can't be taken for a job."""
    return {"daemon": line.id, "id": None, "unanswered": line.unanswered}


@frozen
class Round:
    """What is to be shown at one moment, in its order."""

    daemons: tuple[DaemonLine, ...] = ()
    jobs: tuple[JobLine, ...] | None = None
    """None: daemons are to be shown."""
    controller: ControllerStatistics | None = None
    """What that tells of itself, as far as it is known."""

    @property
    def header(self) -> tuple[str, ...]:
        """Of its table."""
        return DAEMON_HEADER if self.jobs is None else JOB_HEADER

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Of its table; daemons whose jobs are not known stand behind the jobs."""
        if self.jobs is None:
            return [daemon_row(each) for each in self.daemons]
        silent = [unanswered_row(each) for each in self.daemons if each.newest is None]
        return [*map(job_row, self.jobs), *silent]

    @property
    def objects(self) -> list[dict[str, object]]:
        """For JSON, as `rows`."""
        if self.jobs is None:
            return [daemon_object(each) for each in self.daemons]
        silent = [unanswered_object(each) for each in self.daemons if each.newest is None]
        return [*map(job_object, self.jobs), *silent]

    @property
    def summary(self) -> str:
        """All of it in one line."""
        states = [each.state for each in self.daemons]
        counts = [
            f"{states.count(state)} {state.value}"
            for state in (DaemonState.ONLINE, DaemonState.AWAY)
            if state in states
        ]
        if not counts:
            return "no daemons"
        told = [each.newest for each in self.daemons if each.newest is not None]
        into = sum(each.bytes_in or 0 for each in self.daemons)
        out = sum(each.bytes_out or 0 for each in self.daemons)
        counts += [
            f"{sum(each.jobs_running for each in told)} jobs running",
            f"{size(into)}/s in",
            f"{size(out)}/s out",
        ]
        told_here = self.controller
        if told_here is not None and told_here.uptime is not None:
            counts.append(f"controller up {span(told_here.uptime)}")
            if told_here.operators is not None:
                counts[-1] += f" with {told_here.operators} operators"
        return ", ".join(counts)
