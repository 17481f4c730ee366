"""``sandd top``: how busy daemons and jobs are, as it changes.

Each daemon is asked once, and tells again and again; what has come by then is shown at each interval. So one that is
slow, or away, delays no other.
"""

from __future__ import annotations

import contextlib
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

from sandd._core._errors import DaemonGone, SanddError
from sandd._core.nurseries import open_unwrapping_nursery
from sandd.command_line.connecting import open_connection
from sandd.command_line.reaching import find_daemon
from sandd.command_line.stopping import Failure, run_command
from sandd.command_line.telling import put_json, put_out
from sandd.fleet.busy import Gauge, Round, sort_daemons, sort_jobs
from sandd.fleet.screen import COLOURS, LINES_BESIDE, Screen
from sandd.fleet.tables import Layout
from sandd.wire import DaemonState

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from rich.table import Table

    from sandd.command_line.stopping import Stop
    from sandd.controller import Controller, ControllerStatistics, Daemon

RETRY_SECONDS: Final = 10.0
"""Before a daemon that refused is asked again."""
FIRST_SECONDS: Final = 0.2
"""How long the first round waits for those who answer at once: else it would be empty."""


def run_top(options: argparse.Namespace) -> int:
    """Show it; returns the exit code."""
    return run_command(partial(_top, options))


async def _top(options: argparse.Namespace, _: Stop) -> int:
    async with open_connection(options) as controller:
        choose = partial(controller.daemons, dict(options.labels), match=options.match)
        if options.daemon is not None:
            only = await find_daemon(controller, options.daemon, wait=None)
            choose = partial(_only, controller, only.id)
        top = Top(choose, options)
        if options.once:
            await _once(controller, top, options)
            return 0
        await _for_ever(controller, top, options)
    raise Failure("the connection to the controller is closed")


def _only(controller: Controller, daemon_id: str) -> list[Daemon]:
    # Not by a glob: its id may have the characters of one.
    return [each for each in controller.daemons() if each.id == daemon_id]


@define(eq=False)
class Top:
    """What is known of those that are chosen."""

    _choose: Callable[[], list[Daemon]]
    _options: argparse.Namespace
    _gauges: dict[tuple[str, str], Gauge] = field(factory=dict)
    """By id and instance: what another start has told says nothing about this one."""
    _asked: set[tuple[str, str]] = field(factory=set)
    _changed: trio.Event = field(factory=trio.Event)
    _controller: ControllerStatistics | None = None

    async def follow(self, controller: Controller) -> None:
        """Ask the controller itself as well, at each interval; for ever."""
        while True:
            try:
                self._controller = await controller.fetch_statistics()
            except trio.ClosedResourceError:
                return
            self._note()
            await trio.sleep(self._options.interval)

    async def ask_all(self, nursery: trio.Nursery) -> None:
        """Have those that are there tell, from now on; call it again for those that come."""
        there = set()
        for daemon in self._choose():
            key = (daemon.id, daemon.info.instance)
            there.add(key)
            if key not in self._asked and daemon.state is DaemonState.ONLINE:
                self._asked.add(key)
                nursery.start_soon(self._listen, daemon, key)
        for key in self._gauges.keys() - there - self._asked:
            del self._gauges[key]
        await trio.lowlevel.checkpoint()

    async def _listen(self, daemon: Daemon, key: tuple[str, str]) -> None:
        gauge = self._gauges.setdefault(key, Gauge())
        try:
            async with daemon.open_statistics(
                interval=self._options.interval, jobs=self._options.jobs
            ) as rounds:
                async for told in rounds:
                    gauge.take(told, trio.current_time())
                    self._note()
        except (DaemonGone, trio.ClosedResourceError):
            pass  # another start of it has come, or all is over
        except SanddError as error:
            gauge.failure, gauge.newest = str(error), None
            self._note()
            await trio.sleep(RETRY_SECONDS)
        finally:
            self._asked.discard(key)

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_told(self, nursery: trio.Nursery) -> None:
        """Ask all that are there, and those that come; return when all of them have told twice, or can't."""
        while True:
            changed = self._changed
            await self.ask_all(nursery)
            if all(map(self._is_settled, self._choose())):
                return
            await changed.wait()

    def _is_settled(self, daemon: Daemon) -> bool:
        gauge = self._gauges.get((daemon.id, daemon.info.instance), Gauge())
        is_here = daemon.state is DaemonState.ONLINE
        return not is_here or gauge.has_rates or bool(gauge.failure)

    def round(self) -> Round:
        """What there is to show now."""
        now, wall = trio.current_time(), time.time()
        lines, jobs = [], []
        for daemon in self._choose():
            info, state = daemon.info, daemon.state
            gauge = self._gauges.get((daemon.id, info.instance), Gauge())
            if gauge.newest is not None and now - gauge.came_at > 3 * self._options.interval + 5:
                gauge = Gauge(failure="silent")
            line = gauge.line(info, state, max(0.0, wall - info.connected_at))
            lines.append(line)
            if line.newest is not None:
                jobs += gauge.job_lines(daemon.id)
        if not self._options.jobs:
            daemons = tuple(sort_daemons(lines, self._options.sort))
            return Round(daemons, controller=self._controller)
        in_order = tuple(sort_jobs(jobs, self._options.sort))
        return Round(tuple(sort_daemons(lines, "id")), in_order, self._controller)


