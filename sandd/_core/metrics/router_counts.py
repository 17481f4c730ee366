"""What a router counts as frames pass: one object for it to call, and for others to read. Pure.

What is called for each frame is one addition to an attribute that its route has; all else happens once for a channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandd import wire
from sandd._core.metrics.job_census import CountedJob, JobCensus
from sandd._core.metrics.population import Population
from sandd._core.metrics.tallies import PROGRAM, Tallies, Traffic, use_of
from sandd._core.tombstones import parse
from sandd.wire import RefusedCode

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sandd._core.router_links import DaemonLink

CONTROLLER: Final = "controller"
DAEMON: Final = "daemon"
_ABSENT: Final = frozenset({RefusedCode.JOB_NOT_FOUND, RefusedCode.ENDED, RefusedCode.LOST})
"""These say that there is no such job, or none any more."""
_PRESENT: Final = frozenset({RefusedCode.TAKEN, RefusedCode.BUSY, RefusedCode.JOB_ID_CONFLICT})
"""These say that there is one. All others speak of the request: of a job that is there they say nothing."""


@define(eq=False)
class RouterCounts:
    """What has passed, and what there is."""

    tallies: Tallies = field(factory=Tallies)
    census: JobCensus = field(factory=JobCensus)
    population: Population = field(factory=Population)
    refused: dict[tuple[str, str], int] = field(factory=dict)
    """Requests that were not done, by who said so and its code."""
    rate_limited: dict[str, int] = field(factory=dict)
    """Of these, starts that were one too many, by whose limit it was."""

    def opened(
        self, daemon: DaemonLink, key: Hashable, message: wire.Attach
    ) -> tuple[Traffic, CountedJob | None]:
        """A channel is opened: whose bytes they are that pass on it, and whose end."""
        tally = daemon.tally
        if message.spec is None:
            return tally.traffic[PROGRAM], self.census.attached(key)
        use = use_of(wire.peek_kind(message.spec))
        if use != PROGRAM:
            tally.requests += 1
            return tally.traffic[use], None
        is_reusable = parse(message.job_id) is None
        job = self.census.asked(key, daemon.daemon_id, tally, is_reusable=is_reusable)
        return tally.traffic[PROGRAM], job

    def answered(self, job: CountedJob | None) -> None:
        """The daemon has the job."""
        if job is not None:
            job.is_there = True

    def closed(self, job: CountedJob | None) -> None:
        """A channel is closed."""
        if job is not None and not job.has_ended:
            self.census.unheard(job)

    def happened(self, job: CountedJob | None, body: wire.Buffer) -> None:
        """A message of a job's EVENTS passed."""
        if job is not None and not job.has_ended:
            job.is_there = True  # as a first event may stand for the answer
            outcome = wire.peek_outcome(body)
            if outcome is not None:
                self.census.ended(job, outcome)

    def turned_down(self, refused: wire.Refused, *, by: str = CONTROLLER) -> None:
        """What was asked for is not done."""
        key = (by, refused.code.value)
        self.refused[key] = self.refused.get(key, 0) + 1
        if by == CONTROLLER and refused.code is RefusedCode.RATE_LIMITED:
            scope = refused.scope
            self.rate_limited[scope] = self.rate_limited.get(scope, 0) + 1

    def refused_by_daemon(self, job: CountedJob | None, refused: wire.Refused) -> None:
        """A daemon turns an Attach down, or closes its channel."""
        self.turned_down(refused, by=DAEMON)
        if job is None or refused.code in _PRESENT:
            return
        if refused.code in _ABSENT or not job.is_there:
            self.census.refused(job)
