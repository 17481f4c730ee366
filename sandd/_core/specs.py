"""From the arguments of the public API to the spec of a job; what makes no sense is refused here."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any, Final, Literal

from sandd import wire
from sandd._core.arguments import check_count, check_mapping, check_number, check_text
from sandd._core.job_info import OUTPUT_NAMES
from sandd._core.limits import NO_LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from sandd.wire import Stream

    Text: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    Command: TypeAlias = str | bytes | Sequence[Text]
    IsolationName: TypeAlias = Literal["none", "user", "landlock", "bwrap"]

KILL_GRACE: Final = 5.0
"""Seconds from TERM to KILL, where the caller says nothing."""
DEFAULT_SCROLLBACK: Final = 1 * wire.MIB
"""Bytes that a session keeps of what was read: some 10,000 lines."""
MAX_INTERVAL: Final = 3600.0
"""Seconds; who looks once an hour asks once an hour."""
MAX_GRACE: Final = 3600.0
"""Seconds; leaving a job waits for its kill, and that wait can't be cancelled."""


def build_spec(
    command: Command,
    *,
    stdin: bool,
    merge_stderr: bool = False,
    cwd: Text | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    isolation: str | None = None,
    timeout: float | None = None,
    idle_timeout: float | None = None,
    kill_grace: float = KILL_GRACE,
    lease: float | None = None,
    on_full: str = "block",
    detach: bool = False,
    limits: Limits | None = None,
    require_limits: bool = False,
) -> wire.CommandSpec:
    """The spec that asks for `command`; TypeError or ValueError for arguments that mean nothing."""
    argv, shell = _argv(command)
    return wire.CommandSpec(
        **_program(argv, shell, cwd=cwd, env=env, user=user),
        isolation=None if isolation is None else _isolation(isolation),
        stdin=bool(stdin),
        merge_stderr=merge_stderr,
        timeout=None if timeout is None else seconds("timeout", timeout),
        idle_timeout=None if idle_timeout is None else seconds("idle_timeout", idle_timeout),
        kill_grace=check_grace("kill_grace", kill_grace),
        lease=None if lease is None else seconds("lease", lease),
        on_full=_on_full(on_full),
        detach=bool(detach),
        limits=_limits(limits),
        require_limits=bool(require_limits),
    )


def build_session_spec(
    command: Command | None,
    *,
    rows: int,
    cols: int,
    term: str,
    scrollback: int,
    cwd: Text | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    isolation: str | None = None,
    kill_grace: float = KILL_GRACE,
    lease: float | None = None,
    detach: bool = False,
    limits: Limits | None = None,
    require_limits: bool = False,
) -> wire.SessionSpec:
    """The spec that asks for a terminal with `command` in it; None: the user's shell. Errors as `build_spec`."""
    check_size(rows, cols)
    kind = "the name of a terminal type, such as 'xterm'"
    check_text("term", term, what=kind)
    if not (0 < len(term) <= 64 and term.isascii() and term.isprintable()):
        raise ValueError(f"term is {term!r}; it must be {kind}")
    kept = check_count(
        "scrollback",
        scrollback,
        lowest=0,
        most=wire.MAX_SCROLLBACK_BYTES,
        what=f"a number of bytes from 0 to {wire.MAX_SCROLLBACK_BYTES}",
    )
    argv, shell = ((), False) if command is None else _argv(command)
    return wire.SessionSpec(
        **_program(argv, shell, cwd=cwd, env=env, user=user),
        isolation=_isolation(isolation),
        rows=rows,
        cols=cols,
        term=term,
        scrollback=kept,
        kill_grace=check_grace("kill_grace", kill_grace),
        lease=seconds("lease", lease),
        detach=bool(detach),
        limits=_limits(limits),
        require_limits=bool(require_limits),
    )


def check_size(rows: int, cols: int) -> None:
    """ValueError for what can't be the size of a terminal."""
    for name, value in (("rows", rows), ("cols", cols)):
        if not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}; it must be a whole number")
        if not 1 <= value <= wire.MAX_TERMINAL_SIZE:
            raise ValueError(f"{name} is {value}; it must be from 1 to {wire.MAX_TERMINAL_SIZE}")


def _argv(command: Command) -> tuple[tuple[bytes, ...], bool]:
    """The arguments, and whether they are one text for the shell."""
    if type(command) is str and command:
        return (command.encode("utf-8", "surrogateescape"),), True
    shell = isinstance(command, str | bytes)
    given: object = command  # whatever its type says
    # Of a mapping, or a set, nobody could say which word comes first.
    if not shell and (not isinstance(given, Iterable) or isinstance(given, Mapping | Set)):
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
    return argv, shell


def _program(
    argv: tuple[bytes, ...],
    shell: bool,
    *,
    cwd: Text | None,
    env: Mapping[str, str] | None,
    user: str | None,
) -> dict[str, Any]:
    """What all specs that run a program have in common."""
    check_mapping("env", env, like="{'LANG': 'C'}")
    environment = {}
    parts = [*argv]
    if env:
        environment = {
            _encode(key, "env has the name {!r}"): _encode(value, "env has the value {!r}")
            for key, value in env.items()
        }
        parts += (*environment, *environment.values())
    directory = None
    if cwd is not None:
        directory = _encode(cwd, "cwd is {!r}")
        parts.append(directory)
    if user is not None:
        if not isinstance(user, str):
            raise TypeError(
                f"user is {user!r}; it must be a text, the name or the number of a user"
            )
        parts.append(_encode(user))
    if b"\0" in b"".join(parts):
        raise ValueError(
            "a NUL byte can't be passed to a process: not in its arguments, its environment, "
            "its working directory or its user's name"
        )
    if environment and any(not key or b"=" in key for key in environment):
        raise ValueError("names of environment variables are not empty and hold no '='")
    return {"argv": argv, "shell": shell, "cwd": directory, "env": environment, "user": user}


