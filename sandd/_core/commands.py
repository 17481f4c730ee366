"""From the arguments of the public API to a job's spec, and from a finished job to its result."""

from __future__ import annotations

import math
import operator
import os
import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypedDict

import trio

from sandd import wire
from sandd._core._errors import CommandFailed, CommandTimeout, LocalProtocolError, SpawnFailed
from sandd._core.client_job import AttachState
from sandd._core.job_info import OUTPUT_NAMES
from sandd._core.results import DEFAULT_MAX_OUTPUT, Collector, CommandResult, ExitStatus
from sandd.wire import Outcome, Stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias, Unpack

    from sandd._core.local_link import JobHandle, LocalLink

    Text: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    Command: TypeAlias = str | bytes | Sequence[Text]

KILL_GRACE: Final = 5.0
"""Seconds from TERM to KILL, where the caller says nothing."""
AWAY_MARGIN: Final = 10.0
"""Seconds beyond time-out and kill grace that `run` waits for a daemon that is away."""
MAX_GRACE: Final = 3600.0
"""Seconds; leaving a job waits for its kill, and that wait can't be cancelled."""
_E2BIG: Final = 7
"""errno's number on every POSIX system; the daemon's number, not this machine's."""


class RunOptions(TypedDict, total=False):
    """Keyword arguments of `Daemon.run`, for what passes them on."""

    input: str | bytes | None
    cwd: Text | None
    env: Mapping[str, str] | None
    user: str | None
    timeout: float | None
    idle_timeout: float | None
    kill_grace: float
    max_output: int
    check: bool


def build_spec(
    command: Command,
    *,
    stdin: bool,
    merge_stderr: bool = False,
    cwd: Text | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    timeout: float | None = None,
    idle_timeout: float | None = None,
    kill_grace: float = KILL_GRACE,
    lease: float | None = None,
    on_full: str = "block",
    detach: bool = False,
) -> wire.CommandSpec:
    """The spec that asks for `command`; TypeError or ValueError for arguments that mean nothing."""
    shell = isinstance(command, str | bytes)
    if not shell and not isinstance(command, Iterable):
        raise TypeError(
            f"the command is {command!r}; it must be a text for the shell, or a list of a program "
            "and its arguments"
        )
    argv = (
        (_encode(command),)
        if isinstance(command, str | bytes)
        else tuple(_encode(part, "the command has {!r} in it") for part in command)
    )
    if not argv or not argv[0]:
        raise ValueError(
            "the command is empty: give a text for the shell, or a list of a program and its arguments"
        )
    environment = {
        _encode(key, "env has the name {!r}"): _encode(value, "env has the value {!r}")
        for key, value in (env.items() if env else ())
    }
    directory = None if cwd is None else _encode(cwd, "cwd is {!r}")
    if user is not None and not isinstance(user, str):
        raise TypeError(f"user is {user!r}; it must be a text, the name or the number of a user")
    parts = (*argv, *environment, *environment.values(), directory or b"", _encode(user or ""))
    if b"\0" in b"".join(parts):
        raise ValueError(
            "a NUL byte can't be passed to a process: not in its arguments, its environment, "
            "its working directory or its user's name"
        )
    if environment and any(not key or b"=" in key for key in environment):
        raise ValueError("names of environment variables are not empty and hold no '='")
    return wire.CommandSpec(
        argv=argv,
        shell=shell,
        stdin=stdin,
        merge_stderr=merge_stderr,
        cwd=directory,
        env=environment,
        user=user,
        timeout=_seconds("timeout", timeout),
        idle_timeout=_seconds("idle_timeout", idle_timeout),
        kill_grace=check_grace("kill_grace", kill_grace),
        lease=_seconds("lease", lease),
        on_full=_on_full(on_full),
        detach=bool(detach),
    )


def check_job_id(job_id: str) -> str:
    """The id itself; ValueError for what can't be one."""
    if not (0 < len(job_id) <= wire.MAX_ID_LENGTH and job_id.isprintable()):
        raise ValueError(
            f"job_id {job_id!r} is not usable: 1 to {wire.MAX_ID_LENGTH} printable characters"
        )
    return job_id


def read_offsets(since: Mapping[str, int] | None) -> dict[Stream, int]:
    """`Process.offsets` as the streams they belong to; ValueError for what can't be offsets."""
    streams = {name: stream for stream, name in OUTPUT_NAMES.items()}
    offsets = {}
    for name, offset in (since or {}).items():
        if name not in streams or not 0 <= operator.index(offset) <= wire.MAX_OFFSET:
            raise ValueError(
                f"since has {name!r}: {offset!r}; it holds bytes of 'stdout' and of 'stderr', "
                "as Process.offsets does"
            )
        offsets[streams[name]] = operator.index(offset)
    return offsets


