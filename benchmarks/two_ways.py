"""One daemon by each of two ways, beside each other: what the one costs that the other doesn't."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import frozen

from benchmarks.report import Row, Target, compare, percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sandd

TURN = 20
"""Commands in a row, by either way: short, so that a disturbance hits both."""
MB = 1_000_000
OUTPUT, INPUT = 100 * MB, 20 * MB


@frozen
class Plan:
    """How much is measured."""

    rounds: int
    turns: int
    """Of commands, in each round, for either way."""


FULL, QUICK = Plan(rounds=7, turns=5), Plan(rounds=3, turns=2)


async def compare_ways(
    ours: sandd.Daemon,
    floor: sandd.Daemon,
    *,
    quick: bool,
    exec_target: Target,
    bulk_target: Target,
) -> list[Row]:
    """Percentiles of the latency, and the rates of output and input."""
    plan = QUICK if quick else FULL
    ways = (ours, floor)
    times: tuple[list[list[float]], list[list[float]]] = ([], [])
    outputs: tuple[list[float], list[float]] = ([], [])
    inputs: tuple[list[float], list[float]] = ([], [])
    data = bytes(INPUT)
    for _ in range(plan.rounds):
        for samples in times:
            samples.append([])
        for _ in range(plan.turns):
            for daemon, samples in zip(ways, times, strict=True):
                samples[-1] += [await _run(daemon) for _ in range(TURN)]
        for daemon, rates in zip(ways, outputs, strict=True):
            rates.append(await _output(daemon))
        for daemon, rates in zip(ways, inputs, strict=True):
            rates.append(await _input(daemon, data))
    rows = [
        compare(
            f'run("true"): p{percent}',
            "ms",
            ours=_percentiles(times[0], percent),
            floor=_percentiles(times[1], percent),
            target=exec_target if percent == 50 else None,
        )
        for percent in (50, 99)
    ]
    for what, (fast, slow) in (("100 MB of output", outputs), ("20 MB of input", inputs)):
        rows.append(compare(what, "MB/s", ours=fast, floor=slow, target=bulk_target))
    return rows


def _percentiles(rounds: Sequence[Sequence[float]], percent: int) -> list[float]:
    return [percentile(samples, percent) * 1e3 for samples in rounds]


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
