"""The `ProcessHost` of Linux and macOS: every job is started by the spawner, and watched through
it.

The hot path of a spawn: make pipes, send one message, sleep until its answer. There is no thread
and no task of its own for a job; one task reads what the spawner reports and sets the jobs' events.

A spawner that dies takes its jobs with it: `_bury` kills what it left, tells each child that it is
lost, and the next spawner is started."""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import trio

from sandd._core._errors import SpawnFailed
from sandd._core.logs import get_logger
from sandd._core.processes import lost_trees
from sandd._core.processes.interface import Child, ChildLost, ExitStatus, ProcessHost
from sandd._core.processes.pipes import MAX_JOBS_WITH_LARGE_PIPES, JobPipes, open_job_pipes
from sandd._core.processes.spawner_link import SpawnerGoneError, SpawnerLink, start_spawner
from sandd._core.processes.spawner_messages import (
    Exited,
    Failed,
    Forget,
    Gone,
    Identity,
    Kill,
    Message,
    Ready,
    Signal,
    Spawn,
    Started,
)
from sandd._core.processes.users import resolve_user

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sandd._core.processes.interface import SpawnRequest

MAX_ARGUMENT_BYTES = 6 << 20
"""Linux never takes more for arguments and environment (execve(2): 3/4 of the default stack of 8
MiB), macOS 1 MiB. What is longer is refused here, without being copied to the spawner; the exact
limit is the kernel's."""
LEAVE_SECONDS = 5.0
"""How long the spawner may take to kill everything when the host is left, before it is killed
itself."""
SPAWNER_EXIT_SECONDS = 2.0
"""How long a spawner whose socket has ended may take to exit, before it is killed."""
SPAWN_WAIT_SECONDS = 5.0
"""How long a spawn waits for a new spawner, where the last one has died."""
RESTART_SECONDS = (0.1, 5.0)
"""Pause before the next spawner when one did not come up: doubles from the first to the second."""
ABANDON_SECONDS = 2.0
"""How long a cancelled spawn waits to see its child dead. The kill goes on in any case."""

log = get_logger("processes")


class PosixChild(Child):
    """A job's tree below the spawner, as told by its reports."""

    __slots__ = (
        "_is_lost",
        "_link",
        "_pid",
        "_status",
        "failure",
        "gone",
        "id",
        "marker",
        "over",
        "pipes",
        "started",
    )

    def __init__(self, id: int, marker: bytes, link: SpawnerLink, pipes: JobPipes) -> None:  # noqa: A002 - it is its id
        self.marker = marker
        self.id = id
        self._link = link
        self.pipes = pipes
        self._pid = 0
        self._status: ExitStatus | None = None
        self.failure: Failed | None = None
        self._is_lost = False
        self.started = trio.Event()  # the request is answered, or never will be
        self.over = trio.Event()  # the leader has exited, or is lost
        self.gone = trio.Event()  # nothing is left of the tree

    def __repr__(self) -> str:
        state = "running"
        if self._is_lost:
            state = "lost"
        elif self._status is not None:
            state = f"ended by {self._status}{', gone' if self.gone.is_set() else ''}"
        return f"<PosixChild {self._pid}, {state}>"

    @property
    def pid(self) -> int:
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

    async def wait_exited(self) -> ExitStatus:
        await self.over.wait()
        if self._status is None:
            raise ChildLost(
                f"process {self._pid} and all it started were killed when their spawner ended"
            )
        return self._status

    def signal(self, number: int) -> None:
        if number not in signal.valid_signals():
            raise ValueError(f"there is no signal {number} on this machine")
        self.request(Signal(self.id, int(number)))

    async def kill(self, *, grace: float) -> None:
        self.request(Kill(self.id, max(0.0, grace)))
        await self.gone.wait()

    async def release(self, *, sweep: bool = True) -> None:
        if not self.over.is_set():
            raise RuntimeError(f"process {self._pid} has not exited: kill it, or wait for it")
        self.request(Kill(self.id, 0.0) if sweep else Forget(self.id))
        await self.gone.wait()

    def request(self, request: Kill | Signal | Forget) -> None:
        """Ask the spawner for something; no error if the tree is gone, or about to be."""
        if self.gone.is_set():
            return
        try:
            self._link.send(request)
        except SpawnerGoneError:
            pass  # `_bury` is about to kill it, or has

    # --- what the host's reader task is told ---

    def note(self, report: Message) -> None:
        """Take a report about this child."""
        if isinstance(report, Started):
            self._pid = report.pid
            self.started.set()
        elif isinstance(report, Exited):
            self._status = ExitStatus(report.code, report.signal)
            self.over.set()
            if report.is_gone:
                self.gone.set()
        elif isinstance(report, Failed):
            self.failure = report
            self.started.set()
            self.gone.set()
        elif isinstance(report, Gone):
            if report.survivors:
                log.warning("processes_survived", leader=self._pid, pids=report.survivors)
            if self._status is None:
                self.note_lost()  # the leader is one of the survivors, and out of our sight now
            self.gone.set()

    def note_lost(self) -> None:
        """There will be no more reports, and nothing is left of the tree."""
        self._is_lost = self._status is None
        self.started.set()
        self.over.set()
        self.gone.set()


