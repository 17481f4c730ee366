"""Daemons and jobs as rows of a table, and as objects for JSON. No I/O."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from attrs import define, field
from rich.cells import cell_len

from sandd._core.logs import printable
from sandd._core.results import signal_name
from sandd.wire import DaemonState, JobState, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sandd._core.directory import DaemonInfo
    from sandd._core.job_info import JobInfo

DAEMON_HEADER: Final = ("DAEMON", "STATE", "PLATFORM", "VERSION", "CONNECTED", "LABELS")
JOB_HEADER: Final = ("JOB", "STATE", "AGE", "HELD", "COMMAND")
MOST_OF_A_COMMAND: Final = 200
"""Characters, in a table; in JSON there is all that the daemon has told."""
_GAP: Final = "  "


@define
class Layout:
    """Rows as lines of text, whose columns stay where they are as further rows come, unless one is wider."""

    _widths: list[int] = field(factory=list)

    def lines(self, rows: Iterable[Sequence[str]]) -> list[str]:
        """A line for each row, every one with the same number of cells."""
        rows = list(rows)
        for row in rows:
            widths = [cell_len(cell) for cell in row]
            self._widths = (
                [max(pair) for pair in zip(self._widths, widths, strict=True)]
                if self._widths
                else widths
            )
        return [self._line(row) for row in rows]

    def _line(self, row: Sequence[str]) -> str:
        padded = (
            cell + " " * (width - cell_len(cell))
            for cell, width in zip(row, self._widths, strict=True)
        )
        return _GAP.join(padded).rstrip()


# ---- daemons --------------------------------------------------------------------------------------


def daemon_row(info: DaemonInfo, state: DaemonState) -> tuple[str, ...]:
    """Of the table of daemons; times are local ones."""
    connected = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.connected_at))
    platform = f"{info.platform}/{info.arch}" if info.arch else info.platform
    cells = (info.id, state.value, platform, info.version, connected, _labels(info.labels))
    return tuple(map(printable, cells))


def daemon_object(info: DaemonInfo, state: DaemonState) -> dict[str, object]:
    """For JSON; `connected_at` is Unix time."""
    return {
        "id": info.id,
        "state": state.value,
        "platform": info.platform,
        "arch": info.arch,
        "hostname": info.hostname,
        "version": info.version,
        "labels": dict(info.labels),
        "instance": info.instance,
        "connected_at": info.connected_at,
    }


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


# ---- jobs -----------------------------------------------------------------------------------------


def job_row(daemon_id: str, job: JobInfo) -> tuple[str, ...]:
    """Of the table of jobs."""
    held = "detached" if job.detached else "leased"
    if job.owned:
        held = "held"
    if job.state is JobState.ENDED:
        held = ""
    if job.viewers:
        held = f"{held} +{job.viewers}".lstrip()
    command = command_line(job)
    if len(command) > MOST_OF_A_COMMAND:
        command = f"{command[:MOST_OF_A_COMMAND]}..."
    cells = (f"{daemon_id}/{job.job_id}", how_it_stands(job), span(job.age), held, command)
    return tuple(map(printable, cells))


def unanswered_row(daemon_id: str, why: str) -> tuple[str, ...]:
    """Of a daemon whose jobs are not known."""
    return (f"{daemon_id}/?", f"({printable(why)})", "", "", "")


def job_object(daemon_id: str, job: JobInfo) -> dict[str, object]:
    """For JSON; ages are in seconds."""
    return {
        "daemon": daemon_id,
        "id": job.job_id,
        "state": job.state,
        "command": job.command,
        "pid": job.pid,
        "age": job.age,
        "started_age": job.started_age,
        "ended_age": job.ended_age,
        "outcome": job.outcome,
        "exit_code": job.exit_code,
        "failure": job.failure,
        "detached": job.detached,
        "terminal": job.terminal,
        "owned": job.owned,
        "viewers": job.viewers,
        "kept": dict(job.kept),
    }


def unanswered_object(daemon_id: str, why: str) -> dict[str, object]:
    """For JSON, of a daemon whose jobs are not known: it has no id, and so can't be taken for a job."""
    return {"daemon": daemon_id, "id": None, "unanswered": why}


def command_line(job: JobInfo) -> str:
    """What it runs, in words; a session without a command runs a shell."""
    command = job.command if isinstance(job.command, str) else " ".join(job.command)
    return command or "(login shell)"


def how_it_stands(job: JobInfo) -> str:
    """Its state, and how it ended."""
    match job.state, job.outcome:
        case JobState.ENDED, None:
            return job.failure.partition(":")[0].replace("_", " ") or "lost"
        case JobState.ENDED, Outcome.EXITED | Outcome.SIGNALED:
            assert job.exit_code is not None
            return describe_exit(job.exit_code)
        case JobState.ENDED, outcome:
            assert outcome is not None
            return outcome.value.replace("_", " ")
    return job.state.value


def describe_exit(exit_code: int) -> str:
    """As `JobInfo.exit_code` has it."""
    return f"exit {exit_code}" if exit_code >= 0 else signal_name(-exit_code)


def span(seconds: float) -> str:
    """How long, in the two largest units that are needed."""
    whole = int(seconds)
    for unit, size, below, smaller in (("d", 86_400, "h", 3_600), ("h", 3_600, "m", 60)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // smaller}{below}"
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
