"""One command on fifty daemons at once."""

from __future__ import annotations

import time

import trio

from benchmarks import floors
from benchmarks.cpu import CpuMeter
from benchmarks.fleet import Fleet, open_fleet
from benchmarks.report import Row, Target, compare
from benchmarks.throughput import run_many
from sandd._core.job_link import LATE_SECONDS

DAEMONS, DAEMONS_QUICK = 50, 10
ROUNDS, ROUNDS_QUICK = 12, 4
FAREWELL_SECONDS = 2 * LATE_SECONDS
"""Nobody waits for the farewells to a broadcast's jobs; they count as its processor time."""
EACH = 10
"""Commands that each daemon runs in a round, one after the other, where they come as fast as they can."""


async def measure(quick: bool) -> list[Row]:
    """The time for one broadcast, the rate with all daemons kept busy, and the CPU of both."""
    daemons, rounds = (DAEMONS_QUICK, ROUNDS_QUICK) if quick else (DAEMONS, ROUNDS)
    async with open_fleet(daemons) as fleet:
        return [*await _broadcast(fleet, rounds), *await _keep_busy(fleet, max(1, rounds // 4))]


async def _broadcast(fleet: Fleet, rounds: int) -> list[Row]:
    targets = len(fleet.daemons)
    ours: list[float] = []
    local: list[float] = []
    meter = CpuMeter(fleet)
    for _ in range(rounds):
        with meter.counting():
            ours.append(await _once(fleet) * 1e3)
            await trio.sleep(FAREWELL_SECONDS)
        local.append(floors.run_local_many(targets, targets) * 1e3)
    target = Target(1.0, "ours")
    cpu = meter.rows(targets * rounds, "command", label="broadcast: ", target=target)
    return [compare(f"broadcast to {targets}", "ms", ours=ours, floor=local), *cpu]


async def _once(fleet: Fleet) -> float:
    started = time.perf_counter()
    results = await fleet.controller.broadcast("true", check=True)
    seconds = time.perf_counter() - started
    for result in results.values():
        if isinstance(result, Exception):
            raise result
    assert len(results) == len(fleet.daemons), f"{len(results)} daemons answered"
    return seconds


async def _keep_busy(fleet: Fleet, rounds: int) -> list[Row]:
    targets = len(fleet.daemons)
    ours: list[float] = []
    local: list[float] = []
    meter = CpuMeter(fleet)
    for _ in range(rounds):
        with meter.counting():
            ours.append(targets * EACH / await run_many(fleet.daemons, EACH, in_flight=1))
        local.append(targets * EACH / floors.run_local_many(targets * EACH, targets))
    cpu = meter.rows(targets * EACH * rounds, "command", label="kept busy: ")
    return [compare(f"{targets} kept busy", "commands/s", ours=ours, floor=local), *cpu]