def _encode(text: Text, what: str = "{!r}") -> bytes:
    try:
        path = os.fspath(text)
    except TypeError:
        raise TypeError(f"{what.format(text)}; it must be a text, or a path") from None
    # UTF-8 whatever this machine's own encoding is; surrogates stand for bytes that are not UTF-8.
    return path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")


def _bytes(data: str | bytes) -> bytes:
    if isinstance(data, str):
        return data.encode()
    return bytes(memoryview(data))  # bytes(7) would be seven zeros


def _seconds(name: str, value: float | None) -> float | None:
    if value is None or value == math.inf:
        return None
    number = float(value)
    if not 0 <= number <= wire.MAX_SECONDS:
        raise ValueError(f"{name} is {value!r}; it must be a number of seconds, 0 or more")
    return number


def check_grace(name: str, value: float) -> float:
    """The seconds from TERM to KILL; ValueError for what can't be waited for."""
    if not 0 <= value <= MAX_GRACE:
        raise ValueError(
            f"{name} is {value!r}; it must be a number of seconds from 0 to {MAX_GRACE:g}"
        )
    return float(value)


def _on_full(value: str) -> wire.OnFull:
    try:
        return wire.OnFull(value)
    except ValueError:
        raise ValueError(f"on_full is {value!r}; it must be 'block' or 'drop_oldest'") from None


def start(
    link: LocalLink,
    daemon_id: str,
    spec: wire.CommandSpec,
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


@trio.lowlevel.enable_ki_protection
async def run(
    link: LocalLink, daemon_id: str, command: Command, **options: Unpack[RunOptions]
) -> CommandResult:
    """Run a command to its end and gather what it printed; see `Daemon.run`."""
    given = options.get("input")
    input_data = b"" if given is None else _bytes(given)
    max_output = options.get("max_output", DEFAULT_MAX_OUTPUT)
    if max_output < 0:
        raise ValueError(f"max_output is {max_output}; it must be a number of bytes, 0 or more")
    timeout = _seconds("timeout", options.get("timeout"))
    spec = build_spec(
        command,
        stdin=bool(input_data),
        cwd=options.get("cwd"),
        env=options.get("env"),
        user=options.get("user"),
        timeout=timeout,
        idle_timeout=options.get("idle_timeout"),
        kill_grace=options.get("kill_grace", KILL_GRACE),
    )
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
        raise CommandFailed(
            f"the command ended with {result.signal or f'exit code {result.exit_code}'}: {result.stderr[-500:]!r}",
            result=result,
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
    status = ExitStatus.from_event(event)
    out, err = collectors[Stream.OUTPUT], collectors[Stream.ERROR]
    return CommandResult(
        stdout_bytes=out.result(),
        stderr_bytes=err.result(),
        exit_code=status.exit_code,
        outcome=status.outcome,
        duration=status.duration,
        stdout_total=out.total,
        stderr_total=err.total,
        truncated=out.truncated or err.truncated,
        pipes_held=status.pipes_held,
        job_id=handle.job.id,
    )


_SIGNALS: Final = frozenset(
    [
        "ABRT",
        "ALRM",
        "BUS",
        "CHLD",
        "CONT",
        "FPE",
        "HUP",
        "ILL",
        "INT",
        "IO",
        "KILL",
        "PIPE",
        "PROF",
        "PWR",
        "QUIT",
        "SEGV",
        "STOP",
        "SYS",
        "TERM",
        "TRAP",
        "TSTP",
        "TTIN",
        "TTOU",
        "URG",
        "USR1",
        "USR2",
        "VTALRM",
        "WINCH",
        "XCPU",
        "XFSZ",
        "BREAK",
    ]
)


def normal_signal(name: str | signal.Signals) -> str:
    """``"TERM"`` for "TERM", "SIGTERM", "term" or signal.SIGTERM; ValueError for what is no signal."""
    text = name.name if isinstance(name, signal.Signals) else str(name).upper()
    text = text.removeprefix("SIG")
    if text not in _SIGNALS:
        raise ValueError(
            f"{name!r} is not the name of a signal; use one like 'TERM', 'INT' or 'KILL'"
        )
    return text
