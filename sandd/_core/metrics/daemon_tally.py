"""What a daemon was asked to do, and what became of it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandd import wire
from sandd._core.metrics.tallies import FORWARD, PROGRAM, USES, Traffic, use_of

if TYPE_CHECKING:
    from sandd._core.job import Job

_USES: Final = {spec: use_of(kind) for kind, spec in wire.SPEC_KINDS.items()}


def use_of_spec(spec: wire.Spec) -> str:
    """What it is for. A kind that never is on the wire is a connection that came to a listener."""
    return _USES.get(type(spec), FORWARD)


@define(eq=False)
class DaemonTally:
    """Of one daemon, since its start."""

    jobs_started: int = 0
    """Commands and sessions."""
    jobs_ended: dict[str, int] = field(factory=dict)
    """By outcome."""
    requests: dict[str, int] = field(factory=lambda: {use: 0 for use in USES if use != PROGRAM})
    """By use."""
    refused: dict[str, int] = field(factory=dict)
    """By code."""
    traffic: dict[str, Traffic] = field(factory=lambda: {use: Traffic() for use in USES})
    """By use: what it took as input, and what it put out."""

    def begun(self, spec: wire.Spec) -> Traffic:
        """One more is taken on; where its bytes are counted."""
        use = use_of_spec(spec)
        if use == PROGRAM:
            self.jobs_started += 1
        else:
            self.requests[use] += 1
        return self.traffic[use]

    def ended(self, job: Job) -> None:
        """One has ended."""
        result = job.result
        if result is not None and isinstance(job.spec, wire.ProgramSpec):
            said = result.outcome if isinstance(result, wire.Exited) else result.code
            outcome = str(said)
            self.jobs_ended[outcome] = self.jobs_ended.get(outcome, 0) + 1

    def turned_down(self, refused: wire.Refused) -> None:
        """One was not taken on."""
        code = refused.code.value
        self.refused[code] = self.refused.get(code, 0) + 1
