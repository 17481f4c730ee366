"""What TLS costs, beside a connection without it."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import sandd
from benchmarks.fleet import open_fleet, open_keeper, wait_online, warm_up
from benchmarks.report import Row, Target
from benchmarks.two_ways import compare_ways

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EXEC_TARGET = Target(1.6, "ratio")
BULK_TARGET = Target(1 / 0.4, "ratio")
"""It may cost 60 % of the rate."""


async def measure(quick: bool) -> list[Row]:
    """Percentiles of the latency, and the rates of output and input."""
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(open_fleet(1))
        secure = await stack.enter_async_context(_open_secure_daemon())
        return await compare_ways(
            secure,
            fleet.daemons[0],
            quick=quick,
            exec_target=EXEC_TARGET,
            bulk_target=BULK_TARGET,
        )


@asynccontextmanager
async def _open_secure_daemon() -> AsyncIterator[sandd.Daemon]:
    """A daemon that has dialled in over TLS."""
    async with sandd.open_controller(port=0, tls="auto") as controller:
        assert controller.ca_pin is not None
        async with open_keeper(controller.url, "--ca-pin", controller.ca_pin) as keeper:
            _, log = await keeper.start("bench-tls")
            daemon = await wait_online(controller, "bench-tls", log)
            await warm_up(daemon)
            yield daemon
