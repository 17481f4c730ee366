"""The exception tree: what callers catch, and what it tells them."""

from __future__ import annotations

import ast
import errno
import inspect
import os
import traceback

import pytest

import sandd
from sandd._core import _errors
from sandd._core._errors import (
    AuthenticationFailed,
    CommandFailed,
    CommandTimeout,
    ConfigurationError,
    ConnectionLost,
    DaemonGone,
    DaemonNotFound,
    JobNotFound,
    LocalProtocolError,
    OutputGap,
    PolicyDenied,
    ProtocolError,
    RemoteProtocolError,
    RequestRefused,
    SanddError,
    SpawnFailed,
    TransferError,
    transfer_error,
)
from sandd._core.results import CommandResult
from sandd.wire import Outcome

RESULT = CommandResult(
    b"", b"", 1, Outcome.EXITED, 0.1, 0, 0, truncated=False, pipes_held=False, job_id="j"
)


def test_everything_raised_on_purpose_is_a_sandd_error() -> None:
    """One `except` catches all that sandd raises on purpose, and nothing else."""
    tree = ast.parse(inspect.getsource(_errors))
    ours = [getattr(_errors, each.name) for each in tree.body if isinstance(each, ast.ClassDef)]
    assert len(ours) > 15
    assert all(issubclass(cls, SanddError) for cls in ours)


def test_tracebacks_name_errors_as_they_are_imported() -> None:
    """``sandd.CommandTimeout``, and not the module that has it; and whose a FileNotFoundError of ours is."""
    for error in [CommandTimeout, RequestRefused, TransferError]:
        assert getattr(sandd, error.__name__) is error
        assert traceback.format_exception_only(error("why"))[0] == f"sandd.{error.__name__}: why\n"
    gone = transfer_error("ENOENT", "gone")
    assert traceback.format_exception_only(gone)[0].startswith("sandd.FileNotFoundError: ")


@pytest.mark.parametrize(
    ("error", "parents"),
    [
        (ConfigurationError, [ValueError]),
        (DaemonNotFound, [LookupError, ValueError]),
        (JobNotFound, [LookupError]),
        (CommandTimeout, [TimeoutError]),
        (SpawnFailed, [OSError]),
        (AuthenticationFailed, [RequestRefused]),
        (PolicyDenied, [RequestRefused]),
        (LocalProtocolError, [ProtocolError]),
        (RemoteProtocolError, [ProtocolError]),
    ],
)
def test_errors_are_also_what_python_calls_them(
    error: type[SanddError], parents: list[type[Exception]]
) -> None:
    """Code that knows nothing of sandd catches what it expects."""
    assert all(issubclass(error, parent) for parent in parents)


def test_errors_say_what_may_have_run() -> None:
    """Whether work may have run is never left to guess."""
    assert DaemonGone("x").outcome_unknown
    assert not DaemonGone("x", outcome_unknown=False).outcome_unknown
    timeout = CommandTimeout("x", result=RESULT)
    assert (timeout.started, timeout.result) == (True, RESULT)
    assert (CommandTimeout("x", started=None).started, CommandTimeout("x").result) == (None, None)
    assert CommandFailed("x", result=RESULT).result is RESULT


def test_errors_carry_their_particulars() -> None:
    """What a program needs to react is an attribute, not text."""
    assert ConnectionLost("x", code=1001).code == 1001
    assert ConnectionLost("x").code is None
    assert RequestRefused("because").reason == "because"
    assert PolicyDenied("because", policy_hash="0a").policy_hash == "0a"
    gap = OutputGap(3, 10)
    assert (gap.start, gap.end) == (3, 10)
    assert "3 to 10" in str(gap)


def test_a_failed_spawn_is_an_os_error_of_the_daemons_machine() -> None:
    """errno, text and file name as `open` would give them; the name of the number in the text."""
    error = SpawnFailed(errno.ENOENT, "", "/no/such")
    assert (error.errno, error.filename) == (errno.ENOENT, "/no/such")
    assert error.strerror == os.strerror(errno.ENOENT)
    assert str(error) == f"[ENOENT] {os.strerror(errno.ENOENT)}: '/no/such'"
    assert str(SpawnFailed(99999, "odd")) == "[99999] odd"
    assert str(SpawnFailed(0, "odd")) == "[0] odd"


@pytest.mark.parametrize(
    ("symbol", "kind"),
    [
        ("ENOENT", FileNotFoundError),
        ("EACCES", PermissionError),
        ("EPERM", PermissionError),
        ("EISDIR", IsADirectoryError),
        ("ENOTDIR", NotADirectoryError),
        ("EEXIST", FileExistsError),
        ("ENOSPC", OSError),
    ],
)
def test_a_failed_transfer_is_the_os_error_that_fits(symbol: str, kind: type[OSError]) -> None:
    """By the name of the error, whatever number the other machine has for it."""
    error = transfer_error(symbol, "", "/there")
    assert isinstance(error, TransferError)
    assert isinstance(error, kind)
    number = getattr(errno, symbol)
    assert (error.errno, error.strerror, error.filename) == (number, os.strerror(number), "/there")
    assert type(transfer_error(symbol, "again")) is type(error)


def test_an_error_that_this_system_does_not_know_is_still_one() -> None:
    """Its text says what it was."""
    error = transfer_error("EDOOFUS", "Programming error")
    assert isinstance(error, OSError)
    assert (error.errno, error.strerror, error.filename) == (errno.EIO, "Programming error", None)


def test_what_an_error_has_is_documented() -> None:
    """The reference shows what its caller may look at, as far as there is something said of it."""
    silent = []
    for node in ast.walk(ast.parse(inspect.getsource(_errors))):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(statement, ast.Assign) and not isinstance(following, ast.Expr):
                    silent.append(ast.unparse(statement))
    assert silent == []
