# The map. Imports point down only; tests/test_layering.py enforces it.
#
#   sandd/__init__.py         this file: the public names, each imported when it is first used
#   sandd/cli.py              the `sandd` command (and sandd/__main__.py, which calls it)
#   sandd/completion.py       `sandd completion`: Tab, in a shell
#   sandd/standalone/         `sandd controller`: a controller as a program of its own
#   sandd/enrolling/          `sandd token`, `sandd daemons`: who may come in
#   sandd/fleet/              `sandd ps`, `jobs`, `logs`, `kill`, `forget`, `run`: daemons and their jobs
#   sandd/terminal/           a person's end of a session: `sandd shell`, `sandd attach`
#   sandd/executing/          `sandd exec`: a command, as if it ran here
#   sandd/copying/            `sandd cp`: files and directories
#   sandd/forwarding/         `sandd forward`: ports
#   sandd/bundling/           `sandd bundle`: the daemon as one file
#   sandd/command_line/       what the commands share: the controller that is meant, exit codes, ...
#   sandd/local_daemon.py     a daemon on this machine, as a child of one of the commands
#   sandd/testing/            for tests: a network with faults, daemons in numbers (imported by name)
#   sandd/server.py           Server: the controller for synchronous code, its trio in a thread
#   sandd/client.py           connect(): of a controller elsewhere, the same; Client is what both can do
#   sandd/aio.py              the controller for asyncio, likewise (imported as `sandd.aio`)
#   sandd/controller.py       open_controller(), Controller, Daemon, Process, Session, ...: the agent's end
#   sandd/daemon.py           the program inside the sandbox: `python -m sandd.daemon`
#     ---- controller and daemon never import each other ----
#   sandd/_core/              trio shells: logs, transport, processes: they do the I/O
#   sandd/_core/              sans-IO state machines: streams, channels, jobs, link, router, client
#   sandd/wire.py             the whole wire protocol: messages, limits, frames, codec (no I/O)
#   sandd/_core/_errors.py    the exception tree (imports nothing)
#
# To read the project in order, start at the bottom: _errors, wire, streams, channels, and then up.

"""A controller for daemons that run inside sandboxes and dial out to it.

`open_controller` is where a trio program starts, `aio.open_controller` where one for asyncio does,
and `Server` where a synchronous one does. Every public name is importable from here; `sandd._core`
and names that start with an underscore may change in any release.
"""

__version__ = "0.1.0"

# Not `typing.TYPE_CHECKING`: the spawner imports this package and should not pay for `typing`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandd import aio as aio
    from sandd._core._errors import (
        AuthenticationFailed,
        CommandFailed,
        CommandTimeout,
        ConfigurationError,
        ControllerUnreachable,
        DaemonGone,
        DaemonNotFound,
        JobIdConflict,
        JobNotFound,
        JobTaken,
        LocalProtocolError,
        NoTerminal,
        OutputGap,
        PolicyDenied,
        ProtocolError,
        RateLimited,
        RemoteProtocolError,
        RequestRefused,
        SanddError,
        SpawnFailed,
        TokenNotFound,
        TransferError,
    )
    from sandd._core.audit.options import AuditOptions
    from sandd._core.daemon_statistics import DaemonStatistics, JobStatistics
    from sandd._core.file_status import FileStatus
    from sandd._core.job_info import JobInfo, KeptOutput
    from sandd._core.limits import Limits
    from sandd._core.remote_files import FileReader, FileWriter
    from sandd._core.remote_path import FileChange, RemotePath
    from sandd._core.results import CommandResult, ExitStatus, Outcome
    from sandd._core.server_streams import ServerInput, ServerOutput
    from sandd._core.spool import Stall
    from sandd._core.transfers.result import TransferResult
    from sandd.client import (
        Client,
        DaemonSummary,
        FailedResult,
        ServerProcess,
        ServerSession,
        connect,
    )
    from sandd.controller import (
        Controller,
        ControllerStatistics,
        Daemon,
        DaemonEvent,
        DaemonInfo,
        DaemonState,
        Enrolled,
        EnrolledDaemon,
        EnrolmentState,
        JobState,
        NewToken,
        Process,
        Rate,
        RateLimits,
        RemoteStream,
        Session,
        TokenInfo,
        TokenKind,
        Tokens,
        connect_controller,
        open_controller,
    )
    from sandd.server import Server
    from sandd.wire import ChangeKind, FileKind, StallReason

