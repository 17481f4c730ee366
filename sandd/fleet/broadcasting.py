"""``sandd run``: a command on many daemons at once, and what they print, line by line.

What waits to be printed makes the commands wait, as on any pipe; so memory is bounded however much they print: for
each command that runs, by its channel's credit and by one line of each output.
"""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio
from attrs import define, field

from sandd._core._errors import SanddError
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.specs import KILL_GRACE, build_spec
from sandd.command_line.connecting import open_connection
from sandd.command_line.options import limits_of
from sandd.command_line.outages import NOTICE_SECONDS, describe_outage
from sandd.command_line.stopping import Failure, run_command
from sandd.command_line.telling import say
from sandd.fleet.lines import Lines
from sandd.fleet.outcomes import Ending, Verdict, summarise
from sandd.fleet.output import FILES, Output
from sandd.wire import DaemonState

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Callable, Mapping

    from sandd._core.own_output import Name
    from sandd._core.results import ExitStatus
    from sandd.command_line.stopping import Stop
    from sandd.controller import Controller, Daemon, DaemonEvent, Process

NOT_ALL_WELL: Final = 1
"""Exit code where the command has not ended with 0 on each daemon."""
OVERDUE_SECONDS: Final = 10.0
"""With a time-out, how much later than it and the kill grace a daemon that is away is given up."""
CHUNK_BYTES: Final = 32 * 1024
"""What is held of an output while others print: many lines take far more room than their bytes."""
WIDEST_ID: Final = 32
"""Columns, before the bar."""
_COLOURS: Final = ("cyan", "yellow", "green", "magenta", "blue", "bright_red")
_RESET: Final = b"\x1b[0m"


def run_broadcast(options: argparse.Namespace) -> int:
    """Run the command on the daemons that are chosen; returns the exit code."""
    if not options.remote_command:
        options.parser.error("which command? It stands behind --, as in: sandd run -- uptime")
    return run_command(partial(_broadcast, options))


async def _broadcast(options: argparse.Namespace, stop: Stop) -> int:
    # What makes no sense is told once, and not by each daemon.
    build_spec(options.remote_command, stdin=False, **_settings(options))
    async with open_connection(options) as controller:
        daemons = controller.daemons(dict(options.labels), match=options.match)
        if not daemons:
            raise Failure(_nobody(options, controller))
        endings = await Broadcast(options, daemons, Output(stop)).run(controller)
    await say("\n".join(f"sandd: {line}" for line in summarise(endings)))
    well = all(each.verdict is Verdict.OK for each in endings.values())
    return 0 if well else NOT_ALL_WELL


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Of the command, as `Daemon.open_process` takes them."""
    return {
        "cwd": options.cwd,
        "env": dict(options.env),
        "user": options.user,
        "isolation": options.isolation,
        "timeout": options.timeout,
        "limits": limits_of(options),
        "require_limits": options.require_limits,
    }


def _nobody(options: argparse.Namespace, controller: Controller) -> str:
    """Why nothing was run."""
    there = len(controller.daemons())
    if not there:
        return "no daemon is connected to this controller; nothing was run"
    wanted = [f"--label {key}={value}" for key, value in options.labels]
    wanted += [f"--match {options.match}"] if options.match != "*" else []
    return f"no daemon matches {' '.join(wanted)}, of {there} that there are; nothing was run"


@define(eq=False)
class _Target:
    """One daemon, and the command there."""

    daemon: Daemon
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    changed: trio.Event = field(factory=trio.Event)
    """Set when something has happened to the daemon."""
    is_overdue: bool = False
    """It had its time and more: given up as soon as it is away."""
    ending: Ending | None = None

    @property
    def is_away(self) -> bool:
        return self.daemon.state is DaemonState.AWAY

    def look(self) -> None:
        """Something may have happened to the daemon."""
        self.changed.set()
        if self.is_overdue and self.is_away:
            self.scope.cancel()


class Broadcast:
    """One command on all of them."""

    def __init__(self, options: argparse.Namespace, daemons: list[Daemon], output: Output) -> None:
        self._command = options.remote_command
        self._settings = _settings(options)
        self._timeout: float | None = options.timeout
        self._patience = min(
            math.inf if each is None else each for each in (options.timeout, options.wait)
        )
        self._targets = {each.id: _Target(each) for each in daemons}
        self._limiter = trio.CapacityLimiter(options.concurrency or len(daemons))
        self._output = output
        self._printer: Printer = JsonPrinter() if options.json else LinePrinter(list(self._targets))

    async def run(self, controller: Controller) -> Mapping[str, Ending]:
        """How it ended on each of them, once it has on all."""
        async with controller.open_events() as events, open_unwrapping_nursery() as watching:
            watching.start_soon(self._watch, events, watching)
            async with open_unwrapping_nursery() as nursery:
                for target in self._targets.values():
                    if target.is_away:
                        watching.start_soon(self._tell_away, target)
                    nursery.start_soon(self._run_on, target, watching)
            watching.cancel_scope.cancel()
        return {
            daemon_id: target.ending
            for daemon_id, target in self._targets.items()
            if target.ending is not None
        }

    # -- one daemon

    async def _run_on(self, target: _Target, watching: trio.Nursery) -> None:
        with target.scope:
            try:
                # Whoever is away takes nobody's turn.
                with trio.move_on_after(self._patience):
                    while target.is_away:
                        target.changed = trio.Event()
                        await target.changed.wait()
                if target.is_away:
                    target.ending = Ending(Verdict.TIMED_OUT, "away, never started")
                else:
                    async with self._limiter:
                        status = await self._hold(target, watching)
                    target.ending = Ending.of_status(status)
            except SanddError as error:
                target.ending = Ending.of_error(error)
        if target.ending is None:
            target.ending = Ending(Verdict.LOST, "away; how it ended is not known")
        await self._put(target, "stdout", partial(self._printer.ending, target.ending))

    async def _hold(self, target: _Target, watching: trio.Nursery) -> ExitStatus:
        opening = target.daemon.open_process(self._command, stdin=False, **self._settings)
        async with opening as process:
            if self._timeout is not None:
                watching.start_soon(self._expect, target, self._timeout)
            async with open_unwrapping_nursery() as nursery:
                for name in FILES:
                    nursery.start_soon(self._copy, target, process, name)
            return await process.wait()

    async def _copy(self, target: _Target, process: Process, name: Name) -> None:
        """Print one output, to its end."""
        stream = process.stdout if name == "stdout" else process.stderr
        lines = Lines()
        try:
            while chunk := await stream.receive_some(CHUNK_BYTES):
                await self._put(target, name, partial(self._feed, lines, chunk, name))
        except trio.BrokenResourceError:
            pass  # the job was lost; who waits for its end is told
        await self._put(target, name, partial(self._printer.lines, lines.finish(), name))

    def _feed(self, lines: Lines, chunk: bytes | bytearray, name: str, daemon_id: str) -> bytes:
        return self._printer.lines(lines.feed(chunk), name, daemon_id)

    async def _put(self, target: _Target, name: Name, make: Callable[[str], bytes]) -> None:
        file: Name = "stdout" if self._printer.has_one_stream else name
        await self._output.put(file, partial(make, target.daemon.id))

    async def _expect(self, target: _Target, timeout: float) -> None:
        """Once its time is long over, don't wait for a daemon that is away."""
        await trio.sleep(timeout + KILL_GRACE + OVERDUE_SECONDS)
        target.is_overdue = True
        target.look()

    # -- all of them

    async def _watch(self, events: AsyncIterator[DaemonEvent], watching: trio.Nursery) -> None:
        async for event in events:
            if event.kind == "missed":
                for each in self._targets.values():
                    each.look()
            elif target := self._targets.get(event.daemon_id):
                target.look()
                if event.kind == "away" and target.ending is None:
                    watching.start_soon(self._tell_away, target)

    async def _tell_away(self, target: _Target) -> None:
        await trio.sleep(NOTICE_SECONDS)
        if target.is_away and target.ending is None:
            await say(describe_outage(target.daemon))


