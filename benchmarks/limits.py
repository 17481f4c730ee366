"""What limits cost: ``run("true")`` with them, beside the same without, on one daemon."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import frozen

from benchmarks.fleet import open_fleet
from benchmarks.report import Row, Target, compare, percentile
from sandd import Limits

if TYPE_CHECKING:
    import sandd

TURN = 20
"""Commands in a row, with limits or without: short, so that a disturbance hits both."""
LIMITS = Limits(
    memory_bytes=256 << 20, processes=64, cpu_seconds=30.0, open_files=256, output_bytes=1 << 20
)
"""All kinds but `cpus`: those of control groups, of the process, and of the daemon."""
QUOTA = Limits(cpus=2.0)
"""In a group of that kind its processes get their share as one, and wait for it where others compete."""


@frozen
class Plan:
    """How much is measured."""

    rounds: int
    turns: int
    """In each round, for either side."""


FULL, QUICK = Plan(rounds=7, turns=5), Plan(rounds=3, turns=2)


async def measure(quick: bool) -> list[Row]:
    """Percentiles of the latency, and what is added to them."""
    plan = QUICK if quick else FULL
    with_limits: list[list[float]] = []
    with_quota: list[list[float]] = []
    without: list[list[float]] = []
    async with open_fleet(1) as fleet:
        daemon = fleet.daemons[0]
        for given in (LIMITS, QUOTA):  # the first of each kind makes its group
            await _run(daemon, given)
        for _ in range(plan.rounds):
            for samples in (with_limits, with_quota, without):
                samples.append([])
            for _ in range(plan.turns):
                for limits, samples in (
                    (LIMITS, with_limits),
                    (QUOTA, with_quota),
                    (None, without),
                ):
                    samples[-1] += [await _run(daemon, limits) for _ in range(TURN)]
    added = [
        percentile(ours, 50) - percentile(floor, 50)
        for ours, floor in zip(with_limits, without, strict=True)
    ]
    return [
        _row("p50", 50, with_limits, without),
        _row("p99", 99, with_limits, without),
        Row(
            what="added to p50",
            unit="ms",
            ours=percentile(added, 50) * 1e3,
            target=Target(2.5, "ours"),
        ),
        _row("p50 with cpus", 50, with_quota, without),
    ]


async def _run(daemon: sandd.Daemon, limits: Limits | None) -> float:
    started = time.perf_counter()
    await daemon.run("true", check=True, limits=limits)
    return time.perf_counter() - started


def _row(what: str, percent: int, ours: list[list[float]], floor: list[list[float]]) -> Row:
    return compare(
        what,
        "ms",
        ours=[percentile(samples, percent) * 1e3 for samples in ours],
        floor=[percentile(samples, percent) * 1e3 for samples in floor],
    )
