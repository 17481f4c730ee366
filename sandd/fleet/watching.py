"""``sandd ps --watch``: the list of daemons, as it changes.

Nothing is polled: the controller's events say that it is time to look. Looks are at least a tenth of a second apart,
so that thousands of daemons that come back together are not drawn thousands of times.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import define, field

from sandd._core.nurseries import open_unwrapping_nursery
from sandd.command_line.telling import put_json, put_out
from sandd.fleet import tables
from sandd.fleet.screen import COLOURS, LINES_BESIDE, Screen
from sandd.wire import DaemonState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

    from sandd._core.directory import DaemonInfo
    from sandd.controller import Controller, Daemon

    Seen = Sequence[tuple[DaemonInfo, DaemonState]]
    """Each daemon, and its state."""

LOOK_SECONDS: Final = 0.1


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
            await looking.show_on(_OnScreen(screen))
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


@define(eq=False)
class _OnScreen:
    """The table of daemons, in its place."""

    _screen: Screen

    async def show(self, daemons: Seen) -> None:
        """Draw it anew."""
        await self._screen.show(partial(_table, daemons))


def _table(daemons: Seen, lines: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    most = lines - LINES_BESIDE
    counts = ", ".join(
        f"{count} {state.value}"
        for state in COLOURS
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
        cells[1].stylize(COLOURS.get(state, ""))
        table.add_row(*cells)
    return table
