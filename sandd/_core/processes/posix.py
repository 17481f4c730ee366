"""The `ProcessHost` of Linux and macOS: jobs are started, and watched, by the spawner.

The hot path of a spawn: make pipes, send one message, sleep until its answer. There is no thread
and no task for a job; one task reads what the spawner reports and sets the jobs' events.

A spawner that dies takes its jobs with it: what it left is killed, each child is told that it is
lost, and the next spawner is started.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import trio

from sandd._core._errors import SpawnFailed
from sandd._core.limits import NO_LIMITS, Limits
from sandd._core.logs import get_logger
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.processes import lost_trees
from sandd._core.processes.interface import Child, ChildLost, ProcessHost
from sandd._core.processes.pipes import MAX_JOBS_WITH_LARGE_PIPES, open_job_pipes
from sandd._core.processes.posix_child import PosixChild, Stage
from sandd._core.processes.spawner_keeper import SpawnerKeeper
from sandd._core.processes.spawner_link import SpawnerGoneError, SpawnerLink, start_spawner
from sandd._core.processes.spawner_messages import (
    Failed,
    Identity,
    Kill,
    Message,
    ProcessLimits,
    Spawn,
    encode,
)
from sandd._core.processes.tree_usage import measure_below, measure_by_ps
from sandd._core.processes.users import resolve_user

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping
    from typing import Any

    from sandd._core.processes.interface import (
        Answered,
        CheckedProgram,
        SpawnRequest,
        TreeUsage,
    )

MAX_REQUEST_BYTES = 8 << 20
"""Linux never takes more than 6 MiB of arguments and environment (execve(2): 3/4 of the default
stack), macOS 1 MiB. What is far beyond is refused here; the exact limit is the kernel's."""
WAIT_SECONDS = 5.0
"""How long a spawn waits where the spawner is busy, or dead and the next one is not up yet."""
READY_SECONDS = 60.0
"""How long it takes at most until it is known what can be held: a daemon that has limits starts with that, or not at
all, and where all else is starting, too, the first spawner is slow to come up."""
NO_SPAWNER = "the process that starts jobs does not come up; see the daemon's log"
MAX_LOOKUPS = 8
"""Users looked up at once. They may come from a network that hangs: then others must find threads all the
same, such as who looks up the controller's address."""
ABANDON_SECONDS = 2.0
"""How long a cancelled spawn waits to see its child dead. The kill goes on in any case."""

log = get_logger("processes")

# Enum members are bound here because looking one up by its class costs as much as a function call (Python 3.11).
_ASKED = Stage.ASKED
_GONE = Stage.GONE


