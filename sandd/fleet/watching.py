"""``sandd ps --watch``: the list of daemons, as it changes.

Nothing is polled: the controller's events say that it is time to look. Looks are at least a tenth of a second apart,
so that thousands of daemons that come back together are not drawn thousands of times.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import define, field

from sandd._core.nurseries import open_unwrapping_nursery
from sandd.command_line.telling import put_json, put_out
from sandd.fleet import tables
from sandd.wire import DaemonState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.live import Live
    from rich.table import Table

    from sandd._core.directory import DaemonInfo
    from sandd.controller import Controller, Daemon

    Seen = Sequence[tuple[DaemonInfo, DaemonState]]
    """Each daemon, and its state."""

LOOK_SECONDS: Final = 0.1
_LINES_BESIDE: Final = 4
"""Of a screen, beside the daemons: the header, what is below it, and the count."""
_COLOURS: Final = {DaemonState.ONLINE: "green", DaemonState.AWAY: "yellow"}


class View(Protocol):
    """Where the list is shown."""

    async def show(self, daemons: Seen) -> None:
        """Show it as it stands now."""


async def watch(
    controller: Controller, choose: Callable[[], list[Daemon]], *, as_json: bool
) -> None:
    """Show what `choose` finds, whenever that may have changed, until the controller is closed.

    On a terminal that is one table, in its place; else a line for each daemon, and a further one for each change.
    """
    looking = _Looking(choose)
    # Events first: what happens during the first look is no less to be seen.
    async with controller.open_events() as events, open_unwrapping_nursery() as nursery:
        if as_json or not sys.stdout.isatty():
            nursery.start_soon(looking.show_on, Changes(as_json))
        else:
            nursery.start_soon(_show_on_screen, looking)
        async for _ in events:
            looking.again()
        nursery.cancel_scope.cancel()


async def _show_on_screen(looking: _Looking) -> None:
    screen = Screen()
    try:
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(screen.heed_signals, looking.again)
            await looking.show_on(screen)
    finally:
        screen.leave()


@define(eq=False)
class _Looking:
    """Looks once, and whenever it is told to."""

    _choose: Callable[[], list[Daemon]]
    _due: trio.Event = field(factory=trio.Event)

    def again(self) -> None:
        """Something may have changed."""
        self._due.set()

    async def show_on(self, view: View) -> None:
        """Show what there is, for ever."""
        while True:
            self._due = trio.Event()
            await view.show([(each.info, each.state) for each in self._choose()])
            await trio.sleep(LOOK_SECONDS)
            await self._due.wait()


@define(eq=False)
class Changes:
    """A line for each daemon, and then for each of whom anything is different."""

    _as_json: bool
    _layout: tables.Layout = field(factory=tables.Layout)
    _shown: dict[str, tuple[DaemonInfo, DaemonState]] | None = None

    async def show(self, daemons: Seen) -> None:
        """Print what is new; of a daemon that isn't there any more, that it is gone."""
        header = [tables.DAEMON_HEADER] if self._shown is None else []
        before = self._shown or {}
        self._shown = {info.id: (info, state) for info, state in daemons}
        news = [each for each in daemons if before.get(each[0].id) != each]
        gone = [info for daemon_id, (info, _) in before.items() if daemon_id not in self._shown]
        news += [(info, DaemonState.GONE) for info in gone]
        if self._as_json:
            for info, state in news:
                await put_json(tables.daemon_object(info, state))
        elif lines := self._layout.lines([*header, *(tables.daemon_row(*each) for each in news)]):
            await put_out("\n".join(lines))


class Screen:
    """The terminal's other screen, with one table on it; afterwards the terminal is as it was."""

    def __init__(self) -> None:
        from rich.live import Live  # late: for who has a terminal

        # Nothing refreshes by itself: who has seen a change draws.
        self._live: Live = Live(
            screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._drawing = trio.Lock()

    async def show(self, daemons: Seen) -> None:
        """Draw it, in a thread: a terminal may have been stopped (Ctrl-S)."""
        # Not abandoned when cancelled, or it would draw once the screen is left.
        async with self._drawing:
            await trio.to_thread.run_sync(self._draw, daemons)

    def leave(self) -> None:
        """Back to the screen there was."""
        self._live.stop()

    async def heed_signals(self, look: Callable[[], None]) -> None:
        """Ctrl-Z leaves the screen before it stops us, and a window of another size is drawn anew; for ever."""
        if sys.platform == "win32":
            return  # it has neither
        with trio.open_signal_receiver(signal.SIGTSTP, signal.SIGWINCH) as signals:
            async for number in signals:
                if number == signal.SIGTSTP:
                    async with self._drawing:
                        self.leave()
                        os.kill(os.getpid(), signal.SIGSTOP)
                look()

    def _draw(self, daemons: Seen) -> None:
        # Rich believes COLUMNS and LINES first, which were true when this was started.
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(sys.stdout.fileno())
            if size.columns and size.lines:  # as of no terminal that nobody has told its size
                self._live.console.size = size
        if not self._live.is_started:
            self._live.start()
        self._live.update(_table(daemons, self._live.console.height - _LINES_BESIDE), refresh=True)


def _table(daemons: Seen, most: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    counts = ", ".join(
        f"{count} {state.value}"
        for state in _COLOURS
        if (count := sum(each is state for _, each in daemons))
    )
    more = f"; {len(daemons) - most} are not shown" if len(daemons) > most else ""
    table = Table(
        *tables.DAEMON_HEADER,
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption=f"{counts or 'no daemons'}{more}",
        caption_justify="left",
    )
    for info, state in daemons[: max(most, 1)]:
        cells = [
            Text(cell, no_wrap=True, overflow="ellipsis") for cell in tables.daemon_row(info, state)
        ]
        cells[1].stylize(_COLOURS.get(state, ""))
        table.add_row(*cells)
    return table
