"""A command that wants to write gigabytes while its reader stands still: it waits, and nobody else does."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess

import trio
from attrs import frozen

import sandd
from benchmarks.fleet import open_keeper, until_signal, wait_online
from benchmarks.soak.findings import MIB, Findings, Watched

FIRST = 1_000_000_000
"""Numbers of ten digits, each different: a piece that is lost, repeated or out of order changes the hash."""
BEFORE_PAUSE = 1 / 4
"""Of all bytes, those that are read before the reader stops."""
ALLOWED_GROWTH = 30 * MIB
SETTLE_SECONDS = 0.5
"""For the command to fill what there is to fill, once nobody reads."""


@frozen
class Plan:
    """How much, and for how long."""

    size: int
    """Bytes that the command wants to write: many times what may be held."""
    pause: float
    """Seconds for which nobody reads."""
    other: int = 20 * MIB
    """Bytes of another command's output meanwhile, and of one that is run to warm up."""


GIB = 1024 * MIB
FULL = Plan(size=10 * GIB, pause=30.0)
QUICK = Plan(size=64 * MIB, pause=0.5, other=4 * MIB)


def command(size: int) -> str:
    """Writes so many bytes, cheaply."""
    return f"seq {FIRST} {FIRST + size // 11 + 1} | head -c {size}"


async def soak(plan: Plan, findings: Findings) -> None:
    """See the module."""
    size = plan.size
    async with (
        sandd.open_controller(port=0) as controller,
        open_keeper(controller.url) as keeper,
        until_signal(),
    ):
        pid, log = await keeper.start("soak")
        worker = await wait_online(controller, "soak", log)
        for _ in range(20):
            await worker.run("echo warm", check=True)
        await worker.run(command(plan.other), max_output=1, check=True)
        both = [Watched("controller", os.getpid()), Watched("daemon", pid)]
        digest, received = hashlib.sha256(), 0
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for watched in both:
                nursery.start_soon(watched.watch)
            async with worker.open_process(command(size), stdin=False) as process:
                async with trio.open_nursery() as reading:
                    flowing = Other(worker)
                    reading.start_soon(flowing.run_all_the_time)
                    while received < size * BEFORE_PAUSE:
                        data = await process.stdout.receive_some()
                        digest.update(data)
                        received += len(data)
                    reading.cancel_scope.cancel()
                read_seconds = trio.current_time() - started

                await trio.sleep(SETTLE_SECONDS)
                async with trio.open_nursery() as waiting:
                    still = Other(worker)
                    waiting.start_soon(still.run_all_the_time)
                    await trio.sleep(plan.pause)
                    waiting.cancel_scope.cancel()
                other = await worker.run(command(plan.other), max_output=1)
                findings.check(
                    f"meanwhile, another command's {plan.other:,} bytes arrive",
                    other.success and other.stdout_total == plan.other,
                )

                resumed = trio.current_time()
                async for data in process.stdout:
                    digest.update(data)
                    received += len(data)
                read_seconds += trio.current_time() - resumed
                status = await process.wait()
            nursery.cancel_scope.cancel()
        findings.figure("received", f"{received:,} bytes, {received / 1e6 / read_seconds:.0f} MB/s")
        findings.check("the command was told no error", status.exit_code == 0)
        findings.check(f"it is all there: {size:,} bytes", received == size)
        expected = await trio.to_thread.run_sync(_expected, size)
        findings.check("the hash is that of what was printed", digest.hexdigest() == expected)
        flowing.report("while it flows", findings)
        still.report("while it stands still", findings)
        findings.check(
            "another command takes no longer for the stalled one",
            statistics.median(still.took) <= max(0.1, 2 * statistics.median(flowing.took)),
        )
        for watched in both:
            await watched.judge(findings, allowed_growth=ALLOWED_GROWTH)


def _expected(size: int) -> str:
    """What `sha256sum` says of the same pipeline, here."""
    done = subprocess.run(
        f"{command(size)} | sha256sum", shell=True, capture_output=True, text=True, check=True
    )
    return done.stdout.split()[0]


class Other:
    """Somebody else's commands on the same link, one after the other."""

    def __init__(self, worker: sandd.Daemon) -> None:
        self._worker = worker
        self.took: list[float] = []

    async def run_all_the_time(self) -> None:
        """Until cancelled."""
        while True:
            started = trio.current_time()
            await self._worker.run("echo on", check=True)
            self.took.append(trio.current_time() - started)
            await trio.sleep(0.05)

    def report(self, when: str, findings: Findings) -> None:
        """Print how long they took."""
        median, longest = statistics.median(self.took) * 1000, max(self.took) * 1000
        findings.figure(
            f"another command, {when}",
            f"{median:.1f} ms, {longest:.1f} at most, of {len(self.took)}",
        )
