"""What there is to know of a job for somebody who isn't attached to it: told there, read here.

Sans-IO. The daemon makes a `wire.JobRecord` of its job; the client makes a `JobInfo` of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from sandd import wire
from sandd._core.spool import Stall
from sandd.wire import JobState, Outcome, Stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandd._core.job import Job

OUTPUT_NAMES: Final = {Stream.OUTPUT: "stdout", Stream.ERROR: "stderr"}


@frozen
class KeptOutput:
    """Which part of an output can be read: bytes `base` to `end`, counted from its beginning."""

    base: int = 0
    """Everything before it was read by an owner, or dropped, and is gone."""
    end: int = 0
    """So many bytes were written so far."""


@frozen
class JobInfo:
    """One job of a daemon, as it stood when the daemon was asked."""

    job_id: str
    state: JobState
    command: str | tuple[str, ...]
    """As it was given: a text for the shell, or a program and its arguments; none: a session's login
    shell. A long one is cut, and ends with "..."."""
    pid: int | None
    """Process id on the daemon's machine; None: it was never started."""
    age: float
    """Seconds since it was asked for. This and the others are the daemon's, and of that moment."""
    started_age: float | None
    """Seconds since its process was started; None: it was not."""
    ended_age: float | None
    """Seconds since it ended; None: it has not."""
    outcome: Outcome | None
    """How it ended; None: it has not, or there is no telling: see `failure`."""
    exit_code: int | None
    """The process' own; ``-N`` if signal N killed it; None where there is no `outcome`."""
    failure: str
    """Why a job that has ended has no exit code: not started, or lost; else empty."""
    detached: bool
    """It outlives whoever holds it, and has no lease."""
    terminal: bool
    """It is a session: for `Daemon.attach_session`, though `attach_process` works as well."""
    owned: bool
    """Somebody holds it. Nobody does, and it isn't detached: its lease is running."""
    viewers: int
    """How many look on."""
    kept: Mapping[str, KeptOutput]
    """What can be read of "stdout" and of "stderr"."""

    @classmethod
    def from_record(cls, record: wire.JobRecord) -> JobInfo:
        """What a daemon said of one of its jobs."""
        argv = [argument.decode("utf-8", "replace") for argument in record.argv]
        if record.cut:
            argv = [*argv[:-1], argv[-1] + "..."] if argv else ["..."]
        code = record.code
        if code is None and record.signal is not None:
            code = -record.signal
        kept = {each.stream: KeptOutput(each.base, each.end) for each in record.kept}
        return cls(
            job_id=record.job_id,
            state=record.state,
            command="".join(argv) if record.shell else tuple(argv),
            pid=record.pid or None,
            age=record.age,
            started_age=record.started,
            ended_age=record.ended,
            outcome=record.outcome,
            exit_code=code,
            failure="" if record.failed is None else f"{record.failed.value}: {record.message}",
            detached=record.detached,
            terminal=record.terminal,
            owned=record.owned,
            viewers=record.viewers,
            kept={name: kept.get(stream, KeptOutput()) for stream, name in OUTPUT_NAMES.items()},
        )


def stalls_by_name(stalls: Mapping[Stream, wire.Stalled]) -> dict[str, Stall]:
    """What a daemon said of stalled outputs, by the outputs' names."""
    return {OUTPUT_NAMES[s]: Stall(told.reason, told.message) for s, told in stalls.items()}


def describe(job: Job, now: float) -> wire.JobRecord:
    """What the daemon says of a job that runs a command."""
    spec, result = job.spec, job.result
    assert isinstance(spec, wire.ProgramSpec)
    exited = result if isinstance(result, wire.Exited) else None
    failed = result if isinstance(result, wire.Failed) else None
    argv = _shown(spec.argv)
    return wire.JobRecord(
        job_id=job.key[1],
        state=job.state,
        argv=argv,
        shell=spec.shell,
        cut=argv != spec.argv,
        pid=job.pid,
        age=_since(job.asked_at, now),
        started=None if job.started_at is None else _since(job.started_at, now),
        ended=None if result is None else _since(job.ended_at, now),
        code=None if exited is None else exited.code,
        signal=None if exited is None else exited.signal,
        outcome=None if exited is None else exited.outcome,
        failed=None if failed is None else failed.code,
        message="" if failed is None else failed.message[: wire.MAX_SHOWN_BYTES],
        detached=job.detached,
        terminal=job.terminal,
        owned=job.owner is not None,
        viewers=len(job.viewers),
        kept=tuple(
            wire.KeptOutput(stream, log.base, log.end)
            for stream in OUTPUT_NAMES
            if (log := job.sends[stream]).end
        ),
    )


def _since(then: float | None, now: float) -> float:
    """Seconds; none while the shell has yet to say when it was."""
    return 0.0 if then is None else max(0.0, now - then)


def _shown(argv: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """As much of it as MAX_SHOWN_BYTES hold, its end cut off."""
    shown, room = [], wire.MAX_SHOWN_BYTES
    for argument in argv:
        if room <= 0:
            break
        shown.append(argument[:room])
        room -= len(argument) + 1  # an empty one takes room, too
    return tuple(shown)
