"""Which jobs there are, as far as a router has heard, so that each is counted once. Pure.

A router keeps no jobs: it sees a start, perhaps twice, after a cut; an end, perhaps several times, where several look
on; or none, where nobody is attached any more. So the jobs it has passed on are remembered, by the name they have on
their daemon, until they have ended and were left:

    asked --its end passes by------------------------------> its outcome
      |-----its owner leaves, and nobody hears its end-----> UNHEARD
      |-----its daemon is gone, or another instance came---> LOST
      |-----the daemon refuses it--------------------------> REFUSED
      |-----the daemon had it, and has it no more----------> UNHEARD
      `-----`most_jobs` have been asked for after it-------> UNHEARD

Of a detached job that nobody is attached to nothing is heard: it counts as running until somebody attaches, or one of
these comes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from attrs import define

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sandd._core.metrics.tallies import Tally

MOST_JOBS: Final = 100_000
"""Remembered, at some 400 bytes each: as many as a daemon keeps."""
UNHEARD: Final = "unheard"
LOST: Final = "lost"
REFUSED: Final = "refused"


@define(eq=False)
class CountedJob:
    """One of them."""

    key: Hashable
    tally: Tally
    siblings: dict[CountedJob, None]
    """Those of its daemon."""
    listeners: int = 0
    """Channels on which its end may pass by."""
    is_there: bool = False
    """Its daemon has said that it has it."""
    has_ended: bool = False
    is_left: bool = False
    """Its owner doesn't want it any more."""


class JobCensus:
    """The jobs of a router."""

    def __init__(self, most_jobs: int = MOST_JOBS) -> None:
        self._most = most_jobs
        self._jobs: OrderedDict[Hashable, CountedJob] = OrderedDict()
        self._by_daemon: dict[str, dict[CountedJob, None]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, key: Hashable) -> CountedJob | None:
        """The job, if it is remembered."""
        return self._jobs.get(key)

    def asked(self, key: Hashable, daemon: str, tally: Tally, *, is_reusable: bool) -> CountedJob:
        """It is passed on to its daemon, on a channel; again, maybe.

        `is_reusable`: its id was chosen, and may be that of another job once this one has ended.
        """
        job = self._jobs.get(key)
        if job is not None:
            if not (job.has_ended and is_reusable):
                job.listeners += 1
                return job
            self._forget(job)
        siblings = self._by_daemon.get(daemon)
        if siblings is None:
            siblings = self._by_daemon[daemon] = {}
        job = self._jobs[key] = CountedJob(key, tally, siblings, 1)
        siblings[job] = None
        tally.jobs_asked += 1
        tally.jobs_running += 1
        if len(self._jobs) > self._most:
            oldest = next(iter(self._jobs.values()))
            self._settle(oldest, UNHEARD)
            self._forget(oldest)
        return job

    def attached(self, key: Hashable) -> CountedJob | None:
        """Somebody attaches to it, on a channel; None: it isn't remembered."""
        job = self._jobs.get(key)
        if job is not None:
            job.listeners += 1
        return job

    def unheard(self, job: CountedJob) -> None:
        """There is a channel less on which its end may pass by."""
        job.listeners -= 1
        if job.is_left and not job.listeners and not job.has_ended:
            self._settle(job, UNHEARD)
            self._forget(job)

    def ended(self, job: CountedJob, outcome: str) -> None:
        """Its end passed by."""
        self._settle(job, outcome)
        if job.is_left:
            self._forget(job)

    def left(self, key: Hashable) -> None:
        """Its owner has it ended, and asks for it no more."""
        job = self._jobs.get(key)
        if job is None:
            return
        job.is_left = True
        if job.has_ended or not job.listeners:
            self._settle(job, UNHEARD)
            self._forget(job)

    def refused(self, job: CountedJob) -> None:
        """The daemon hasn't it: it doesn't do it, or has done it, and nobody heard how it ended."""
        self._settle(job, UNHEARD if job.is_there else REFUSED)
        self._forget(job)

    def lost(self, daemon: str) -> None:
        """Whatever ran on the daemon does so no more."""
        for job in list(self._by_daemon.pop(daemon, ())):
            self._settle(job, LOST)
            self._forget(job)

    def _settle(self, job: CountedJob, outcome: str) -> None:
        if not job.has_ended:
            job.has_ended = True
            job.tally.ended(outcome)

    def _forget(self, job: CountedJob) -> None:
        if job.siblings.pop(job, True) is None:
            del self._jobs[job.key]
