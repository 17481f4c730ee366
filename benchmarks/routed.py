"""What a controller in another process costs, beside one in this process that daemons dial directly."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio
from attrs import frozen

import sandd
from benchmarks.fleet import open_fleet, open_keeper, wait_online, warm_up
from benchmarks.report import Row, Target, compare, percentile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TURN = 20
"""Commands in a row, routed or direct: short, so that a disturbance hits both."""
MB = 1_000_000
OUTPUT, INPUT = 100 * MB, 20 * MB
EXEC_TARGET = Target(1.6, "ratio")
BULK_TARGET = Target(1 / 0.6, "ratio")


@frozen
class Plan:
    """How much is measured."""

    rounds: int
    turns: int
    """Of commands, in each round, for either way."""


FULL, QUICK = Plan(rounds=7, turns=5), Plan(rounds=3, turns=2)


async def measure(quick: bool) -> list[Row]:
    """Percentiles of the latency, and the rates of output and input."""
    plan = QUICK if quick else FULL
    times: dict[str, list[list[float]]] = {"routed": [], "direct": []}
    outputs: dict[str, list[float]] = {"routed": [], "direct": []}
    inputs: dict[str, list[float]] = {"routed": [], "direct": []}
    data = bytes(INPUT)
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(open_fleet(1))
        routed = await stack.enter_async_context(_open_routed_daemon())
        ways = {"routed": routed, "direct": fleet.daemons[0]}
        for _ in range(plan.rounds):
            for way in ways:
                times[way].append([])
            for _ in range(plan.turns):
                for way, daemon in ways.items():
                    times[way][-1] += [await _run(daemon) for _ in range(TURN)]
            for way, daemon in ways.items():
                outputs[way].append(await _output(daemon))
                inputs[way].append(await _input(daemon, data))
    rows = [
        compare(
            f'run("true"): p{percent}',
            "ms",
            ours=[percentile(samples, percent) * 1e3 for samples in times["routed"]],
            floor=[percentile(samples, percent) * 1e3 for samples in times["direct"]],
            target=EXEC_TARGET if percent == 50 else None,
        )
        for percent in (50, 99)
    ]
    for what, rates in (("100 MB of output", outputs), ("20 MB of input", inputs)):
        rows.append(
            compare(what, "MB/s", ours=rates["routed"], floor=rates["direct"], target=BULK_TARGET)
        )
    return rows


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


async def _run(daemon: sandd.Daemon) -> float:
    started = time.perf_counter()
    await daemon.run("true", check=True)
    return time.perf_counter() - started


async def _output(daemon: sandd.Daemon) -> float:
    received, started = 0, time.perf_counter()
    async with daemon.open_process(f"head -c {OUTPUT} /dev/zero", stdin=False) as process:
        async for data in process.stdout:
            received += len(data)
    assert received == OUTPUT, f"{received} bytes came, not {OUTPUT}"
    return OUTPUT / MB / (time.perf_counter() - started)


async def _input(daemon: sandd.Daemon, data: bytes) -> float:
    started = time.perf_counter()
    result = await daemon.run(["wc", "-c"], input=data, check=True)
    assert int(result.stdout) == INPUT, f"{result.stdout!r} bytes arrived"
    return INPUT / MB / (time.perf_counter() - started)