class PosixProcessHost(ProcessHost):
    """All children of one daemon, and the spawner they are below."""

    def __init__(
        self, spawner: SpawnerLink, *, adopts: bool, total: ProcessLimits | None = None
    ) -> None:
        self.spared = lost_trees.children_now()
        self.keeper = SpawnerKeeper(spawner, self._note, self._bury, total=total)
        self._adopts = adopts
        self._children: dict[int, PosixChild] = {}
        self._last_job = 0
        self._lookups = trio.CapacityLimiter(MAX_LOOKUPS)

    def __repr__(self) -> str:
        return f"<PosixProcessHost with {len(self._children)} children, {self.keeper!r}>"

    async def unheld(self, limits: Limits) -> tuple[str, ...]:
        with trio.move_on_after(READY_SECONDS):
            ready = await self.keeper.wait_ready()
            given = _process_limits(limits) or ()
            names = {n for n, v in zip(ProcessLimits._fields, given, strict=False) if v is not None}
            return tuple(sorted(names - set(ready.holds)))
        raise SpawnFailed(errno.EAGAIN, NO_SPAWNER)

    async def unheld_total(self, limits: Limits) -> tuple[str, ...]:
        with trio.move_on_after(READY_SECONDS):
            ready = await self.keeper.wait_ready()
            return tuple(sorted(set(limits.given) - set(ready.holds_total)))
        raise SpawnFailed(errno.EAGAIN, NO_SPAWNER)

    async def spawn(self, request: SpawnRequest) -> Child:
        identity = None
        if request.confinement is not None and request.confinement.identity is not None:
            identity = Identity(*request.confinement.identity)
        elif request.user is not None:
            identity = await trio.to_thread.run_sync(
                resolve_user, request.user, limiter=self._lookups, abandon_on_cancel=True
            )
        child = self._try_spawn(request, identity) or await self._spawn_later(request, identity)
        await self.begun(child)
        return child

    def begin(self, request: SpawnRequest, answered: Answered) -> PosixChild | None:
        if request.user is not None or request.confinement is not None:
            return None
        return self._try_spawn(request, None, answered)

    async def begun(self, child: Child) -> None:
        assert isinstance(child, PosixChild)
        try:
            try:
                await child.reached(Stage.ANSWERED)
            except trio.Cancelled:
                await _abandon(child)
                raise
            if child.failure is not None:
                failure = child.failure
                raise SpawnFailed(failure.number, failure.text, failure.filename)
            if child.pid == 0:
                raise ChildLost(
                    "the spawner died while it was starting the process; if that ran, it was killed"
                )
        except BaseException:
            child.pipes.close()
            raise

    async def measure(self, pids: Collection[int]) -> Mapping[int, TreeUsage]:
        link = self.keeper.link
        if link is None or not pids:
            await trio.lowlevel.checkpoint()
            return {}
        if sys.platform == "linux":
            return await trio.to_thread.run_sync(measure_below, link.process.pid, tuple(pids))
        return await trio.to_thread.run_sync(measure_by_ps, tuple(pids))

    async def _spawn_later(self, request: SpawnRequest, identity: Identity | None) -> PosixChild:
        with trio.move_on_after(WAIT_SECONDS):
            while True:
                link = await self.keeper.wait_link()
                await link.wait_for_room()
                child = self._try_spawn(request, identity)
                if child is not None:
                    return child
        raise SpawnFailed(errno.EAGAIN, NO_SPAWNER)

    def _try_spawn(
        self,
        request: SpawnRequest,
        identity: Identity | None,
        answered: Answered | None = None,
    ) -> PosixChild | None:
        """The child asked for, or None if nothing was asked for, as there is nobody to ask."""
        link = self.keeper.link
        if link is None or link.is_congested:
            return None
        self._last_job += 1
        job = self._last_job
        checked, confinement = request.checked, request.confinement
        message = Spawn(
            job,
            request.argv,
            dict(request.env),
            request.marker,
            request.cwd,
            None if identity is None else (identity.uid, identity.gid, identity.groups),
            request.stdin,
            request.merge_stderr,
            request.terminal is not None,
            None if link.base is request.base else dict(request.base),
            None if checked is None else _announced(checked),
            None if confinement is None else (confinement.ruleset is not None, confinement.wrapper),
            None if request.limits is NO_LIMITS else _process_limits(request.limits),
            request.must_hold,
        )
        count = request.stdin + 1 + (not request.merge_stderr) if request.terminal is None else 1
        opened = [] if checked is None else _opened(checked)
        if confinement is not None and confinement.ruleset is not None:
            opened.append(confinement.ruleset)
        count += len(opened)
        data = encode(message, descriptors=count)
        if len(data) > MAX_REQUEST_BYTES:
            program = os.fsdecode(request.argv[0])
            raise SpawnFailed(errno.E2BIG, os.strerror(errno.E2BIG), program)
        pipes = open_job_pipes(request, may_grow=len(self._children) < MAX_JOBS_WITH_LARGE_PIPES)
        try:
            link.send(data, [*pipes.theirs, *opened] if opened else pipes.theirs)
        except SpawnerGoneError:
            pipes.close()
            self.keeper.drop(link)
            return None
        except OSError as error:
            pipes.close()
            raise SpawnFailed(error.errno or 0, error.strerror or "") from error
        link.base = request.base
        pipes.close_theirs()
        child = self._children[job] = PosixChild(job, request.marker, link, pipes, answered)
        return child

    def _note(self, reports: list[Message]) -> None:
        answered: list[PosixChild] = []
        for report in reports:
            job = report[0]
            child = self._children[job]
            if child.stage is _ASKED and child.is_awaited:  # whatever it is, it is the answer
                answered.append(child)
            child.note(report)
            if child.stage is _GONE:
                del self._children[job]
        # Only now: a short command's end has come with the word of its start.
        alone = len(answered) == 1
        later = [child.tell_answered(alone=alone) for child in answered]
        for say in dict.fromkeys(later):
            if say is not None:
                say()

    async def _bury(self, was_clean: bool, had_come_up: bool) -> None:
        """The spawner is dead: kill what it left, and tell its children."""
        lost = list(self._children.values())
        self._children.clear()
        left: list[int] = []
        if not was_clean:
            left = await lost_trees.cull_lost_trees(
                leaders={child.pid for child in lost if child.pid},
                markers={child.marker for child in lost},
                spared=self.spared,
                adopted=self._adopts,
            )
        for child in lost:
            if not had_come_up:
                child.failure = Failed(child.job, errno.EAGAIN, NO_SPAWNER, None)
            child.note_end()
            child.tell_answered(alone=True)  # unless that was done
        if not was_clean:  # told last: no kill waits for a line of the log
            log.warning("jobs_lost", jobs=len(lost), survivors=left)


def _process_limits(limits: Limits) -> tuple[Any, ...] | None:
    """Those that are the spawner's business; None if there are none."""
    values = tuple(getattr(limits, name) for name in ProcessLimits._fields)
    return None if all(value is None for value in values) else values


def _announced(checked: CheckedProgram) -> tuple[bytes, bool, bool, bool, bool]:
    there = [each is not None for each in (checked.executable, checked.directory, checked.ruleset)]
    return (checked.path, there[0], there[1], there[2], checked.is_alone)


def _opened(checked: CheckedProgram) -> list[int]:
    files = (checked.executable, checked.directory, checked.ruleset)
    return [each for each in files if each is not None]


async def _abandon(child: PosixChild) -> None:
    """See to it that nothing is left of a child that nobody will hear of."""
    child.request(Kill(child.job, 0.0))
    with trio.CancelScope(shield=True, deadline=trio.current_time() + ABANDON_SECONDS):
        await child.reached(_GONE)


@asynccontextmanager
async def open_posix_process_host(total: Limits = NO_LIMITS) -> AsyncIterator[ProcessHost]:
    """See `sandd._core.processes.open_process_host`."""
    limits = _process_limits(total)
    of_all = None if limits is None else ProcessLimits(*limits)
    with lost_trees.adopting_orphans() as adopts:
        host = PosixProcessHost(await start_spawner(of_all), adopts=adopts, total=of_all)
        async with open_unwrapping_nursery() as nursery:
            # Shielded: whatever is being cancelled, children must be heard of to the last one.
            service = trio.CancelScope(shield=True)
            nursery.start_soon(_serve, service, host)
            try:
                yield host
            finally:
                with trio.CancelScope(shield=True):
                    await host.keeper.leave()
                service.cancel()


async def _serve(scope: trio.CancelScope, host: PosixProcessHost) -> None:
    with scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.keeper.run)
            if os.getpid() == 1:
                nursery.start_soon(lost_trees.reap_as_process_1, host.spared)
