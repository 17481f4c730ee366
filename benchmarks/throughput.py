"""How many commands a second one daemon runs, with 1, 8 and 64 of them in flight."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from benchmarks import floors
from benchmarks.cpu import CpuMeter
from benchmarks.fleet import open_fleet
from benchmarks.report import Row, compare

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sandd

COMMANDS = {1: 300, 8: 400, 64: 960}
"""In each round, by how many are in flight."""
ROUNDS = 5


async def measure(quick: bool) -> list[Row]:
    """The rate and the CPU for each number in flight."""
    rounds, share = (2, 4) if quick else (ROUNDS, 1)
    rows: list[Row] = []
    async with open_fleet(1) as fleet:
        for in_flight, full in COMMANDS.items():
            commands = full // share
            ours: list[float] = []
            local: list[float] = []
            meter = CpuMeter(fleet)
            for _ in range(rounds):
                with meter.counting():
                    ours.append(commands / await run_many(fleet.daemons, commands, in_flight))
                local.append(commands / floors.run_local_many(commands, in_flight))
            name = f"{in_flight} in flight"
            rows.append(compare(name, "commands/s", ours=ours, floor=local))
            rows += meter.rows(commands * rounds, "command", label=f"{name}: ")
    return rows


async def run_many(daemons: Sequence[sandd.Daemon], count: int, in_flight: int) -> float:
    """Seconds for `count` commands on each of the daemons, `in_flight` at any time on each."""

    async def take_turns(daemon: sandd.Daemon, commands: range) -> None:
        for _ in commands:
            await daemon.run("true", check=True)

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for daemon in daemons:
            for worker in range(in_flight):
                nursery.start_soon(take_turns, daemon, range(worker, count, in_flight))
    return time.perf_counter() - started
