"""What a daemon is asked about its jobs: to list them, to end one, to forget one."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import trio

from sandd import wire
from sandd._core.job_info import describe
from sandd._core.jobs import NO_JOB, Effects, JobTable
from sandd._core.requests import RequestFailedError
from sandd.wire import FailedCode, JobState, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sandd._core.job import Job
    from sandd._core.requests import Doer, Doing

ANSWERS_A_TURN: Final = 64
"""So many answers are made before everybody else has a turn: 1 ms."""


def signal_number(name: str) -> signal.Signals | None:
    """This machine's number of a signal's name without SIG; None where it has no such signal."""
    if name == "KILL" and not hasattr(signal, "SIGKILL"):
        name = "TERM"  # Windows, where either ends the tree at once
    number = getattr(signal, f"SIG{name}", None)
    return number if isinstance(number, signal.Signals) else None


class JobRequests:
    """Does requests about the jobs in a table."""

    def __init__(
        self,
        table: JobTable,
        *,
        act: Callable[[Effects], None],
        wait_over: Callable[[Job], Awaitable[None]],
    ) -> None:
        self._table = table
        self._act = act
        self._wait_over = wait_over

    @property
    def doers(self) -> Mapping[type[wire.Request], Doer]:
        """For `Requests.offer`."""
        return {
            wire.JobsSpec: self._list,
            wire.KillSpec: self._kill,
            wire.ForgetSpec: self._forget,
        }

    async def _list(self, doing: Doing, _spec: wire.JobsSpec) -> None:
        # Made one by one as there is room, so that any number of jobs takes no more than that.
        for index, job in enumerate(self._table.commands(doing.tenant)):
            if index and index % ANSWERS_A_TURN == 0:
                await trio.lowlevel.checkpoint()
            if self._table.jobs.get(job.key) is job:
                await doing.answer(describe(job, trio.current_time()))

    async def _kill(self, doing: Doing, spec: wire.KillSpec) -> None:
        job = self._named(doing, spec.job_id)
        if job.state is JobState.ENDED:
            return
        if spec.signal not in ("TERM", "KILL") and signal_number(spec.signal) is None:
            raise RequestFailedError(
                FailedCode.DECLINED, f"there is no signal {spec.signal!r} on its machine"
            )
        self._act(self._table.stop(job, Outcome.CANCELLED, spec.grace, signal=spec.signal))
        await self._wait_over(job)

    async def _forget(self, doing: Doing, spec: wire.ForgetSpec) -> None:
        job = self._named(doing, spec.job_id)
        if job.state is not JobState.ENDED:
            self._act(self._table.stop(job, Outcome.CANCELLED))
            await self._wait_over(job)
        self._act(self._table.forget(job, trio.current_time()))

    def _named(self, doing: Doing, job_id: str) -> Job:
        job = self._table.find(doing.tenant, job_id)
        if job is None:
            raise RequestFailedError(FailedCode.JOB_NOT_FOUND, f"{NO_JOB}: {job_id!r}")
        return job
