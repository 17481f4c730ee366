"""Commands with much output and input, over connections that break all the time.

First the connection is cut behind random bytes of either direction, then every 200 ms. All must be
there, once and in order; each command must have run once; and nothing may have grown.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import define, field, frozen

import sandd
from benchmarks.fleet import open_keeper, until_signal, wait_online
from benchmarks.soak.findings import MIB, Findings, Watched
from sandd.testing import DOWN, UP, FaultProxy, open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

MB = 1_000_000
PIECE = 65536
WORKERS = 4
"""Commands under way at a time."""
ALLOWED_GROWTH = 30 * MIB
BACK_SECONDS = 30.0
"""For the last word to get through once nothing is cut any more."""

JOB = """
import hashlib, os, random, sys, threading
seed, size, trace = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
file = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(file, b"%d\\n" % seed)
digest = hashlib.sha256()

def read():
    while data := os.read(0, 65536):
        digest.update(data)

reader = threading.Thread(target=read)
reader.start()
source = random.Random(seed)
while size:
    count = min(size, 65536)
    sys.stdout.buffer.write(source.randbytes(count))
    size -= count
sys.stdout.flush()
reader.join()
print(digest.hexdigest(), file=sys.stderr)
"""


@frozen
class Plan:
    """How much of everything."""

    output: int
    """Bytes of output in the first part, of all commands together."""
    input: int
    """Bytes of input."""
    jobs: int
    cuts: int
    """In each direction, during the first part."""
    flap_seconds: float
    flap_every: float = 0.2


FULL = Plan(output=50 * MB, input=10 * MB, jobs=50, cuts=500, flap_seconds=60.0)
QUICK = Plan(output=2 * MB, input=MB, jobs=4, cuts=12, flap_seconds=1.0)


@define(eq=False)
class Script:
    """The commands, and what came of them."""

    worker: sandd.Daemon
    trace: Path
    """To which each process adds one line."""
    started: int = 0
    finished: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    wrong: list[str] = field(factory=list)

    async def run(self, seed: int, output: int, input: int) -> None:
        """One command: its output and its input are those of the seed."""
        self.started += 1
        command = [sys.executable, "-c", JOB, str(seed), str(output), str(self.trace)]
        got, sent, said = hashlib.sha256(), hashlib.sha256(), b""
        async with self.worker.open_process(command) as process:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def write() -> None:
                    for data in pieces(-seed, input):
                        sent.update(data)
                        await process.stdin.send_all(data)
                        self.bytes_in += len(data)
                    await process.stdin.aclose()

                @nursery.start_soon
                async def read() -> None:
                    async for data in process.stdout:
                        got.update(data)
                        self.bytes_out += len(data)

                async for data in process.stderr:
                    said += data
            status = await process.wait()
        expected = hashlib.sha256()
        for data in pieces(seed, output):
            expected.update(data)
        if status.exit_code != 0:
            self.wrong.append(f"command {seed} ended with {status.exit_code}: {said!r}")
        elif got.digest() != expected.digest():
            self.wrong.append(f"command {seed}: its output is not what it printed")
        elif said.decode().strip() != sent.hexdigest():
            self.wrong.append(f"command {seed}: its input is not what was written")
        self.finished += 1


def pieces(seed: int, size: int) -> Iterator[bytes]:
    """The bytes of a seed, as JOB makes them."""
    source = random.Random(seed)
    while size:
        count = min(size, PIECE)
        yield source.randbytes(count)
        size -= count


async def soak(plan: Plan, seed: int, findings: Findings) -> None:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="sandd-soak-") as directory:
        async with (
            sandd.open_controller(port=0) as controller,
            open_fault_proxy(controller.address, seed=seed) as proxy,
            open_keeper(proxy.url, "--reconnect-max", "0.5") as keeper,
            until_signal(),
        ):
            pid, log = await keeper.start("soak")
            worker = await wait_online(controller, "soak", log)
            script = Script(worker, Path(directory, "trace"))
            seeds = itertools.count(seed % 2**20 + 1)
            for _ in range(WORKERS):  # so that all is in memory that ever will be
                await script.run(next(seeds), plan.output // plan.jobs, plan.input // plan.jobs)
            both = [Watched("controller", os.getpid()), Watched("daemon", pid)]
            tasks_before = trio.lowlevel.current_statistics().tasks_living
            async with trio.open_nursery() as nursery:
                for watched in both:
                    nursery.start_soon(watched.watch)
                await _cut(plan, script, proxy, seeds, findings)
                await _flap(plan, script, proxy, seeds, findings)
                nursery.cancel_scope.cancel()
            with trio.move_on_after(BACK_SECONDS):
                await worker.run("true", check=True)
                while proxy.connections > 1:  # noqa: ASYNC110 - it has no event for fewer
                    await trio.sleep(0.01)
            ran = script.trace.read_text().split()
            findings.figure("commands", script.finished)
            findings.figure(
                "output and input", f"{script.bytes_out:,} and {script.bytes_in:,} bytes"
            )
            for complaint in script.wrong[:10]:
                findings.figure("wrong", complaint)
            findings.check("every byte of output and input is right", not script.wrong)
            findings.check(
                f"{script.started} commands were asked for, {script.finished} ended, "
                f"{len(ran)} processes ran, {len(set(ran))} different ones",
                script.started == script.finished == len(ran) == len(set(ran)),
            )
            findings.check("the daemon is back", worker.state is sandd.DaemonState.ONLINE)
            for watched in both:
                await watched.judge(findings, allowed_growth=ALLOWED_GROWTH)
            tasks = trio.lowlevel.current_statistics().tasks_living
            findings.check(f"{tasks_before} tasks before, {tasks} after", tasks <= tasks_before)


async def _cut(
    plan: Plan, script: Script, proxy: FaultProxy, seeds: Iterator[int], findings: Findings
) -> None:
    started = trio.current_time()
    proxy.cut_at_random(plan.cuts, UP, within=plan.output)
    proxy.cut_at_random(plan.cuts, DOWN, within=plan.input)
    jobs = iter(range(plan.jobs))

    async def work() -> None:
        for _ in jobs:
            await script.run(next(seeds), plan.output // plan.jobs, plan.input // plan.jobs)

    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(work)
    seconds = trio.current_time() - started
    findings.figure("cut at random bytes", f"{proxy.cuts} connections in {seconds:.1f} s")
    findings.figure("the proxy", repr(proxy))
    findings.check(f"all {2 * plan.cuts} positions were reached", not proxy.cuts_ahead)
    proxy.forget_cuts()


async def _flap(
    plan: Plan, script: Script, proxy: FaultProxy, seeds: Iterator[int], findings: Findings
) -> None:
    end = trio.current_time() + plan.flap_seconds
    cuts_before, finished_before = proxy.cuts, script.finished

    async def work() -> None:
        while trio.current_time() < end:
            await script.run(next(seeds), 400_000, 100_000)

    async with trio.open_nursery() as flapping:
        flapping.start_soon(proxy.flap, plan.flap_every)
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(work)
        flapping.cancel_scope.cancel()
    finished = script.finished - finished_before
    findings.figure("flapping", f"{proxy.cuts - cuts_before} cuts, {finished} commands meanwhile")
    findings.check("there is progress while it flaps", finished > 0)
