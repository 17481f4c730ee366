"""Keeps a spawner running: starts the next one when one has died, and ends the last.

States: a link that serves, no link while the dead one is buried or the next one is started, and
left.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import trio

from sandd._core._errors import SpawnFailed
from sandd._core.logs import get_logger
from sandd._core.processes import lost_trees
from sandd._core.processes.control_groups import ControlGroup
from sandd._core.processes.spawner_link import start_spawner
from sandd._core.processes.spawner_messages import Ready

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from sandd._core.processes.spawner_link import SpawnerLink
    from sandd._core.processes.spawner_messages import Message, ProcessLimits

LEAVE_SECONDS = 5.0
"""How long the spawner may take to kill everything in the end, before it is killed itself."""
EXIT_SECONDS = 2.0
"""How long a spawner whose socket has ended may take to exit, before it is killed."""
GROUP_REMOVAL_SECONDS = 0.5
"""How long the last may take to leave a control group. A group that stays is removed by a later spawner."""
RESTART_SECONDS = (0.1, 5.0)
"""Pause before the next spawner where one did not come up: doubles from the first to the second."""

log = get_logger("processes")


class SpawnerKeeper:
    """The life of one spawner after the other.

    Args:
        first: the spawner to begin with.
        on_reports: called with all messages that have come together, but for `Ready`.
        on_death: called when a spawner is dead and reaped, with whether it died by itself as it
            should, and whether it had ever come up. The next one is started when this returns.
        total: limits of all jobs together, for the next ones.
    """

    def __init__(
        self,
        first: SpawnerLink,
        on_reports: Callable[[list[Message]], None],
        on_death: Callable[[bool, bool], Awaitable[None]],
        *,
        total: ProcessLimits | None = None,
    ) -> None:
        self.link: SpawnerLink | None = first
        """The spawner that takes requests, if there is one."""
        self.is_leaving = False
        self._serving: SpawnerLink | None = first
        self._groups: list[ControlGroup] = []
        """What the spawner that serves and its jobs are in, and what limits them, once it has said so."""
        self._total = total
        self._has_said = trio.Event()
        self.ready: Ready | None = None
        """What the latest spawner that came up has said of itself."""
        self._on_reports = on_reports
        self._on_death = on_death
        self._link_changed = trio.Event()
        self._has_come_up = False
        self._restart = trio.CancelScope()
        self._pauses = _restart_pauses()
        self._all_over = trio.Event()

    def __repr__(self) -> str:
        return f"<SpawnerKeeper with {self.link!r}>"

    async def wait_link(self) -> SpawnerLink:
        """The spawner that takes requests, as soon as there is one again.

        Raises:
            trio.ClosedResourceError: there will be none any more.
        """
        while self.link is None:
            if self.is_leaving:
                raise trio.ClosedResourceError("this process host was left")
            await self._link_changed.wait()
        return self.link

    async def wait_ready(self) -> Ready:
        """What a spawner said of itself, as soon as one has."""
        while self.ready is None:
            await self._has_said.wait()
        return self.ready

    def drop(self, link: SpawnerLink) -> None:
        """Ask nothing of this spawner any more: it was found dead before its socket's end came."""
        if self.link is link:
            self.link = None

    async def run(self) -> None:
        """Serve one spawner after the other, until `leave`."""
        try:
            link = self._serving
            while link is not None:
                await self._serve(link)
                link = await self._start_next()
        finally:
            self._all_over.set()

    async def leave(self) -> None:
        """End the spawner and everything below it. Bounded; shield it."""
        self.is_leaving = True
        self._restart.cancel()
        self._set_link(None)
        link = self._serving
        if link is not None:
            link.end()
            with trio.move_on_after(LEAVE_SECONDS):
                await self._all_over.wait()
            link.process.kill()  # no error if it is dead
            with trio.move_on_after(EXIT_SECONDS):
                await self._all_over.wait()
            link.give_up()
        await self._all_over.wait()

    async def _serve(self, link: SpawnerLink) -> None:
        self._has_come_up = False
        self._serving = link
        if self.is_leaving:
            link.end()
        else:
            self._set_link(link)
        try:
            with lost_trees.sparing(link.process.pid):
                await link.run(self._note)
        finally:
            # Shielded, and always: it may be a mistake of ours that ends it, and that leaves no process either.
            with trio.CancelScope(shield=True):
                await self._bury(link)

    async def _bury(self, link: SpawnerLink) -> None:
        self._set_link(None)
        with lost_trees.sparing(link.process.pid):
            with trio.move_on_after(EXIT_SECONDS):
                await link.process.wait()
            link.process.kill()  # no error if it is dead
            with trio.move_on_after(EXIT_SECONDS):
                # Its socket ends before what was below it falls to us; that has happened now.
                await link.process.wait()
        self._serving = None
        status = link.process.returncode
        groups, self._groups = self._groups, []
        if status != 0:
            for group in groups:
                await trio.to_thread.run_sync(group.kill)
        await self._on_death(status == 0, self._has_come_up)
        # Not before: the first line loads what writes it, and any may wait for who reads the log.
        if not self.is_leaving:
            log.warning("spawner_died", pid=link.process.pid, status=status)
        for group in groups:
            await _remove(group)

    async def _start_next(self) -> SpawnerLink | None:
        with trio.CancelScope() as self._restart:
            if self.is_leaving:
                self._restart.cancel()
            if self._has_come_up:
                self._pauses = _restart_pauses()
            else:
                await trio.sleep(next(self._pauses))
            while True:
                try:
                    return await start_spawner(self._total)
                except SpawnFailed as error:
                    log.error("spawner_not_started", error=str(error))
                await trio.sleep(next(self._pauses))
        return None  # cancelled: the host is being left

    def _set_link(self, link: SpawnerLink | None) -> None:
        self.link = link
        self._link_changed.set()
        self._link_changed = trio.Event()

    def _note(self, reports: list[Message]) -> None:
        if isinstance(reports[0], Ready):  # always its first word
            ready = reports.pop(0)
            assert isinstance(ready, Ready)
            self._has_come_up = True
            paths = (
                ready.limit_groups if ready.group is None else (ready.group, *ready.limit_groups)
            )
            self._groups = [ControlGroup(path) for path in paths]
            if self.ready is None or self.ready.driver != ready.driver:
                log.info("limits_driver", driver=ready.driver, holds=sorted(ready.holds))
            self.ready = ready
            self._has_said.set()
            if sys.platform == "linux" and not ready.is_subreaper:
                log.warning("subreaper_refused")
        self._on_reports(reports)


async def _remove(group: ControlGroup) -> None:
    with trio.move_on_after(GROUP_REMOVAL_SECONDS):
        while not group.remove():  # noqa: ASYNC110 - the kernel has no word for it that v1 knows too
            await trio.sleep(0.01)


def _restart_pauses() -> Iterator[float]:
    pause, longest = RESTART_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, longest)
