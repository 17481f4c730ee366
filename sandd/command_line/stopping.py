"""What ends a command before its time: signals, and failures in words for the person.

Signals are caught around all of it: the first one cancels, so that everything is undone in good order; each
further one saves something to wait for.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd._core._errors import SanddError, SpawnFailed
from sandd._core.logs import printable
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.own_output import CantWrite, ReaderGone, write_text
from sandd.command_line.exit_codes import MISUSED, OUR_FAILURE, code_of_error, code_of_signal
from sandd.command_line.telling import put_bytes
from sandd.local_daemon import DaemonDidNotCome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sandd._core.own_output import Name

STOP_SIGNALS: Final = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    if hasattr(signal, name)
]


class Failure(Exception):
    """Something didn't work; the text is for the person."""

    code = OUR_FAILURE


class Misuse(Failure):
    """The command line means nothing, and nothing was done."""

    code = MISUSED


TOLD: Final = (SanddError, Failure, CantWrite, DaemonDidNotCome, ValueError)
"""What a person is told in a line; anything else is a mistake of ours, and comes out as it is."""


@define(eq=False)
class Stop:
    """The signals that stop us: the first in good order; each further one saves something to wait for."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    number: int | None = None
    """The first signal that came."""
    failure: CantWrite | None = None
    """What we write goes nowhere."""
    _child: trio.Process | None = None
    _spared: trio.Event | None = None

    def spare_interrupt(self) -> trio.Event:
        """The next Ctrl-C doesn't stop us, but sets this: for a command that hands it on. Only that one."""
        self._spared = trio.Event()
        return self._spared

    def kill_if_hurried(self, child: trio.Process) -> None:
        """The daemon that is ours: a second signal doesn't wait for its orderly end."""
        self._child = child

    async def write(self, name: Name, data: bytes | bytearray) -> None:
        """All of it on our stdout or stderr. If that fails all is stopped, in good order: then it never returns.

        For what several tasks write; where it is one, `put_bytes` raises.
        """
        try:
            await put_bytes(name, data)
        except CantWrite as error:
            self.failure = self.failure or error
            self.scope.cancel()
            await trio.sleep_forever()

    @trio.lowlevel.enable_ki_protection
    async def listen(self, signals: AsyncIterator[int], interrupt: Callable[[], None]) -> None:
        """Act on signals, for ever."""
        async for number in signals:
            spared, self._spared = self._spared, None
            if spared is not None and number == signal.SIGINT:
                spared.set()
                continue
            if self.number is None:
                self.number = number
                self.scope.cancel()
                continue
            if self._child is not None:
                self._child.kill()
            interrupt()


def run_command(body: Callable[[Stop], Awaitable[int]]) -> int:
    """Run it in trio, until a signal stops it; returns the exit code, its own or that of what went wrong."""
    try:
        return trio.run(run_until_stopped, body)
    except TOLD as error:
        return tell(error)


async def run_until_stopped(body: Callable[[Stop], Awaitable[int]]) -> int:
    """Run it to its end, or until a signal stops it: its exit code, or 128 and the number of the signal."""
    stop = Stop()
    ctrl_c = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        # Raises KeyboardInterrupt in the main task, where that waits: what waits there for something to
        # end knows what is meant. Not here, as `listen` is protected.
        ours = signal.signal(signal.SIGINT, ctrl_c)
        signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGINT, ours)

    try:
        with trio.open_signal_receiver(*_heeded()) as signals:
            async with open_unwrapping_nursery() as nursery:
                nursery.start_soon(stop.listen, signals, interrupt)
                with stop.scope:
                    code = await body(stop)
                nursery.cancel_scope.cancel()
    except KeyboardInterrupt:
        if stop.number is None:
            raise
    if stop.number is not None:
        return code_of_signal(stop.number)
    if stop.failure is not None:
        raise stop.failure
    return code


def _heeded() -> list[signal.Signals]:
    """The signals to catch: not a SIGHUP that whoever started us wants ignored, as nohup(1) does."""
    return [
        each
        for each in STOP_SIGNALS
        if each.name != "SIGHUP" or signal.getsignal(each) is not signal.SIG_IGN
    ]


def check_directory(error: SpawnFailed, cwd: str | None) -> None:
    """Raise Failure if it was the working directory that was not there, and no program."""
    if cwd is not None and error.filename == cwd:
        raise Failure(f"-w {cwd}: it can't be the working directory: {error.strerror}") from error


def tell(error: Exception) -> int:
    """Say what went wrong, if there is anybody to hear it; returns the exit code."""
    if isinstance(error, ReaderGone):
        return code_of_error(error)
    return fail(str(error), error.code if isinstance(error, Failure) else code_of_error(error))


def fail(why: str, code: int = OUR_FAILURE) -> int:
    """Say on stderr what went wrong, in words that can't be a sequence for the terminal; returns the exit code."""
    lines = "".join(f"{printable(line)}\n" for line in f"sandd: {why}".splitlines())
    try:
        write_text("stderr", lines)
    except CantWrite:
        pass  # nobody can be told; the exit code tells
    return code