class PosixProcessHost(ProcessHost):
    """All children of one daemon, and the spawner they are below."""

    def __init__(self, *, adopts: bool) -> None:
        self._adopts = adopts
        self._spared = lost_trees.children_now()
        self._link: SpawnerLink | None = None
        self._link_changed = trio.Event()
        self._is_spawner_ready = False
        self._children: dict[int, PosixChild] = {}
        self._next_id = 0
        self._is_leaving = False
        self._all_over = trio.Event()

    def __repr__(self) -> str:
        return f"<PosixProcessHost with {len(self._children)} children, {self._link!r}>"

    async def spawn(self, request: SpawnRequest) -> Child:
        _refuse_oversized(request)
        identity = None
        if request.user is not None:
            identity = await trio.to_thread.run_sync(
                resolve_user, request.user, abandon_on_cancel=True
            )
        child = None
        while child is None:
            link = self._link or await self._wait_for_spawner()
            if link.is_congested:
                await link.wait_for_room()
            else:
                child = self._send_spawn(link, request, identity)
        try:
            try:
                await child.started.wait()
            except trio.Cancelled:
                await self._abandon(child)
                raise
            if child.failure is not None:
                raise SpawnFailed(child.failure.number, child.failure.text, child.failure.filename)
            if child.pid == 0:
                raise ChildLost(
                    "the spawner died while it was starting the process; whatever had started was killed"
                )
        except BaseException:
            child.pipes.close()
            raise
        return child

    def _send_spawn(
        self, link: SpawnerLink, request: SpawnRequest, identity: Identity | None
    ) -> PosixChild | None:
        """The child asked for, or None if the spawner has just died and nothing was asked for."""
        pipes = open_job_pipes(request, large=len(self._children) < MAX_JOBS_WITH_LARGE_PIPES)
        self._next_id += 1
        message = Spawn(
            self._next_id,
            request.argv,
            dict(request.env),
            request.marker,
            request.cwd,
            None if identity is None else (identity.uid, identity.gid, identity.groups),
            request.stdin,
            request.merge_stderr,
        )
        try:
            link.send(message, pipes.theirs)
        except SpawnerGoneError:
            pipes.close()
            if link is self._link:
                self._link = None  # until the reader has noticed, too
            return None
        except OSError as error:
            pipes.close()
            raise SpawnFailed(error.errno or 0, error.strerror or "") from error
        pipes.close_theirs()
        child = self._children[self._next_id] = PosixChild(
            self._next_id, request.marker, link, pipes
        )
        return child

    async def _abandon(self, child: PosixChild) -> None:
        """See to it that nothing is left of a child that nobody will hear of."""
        child.request(Kill(child.id, 0.0))
        with trio.CancelScope(shield=True, deadline=trio.current_time() + ABANDON_SECONDS):
            await child.gone.wait()

    async def _wait_for_spawner(self) -> SpawnerLink:
        with trio.move_on_after(SPAWN_WAIT_SECONDS):
            while True:
                if self._is_leaving:
                    raise trio.ClosedResourceError("this process host was left")
                if self._link is not None:
                    return self._link
                await self._link_changed.wait()
        raise SpawnFailed(
            errno.EAGAIN, "the process that starts jobs does not come up; see the daemon's log"
        )

    # --- the spawner's life ---

    async def run(self, link: SpawnerLink) -> None:
        """Serve this spawner and its successors, until the host is left."""
        try:
            await self._serve(link)
        finally:
            self._all_over.set()

    async def _serve(self, link: SpawnerLink) -> None:
        pauses = _restart_pauses()
        while True:
            self._is_spawner_ready = False
            self._set_link(link)
            with lost_trees.sparing(link.process.pid):
                await link.run(self._note)
                self._set_link(None)
                await self._bury(link)
            if self._is_spawner_ready:
                pauses = _restart_pauses()
            while True:
                if self._is_leaving:
                    return
                if not self._is_spawner_ready:
                    await trio.sleep(next(pauses))
                try:
                    link = await start_spawner()
                except SpawnFailed as error:
                    log.error("spawner_start_failed", error=str(error))
                    self._is_spawner_ready = False
                else:
                    break

    async def leave(self) -> None:
        """End the spawner and everything below it. Bounded; shield it."""
        self._is_leaving = True
        link = self._link
        self._set_link(None)
        if link is not None:
            link.end()
            with trio.move_on_after(LEAVE_SECONDS):
                await self._all_over.wait()
            link.process.kill()  # no error if it is dead, as it should be
        await self._all_over.wait()

    def _set_link(self, link: SpawnerLink | None) -> None:
        self._link = None if self._is_leaving else link
        self._link_changed.set()
        self._link_changed = trio.Event()

    def _note(self, report: Message) -> None:
        if isinstance(report, Ready):
            self._is_spawner_ready = True
            if not report.is_subreaper and sys.platform == "linux":
                log.warning("subreaper_refused", pid=self._link and self._link.process.pid)
            return
        child = self._children[report.job]
        child.note(report)
        if child.gone.is_set():
            del self._children[report.job]

    async def _bury(self, link: SpawnerLink) -> None:
        """The spawner's socket has ended: see it dead, kill what it left, and tell its children."""
        process = link.process
        with trio.move_on_after(SPAWNER_EXIT_SECONDS):
            await process.wait()
        process.kill()  # no error if it is dead
        with trio.move_on_after(SPAWNER_EXIT_SECONDS):
            # What was below it falls to us before it can be waited for, and not before its socket
            # ends.
            await process.wait()
        lost = list(self._children.values())
        self._children.clear()
        if not self._is_leaving:
            log.warning("spawner_died", pid=process.pid, status=process.returncode, jobs=len(lost))
        if process.returncode != 0:
            left = await lost_trees.cull_lost_trees(
                leaders={child.pid for child in lost if child.pid},
                markers={child.marker for child in lost},
                spared=self._spared,
                adopted=self._adopts,
            )
            if left:
                log.error("processes_survived", pids=left)
        for child in lost:
            if not self._is_spawner_ready and child.pid == 0:
                # It never read a request.
                child.failure = Failed(
                    child.id, errno.EAGAIN, "the process that starts jobs did not come up", None
                )
            child.note_lost()


