"""One command on fifty daemons at once."""

from __future__ import annotations

import time

from benchmarks import floors
from benchmarks.cpu import CpuMeter
from benchmarks.fleet import Fleet, open_fleet
from benchmarks.report import Row, Target, compare
from benchmarks.throughput import run_many

DAEMONS, DAEMONS_QUICK = 50, 10
ROUNDS, ROUNDS_QUICK = 20, 5
EACH = 10
"""Commands that each daemon runs in a round, one after the other, where they come as fast as they can."""


async def measure(*, quick: bool) -> list[Row]:
    """The rows; the floor starts as many local processes from one thread."""
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
        local.append(floors.run_local_many(targets, targets) * 1e3)
    return [
        compare(
            f'broadcast("true") to {targets} daemons',
            "ms",
            ours=ours,
            floor=local,
            floor_is=f"subprocess.Popen, {targets} at once",
        ),
        *meter.rows("per command, broadcast", targets * rounds, target=Target(1.0, "ours")),
    ]


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
    return [
        compare(
            f'run("true"), 1 in flight on each of {targets} daemons',
            "commands/s",
            ours=ours,
            floor=local,
            floor_is=f"subprocess.Popen, {targets} in flight",
        ),
        *meter.rows(f"per command, {targets} daemons busy", targets * EACH * rounds),
    ]
