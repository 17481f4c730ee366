"""Does what the logs want of the disk: in threads, never in the event loop, and one thing at a time per log.

A log that has work gets a task for as long as it has. Short commands never have any: they cost nothing
here. Whatever the disk does, it touches no other job and never the link.
"""

from __future__ import annotations

import errno
import math
from typing import TYPE_CHECKING, Final

import trio

from sandd._core.logs import get_logger
from sandd._core.spool import Fetch, Spill
from sandd._core.spool_files import SpoolFiles, SpoolLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.job import Job
    from sandd._core.spool import DiskTask, Spool
    from sandd._core.spooled_log import SpooledLog

log = get_logger("spool")

DISK_THREADS: Final = 4
"""Threads that write and read at once: enough for a disk, and all that one which hangs can take."""
DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors that what is deleted may cure."""
RETRY_SECONDS: Final = 1.0
"""Between two tries of what the disk refused."""


class Spooler:
    """The disk's half of a daemon's spool. The nursery owns its tasks."""

    def __init__(
        self,
        spool: Spool,
        files: SpoolFiles,
        nursery: trio.Nursery,
        changed: Callable[[Job], None],
    ) -> None:
        self._spool = spool
        self._files = files
        self._nursery = nursery
        self._changed = changed
        """Called when a job may have got room, or something to send."""
        self._limiter = trio.CapacityLimiter(DISK_THREADS)
        self._wakeups: dict[SpooledLog, trio.Event] = {}
        """One for each log that has a task now."""
        self._failing: set[tuple[SpooledLog, type]] = set()
        """What the disk refused last time, by log and kind of task."""

    def serve(self) -> None:
        """See to it that all that the logs ask for is done."""
        work = self._spool.work
        while work:
            one = next(iter(work))
            del work[one]
            wakeup = self._wakeups.get(one)
            if wakeup is None:
                self._wakeups[one] = trio.Event()
                self._nursery.start_soon(self._serve_log, one)
            else:
                wakeup.set()

    async def _serve_log(self, one: SpooledLog) -> None:
        try:
            await self._serve_until_idle(one)
        except Exception:  # a defect of ours: this job's output stands still, and nobody else's
            log.exception("spool_crashed", job=one.job.key[1])
        finally:
            del self._wakeups[one]
            self._works_again((one, Spill), (one, Fetch))

    async def _serve_until_idle(self, one: SpooledLog) -> None:
        retry_at = -math.inf
        while True:
            self._wakeups[one] = wakeup = trio.Event()
            task = one.next_task()
            if task is not None:
                if not await self._perform(one, task):
                    retry_at = trio.current_time() + RETRY_SECONDS
                self._changed(one.job)
                self.serve()  # what was deleted may be another job's room
                continue
            one.job.tell_stalls()
            self._changed(one.job)
            if wakeup.is_set():
                continue  # what that sent has left its reader waiting for more
            if not one.failing:
                return
            with trio.move_on_at(retry_at):
                await wakeup.wait()
            if trio.current_time() >= retry_at:
                one.retry()

    async def _perform(self, one: SpooledLog, task: DiskTask) -> bool:
        """Do it and say so to the log; False if it failed, and is to be tried again."""
        try:
            data = await trio.to_thread.run_sync(
                self._files.perform, task, limiter=self._limiter, abandon_on_cancel=True
            )
        except SpoolLost as error:
            log.error("spool_lost", job=one.job.key[1], reason=str(error))
            one.lost(task)
        except Exception as error:
            # Not only OSError: a defect of ours, too, shall cost no more than this job's pace.
            if not self._failing:
                # Once, and not for each of a thousand jobs that try once a second.
                log.error("spool_failed", path=str(self._files.directory), reason=str(error))
            self._failing.add((one, type(task)))
            full = isinstance(error, OSError) and error.errno in DISK_FULL
            one.failed(task, getattr(error, "strerror", None) or repr(error), full=full)
            return False
        else:
            one.done(task, data)
            self._works_again((one, type(task)))
        return True

    def _works_again(self, *entries: tuple[SpooledLog, type]) -> None:
        if self._failing:
            self._failing.difference_update(entries)
            if not self._failing:
                log.info("spool_recovered", path=str(self._files.directory))