def check_interval(name: str, value: float) -> float:
    """Seconds from one look to the next; ValueError for what is none."""
    interval = check_number(name, value)
    if not 0.2 <= interval <= MAX_INTERVAL:
        raise ValueError(f"{name} is {value!r}; it must be from 0.2 to {MAX_INTERVAL:g} seconds")
    return interval


def check_job_id(job_id: str) -> str:
    """The id itself; ValueError for what can't be one."""
    check_text("job_id", job_id, what="the id of a job, a text")
    if not (0 < len(job_id) <= wire.MAX_ID_LENGTH and job_id.isprintable()):
        raise ValueError(
            f"job_id {job_id!r} is not usable: 1 to {wire.MAX_ID_LENGTH} printable characters"
        )
    return job_id


def encode_path(name: str, path: Text) -> bytes:
    """A path on a daemon, as it has it; ValueError for what can't be one."""
    encoded = _encode(path, f"{name} is {{!r}}")
    if not encoded or b"\0" in encoded or len(encoded) > wire.MAX_PATH_BYTES:
        raise ValueError(
            f"{name} is {path!r}; it must be a path: not empty, without NUL, and of at most "
            f"{wire.MAX_PATH_BYTES} bytes"
        )
    return encoded


def _encode(text: Text, what: str = "{!r}") -> bytes:
    try:
        path = os.fspath(text)
    except TypeError:
        # A RemotePath has no __fspath__: nothing on this machine may take it for one of its own.
        raise TypeError(
            f"{what.format(text)}; it must be a text, or a path (of a RemotePath, its str())"
        ) from None
    # UTF-8 whatever this machine's own encoding is; surrogates stand for bytes that are not UTF-8.
    return path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")


def read_offsets(since: Mapping[str, int] | None) -> dict[Stream, int]:
    """`Process.offsets` as the streams they belong to; ValueError for what can't be offsets."""
    streams = {name: stream for stream, name in OUTPUT_NAMES.items()}
    check_mapping("since", since, like="Process.offsets")
    offsets = {}
    for name, offset in (since or {}).items():
        if name not in streams:
            raise ValueError(
                f"since has the name {name!r}; it holds bytes of 'stdout' and of 'stderr', "
                "as Process.offsets does"
            )
        offsets[streams[name]] = read_offset(f"since[{name!r}]", offset)
    return offsets


def read_offset(name: str, offset: int) -> int:
    """The number of bytes; ValueError for what can't be one."""
    most = wire.MAX_OFFSET
    return check_count(name, offset, lowest=0, most=most, what="a number of bytes, 0 or more")


def seconds(name: str, value: float | None) -> float | None:
    """The number itself, None for no bound; ValueError for what is no time."""
    if value is None or value == math.inf:
        return None
    number = check_number(name, value)
    if not 0 <= number <= wire.MAX_SECONDS:
        raise ValueError(f"{name} is {value!r}; it must be a number of seconds, 0 or more")
    return number


def check_grace(name: str, value: float) -> float:
    """The seconds from TERM to KILL; ValueError for what can't be waited for."""
    number = check_number(name, value)
    if not 0 <= number <= MAX_GRACE:
        raise ValueError(
            f"{name} is {value!r}; it must be a number of seconds from 0 to {MAX_GRACE:g}"
        )
    return number


def address(
    port: int | None, host: str, path: Text | None, *, what: str, lowest: int
) -> tuple[str, int, bytes | None]:
    """Host, port and path for a spec: either the first two or the last; ValueError for anything else."""
    if path is not None:
        if port:
            raise ValueError(f"{what}port and {what}path: it is either the one or the other")
        name = _encode(path, f"{what}path is {{!r}}")
        if not 0 < len(name) <= wire.MAX_SOCKET_PATH or b"\0" in name:
            raise ValueError(f"{what}path is {path!r}; it must be the path of a Unix socket")
        return "", 0, name
    if not isinstance(port, int):
        instead = f", or say {what}path" if what else ""
        raise TypeError(f"{what}port is {port!r}; it must be a whole number{instead}")
    if not lowest <= port <= 65535:
        raise ValueError(f"{what}port is {port}; it must be from {lowest} to 65535")
    if not isinstance(host, str):
        raise TypeError(f"{what}host is {host!r}; it must be a text")
    if not 0 < len(host) <= wire.MAX_HOST_LENGTH:
        raise ValueError(
            f"{what}host has {len(host)} characters; it must have 1 to {wire.MAX_HOST_LENGTH}"
        )
    return host, port, None


def _limits(limits: Limits | None) -> Limits:
    given: object = limits  # whatever its type says
    if given is None:
        return NO_LIMITS
    if not isinstance(given, Limits):
        raise TypeError(f"limits is {given!r}; it must be sandd.Limits(...)")
    return given


def _isolation(value: str | None) -> wire.IsolationLevel | None:
    if value is None:
        return None
    try:
        return wire.IsolationLevel(value)
    except ValueError:
        levels = ", ".join(repr(str(each)) for each in wire.IsolationLevel)
        raise ValueError(f"isolation is {value!r}; it must be one of {levels}, or None") from None


def _on_full(value: str) -> wire.OnFull:
    if value == "block":
        return wire.OnFull.BLOCK
    try:
        return wire.OnFull(value)
    except ValueError:
        raise ValueError(f"on_full is {value!r}; it must be 'block' or 'drop_oldest'") from None


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
