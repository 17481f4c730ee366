"""From a job's spec to what the process host starts: the shell resolved, the environment complete."""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, Final

from attrs import frozen

from sandd._core.limits import NO_LIMITS, Limits
from sandd._core.processes import SpawnRequest
from sandd.wire import SessionSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandd._core.job import Job
    from sandd.wire import ProgramSpec


@frozen
class Allowance:
    """What a daemon lets each of its jobs use."""

    limits: Limits = NO_LIMITS
    require: bool = False
    """What can't be held to its limits, whoever has set them, is not started."""


UNLIMITED: Final = Allowance()
_OF_ITS_TERMINAL = frozenset({b"COLUMNS", b"LINES"})
"""Variables of the terminal that the daemon was started from, which children would take for theirs."""


def spawn_request(
    job: Job, spec: ProgramSpec, instance: str, allowance: Allowance = UNLIMITED
) -> SpawnRequest:
    """The process host's view of a job's spec: shell resolved, environment complete, limits the least of all."""
    marker = f"{instance}/{job.key[0]}/{job.key[1]}".encode()
    environment = {} if spec.user is None else _user_environment(spec.user)
    size = None
    if isinstance(spec, SessionSpec):
        size = (spec.rows, spec.cols)
        environment[b"TERM"] = spec.term.encode()
    if job.trace:
        environment[b"TRACEPARENT"] = job.trace.encode()
        if b"TRACESTATE" in base_environment():
            environment[b"TRACESTATE"] = b""  # the daemon's own is of another trace
    if spec.env:
        environment |= _variables(spec.env)
    environment[b"SANDD_JOB"] = marker
    return SpawnRequest(
        argv=shell_argv(spec.argv[0]) if spec.shell else spec.argv or login_shell(spec.user),
        env=environment,
        marker=marker,
        cwd=spec.cwd,
        user=spec.user,
        stdin=spec.stdin,
        merge_stderr=spec.merge_stderr,
        terminal=size,
        base=base_environment(),
        limits=Limits.least(allowance.limits, job.ceiling, spec.limits),
        must_hold=allowance.require or spec.require_limits,
    )


def shell_argv(text: bytes) -> tuple[bytes, ...]:
    """The command line that has this machine's shell run `text`."""
    if sys.platform == "win32":
        return (os.environ.get("COMSPEC", "cmd.exe").encode(), b"/d", b"/s", b"/c", text)
    return (b"/bin/sh", b"-c", text)


def login_shell(user: str | None) -> tuple[bytes, ...]:
    """The shell that the user database names for `user`, or for whom the daemon runs as."""
    if sys.platform == "win32":
        return (os.environ.get("COMSPEC", "cmd.exe").encode(),)
    from sandd._core.processes.users import find_account

    account = find_account(str(os.geteuid()) if user is None else user)
    shell = "" if account is None else account.shell
    return (os.fsencode(shell or "/bin/sh"),)


@functools.cache
def base_environment() -> Mapping[bytes, bytes]:
    """The daemon's environment as its children get it: without what configures the daemon, secrets included."""
    variables = {os.fsencode(k): os.fsencode(v) for k, v in os.environ.items()}
    return {
        k: v
        for k, v in variables.items()
        if not k.startswith(b"SANDD_") and k not in _OF_ITS_TERMINAL
    }


def _variables(given: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """By their names in this system: those of Windows know no case, and are in capitals in `os.environ`."""
    if sys.platform == "win32":
        return {name.upper(): value for name, value in given.items()}
    return given


def _user_environment(user: str) -> dict[bytes, bytes]:
    """What a login would set; an unknown user is the process host's to refuse."""
    if sys.platform == "win32":
        return {}
    from sandd._core.processes.users import find_account

    account = find_account(user)
    if account is None:
        return {}
    values = {
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell,
    }
    return {key.encode(): os.fsencode(value) for key, value in values.items()}
