"""A program at a terminal: what is said, and returned, when something goes wrong with it.

Signals are caught around all of it (`run_until_stopped`), so that none of them ever finds its default, which
would be a terminal that stays raw; and what went wrong is said when the terminal has been put back.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from sandd._core._errors import JobTaken
from sandd.command_line.stopping import TOLD, fail, run_until_stopped, tell
from sandd.terminal.local import open_terminal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandd.command_line.stopping import Stop
    from sandd.terminal.local import LocalTerminal


def run_at_terminal(body: Callable[[LocalTerminal, Stop], Awaitable[int]]) -> int:
    """Run it in trio with this program's terminal; returns the exit code, its own or that of what went wrong."""
    try:
        with open_terminal() as terminal:
            return trio.run(run_until_stopped, partial(body, terminal))
    except JobTaken:
        return fail("somebody else has taken the session over; it goes on there")
    except TOLD as error:
        return tell(error)
