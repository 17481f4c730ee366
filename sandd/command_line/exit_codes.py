"""The exit codes of all commands: the remote command's own, or one that says whose failure it was.

As docker(1), env(1) and timeout(1) have them, so that scripts which know those know these. Sans-IO.
"""

from __future__ import annotations

import errno
import signal
from typing import TYPE_CHECKING, Final

from sandd._core._errors import CommandTimeout, SanddError, SpawnFailed
from sandd._core.own_output import ReaderGone
from sandd.wire import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandd._core.results import CommandResult, ExitStatus

MISUSED: Final = 2
"""The command line means nothing: nothing was tried. As argparse has it."""
TIMED_OUT: Final = 124
"""The command ran out of time, and was killed."""
OUR_FAILURE: Final = 125
"""sandd, the controller or the daemon failed; whether the command ran, the message says."""
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
_SIGNALLED: Final = 128
"""And the number of the signal, as shells have it."""
_SIGPIPE: Final = getattr(signal, "SIGPIPE", 13)

DESCRIPTION: Final = f"""\
exit code:
  the command's own; {TIMED_OUT} if it ran out of time; {OUR_FAILURE} if sandd failed; {NOT_EXECUTABLE} if the \
command can't be
  executed, {NOT_FOUND} if there is none; {_SIGNALLED}+N if signal N killed it; 2 for a command line that means nothing
"""
"""For the help of a command that runs another one."""

_SPAWN_CODES: Final[Mapping[int, int]] = {
    errno.ENOENT: NOT_FOUND,
    errno.EACCES: NOT_EXECUTABLE,
    errno.ENOEXEC: NOT_EXECUTABLE,
}


def code_of_status(status: ExitStatus | CommandResult) -> int:
    """Of a command that has ended."""
    if status.outcome is Outcome.TIMED_OUT:
        return TIMED_OUT
    return status.exit_code if status.exit_code >= 0 else code_of_signal(-status.exit_code)


def code_of_signal(number: int) -> int:
    """Of a command, or of ours, that a signal has ended."""
    return _SIGNALLED + number


def code_of_error(error: BaseException) -> int:
    """Of a command that has not ended as commands do: it was never started, or there is no telling."""
    if isinstance(error, ReaderGone):
        return code_of_signal(_SIGPIPE)
    if isinstance(error, CommandTimeout):
        return TIMED_OUT
    if isinstance(error, SpawnFailed):
        return _SPAWN_CODES.get(error.errno or 0, OUR_FAILURE)
    if isinstance(error, ValueError) and not isinstance(error, SanddError):
        return MISUSED  # of an argument that makes no sense; nothing ran
    return OUR_FAILURE
