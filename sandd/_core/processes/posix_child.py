"""A job's tree below the spawner: what its reports have told, and what can be asked of it."""

from __future__ import annotations

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

    from sandd._core.processes.interface import Terminal
    from sandd._core.processes.pipes import JobPipes
    from sandd._core.processes.spawner_link import SpawnerLink

log = get_logger("processes")


class PosixChild(Child):
    """See `Child`. What has no place there is for its host, which alone calls `note`."""

    __slots__ = (
        *("_is_lost", "_limit", "_link", "_pid", "_status", "_unheld", "_usage"),
        *("answered", "failure", "gone", "job", "marker", "over", "pipes", "started"),
    )

    def __init__(
        self,
        job: int,
        marker: bytes,
        link: SpawnerLink,
        pipes: JobPipes,
        answered: Callable[[], None],
    ) -> None:
        self.job = job
        """Its number on the spawner's socket."""
        self.answered = answered
        """To be called when `started` is set, and no other report is at hand."""
        self.marker = marker
        self.pipes = pipes
        self.failure: Failed | None = None
        self.started = trio.Event()
        """The request is answered, or never will be."""
        self.over = trio.Event()
        """The direct child has exited, or is lost."""
        self.gone = trio.Event()
        """Nothing is left of the tree."""
        self._link = link
        self._pid = 0
        self._status: ExitStatus | None = None
        self._is_lost = False
        self._usage = NO_USAGE
        self._limit = ""
        self._unheld: tuple[str, ...] = ()

    def __repr__(self) -> str:
        state = "running"
        if self._is_lost:
            state = "lost"
        elif self._status is not None:
            state = f"ended by {self._status}{', gone' if self.gone.is_set() else ''}"
        return f"<PosixChild {self._pid}, {state}>"

    @property
    def pid(self) -> int:
        """0 until it has started."""
        return self._pid

    @property
    def stdin(self) -> trio.abc.SendStream | None:
        return self.pipes.stdin

    @property
    def stdout(self) -> trio.abc.ReceiveStream:
        assert self.pipes.stdout is not None
        return self.pipes.stdout

    @property
    def stderr(self) -> trio.abc.ReceiveStream | None:
        return self.pipes.stderr

    @property
    def terminal(self) -> Terminal | None:
        return self.pipes.terminal

    @property
    def has_exited(self) -> bool:
        return self.over.is_set()

    @property
    def ended(self) -> ExitStatus | None:
        return self._status if self.gone.is_set() else None

    @property
    def used(self) -> Usage:
        return self._usage

    @property
    def limit(self) -> str:
        return self._limit

    @property
    def unheld(self) -> tuple[str, ...]:
        return self._unheld

    def close_pipes(self) -> None:
        self.pipes.close()

    async def wait_exited(self) -> ExitStatus:
        if not self.over.is_set():
            await self.over.wait()
        if self._status is None:
            raise ChildLost(
                f"process {self._pid} and all it started were killed when their spawner ended"
            )
        return self._status

    def signal(self, number: int) -> None:
        if number not in signal.valid_signals():
            raise ValueError(f"there is no signal {number} on this machine")
        self.request(Signal(self.job, int(number)))

    async def kill(self, *, grace: float) -> None:
        self.request(Kill(self.job, max(0.0, grace)))
        await self.gone.wait()

    async def release(self, *, sweep: bool = True) -> None:
        if not self.over.is_set():
            raise RuntimeError(f"process {self._pid} has not exited: kill it, or wait for it")
        if not self.gone.is_set():  # mostly it is, and a command's way back has no turn to lose
            self.request(Kill(self.job, 0.0) if sweep else Forget(self.job))
            await self.gone.wait()

    def request(self, request: Kill | Signal | Forget) -> None:
        """Ask the spawner for something; no error if the tree is gone, or about to be."""
        if not self.gone.is_set():
            with suppress(SpawnerGoneError):
                self._link.send(encode(request))

    def note(self, report: Message) -> None:
        """Take a report about this child."""
        if isinstance(report, Started):
            self._pid = report.pid
            self._unheld = report.unheld
            self.started.set()
        elif isinstance(report, Failed):
            self.failure = report
            self.started.set()
            self.gone.set()
        elif isinstance(report, Exited):
            self._status = ExitStatus(report.code, report.signal)
            self.over.set()
            if self.pipes.terminal is not None:
                self.pipes.terminal.process_exited()
            if report.is_gone:
                self._usage, self._limit = Usage(*report.usage), report.limit
                self.gone.set()
        elif isinstance(report, Gone):
            if report.survivors:
                log.warning("processes_survived", leader=self._pid, pids=report.survivors)
            self._usage, self._limit = Usage(*report.usage), report.limit
            # Without a status its leader is one of the survivors, and out of our sight now.
            self.note_end()

    def note_end(self) -> None:
        """There will be no more reports, and nothing is left of the tree."""
        self._is_lost = self._status is None
        if self.pipes.terminal is not None:
            self.pipes.terminal.process_exited()
        self.started.set()
        self.over.set()
        self.gone.set()
