"""Does what a daemon is asked about itself: requests, which are jobs without a process.

A request takes no place among the commands that run at once, and waits behind none. Each is one
task; its answers go where a command's output goes. A further kind is one more entry in `_DO`.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field

from sandd import wire
from sandd._core.job_info import describe
from sandd._core.jobs import NO_JOB, Effect, Effects, JobTable
from sandd._core.logs import get_logger
from sandd.wire import FailedCode, JobState, Outcome, Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandd._core.job import Job

log = get_logger("requests")

ANSWERS_A_TURN: Final = 64
"""So many answers are made before everybody else has a turn: 1 ms."""


def signal_number(name: str) -> signal.Signals | None:
    """This machine's number of a signal's name without SIG; None where it has no such signal."""
    if name == "KILL" and not hasattr(signal, "SIGKILL"):
        name = "TERM"  # Windows, where either ends the tree at once
    number = getattr(signal, f"SIG{name}", None)
    return number if isinstance(number, signal.Signals) else None


class RequestFailedError(Exception):
    """The request can't be fulfilled, and nothing was done; its client is told why."""

    def __init__(self, code: FailedCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@define(eq=False)
class _Running:
    """A request that is being done."""

    job: Job
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    room_ready: trio.Event = field(factory=trio.Event)


class Requests:
    """All requests under way on a daemon. Its nursery owns their tasks."""

    def __init__(
        self,
        table: JobTable,
        nursery: trio.Nursery,
        *,
        act: Callable[[Effects], None],
        wait_over: Callable[[Job], Awaitable[None]],
    ) -> None:
        self._table = table
        self._nursery = nursery
        self._act = act
        self._wait_over = wait_over
        self._running: dict[Job, _Running] = {}

    def start(self, job: Job) -> None:
        """Do what the job asks for; it has ended when that is done."""
        running = self._running[job] = _Running(job)
        self._nursery.start_soon(self._run, running)

    def take(self, job: Job, effect: Effect) -> None:
        """Something happened to a job; nothing is done for one that has ended or is none of ours."""
        running = self._running.get(job)
        if running is None:
            return
        if effect is Effect.ROOM:
            running.room_ready.set()
        elif effect is Effect.END:
            running.scope.cancel()  # ops and input mean nothing to a request

    async def _run(self, running: _Running) -> None:
        job = running.job
        began = trio.current_time()
        try:
            with running.scope:
                await _DO[type(job.spec)](self, running, job.spec)
            if running.scope.cancelled_caught:
                job.failed(FailedCode.CANCELLED, "the request was taken back")
            else:
                job.exited(
                    code=0,
                    signal=None,
                    outcome=Outcome.EXITED,
                    seconds=trio.current_time() - began,
                    pipes_held=False,
                )
        except RequestFailedError as error:
            job.failed(error.code, str(error))
        except Exception as error:  # a defect of ours must cost this request alone
            log.exception("request_crashed", job=job.key[1])
            job.failed(FailedCode.LOST, f"the daemon failed to do it: {error!r}")
        finally:
            del self._running[job]
            if job.state is JobState.ENDED:
                self._act(self._table.ended(job, trio.current_time()))

    async def _answer(self, running: _Running, answer: wire.Answer) -> None:
        """Put out one answer, as soon as the client has room for it."""
        job, data = running.job, wire.encode_answer(answer)
        while job.room(Stream.OUTPUT) < len(data):
            running.room_ready = trio.Event()
            self._act([])
            await running.room_ready.wait()
        job.write(Stream.OUTPUT, data)

    # -- what can be asked for

    async def _list(self, running: _Running, _spec: wire.JobsSpec) -> None:
        # Made one by one as there is room, so that any number of jobs takes no more than that.
        for index, job in enumerate(self._table.commands(running.job.key[0])):
            if index and index % ANSWERS_A_TURN == 0:
                await trio.lowlevel.checkpoint()
            if self._table.jobs.get(job.key) is job:
                await self._answer(running, describe(job, trio.current_time()))

    async def _kill(self, running: _Running, spec: wire.KillSpec) -> None:
        job = self._named(running, spec.job_id)
        if job.state is JobState.ENDED:
            return
        if spec.signal not in ("TERM", "KILL") and signal_number(spec.signal) is None:
            raise RequestFailedError(
                FailedCode.DECLINED, f"there is no signal {spec.signal!r} on its machine"
            )
        self._act(self._table.stop(job, Outcome.CANCELLED, spec.grace, signal=spec.signal))
        await self._wait_over(job)

    async def _forget(self, running: _Running, spec: wire.ForgetSpec) -> None:
        job = self._named(running, spec.job_id)
        if job.state is not JobState.ENDED:
            self._act(self._table.stop(job, Outcome.CANCELLED))
            await self._wait_over(job)
        self._act(self._table.forget(job, trio.current_time()))

    def _named(self, running: _Running, job_id: str) -> Job:
        job = self._table.find(running.job.key[0], job_id)
        if job is None:
            raise RequestFailedError(FailedCode.JOB_NOT_FOUND, f"{NO_JOB}: {job_id!r}")
        return job


_DO: Final[dict[type, Callable[[Requests, _Running, Any], Awaitable[None]]]] = {
    wire.JobsSpec: Requests._list,
    wire.KillSpec: Requests._kill,
    wire.ForgetSpec: Requests._forget,
}
