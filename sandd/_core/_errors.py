"""The exception tree. Imports nothing of ours, so that every layer can raise from it.

Two questions decide which class an error gets: *whose fault is it* (the caller's, the peer's, the
machine's) and *may the work have run* - "did not run" and "may have run" are never the same type.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandd._core.results import CommandResult


_PUBLIC = "sandd"
"""Where people import them from: so that is what tracebacks say."""


class SanddError(Exception):
    """Everything sandd raises on purpose is one of these."""


class ConfigurationError(SanddError, ValueError):
    """An option or file given to a controller or daemon can't be used. Nothing was started."""


class NoTerminal(SanddError):
    """This program has no terminal for a person to have a session at; says why. Nothing ran."""


class ProtocolError(SanddError):
    """Somebody broke the rules of the wire protocol."""


class LocalProtocolError(ProtocolError):
    """Our own side asked the protocol for something it forbids: a bug in the caller. Nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent bytes that the protocol forbids; its connection is closed, nothing else is touched."""


class ConnectionLost(SanddError):
    """One WebSocket connection ended. Jobs outlive it; only the link layer sees this."""

    def __init__(
        self, message: str, *, code: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        """WebSocket close code, where the peer sent one."""
        self.retry_after = retry_after
        """Seconds after which the server wants to be asked again, where it refused and said so."""


class ControllerUnreachable(SanddError, ConnectionError):
    """No connection to a controller in another process came about in time. Nothing ran."""


class DaemonNotFound(SanddError, LookupError, ValueError):
    """No daemon of that id is registered. Nothing ran."""


class DaemonGone(SanddError):
    """The daemon instance that held the job is gone for good (restarted, left, or its lease passed)."""

    def __init__(self, message: str, *, outcome_unknown: bool = True) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown
        """True: the work may have run, in part or whole. False: it certainly never started."""


class JobNotFound(SanddError, LookupError):
    """The daemon holds no job of that id: it never existed, was forgotten, or belongs to somebody else.

    Where it was yours, it may have run.
    """


class TokenNotFound(SanddError, LookupError):
    """The controller has no token of that id. Nothing was done."""


class JobIdConflict(SanddError):
    """The job id is taken by a job with another spec. Nothing ran."""


class CommandTimeout(SanddError, TimeoutError):
    """The command did not finish within its time-out; what was started has been killed."""

    def __init__(
        self, message: str, *, result: CommandResult | None = None, started: bool | None = True
    ) -> None:
        super().__init__(message)
        self.result = result
        """What the command had produced when it was killed; None if it never started."""
        self.started = started
        """True: it ran and was killed. False: it never started. None: unknown (the daemon is away)."""


class CommandFailed(SanddError):
    """With ``check=True``: the command ran and did not succeed; `result` says how."""

    def __init__(self, message: str, *, result: CommandResult) -> None:
        super().__init__(message)
        self.result = result
        """All that it printed, and how it ended."""


class OutputGap(SanddError):
    """Bytes ``start`` to ``end`` of a stream were dropped, as asked for; reading goes on behind them."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__(
            f"bytes {start} to {end} were dropped before they could be read; read on for the rest"
        )
        self.start = start
        """Offset of the first byte that is missing, from the stream's beginning."""
        self.end = end
        """Offset of the first byte behind them, which is read next."""


class SpawnFailed(SanddError, OSError):
    """The daemon could not start the program (no such file, not executable, bad cwd, ...). Nothing ran.

    ``errno``, ``strerror`` and ``filename`` are those of the daemon's machine.
    """

    def __init__(self, number: int, message: str, filename: str | None = None) -> None:
        # OSError fills errno, strerror and filename from its arguments.
        super().__init__(number, message or os.strerror(number), filename)

    def __str__(self) -> str:
        name = _errno.errorcode.get(self.errno or 0, str(self.errno))
        target = f": {self.filename!r}" if self.filename else ""
        return f"[{name}] {self.strerror}{target}"


class TransferError(SanddError):
    """Something with a daemon's files went wrong, or with a transfer to or from them.

    What a system call refused is also the fitting OSError (FileNotFoundError, PermissionError,
    IsADirectoryError, ...), with ``errno`` (this machine's number), ``strerror`` and ``filename``.
    """


_TRANSFER_ERRORS: dict[type[OSError], type[TransferError]] = {}
"""For each of OSError's classes, the one that is a TransferError, too; made when first needed."""


def transfer_error(symbol: str, message: str, filename: str | None = None) -> TransferError:
    """The exception for a system call that failed, here or there; `symbol` is like "ENOENT"."""
    number = getattr(_errno, symbol, _errno.EIO)
    text = message or os.strerror(number)
    plain = type(OSError(number, text))  # the class that Python itself would choose
    chosen = _TRANSFER_ERRORS.get(plain)
    if chosen is None:
        # Named for what it is caught as; its module says whose it is.
        chosen = type(plain.__name__, (TransferError, plain), {"__module__": _PUBLIC})
        _TRANSFER_ERRORS[plain] = chosen
    return chosen(number, text) if filename is None else chosen(number, text, filename)


def describe_system_error(error: Exception) -> tuple[str, str, bytes | None]:
    """What another machine is told of a call that failed here: the error's name, its text, the file's name.

    Names and not numbers, which differ between systems. The name is "" where the system named none.
    """
    number = getattr(error, "errno", None)
    symbol = _errno.errorcode.get(number, "") if isinstance(number, int) else ""
    name = getattr(error, "filename", None)
    return (
        symbol.removeprefix("WSA"),  # Windows' own, of sockets
        getattr(error, "strerror", None) or str(error),
        os.fsencode(name) if isinstance(name, str | bytes | os.PathLike) else None,
    )


class JobTaken(SanddError):
    """Another client, or another block with the same `job_id`, took the job over. It goes on there."""


class RequestRefused(SanddError):
    """The daemon or controller declined the request; `reason` says why. Nothing ran."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """Why, in words for a person."""


class RateLimited(RequestRefused):
    """Too many commands or sessions were started in too short a time. Nothing ran; try again after `retry_after`."""

    def __init__(self, reason: str, *, scope: str, retry_after: float) -> None:
        super().__init__(reason)
        self.scope = scope
        """Whose limit it is: "operator", "tenant" or "daemon"."""
        self.retry_after = retry_after
        """Seconds from when this was refused; then one more is let pass, unless somebody else comes first."""


class PolicyDenied(RequestRefused):
    """A policy, the daemon's or the controller's, names nothing that would allow this. Nothing ran."""

    def __init__(self, reason: str, *, policy_hash: str = "") -> None:
        super().__init__(reason)
        self.policy_hash = policy_hash
        """Which policy it was: the first digits of the hash that ``sandd policy check`` shows."""


class AuthenticationFailed(RequestRefused):
    """The peer did not accept our credentials, or we have none where some are needed."""


def _show_where_they_are_public() -> None:
    for each in globals().values():
        if isinstance(each, type) and issubclass(each, SanddError):
            each.__module__ = _PUBLIC


_show_where_they_are_public()
