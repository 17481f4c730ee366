"""What an audit log costs: the same commands under a controller that keeps one, and under one that doesn't."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Final

from benchmarks.cpu import CpuMeter
from benchmarks.fleet import open_fleet
from benchmarks.report import Row, Target, compare
from benchmarks.throughput import run_many

if TYPE_CHECKING:
    from benchmarks.fleet import Fleet

COMMANDS: Final = {1: 200, 64: 640}
"""In each round, by how many are in flight."""
ROUNDS: Final = 5
MOST: Final = Target(1 / 0.85, of="ratio")
"""Of the commands a second, at 64 in flight, 15 % may be lost."""


async def measure(quick: bool) -> list[Row]:
    """The rate with the log, beside that without, and what it takes of the controller's processor time."""
    rounds, share = (2, 4) if quick else (ROUNDS, 1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sandd-bench-") as state_dir:
        async with (
            open_fleet(1, state_dir=state_dir, audit=True) as audited,
            open_fleet(1) as plain,
        ):
            for in_flight, full in COMMANDS.items():
                rows += await _compare(
                    audited, plain, in_flight, commands=full // share, rounds=rounds
                )
    return rows


async def _compare(
    audited: Fleet, plain: Fleet, in_flight: int, *, commands: int, rounds: int
) -> list[Row]:
    meters = {"audited": CpuMeter(audited), "plain": CpuMeter(plain)}
    rates: dict[str, list[float]] = {name: [] for name in meters}
    for number in range(rounds):
        turns = [("audited", audited), ("plain", plain)]
        # Whoever comes second finds the machine warmer: they take turns at that, too.
        for name, fleet in turns if number % 2 else reversed(turns):
            with meters[name].counting():
                seconds = await run_many(fleet.daemons, commands, in_flight)
            rates[name].append(commands / seconds)
    rows = [
        compare(
            f"{in_flight} in flight",
            "commands/s",
            ours=rates["audited"],
            floor=rates["plain"],
            target=MOST if in_flight > 1 else None,
        )
    ]
    for name, meter in meters.items():
        label = f"{in_flight} in flight, {name}: "
        rows += meter.rows(commands * rounds, "command", label=label)[:1]
    return rows
