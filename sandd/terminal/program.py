"""A program at a terminal: what is said, and returned, when something goes wrong with it.

Signals are caught around all of it (`run_until_stopped`), so that none of them ever finds its default, which
would be a terminal that stays raw; and what went wrong is said when the terminal has been put back.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from sandd._core._errors import JobTaken, SanddError, SpawnFailed
from sandd.command_line.stopping import OUR_FAILURE, Failure, fail, run_until_stopped
from sandd.local_daemon import DaemonDidNotCome
from sandd.terminal.choosing import NoSuchJob
from sandd.terminal.local import NoTerminal, open_terminal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sandd.command_line.stopping import Stop
    from sandd.terminal.local import LocalTerminal

NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127


def run_at_terminal(body: Callable[[LocalTerminal, Stop], Awaitable[int]]) -> int:
    """Run it in trio with this program's terminal; returns the exit code, its own or that of what went wrong."""
    try:
        with open_terminal() as terminal:
            return trio.run(run_until_stopped, partial(body, terminal))
    except JobTaken:
        return fail("somebody else has taken the session over; it goes on there")
    except SpawnFailed as error:
        fail(str(error))
        return _SPAWN_CODES.get(error.errno or 0, OUR_FAILURE)
    except (Failure, NoTerminal, NoSuchJob, DaemonDidNotCome, SanddError, ValueError) as error:
        return fail(str(error))


_SPAWN_CODES: Final[Mapping[int, int]] = {
    errno.ENOENT: NOT_FOUND,
    errno.EACCES: NOT_EXECUTABLE,
    errno.ENOEXEC: NOT_EXECUTABLE,
}