# ---- what is printed ------------------------------------------------------------------------------


class Printer(Protocol):
    """What lines and endings look like."""

    has_one_stream: bool
    """All of it is for stdout."""

    def lines(self, lines: list[bytes], name: str, daemon_id: str) -> bytes:
        """Whole lines that a daemon's command has put on "stdout" or "stderr"."""
        ...

    def ending(self, ending: Ending, daemon_id: str) -> bytes:
        """How it has ended there."""
        ...


class LinePrinter:
    """Each line behind the id of its daemon."""

    has_one_stream = False

    def __init__(self, daemon_ids: list[str]) -> None:
        from rich.console import Console  # late: not for JSON
        from rich.text import Text

        width = min(max(map(len, daemon_ids)), WIDEST_ID)
        self._prefixes: dict[tuple[str, str], bytes] = {}
        self._is_terminal: dict[str, bool] = {}
        for name in FILES:
            console = Console(file=getattr(sys, name), highlight=False)
            self._is_terminal[name] = console.is_terminal
            for index, daemon_id in enumerate(daemon_ids):
                prefix = f"{daemon_id:<{width}} | "
                if console.is_terminal and not console.no_color:
                    with console.capture() as captured:
                        console.print(
                            Text(prefix, _COLOURS[index % len(_COLOURS)]), end="", soft_wrap=True
                        )
                    prefix = captured.get()
                self._prefixes[name, daemon_id] = prefix.encode()

    def lines(self, lines: list[bytes], name: str, daemon_id: str) -> bytes:
        """With the prefix before each; what a line has switched on ends with it, where that can be seen."""
        prefix = self._prefixes[name, daemon_id]
        is_terminal = self._is_terminal[name]
        return b"".join(
            prefix + line + (_RESET if is_terminal and b"\x1b" in line else b"") + b"\n"
            for line in lines
        )

    def ending(self, ending: Ending, daemon_id: str) -> bytes:
        """Nothing: the summary says it."""
        return b""


class JsonPrinter:
    """An object for each line, and for each end."""

    has_one_stream = True

    def lines(self, lines: list[bytes], name: str, daemon_id: str) -> bytes:
        """What is no UTF-8 is replaced."""
        return b"".join(
            _json(event="line", daemon=daemon_id, stream=name, line=line.decode("utf-8", "replace"))
            for line in lines
        )

    def ending(self, ending: Ending, daemon_id: str) -> bytes:
        """All there is to say."""
        return _json(**ending.to_object(daemon_id))


def _json(**fields: object) -> bytes:
    return f"{json.dumps(fields)}\n".encode()
