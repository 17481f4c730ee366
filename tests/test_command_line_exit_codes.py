"""Every way in which a command can end has its exit code, the same for all commands."""

from __future__ import annotations

import errno

import pytest

from sandd import (
    AuthenticationFailed,
    CommandTimeout,
    DaemonGone,
    ExitStatus,
    JobTaken,
    Outcome,
    RequestRefused,
    SpawnFailed,
)
from sandd.command_line.exit_codes import code_of_error, code_of_status
from sandd.command_line.stopping import Failure


@pytest.mark.parametrize(
    ("exit_code", "outcome", "code"),
    [
        pytest.param(0, Outcome.EXITED, 0, id="success"),
        pytest.param(7, Outcome.EXITED, 7, id="its-own"),
        pytest.param(255, Outcome.EXITED, 255, id="the-largest"),
        pytest.param(-9, Outcome.SIGNALED, 137, id="killed"),
        pytest.param(-15, Outcome.CANCELLED, 143, id="ended-by-us"),
        pytest.param(-9, Outcome.LEASE_EXPIRED, 137, id="lease"),
        pytest.param(-15, Outcome.TIMED_OUT, 124, id="timed-out"),
        pytest.param(0, Outcome.TIMED_OUT, 124, id="timed-out-but-it-ended-well"),
    ],
)
def test_of_a_command_that_has_ended(exit_code: int, outcome: Outcome, code: int) -> None:
    """Its own, or 128 and the signal; but running out of time is told as what it is."""
    assert code_of_status(ExitStatus(exit_code, outcome, 1.0)) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        pytest.param(CommandTimeout("late", started=False), 124, id="never-started-in-time"),
        pytest.param(SpawnFailed(errno.ENOENT, "none", "x"), 127, id="not-found"),
        pytest.param(SpawnFailed(errno.EACCES, "no", "x"), 126, id="not-executable"),
        pytest.param(SpawnFailed(errno.ENOEXEC, "no", "x"), 126, id="no-program"),
        pytest.param(SpawnFailed(errno.EMFILE, "no"), 125, id="no-more-files"),
        pytest.param(DaemonGone("gone"), 125, id="gone"),
        pytest.param(JobTaken("taken"), 125, id="taken"),
        pytest.param(RequestRefused("no"), 125, id="refused"),
        pytest.param(AuthenticationFailed("no"), 125, id="no-credential"),
        pytest.param(Failure("no"), 125, id="ours"),
    ],
)
def test_of_one_that_has_not(error: Exception, code: int) -> None:
    """126 and 127 are the command's fault; whatever failed of ours is 125."""
    assert code_of_error(error) == code
