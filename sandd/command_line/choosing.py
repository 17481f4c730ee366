"""Which job somebody means who names it, or a part of its id. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from sandd.command_line.stopping import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sandd._core.job_info import JobInfo

MOST_LISTED = 20
"""Jobs, in a complaint."""


class NoSuchJob(Failure):
    """None is meant, or more than one; says which there are."""


@frozen
class JobName:
    """What somebody has typed: ``DAEMON/ID``, or an id, or the beginning of one."""

    daemon_id: str | None
    job_id: str

    @classmethod
    def parse(cls, text: str) -> JobName:
        """ValueError if there is no id in it."""
        before, slash, behind = text.partition("/")
        name = cls(before, behind) if slash else cls(None, before)
        if not name.job_id or name.daemon_id == "":
            raise ValueError(f"{text!r} names no job: DAEMON/ID, or the beginning of an id")
        return name

    def choose(
        self, jobs: Mapping[str, Sequence[JobInfo]], *, noun: str = "job"
    ) -> tuple[str, JobInfo]:
        """The one job that is meant, of those on each daemon, and the daemon's id.

        A whole id wins over the beginning of another. `noun` is what they are called in a complaint.

        Raises:
            NoSuchJob: there is none, or several are.
        """
        everything = [
            (daemon_id, job)
            for daemon_id, there in jobs.items()
            for job in there
            if self.daemon_id in (None, daemon_id)
        ]
        begins = [each for each in everything if each[1].job_id.startswith(self.job_id)]
        meant = [each for each in begins if each[1].job_id == self.job_id] or begins
        if len(meant) == 1:
            return meant[0]
        where = self.daemon_id or ", ".join(sorted(jobs)) or "any daemon"
        if meant:
            raise NoSuchJob(f"{self.job_id!r} may be any of these on {where}:\n{describe(meant)}")
        if everything:
            raise NoSuchJob(
                f"there is no {noun} {self.job_id!r} on {where}; these there are:\n{describe(everything)}"
            )
        raise NoSuchJob(
            f"there is no {noun} {self.job_id!r} on {where}, and no other {noun} there either"
        )


def describe(jobs: Iterable[tuple[str, JobInfo]]) -> str:
    """A line for each, the newest first."""
    newest = sorted(jobs, key=lambda each: each[1].age)
    lines = [f"  {_line(daemon_id, job)}" for daemon_id, job in newest[:MOST_LISTED]]
    if len(newest) > MOST_LISTED:
        lines.append(f"  ... and {len(newest) - MOST_LISTED} older ones")
    return "\n".join(lines)


def _line(daemon_id: str, job: JobInfo) -> str:
    command = job.command if isinstance(job.command, str) else " ".join(job.command)
    command = command or "login shell"
    held = ", somebody is attached" if job.owned else ""
    return f"{daemon_id}/{job.job_id}  {job.state.value}{held}, {_ago(job.age)}: {command[:60]}"


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} old"
    return f"{seconds:.0f} s old"
