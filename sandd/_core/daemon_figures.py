"""A daemon's figures, where somebody is to have them. Loaded only then: a daemon is to start quickly."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from sandd._core.metrics.listener import Pages, serve_pages
from sandd._core.metrics.loop_lag import LoopLag
from sandd._core.metrics.readings import DaemonFigures, read_daemon

if TYPE_CHECKING:
    from sandd._core.daemon_end import DaemonEnd
    from sandd._core.dialer import Dialer
    from sandd._core.jobs import JobTable
    from sandd._core.metrics.catalogue import Reading
    from sandd._core.metrics.http_answers import MetricsAddress

READY_SECONDS: Final = 60.0
"""Without a link, for how long a daemon still counts as ready: a controller that is restarted is back by then."""
LAG_SECONDS: Final = 1.0
"""How often the loop's lag is measured."""


async def serve_figures(
    address: MetricsAddress,
    *,
    version: str,
    table: JobTable,
    end: DaemonEnd,
    dialer: Dialer,
    task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until cancelled. ConfigurationError as of `serve_pages`."""
    lag = LoopLag(LAG_SECONDS)

    def read() -> list[Reading]:
        return read_daemon(
            DaemonFigures(
                version=version,
                tally=table.tally,
                link=end.meter,
                is_connected=dialer.pump is not None,
                dials=dialer.connections,
                links=dialer.links,
                running=end.runner.running,
                queued=end.runner.queued,
                kept=len(table.jobs),
                spool=table.spool,
                loop_lag=lag,
            )
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, lag)
        pages = Pages(read, partial(why_not_ready, dialer))
        where: tuple[str, int] = await nursery.start(serve_pages, pages, address)
        task_status.started(where)


async def why_not_ready(dialer: Dialer) -> str | None:
    """Why the controller can't have anything done here; None: it can, or could a moment ago."""
    if dialer.pump is not None or trio.current_time() - dialer.live_until < READY_SECONDS:
        return None
    why = dialer.failure or "the first dial is under way"
    return f"the controller is not reached: {why}"


async def _watch(lag: LoopLag) -> None:
    while True:
        await trio.sleep_until(lag.due(trio.current_time()))
        lag.woke(trio.current_time())
