"""Daemons in numbers: everything of a daemon but its processes, many in one program.

::

    async with open_daemon_cores(controller.url, 500, labels={"env": "test"}) as cores:
        await cores.wait_live()
        answers = await controller.broadcast("echo hello", labels={"env": "test"})

Each has a connection of its own, and the real dialler, job table and job runner. What its jobs do is
played by a function of this program: see `sandd.testing.fake_processes`.
"""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import trio
from attrs import define

from sandd import __version__
from sandd._core.daemon_end import DaemonEnd
from sandd._core.dialer import Dialer
from sandd._core.identity.keyring import Keyring
from sandd._core.identity.proofs import read_credential
from sandd._core.identity.tokens import TokenKind
from sandd._core.jobs import JobTable
from sandd._core.link import Backoff, Identity
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.runner import JobRunner
from sandd._core.statistics_requests import StatisticsRequests
from sandd.testing.fake_processes import FakeProcessHost, Program, play_well_known

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

MAX_RUNNING: Final = 256
"""Jobs that run at once in each, as in a daemon."""
LEAVE_SECONDS: Final = 2.0
"""For all of them together to end their jobs and say goodbye."""


@final
@define(eq=False)
class DaemonCore:
    """One daemon without processes."""

    id: str
    instance: str
    """Random for each core, as it is for each start of a daemon."""
    host: FakeProcessHost
    """What has been started in it."""
    _table: JobTable
    _runner: JobRunner
    _end: DaemonEnd
    _dialer: Dialer

    def __repr__(self) -> str:
        state = "live" if self.is_live else "away"
        return f"<DaemonCore {self.id!r} {state}, {self.host!r}>"

    @property
    def is_live(self) -> bool:
        """Whether it has a connection that a controller has let in."""
        return self._dialer.live.is_set()

    async def wait_live(self) -> None:
        """Return as soon as it is live."""
        while not self.is_live:
            await self._dialer.live.wait()

    async def leave(self) -> None:
        """End its jobs, tell how they ended, and say goodbye, as a daemon does after SIGTERM. Bound it."""
        await self._runner.end_all(0.0)
        await self._end.tell_all()
        await self._dialer.say_goodbye("the daemon was stopped")

    async def _run(self) -> None:
        async with open_unwrapping_nursery() as nursery:
            nursery.start_soon(self._runner.count_leases)
            nursery.start_soon(self._dialer.run)


@final
class DaemonCores:
    """Those that `open_daemon_cores` opened, in the order of their numbers."""

    def __init__(self, cores: list[DaemonCore]) -> None:
        self._cores = cores

    def __repr__(self) -> str:
        return f"<{len(self)} DaemonCores, {self.live} live>"

    def __len__(self) -> int:
        return len(self._cores)

    def __iter__(self) -> Iterator[DaemonCore]:
        return iter(self._cores)

    def __getitem__(self, number: int) -> DaemonCore:
        return self._cores[number]

    @property
    def live(self) -> int:
        """How many are live now."""
        return sum(core.is_live for core in self)

    async def wait_live(self) -> None:
        """Return once every one of them has been live at the same time as the others."""
        while self.live < len(self):
            for core in self:
                await core.wait_live()


@asynccontextmanager
async def open_daemon_cores(
    url: str,
    count: int,
    *,
    prefix: str = "core-",
    labels: Mapping[str, str] | None = None,
    token: bytes | None = None,
    program: Program = play_well_known,
    reconnect_max: float = 0.5,
) -> AsyncIterator[DaemonCores]:
    """As many daemons without processes, which dial `url` as long as the block lasts.

    They may not have connected yet: see `DaemonCores.wait_live`. Leaving the block ends their jobs,
    and they say goodbye if they are live, within 2 seconds. An exception of the block comes out as
    itself.

    Args:
        url: of the controller, or of a proxy before it.
        count: how many.
        prefix: of their ids, before their numbers from 0 on.
        labels: each of them has these.
        token: the controller's, if it has one; or a join token for as many.
        program: plays their jobs.
        reconnect_max: seconds between two dials at most.

    Raises:
        RequestRefused: the controller will not take one of them.
    """
    async with open_unwrapping_nursery() as nursery:
        cores = []
        for number in range(count):
            core_id, instance = f"{prefix}{number}", secrets.token_hex(8)
            host, table = FakeProcessHost(nursery, program), JobTable(instance)
            runner = JobRunner(table, host, nursery, max_running=MAX_RUNNING)
            identity = Identity(
                core_id, instance, labels or {}, "core", "core", "core", __version__
            )
            backoff = Backoff(maximum=reconnect_max)
            credential = None if token is None else read_credential(token, TokenKind.JOIN)
            end = DaemonEnd(identity, Keyring(None, core_id, credential), runner)
            busy = StatisticsRequests(table, measure=host.measure, meter=end.meter)
            runner.requests.offer(busy.doers)
            dialer = Dialer(url, end, backoff)
            cores.append(DaemonCore(core_id, instance, host, table, runner, end, dialer))
            nursery.start_soon(cores[-1]._run)
        try:
            yield DaemonCores(cores)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LEAVE_SECONDS):
                async with trio.open_nursery() as leaving:
                    for core in cores:
                        leaving.start_soon(core.leave)
            nursery.cancel_scope.cancel()
