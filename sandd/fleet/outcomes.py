"""What has become of a broadcast, daemon by daemon, and in a few lines for the person. No I/O."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from attrs import frozen

from sandd._core._errors import CommandTimeout, DaemonGone
from sandd.fleet.tables import describe_exit
from sandd.wire import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from sandd._core._errors import SanddError
    from sandd._core.results import ExitStatus


class Verdict(enum.Enum):
    """How it ended on one daemon."""

    OK = "ok"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    LOST = "lost"
    """Whether it ran, or how it ended, is not known."""


@frozen
class Ending:
    """What there is to say of one daemon."""

    verdict: Verdict
    why: str = ""
    """In a few words; none for what went well."""
    status: ExitStatus | None = None
    """How the command ended, where that is known."""

    @classmethod
    def of_status(cls, status: ExitStatus) -> Self:
        """Of a command that was started."""
        if status.success:
            return cls(Verdict.OK, "", status)
        if status.outcome is Outcome.TIMED_OUT:
            return cls(Verdict.TIMED_OUT, "", status)
        why = describe_exit(status.exit_code)
        if status.outcome not in (Outcome.EXITED, Outcome.SIGNALED):
            why = status.outcome.value.replace("_", " ")
        return cls(Verdict.FAILED, why, status)

    @classmethod
    def of_error(cls, error: SanddError) -> Self:
        """Of a command that was not started, or whose end is not known."""
        if isinstance(error, CommandTimeout):
            return cls(Verdict.TIMED_OUT, "never started" if error.started is False else "")
        if isinstance(error, DaemonGone):
            return cls(Verdict.LOST, "" if error.outcome_unknown else "it did not run")
        return cls(Verdict.FAILED, str(error))

    def to_object(self, daemon_id: str) -> dict[str, object]:
        """For JSON."""
        status = self.status
        return {
            "event": "ended",
            "daemon": daemon_id,
            "ok": self.verdict is Verdict.OK,
            "verdict": self.verdict.value.replace(" ", "_"),
            "why": self.why,
            "exit_code": None if status is None else status.exit_code,
            "signal": None if status is None else status.signal,
            "outcome": None if status is None else status.outcome.value,
            "duration": None if status is None else status.duration,
        }


def summarise(endings: Mapping[str, Ending]) -> list[str]:
    """How many ended how, in a line; then who did not end well, together with those of whom the same is to be said."""
    counts = dict.fromkeys(Verdict, 0)
    groups: dict[str, list[str]] = {}
    for daemon_id, ending in sorted(endings.items()):
        counts[ending.verdict] += 1
        if ending.verdict is not Verdict.OK:
            why = f" ({ending.why})" if ending.why else ""
            groups.setdefault(f"{ending.verdict.value}{why}", []).append(daemon_id)
    shown = [
        f"{count} {verdict.value}"
        for verdict, count in counts.items()
        if count or verdict is Verdict.OK
    ]
    return [
        ", ".join(shown),
        *(f"{what}: {', '.join(ids)}" for what, ids in sorted(groups.items())),
    ]
