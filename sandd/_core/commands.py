"""Running a command to its end: from the job's start to its result, its time-out and its cancellation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypedDict

import trio
from attrs import frozen

from sandd import wire
from sandd._core._errors import (
    CommandFailed,
    CommandTimeout,
    LocalProtocolError,
    SanddError,
    SpawnFailed,
)
from sandd._core.arguments import check_count, encode_data
from sandd._core.client_job import AttachState
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.results import DEFAULT_MAX_OUTPUT, Collector, CommandResult, exit_code
from sandd._core.specs import KILL_GRACE, build_spec
from sandd.wire import Outcome, Stream

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sandd._core.job_link import JobHandle, JobLink, Sink
    from sandd._core.limits import Limits
    from sandd._core.specs import Command, IsolationName, Text

AWAY_MARGIN: Final = 10.0
"""Seconds beyond time-out and kill grace that `run` waits for a daemon that is away."""
STARTS_PER_TURN: Final = 64
"""Commands started on many daemons before other tasks run: some ten milliseconds of work."""
STARTS_AT_ONCE: Final = 4
"""Of these, so many are sent together: done for several in a row, each step of one and the same work finds its code in
the processor's caches, and all of them take a fifth less time (m). A daemon waits by a tenth of a millisecond for that;
more at once gain nothing."""
# Enum members are bound here because looking one up by its class costs as much as a function call (Python 3.11).
_OUTPUT: Final = Stream.OUTPUT
_ERROR: Final = Stream.ERROR
_TIMED_OUT: Final = Outcome.TIMED_OUT
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


@frozen
class PreparedCommand:
    """A command that makes sense, and is ready to be sent to any number of daemons."""

    spec: wire.CommandSpec
    input_data: bytes
    max_output: int
    """Bytes kept of each output."""
    check: bool
    """CommandFailed, unless it succeeds."""
    idle_timeout: float | None
    """As it was given."""


def start(
    link: JobLink,
    daemon_id: str,
    spec: wire.ProgramSpec,
    *,
    encoded: bytes | None = None,
    job_id: str | None = None,
    input_data: bytes | None = None,
    sinks: Mapping[Stream, Sink] | None = None,
    at_once: bool = True,
) -> JobHandle:
    """Start the job, as `JobLink.open`; SpawnFailed (E2BIG) if its spec is too large to be sent."""
    try:
        return link.open(
            daemon_id,
            spec,
            encoded=encoded,
            job_id=job_id,
            input_data=input_data,
            sinks=sinks,
            at_once=at_once,
        )
    except LocalProtocolError as error:
        raise SpawnFailed(
            _E2BIG,
            f"arguments and environment are too large ({error}): pass large data by stdin or in a file",
        ) from error


def prepare_by(command: Command, options: RunOptions) -> PreparedCommand:
    """As `prepare`, where an option may be none: a TypeError names it."""
    unknown = options.keys() - RunOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"{min(unknown)!r} is no option of a command")
    return prepare(command, **options)


def prepare(
    command: Command,
    *,
    input: str | bytes | None = None,
    cwd: Text | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    isolation: IsolationName | None = None,
    timeout: float | None = None,
    idle_timeout: float | None = None,
    kill_grace: float = KILL_GRACE,
    max_output: int = DEFAULT_MAX_OUTPUT,
    check: bool = False,
    limits: Limits | None = None,
    require_limits: bool = False,
) -> PreparedCommand:
    """Nothing is asked of anybody yet; TypeError or ValueError for what makes no sense."""
    input_data = b"" if input is None else encode_data("input", input)
    max_output = check_count(
        "max_output",
        max_output,
        lowest=0,
        most=wire.MAX_OFFSET,  # of no consequence
        what="a number of bytes, 0 or more",
    )
    spec = build_spec(
        command,
        stdin=bool(input_data),
        cwd=cwd,
        env=env,
        user=user,
        isolation=isolation,
        timeout=timeout,
        idle_timeout=idle_timeout,
        kill_grace=kill_grace,
        limits=limits,
        require_limits=require_limits,
    )
    return PreparedCommand(spec, input_data, max_output, bool(check), idle_timeout)


@trio.lowlevel.enable_ki_protection
async def run(link: JobLink, daemon_id: str, prepared: PreparedCommand) -> CommandResult:
    """Run a command to its end and gather what it printed; see `Daemon.run`."""
    await trio.lowlevel.checkpoint_if_cancelled()
    under_way = _UnderWay(link, daemon_id, prepared)
    try:
        await under_way.wait()
    except BaseException:
        await under_way.leave()
        raise
    return under_way.result()


@trio.lowlevel.enable_ki_protection
async def run_on_each(
    link: JobLink, daemon_ids: Collection[str], prepared: PreparedCommand
) -> dict[str, CommandResult | SanddError]:
    """As `run` on each of the daemons at the same time, in their order; where that raised, its error."""
    await trio.lowlevel.checkpoint()
    encoded = wire.encode_spec(prepared.spec)
    answers: dict[str, CommandResult | SanddError] = {}
    under_way: dict[str, _UnderWay] = {}
    try:
        for number, daemon_id in enumerate(daemon_ids, 1):
            try:
                under_way[daemon_id] = _UnderWay(link, daemon_id, prepared, encoded, at_once=False)
            except SanddError as error:
                answers[daemon_id] = error
            if not number % STARTS_AT_ONCE:
                link.flush()
            if not number % STARTS_PER_TURN:
                await trio.lowlevel.checkpoint()
        link.flush()
        if prepared.spec.timeout is None:
            # Each is waited for as long as it takes, so they need no tasks to wait beside each other.
            for daemon_id, each in under_way.items():
                answers[daemon_id] = await each.answer()
        else:

            async def wait_for(daemon_id: str, each: _UnderWay) -> None:
                answers[daemon_id] = await each.answer()

            async with open_unwrapping_nursery() as nursery:
                for daemon_id, each in under_way.items():
                    nursery.start_soon(wait_for, daemon_id, each)
    except BaseException:
        with trio.CancelScope(shield=True):  # of itself, each leaves in bounded time
            async with open_unwrapping_nursery() as nursery:
                for each in under_way.values():
                    nursery.start_soon(each.leave)
        raise
    return {daemon_id: answers[daemon_id] for daemon_id in daemon_ids}


class _UnderWay:
    """A command that was started on a daemon: to be waited for and then asked for its `result`, or left."""

    __slots__ = ("_error", "_handle", "_output", "_prepared")

    def __init__(
        self,
        link: JobLink,
        daemon_id: str,
        prepared: PreparedCommand,
        encoded: bytes | None = None,
        *,
        at_once: bool = True,
    ) -> None:
        self._prepared = prepared
        self._output = output = Collector(prepared.max_output)
        self._error = error = Collector(prepared.max_output)
        self._handle = start(
            link,
            daemon_id,
            prepared.spec,
            encoded=encoded,
            input_data=prepared.input_data,
            sinks={_OUTPUT: output.add, _ERROR: error.add},
            at_once=at_once,
        )

    async def wait(self) -> None:
        """Until it has ended with an exit status; else that raises what there is in its place."""
        handle, spec = self._handle, self._prepared.spec
        if not handle.complete:  # of a broadcast most are, when their turn comes
            if spec.timeout is not None:
                await wait_begun(handle, spec.timeout)
            await wait_complete(handle, spec.timeout, spec.kill_grace)
        handle.raise_if_failed()

    async def leave(self) -> None:
        """End it, and see its tree gone; see `JobHandle.leave`."""
        await self._handle.leave(self._prepared.spec.kill_grace)

    async def answer(self) -> CommandResult | SanddError:
        """Its result, or what `run` would raise."""
        try:
            await self.wait()
        except SanddError as error:
            await self.leave()
            return error
        try:
            return self.result()
        except SanddError as error:
            return error

    def result(self) -> CommandResult:
        """What it came to; CommandTimeout, or CommandFailed if its success was to be checked. It is forgotten."""
        handle, prepared = self._handle, self._prepared
        handle.forget()
        result = _collect(handle, self._output, self._error)
        if result.outcome is _TIMED_OUT:
            timeout, idle = prepared.spec.timeout, prepared.idle_timeout
            within = "its idle_timeout" if timeout is None else f"{timeout} s"
            if timeout is not None and idle is not None:
                within += f", or was silent for {idle} s,"
            raise CommandTimeout(
                f"the command did not finish within {within} and was killed", result=result
            )
        if prepared.check and not result.success:
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


def _collect(handle: JobHandle, out: Collector, err: Collector) -> CommandResult:
    """The result of a job that has ended with an exit status."""
    event = handle.job.result
    assert isinstance(event, wire.Exited)
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
