"""What the demo plays on: the screen, the daemon, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NoReturn

import trio
from attrs import define, field, frozen
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandd._core.logs import printable
from sandd._core.own_output import CantWrite, ReaderGone, drop_stdout
from sandd.local_daemon import open_local_daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sandd.controller import Controller, Daemon
    from sandd.local_daemon import LocalDaemon
    from sandd.testing.fault_proxy import FaultProxy

DAEMON_ID: Final = "demo"
STOP_SIGNALS: Final = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@frozen
class Outcome:
    """How one step went."""

    title: str
    said: str
    seconds: float
    held: bool


@frozen
class Stage:
    """What a step works with."""

    controller: Controller
    worker: Daemon
    proxy: FaultProxy
    screen: Screen


class Screen:
    """What the user sees: colours where there is a terminal, plain lines elsewhere."""

    def __init__(self, on_failure: Callable[[], None]) -> None:
        if sys.stdout is None:
            raise CantWrite("stdout is closed")
        # What isn't a terminal has no width: a table may be as wide as it needs.
        width = None if sys.stdout.isatty() else 140
        self._console = _Console(highlight=False, width=width)
        self._on_failure = on_failure
        self.failure: CantWrite | None = None
        """Nothing more can be shown: whoever read it has enough, as `head` has, or the disk is full."""

    def title(self, text: str) -> None:
        """A new step."""
        self._print()
        self._print(Text(text, "bold"))

    def explain(self, text: str) -> None:
        """What it is about to do, and what it makes sure of."""
        self._print(Text(f"  {text}"))

    def output(self, source: str, text: str, style: str) -> None:
        """A line that a remote command printed."""
        self._print(Text.assemble("    ", (f"{source:<8}", style), " ", printable(text)))

    def event(self, text: str) -> None:
        """Something happened meanwhile."""
        self._print(Text(f"    * {text}", "yellow"))

    def outcome(self, outcome: Outcome) -> None:
        """What came of the step."""
        word, style = ("ok", "bold green") if outcome.held else ("FAILED", "bold red")
        self._print(Text.assemble("  ", (word, style), ": ", printable(outcome.said)))

    def summary(self, outcomes: list[Outcome]) -> None:
        """All of it once more, as a table."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        table.add_column("step", no_wrap=True)
        table.add_column("seconds", justify="right")
        table.add_column("what was seen")
        for each in outcomes:
            word = Text("ok", "green") if each.held else Text("FAILED", "bold red")
            seen = Text(printable(each.said))
            table.add_row(word, each.title, f"{each.seconds:.1f}", seen)
        self._print()
        self._print(table)
        self._print()

    def _print(self, *what: object) -> None:
        if self.failure is not None:
            return
        try:
            # A line stays a line, whatever its length: a terminal wraps it, a file should not.
            self._console.print(*what, soft_wrap=not isinstance(what[0], Table) if what else True)
        except OSError as error:
            drop_stdout()
            kind = ReaderGone if isinstance(error, BrokenPipeError) else CantWrite
            self.failure = kind(f"stdout: {error.strerror or error}")
            self._on_failure()


class _Console(Console):
    """Leaves it to us to end the program in good order; rich would raise SystemExit in mid-task."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


@define(eq=False)
class Interruption:
    """Ctrl-C and its like: the first ends the demo in good order, the second kills its daemon."""

    number: int | None = None
    """The signal that came."""
    steps: trio.CancelScope = field(factory=trio.CancelScope)
    daemon: trio.Process | None = None
    """What everybody waits for who cleans up: without it they are done at once."""

    async def listen(self, signals: AsyncIterator[int]) -> None:
        """Act on signals, for ever."""
        async for number in signals:
            if self.number is None:
                self.number = number
                self.steps.cancel()
            elif self.daemon is not None:
                self.daemon.kill()


@asynccontextmanager
async def open_daemon(
    url: str, directory: Path, interruption: Interruption
) -> AsyncIterator[LocalDaemon]:
    """The demo's daemon, which keeps all its files in `directory`; it is gone when the block is left."""

    def started(process: trio.Process) -> None:
        interruption.daemon = process

    async with open_local_daemon(url, DAEMON_ID, directory, on_start=started) as child:
        yield child