__all__ = [
    "AuditOptions",
    "AuthenticationFailed",
    "ChangeKind",
    "Client",
    "CommandFailed",
    "CommandResult",
    "CommandTimeout",
    "ConfigurationError",
    "Controller",
    "ControllerStatistics",
    "ControllerUnreachable",
    "Daemon",
    "DaemonEvent",
    "DaemonGone",
    "DaemonInfo",
    "DaemonNotFound",
    "DaemonState",
    "DaemonStatistics",
    "DaemonSummary",
    "Enrolled",
    "EnrolledDaemon",
    "EnrolmentState",
    "ExitStatus",
    "FailedResult",
    "FileChange",
    "FileKind",
    "FileReader",
    "FileStatus",
    "FileWriter",
    "JobIdConflict",
    "JobInfo",
    "JobNotFound",
    "JobState",
    "JobStatistics",
    "JobTaken",
    "KeptOutput",
    "Limits",
    "LocalProtocolError",
    "NewToken",
    "NoTerminal",
    "Outcome",
    "OutputGap",
    "PolicyDenied",
    "Process",
    "ProtocolError",
    "Rate",
    "RateLimited",
    "RateLimits",
    "RemotePath",
    "RemoteProtocolError",
    "RemoteStream",
    "RequestRefused",
    "SanddError",
    "Server",
    "ServerInput",
    "ServerOutput",
    "ServerProcess",
    "ServerSession",
    "Session",
    "SpawnFailed",
    "Stall",
    "StallReason",
    "TokenInfo",
    "TokenKind",
    "TokenNotFound",
    "Tokens",
    "TransferError",
    "TransferResult",
    "__version__",
    "connect",
    "connect_controller",
    "open_controller",
]

# Where each public name lives. Importing on first use (PEP 562) keeps `python -m sandd.daemon` free
# of the controller, and the spawner, which must start in milliseconds, free of trio.
_HOMES = {
    "AuditOptions": "sandd._core.audit.options",
    "AuthenticationFailed": "sandd._core._errors",
    "ChangeKind": "sandd.wire",
    "Client": "sandd.client",
    "CommandFailed": "sandd._core._errors",
    "CommandResult": "sandd._core.results",
    "CommandTimeout": "sandd._core._errors",
    "ConfigurationError": "sandd._core._errors",
    "Controller": "sandd.controller",
    "ControllerStatistics": "sandd.controller",
    "ControllerUnreachable": "sandd._core._errors",
    "Daemon": "sandd.controller",
    "DaemonEvent": "sandd.controller",
    "DaemonGone": "sandd._core._errors",
    "DaemonInfo": "sandd.controller",
    "DaemonNotFound": "sandd._core._errors",
    "DaemonState": "sandd.controller",
    "DaemonSummary": "sandd.client",
    "Enrolled": "sandd.controller",
    "EnrolledDaemon": "sandd.controller",
    "EnrolmentState": "sandd.controller",
    "ExitStatus": "sandd._core.results",
    "FailedResult": "sandd.client",
    "FileChange": "sandd._core.remote_path",
    "FileKind": "sandd.wire",
    "FileReader": "sandd._core.remote_files",
    "FileStatus": "sandd._core.file_status",
    "FileWriter": "sandd._core.remote_files",
    "JobIdConflict": "sandd._core._errors",
    "JobInfo": "sandd._core.job_info",
    "JobStatistics": "sandd._core.daemon_statistics",
    "DaemonStatistics": "sandd._core.daemon_statistics",
    "JobNotFound": "sandd._core._errors",
    "JobState": "sandd.controller",
    "JobTaken": "sandd._core._errors",
    "KeptOutput": "sandd._core.job_info",
    "LocalProtocolError": "sandd._core._errors",
    "NewToken": "sandd.controller",
    "NoTerminal": "sandd._core._errors",
    "Limits": "sandd._core.limits",
    "Outcome": "sandd._core.results",
    "OutputGap": "sandd._core._errors",
    "PolicyDenied": "sandd._core._errors",
    "Process": "sandd.controller",
    "ProtocolError": "sandd._core._errors",
    "Rate": "sandd.controller",
    "RateLimited": "sandd._core._errors",
    "RateLimits": "sandd.controller",
    "RemotePath": "sandd._core.remote_path",
    "RemoteProtocolError": "sandd._core._errors",
    "RemoteStream": "sandd.controller",
    "RequestRefused": "sandd._core._errors",
    "SanddError": "sandd._core._errors",
    "Server": "sandd.server",
    "ServerInput": "sandd._core.server_streams",
    "ServerOutput": "sandd._core.server_streams",
    "ServerProcess": "sandd.client",
    "ServerSession": "sandd.client",
    "Session": "sandd.controller",
    "SpawnFailed": "sandd._core._errors",
    "Stall": "sandd._core.spool",
    "StallReason": "sandd.wire",
    "TokenInfo": "sandd.controller",
    "TokenKind": "sandd.controller",
    "TokenNotFound": "sandd._core._errors",
    "Tokens": "sandd.controller",
    "TransferError": "sandd._core._errors",
    "TransferResult": "sandd._core.transfers.result",
    "connect": "sandd.client",
    "connect_controller": "sandd.controller",
    "open_controller": "sandd.controller",
}


if not TYPE_CHECKING:  # a type checker would take `__getattr__` as leave for any misspelt name

    def __getattr__(name):
        """The public object of that name, imported now and kept."""
        import importlib

        if name == "aio":
            return importlib.import_module("sandd.aio")
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "aio"})
