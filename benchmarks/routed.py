"""What a controller in another process costs, beside one in this process that daemons dial directly."""

from __future__ import annotations

import secrets
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

import sandd
from benchmarks.fleet import open_fleet, open_keeper, wait_online, warm_up
from benchmarks.report import Row, Target
from benchmarks.two_ways import compare_ways

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EXEC_TARGET = Target(1.6, "ratio")
BULK_TARGET = Target(1 / 0.6, "ratio")


async def measure(quick: bool) -> list[Row]:
    """Percentiles of the latency, and the rates of output and input."""
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(open_fleet(1))
        routed = await stack.enter_async_context(_open_routed_daemon())
        return await compare_ways(
            routed,
            fleet.daemons[0],
            quick=quick,
            exec_target=EXEC_TARGET,
            bulk_target=BULK_TARGET,
        )


@asynccontextmanager
async def _open_routed_daemon() -> AsyncIterator[sandd.Daemon]:
    """A daemon that has dialled in to a controller in another process."""
    token = secrets.token_hex(16)
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "benchmarks.standalone", token],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for us; it ends when we let go of its stdin
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = b""
        while not url.endswith(b"\n"):
            part = await process.stdout.receive_some()
            if not part:
                raise RuntimeError("the controller has ended")
            url += part
        async with (
            open_keeper(url.decode().strip()) as keeper,
            sandd.connect_controller(url.decode().strip(), token=token) as controller,
        ):
            _, log = await keeper.start("bench-routed")
            daemon = await wait_online(controller, "bench-routed", log)
            await warm_up(daemon)
            yield daemon
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            await process.wait()
            await process.stdout.aclose()
