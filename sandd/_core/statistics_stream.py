"""What a daemon says of itself again and again, as an async iterator."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, final

import trio

from sandd import wire
from sandd._core._errors import RemoteProtocolError
from sandd._core.daemon_statistics import StatisticsReader
from sandd._core.streams import Gap
from sandd.wire import Stream

if TYPE_CHECKING:
    from sandd._core.daemon_statistics import DaemonStatistics
    from sandd._core.job_link import JobHandle


@final
class StatisticsStream:
    """One `DaemonStatistics` after the other, without an end; made by `Daemon.open_statistics`."""

    def __init__(self, handle: JobHandle) -> None:
        self._handle = handle
        self._answers = wire.AnswerReader()
        self._reader = StatisticsReader()
        self._rounds: deque[DaemonStatistics] = deque()
        """Those that have come and are yet to be taken."""

    def __repr__(self) -> str:
        return f"<sandd.StatisticsStream of {self._handle.job.daemon_id!r}>"

    def __aiter__(self) -> StatisticsStream:
        return self

    @trio.lowlevel.enable_ki_protection
    async def __anext__(self) -> DaemonStatistics:
        """The next one.

        Raises:
            RequestRefused: the daemon tells as many as it can already.
            DaemonGone: the daemon is gone for good.
            trio.ClosedResourceError: the block was left, or the controller is closed.
        """
        handle = self._handle
        log = handle.job.outputs[Stream.OUTPUT]
        await trio.lowlevel.checkpoint()
        while not self._rounds:
            await handle.until(lambda: log.readable or handle.complete or handle.closed)
            if not log.readable:
                handle.raise_if_failed()
                raise trio.ClosedResourceError("nothing more is told: the block was left")
            data: Any = log.take(wire.MAX_DATA_BYTES)
            handle.link.changed(handle.job)
            if isinstance(data, Gap):
                raise RemoteProtocolError("the daemon left out a part of what it said")
            self._rounds.extend(self._reader.take(self._answers.feed(data)))
        return self._rounds.popleft()