@asynccontextmanager
async def open_posix_process_host() -> AsyncIterator[ProcessHost]:
    """See `sandd._core.processes.open_process_host`."""
    body_error: BaseException | None = None
    with lost_trees.adopting_orphans() as adopts:
        host = PosixProcessHost(adopts=adopts)
        link = await start_spawner()
        try:
            async with trio.open_nursery() as nursery:
                # Shielded: whatever is being cancelled, children must be heard of until the last
                # one is gone.
                service = trio.CancelScope(shield=True)
                nursery.start_soon(_run_in, service, host, link)
                if os.getpid() == 1:
                    nursery.start_soon(lost_trees.reap_as_process_1, host._spared)
                try:
                    yield host
                finally:
                    with trio.CancelScope(shield=True):
                        await host.leave()
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # Nothing but the body raises here, unless a task of ours has crashed.
            if len(group.exceptions) > 1:
                raise
            body_error = group.exceptions[0]
        if body_error is not None:
            raise body_error


async def _run_in(scope: trio.CancelScope, host: PosixProcessHost, link: SpawnerLink) -> None:
    with scope:
        await host.run(link)


def _restart_pauses() -> Iterator[float]:
    pause, longest = RESTART_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, longest)


def _refuse_oversized(request: SpawnRequest) -> None:
    size = (
        sum(map(len, request.argv))
        + sum(map(len, request.env))
        + sum(map(len, request.env.values()))
    )
    if size > MAX_ARGUMENT_BYTES:
        raise SpawnFailed(errno.E2BIG, os.strerror(errno.E2BIG), os.fsdecode(request.argv[0]))
