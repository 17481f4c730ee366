"""A program at a terminal: the signals that stop it, and what is said, and returned, when something goes wrong.

Signals are caught around all of it, so that none of them ever finds its default, which would be a terminal
that stays raw; and what went wrong is said when the terminal has been put back.
"""

from __future__ import annotations

import errno
import signal
import sys
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd._core._errors import JobTaken, SanddError, SpawnFailed
from sandd._core.logs import printable
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.local_daemon import DaemonDidNotCome
from sandd.terminal.choosing import NoSuchJob
from sandd.terminal.local import NoTerminal, open_terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from sandd.terminal.local import LocalTerminal

OUR_FAILURE: Final = 125
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
STOP_SIGNALS: Final = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    if hasattr(signal, name)
]


class Failure(Exception):
    """Something didn't work; the text is for the person."""


@define(eq=False)
class Stop:
    """The signals that stop us: the first in good order; each further one saves something to wait for."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    number: int | None = None
    """The first signal that came."""
    _child: trio.Process | None = None

    def kill_if_hurried(self, child: trio.Process) -> None:
        """The daemon that is ours: a second signal doesn't wait for its orderly end."""
        self._child = child

    @trio.lowlevel.enable_ki_protection
    async def listen(self, signals: AsyncIterator[int], interrupt: Callable[[], None]) -> None:
        """Act on signals, for ever."""
        async for number in signals:
            if self.number is None:
                self.number = number
                self.scope.cancel()
                continue
            if self._child is not None:
                self._child.kill()
            interrupt()


async def _program(
    body: Callable[[LocalTerminal, Stop], Awaitable[int]], terminal: LocalTerminal
) -> int:
    stop = Stop()
    ctrl_c = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        # Raises KeyboardInterrupt in the main task, where that waits: what waits there for something to
        # end knows what is meant. Not here, as `listen` is protected.
        ours = signal.signal(signal.SIGINT, ctrl_c)
        signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGINT, ours)

    try:
        with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
            async with open_unwrapping_nursery() as nursery:
                nursery.start_soon(stop.listen, signals, interrupt)
                with stop.scope:
                    code = await body(terminal, stop)
                nursery.cancel_scope.cancel()
    except KeyboardInterrupt:
        if stop.number is None:
            raise
    return code if stop.number is None else 128 + stop.number


def run_at_terminal(body: Callable[[LocalTerminal, Stop], Awaitable[int]]) -> int:
    """Run it in trio with this program's terminal; returns the exit code, its own or that of what went wrong."""
    try:
        with open_terminal() as terminal:
            return trio.run(_program, body, terminal)
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


def fail(why: str) -> int:
    """Say what went wrong, in words that can't be a sequence for the terminal."""
    for line in f"sandd: {why}".splitlines():
        sys.stderr.write(f"{printable(line)}\n")
    return OUR_FAILURE