async def _once(controller: Controller, top: Top, options: argparse.Namespace) -> None:
    async with open_unwrapping_nursery() as nursery:
        nursery.start_soon(top.follow, controller)
        with trio.move_on_after(options.interval + options.timeout):
            await top.wait_told(nursery)
        await Printed(options.json).show(top.round())
        nursery.cancel_scope.cancel()


async def _for_ever(controller: Controller, top: Top, options: argparse.Namespace) -> None:
    """Until the controller is closed."""
    async with contextlib.AsyncExitStack() as stack:
        # Events first: what happens during the first look is no less to be seen.
        events = await stack.enter_async_context(controller.open_events())
        nursery = await stack.enter_async_context(open_unwrapping_nursery())
        due = _Due()
        nursery.start_soon(top.follow, controller)
        if options.json or not sys.stdout.isatty():
            nursery.start_soon(_print, top, options, nursery)
        else:
            nursery.start_soon(_draw, top, options, nursery, due)
        async for _ in events:
            due.now()
        nursery.cancel_scope.cancel()


async def _print(top: Top, options: argparse.Namespace, nursery: trio.Nursery) -> None:
    printed = Printed(options.json)
    with trio.move_on_after(options.interval + options.timeout):
        await top.wait_told(nursery)
    while True:
        await printed.show(top.round())
        await trio.sleep(options.interval)
        await top.ask_all(nursery)


async def _draw(top: Top, options: argparse.Namespace, nursery: trio.Nursery, due: _Due) -> None:
    screen = Screen()
    try:
        async with open_unwrapping_nursery() as heeding:
            heeding.start_soon(screen.heed_signals, due.now)
            await top.ask_all(nursery)
            await trio.sleep(FIRST_SECONDS)
            while True:
                await screen.show(partial(_table, top.round()))
                await due.wait(options.interval)
                await top.ask_all(nursery)
    finally:
        screen.leave()


@define(eq=False)
class _Due:
    """When to look again: in time, or a moment after something happened."""

    _event: trio.Event = field(factory=trio.Event)

    def now(self) -> None:
        """Something happened."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Return when it is time; no sooner than a tenth of a second from now."""
        await trio.sleep(min(0.1, seconds))
        with trio.move_on_after(seconds - 0.1):
            await self._event.wait()
        self._event = trio.Event()


@define(eq=False)
class Printed:
    """Round after round as lines, the header once; or as objects."""

    _as_json: bool
    _layout: Layout = field(factory=Layout)
    _rounds: int = 0

    async def show(self, shown: Round) -> None:
        """Print it; a blank line stands before each further table."""
        if self._as_json:
            at = time.time()
            for each in shown.objects:
                await put_json({"time": at, **each})
        else:
            lines = self._layout.lines([shown.header, *shown.rows])
            lines.append(shown.summary)
            await put_out("\n".join([""] * (self._rounds > 0) + lines))
        self._rounds += 1


def _table(shown: Round, lines: int) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    rows, most = shown.rows, max(1, lines - LINES_BESIDE)
    more = f"; {len(rows) - most} are not shown" if len(rows) > most else ""
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, caption=f"{shown.summary}{more}", caption_justify="left"
    )
    for name in shown.header:
        table.add_column(name, justify="left" if name in _TEXTS else "right")
    colours = {state.value: colour for state, colour in COLOURS.items()}
    for row in rows[:most]:
        cells = [Text(cell, no_wrap=True, overflow="ellipsis") for cell in row]
        cells[1].stylize(colours.get(row[1], ""))
        table.add_row(*cells)
    return table


_TEXTS: Final = ("DAEMON", "STATE", "JOB", "COMMAND")
