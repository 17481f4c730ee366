"""How long one command takes, one after the other, beside the same command started locally."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import frozen

from benchmarks import floors
from benchmarks.cpu import CpuMeter
from benchmarks.fleet import open_fleet
from benchmarks.report import Row, Target, compare, percentile

if TYPE_CHECKING:
    import sandd

TURN = 20
"""Commands in a row, ours or local: short, so that a disturbance hits both."""


@frozen
class Plan:
    """How much is measured."""

    rounds: int
    turns: int
    """In each round, for either side."""


FULL, QUICK = Plan(rounds=7, turns=10), Plan(rounds=3, turns=3)


async def measure(quick: bool) -> list[Row]:
    """Percentiles of the latency, and CPU."""
    plan = QUICK if quick else FULL
    ours: list[list[float]] = []
    local: list[list[float]] = []
    async with open_fleet(1) as fleet:
        meter = CpuMeter(fleet)
        for _ in range(plan.rounds):
            ours.append([])
            local.append([])
            for _ in range(plan.turns):
                with meter.counting():
                    ours[-1] += [await _run(fleet.daemons[0]) for _ in range(TURN)]
                local[-1] += [floors.run_local() for _ in range(TURN)]
        commands = plan.rounds * plan.turns * TURN
        cpu = meter.rows(commands, "command")
    return [
        _row("p50", 50, ours, local, Target(2.5, "ratio")),
        _row("p99", 99, ours, local, None),
        *cpu,
    ]


async def _run(daemon: sandd.Daemon) -> float:
    started = time.perf_counter()
    await daemon.run("true", check=True)
    return time.perf_counter() - started


def _row(
    name: str,
    percent: int,
    ours: list[list[float]],
    local: list[list[float]],
    target: Target | None,
) -> Row:
    return compare(
        name,
        "ms",
        ours=[percentile(samples, percent) * 1e3 for samples in ours],
        floor=[percentile(samples, percent) * 1e3 for samples in local],
        target=target,
    )
