"""Running a command to its end: from the job's start to its result, its time-out and its cancellation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypedDict

import trio

from sandd import wire
from sandd._core._errors import CommandFailed, CommandTimeout, LocalProtocolError, SpawnFailed
from sandd._core.arguments import check_count, encode_data
from sandd._core.client_job import AttachState
from sandd._core.results import DEFAULT_MAX_OUTPUT, Collector, CommandResult, exit_code
from sandd._core.specs import KILL_GRACE, build_spec
from sandd.wire import Outcome, Stream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Unpack

    from sandd._core.job_link import JobHandle, JobLink
    from sandd._core.limits import Limits
    from sandd._core.specs import Command, IsolationName, Text

AWAY_MARGIN: Final = 10.0
"""Seconds beyond time-out and kill grace that `run` waits for a daemon that is away."""
_E2BIG: Final = 7
"""errno's number on every POSIX system; the daemon's number, not this machine's."""


class RunOptions(TypedDict, total=False):
    """Keyword arguments of `Daemon.run`, for what passes them on."""

    input: str | bytes | None
    cwd: Text | None
    env: Mapping[str, str] | None
    user: str | None
    isolation: IsolationName | None
    timeout: float | None
    idle_timeout: float | None
    kill_grace: float
    max_output: int
    check: bool
    limits: Limits | None
    require_limits: bool


def start(
    link: JobLink,
    daemon_id: str,
    spec: wire.ProgramSpec,
    *,
    job_id: str | None = None,
    input_data: bytes | None = None,
    collectors: Mapping[Stream, Collector] | None = None,
) -> JobHandle:
    """Start the job; SpawnFailed (E2BIG) if its spec is too large to be sent."""
    try:
        sinks = {stream: collector.add for stream, collector in (collectors or {}).items()}
        return link.open(daemon_id, spec, job_id=job_id, input_data=input_data, sinks=sinks)
    except LocalProtocolError as error:
        raise SpawnFailed(
            _E2BIG,
            f"arguments and environment are too large ({error}): pass large data by stdin or in a file",
        ) from error


def check(command: Command, **options: Unpack[RunOptions]) -> None:
    """Nothing, where `run` would take them; TypeError or ValueError, even if there is nobody to run it."""
    unknown = options.keys() - RunOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"{min(unknown)!r} is no option of a command")
    _read(command, options)


def _read(command: Command, options: RunOptions) -> tuple[wire.CommandSpec, bytes, int]:
    """What is asked for, its input, and how much of its output is kept."""
    given = options.get("input")
    input_data = b"" if given is None else encode_data("input", given)
    max_output = check_count(
        "max_output",
        options.get("max_output", DEFAULT_MAX_OUTPUT),
        lowest=0,
        most=wire.MAX_OFFSET,  # of no consequence
        what="a number of bytes, 0 or more",
    )
    spec = build_spec(
        command,
        stdin=bool(input_data),
        cwd=options.get("cwd"),
        env=options.get("env"),
        user=options.get("user"),
        isolation=options.get("isolation"),
        timeout=options.get("timeout"),
        idle_timeout=options.get("idle_timeout"),
        kill_grace=options.get("kill_grace", KILL_GRACE),
        limits=options.get("limits"),
        require_limits=options.get("require_limits", False),
    )
    return spec, input_data, max_output


@trio.lowlevel.enable_ki_protection
async def run(
    link: JobLink, daemon_id: str, command: Command, **options: Unpack[RunOptions]
) -> CommandResult:
    """Run a command to its end and gather what it printed; see `Daemon.run`."""
    spec, input_data, max_output = _read(command, options)
    timeout = spec.timeout
    collectors = {Stream.OUTPUT: Collector(max_output), Stream.ERROR: Collector(max_output)}
    await trio.lowlevel.checkpoint_if_cancelled()
    handle = start(link, daemon_id, spec, input_data=input_data, collectors=collectors)
    try:
        if timeout is not None:
            await wait_begun(handle, timeout)
        await wait_complete(handle, timeout, spec.kill_grace)
        handle.raise_if_failed()
    except BaseException:
        await handle.leave(spec.kill_grace)
        raise
    handle.forget()
    result = collect(handle, collectors)
    if result.outcome is Outcome.TIMED_OUT:
        idle = options.get("idle_timeout")
        within = "its idle_timeout" if timeout is None else f"{timeout} s"
        if timeout is not None and idle is not None:
            within += f", or was silent for {idle} s,"
        raise CommandTimeout(
            f"the command did not finish within {within} and was killed", result=result
        )
    if options.get("check") and not result.success:
        how = result.signal or f"exit code {result.exit_code}"
        if result.limit is not None:
            most = getattr(result.limits, result.limit)
            how += f", as it went beyond its limit {result.limit}={most}"
        raise CommandFailed(
            f"the command ended with {how}: {result.stderr[-500:]!r}", result=result
        )
    return result


async def wait_begun(handle: JobHandle, timeout: float | None) -> None:
    """Wait until the job was started or never will be; CommandTimeout if that takes longer than `timeout`."""
    with trio.move_on_after(math.inf if timeout is None else timeout):
        await handle.until(lambda: handle.begun)
    if handle.begun:
        return
    await handle.leave(0.0)
    if handle.job.started is not None:
        # It started after all, while we were taking it back, and was killed.
        raise CommandTimeout(
            f"the command was started only after its time-out of {timeout} s, and killed"
        )
    failed = handle.job.result
    never = not handle.job.sent or (
        isinstance(failed, wire.Failed) and failed.code is not wire.FailedCode.LOST
    )
    raise CommandTimeout(
        f"the command was not started within its time-out of {timeout} s"
        + (
            ""
            if never
            else "; the daemon is away: should it have been started, it is ended on the daemon's return"
        ),
        started=False if never else None,
    )


async def wait_complete(handle: JobHandle, timeout: float | None, kill_grace: float) -> None:
    """Wait until the job has ended and all its output is here.

    Its daemon enforces the time-out. While that is away nothing can be heard of it; so when the job
    must have been killed by now, CommandTimeout says so, without a result.
    """
    if timeout is not None:
        with trio.move_on_after(timeout + kill_grace + AWAY_MARGIN):
            await handle.until(lambda: handle.complete)
        if handle.job.state is AttachState.WAITING and not handle.complete:
            raise CommandTimeout(
                f"the command's time-out of {timeout} s is over, and its daemon is away: it was killed "
                "there, or ended before, but how is not known"
            )
    await handle.until(lambda: handle.complete)


def collect(handle: JobHandle, collectors: Mapping[Stream, Collector]) -> CommandResult:
    """The result of a job that has ended with an exit status."""
    event = handle.job.result
    assert isinstance(event, wire.Exited)
    out, err = collectors[Stream.OUTPUT], collectors[Stream.ERROR]
    return CommandResult(
        stdout_bytes=out.result(),
        stderr_bytes=err.result(),
        exit_code=exit_code(event),
        outcome=event.outcome,
        duration=event.seconds,
        stdout_total=out.total,
        stderr_total=err.total,
        truncated=out.truncated or err.truncated,
        pipes_held=event.pipes_held,
        job_id=handle.job.id,
        cpu_seconds=event.cpu_seconds,
        max_rss_bytes=event.max_rss_bytes,
        limits=event.limits,
        limit=event.limit or None,
    )
