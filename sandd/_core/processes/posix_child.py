"""A job's tree below the spawner: what its reports have told, and what can be asked of it."""

from __future__ import annotations

import enum
import functools
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import trio

from sandd._core.limits import NO_USAGE, Usage
from sandd._core.logs import get_logger
from sandd._core.processes.interface import Child, ChildLost, ExitStatus
from sandd._core.processes.spawner_link import SpawnerGoneError
from sandd._core.processes.spawner_messages import (
    Exited,
    Failed,
    Forget,
    Gone,
    Kill,
    Message,
    Signal,
    Started,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.processes.interface import Answered, Terminal
    from sandd._core.processes.pipes import JobPipes
    from sandd._core.processes.spawner_link import SpawnerLink

log = get_logger("processes")

_status_of = functools.cache(ExitStatus)
"""There are some hundred, and most commands have the same one."""


class Stage(enum.IntEnum):
    """How far a child has come; it never goes back."""

    ASKED = 0
    ANSWERED = 1  # the request is answered, or never will be
    OVER = 2  # the direct child has exited, or is lost
    GONE = 3  # nothing is left of the tree


# Enum members are bound here because looking one up by its class costs as much as a function call (Python 3.11).
_ASKED = Stage.ASKED
_OVER = Stage.OVER
_GONE = Stage.GONE


class PosixChild(Child):
    """See `Child`. What has no place there is for its host, which alone calls `note`."""

    __slots__ = (
        *("_answered", "_is_lost", "_link", "_moved", "_status", "failure", "job", "marker"),
        *("pipes", "stage"),
        # What `Child` has as properties: a short command has no call to lose.
        *("limit", "pid", "stderr", "stdin", "stdout", "terminal", "unheld", "used"),
    )
    pid: int
    stdin: trio.abc.SendStream | None
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream | None
    terminal: Terminal | None
    used: Usage
    limit: str
    unheld: tuple[str, ...]

    def __init__(
        self,
        job: int,
        marker: bytes,
        link: SpawnerLink,
        pipes: JobPipes,
        answered: Answered | None,
    ) -> None:
        self.job = job
        """Its number on the spawner's socket."""
        self._answered = answered
        self.marker = marker
        self.pipes = pipes
        self.stdin = pipes.stdin
        assert pipes.stdout is not None
        self.stdout = pipes.stdout
        self.stderr = pipes.stderr
        self.terminal = pipes.terminal
        self.failure: Failed | None = None
        self.stage = _ASKED
        self._moved: trio.Event | None = None
        """Made by whoever waits for a later stage: of a short command nobody does."""
        self._link = link
        self.pid = 0  # until it has started
        self._status: ExitStatus | None = None
        self._is_lost = False
        self.used = NO_USAGE
        self.limit = ""
        self.unheld = ()

    def __repr__(self) -> str:
        state = "running"
        if self._is_lost:
            state = "lost"
        elif self._status is not None:
            state = f"ended by {self._status}{', gone' if self.stage is _GONE else ''}"
        return f"<PosixChild {self.pid}, {state}>"

    @property
    def has_exited(self) -> bool:
        return self.stage >= _OVER

    @property
    def ended(self) -> ExitStatus | None:
        return self._status if self.stage is _GONE else None

    def close_pipes(self) -> None:
        self.pipes.close()

    async def wait_exited(self) -> ExitStatus:
        if self.stage < _OVER:
            await self.reached(_OVER)
        if self._status is None:
            raise ChildLost(
                f"process {self.pid} and all it started were killed when their spawner ended"
            )
        return self._status

    def signal(self, number: int) -> None:
        if number not in signal.valid_signals():
            raise ValueError(f"there is no signal {number} on this machine")
        self.request(Signal(self.job, int(number)))

    async def kill(self, *, grace: float) -> None:
        self.request(Kill(self.job, max(0.0, grace)))
        await self.reached(_GONE)

    async def release(self, *, sweep: bool = True) -> None:
        if self.stage < _OVER:
            raise RuntimeError(f"process {self.pid} has not exited: kill it, or wait for it")
        if self.stage < _GONE:  # mostly it is, and a command's way back has no turn to lose
            self.request(Kill(self.job, 0.0) if sweep else Forget(self.job))
            await self.reached(_GONE)

    def request(self, request: Kill | Signal | Forget) -> None:
        """Ask the spawner for something; no error if the tree is gone, or about to be."""
        if self.stage < _GONE:
            with suppress(SpawnerGoneError):
                self._link.send(encode(request))

    async def reached(self, stage: Stage) -> None:
        """Wait until it has come so far."""
        if self.stage >= stage:
            await trio.lowlevel.checkpoint()
        while self.stage < stage:
            if self._moved is None:
                self._moved = trio.Event()
            await self._moved.wait()

    def _move(self, stage: Stage) -> None:
        self.stage = max(self.stage, stage)
        if self._moved is not None:
            moved, self._moved = self._moved, None
            moved.set()

    @property
    def is_awaited(self) -> bool:
        """Whoever asked is to be told of the answer."""
        return self._answered is not None

    def tell_answered(self, *, alone: bool) -> Callable[[], None] | None:
        """The request is answered, and no other report is at hand: tell who asked, once; see `Answered`."""
        # Who asked has us: without this we go when nobody has us, and not when cycles are looked for.
        answered, self._answered = self._answered, None
        return None if answered is None else answered(alone)

    def note(self, report: Message) -> None:
        """Take a report about this child."""
        if isinstance(report, Exited):
            if report.started is not None:
                self.pid, self.unheld = report.started
            self._status = _status_of(report.code, report.signal)
            if self.pipes.terminal is not None:
                self.pipes.terminal.process_exited()
            if report.is_gone:
                self.used, self.limit = Usage(*report.usage), report.limit
            self._move(_GONE if report.is_gone else _OVER)
        elif isinstance(report, Started):
            self.pid = report.pid
            self.unheld = report.unheld
            self._move(Stage.ANSWERED)
        elif isinstance(report, Failed):
            self.failure = report
            self._move(_GONE)
        elif isinstance(report, Gone):
            if report.survivors:
                log.warning("processes_survived", leader=self.pid, pids=report.survivors)
            self.used, self.limit = Usage(*report.usage), report.limit
            # Without a status its leader is one of the survivors, and out of our sight now.
            self.note_end()

    def note_end(self) -> None:
        """There will be no more reports, and nothing is left of the tree."""
        self._is_lost = self._status is None
        if self.pipes.terminal is not None:
            self.pipes.terminal.process_exited()
        self._move(_GONE)
