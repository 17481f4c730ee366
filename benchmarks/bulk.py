"""How fast large output comes back, and large input goes in."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from benchmarks import floors
from benchmarks.cpu import CpuMeter
from benchmarks.fleet import open_fleet
from benchmarks.report import Row, compare

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import sandd

MB = 1_000_000
OUTPUT, INPUT = 100 * MB, 20 * MB
WRITE_OUTPUT = f"head -c {OUTPUT} /dev/zero"
MAX_OUTPUT = 64 * 1024
"""What `run` keeps of the output: this is about moving bytes, not about storing them."""
ROUNDS, ROUNDS_QUICK = 7, 2


async def measure_output(quick: bool) -> list[Row]:
    """The rate and the CPU for each way to read it, and for what each byte has to go through."""
    rounds = ROUNDS_QUICK if quick else ROUNDS
    ways: dict[str, Callable[[sandd.Daemon], Awaitable[int]]] = {
        "run(max_output=64 KiB)": _run,
        "open_process().stdout": _read_stdout,
    }
    rows: list[Row] = []
    tcp: list[float] = []
    pipe: list[float] = []
    async with open_fleet(1) as fleet:
        for name, receive in ways.items():
            ours: list[float] = []
            meter = CpuMeter(fleet)
            for _ in range(rounds):
                started = time.perf_counter()
                with meter.counting():
                    received = await receive(fleet.daemons[0])
                ours.append(_rate(OUTPUT, time.perf_counter() - started))
                assert received == OUTPUT, f"{received} bytes came, not {OUTPUT}"
                tcp.append(_rate(OUTPUT, floors.copy_tcp(OUTPUT)))
                pipe.append(_rate(OUTPUT, floors.read_pipe(OUTPUT)))
            slower = [min(rates) for rates in zip(tcp[-rounds:], pipe[-rounds:], strict=True)]
            rows.append(compare(name, "MB/s", ours=ours, floor=slower))
            rows += meter.rows(OUTPUT // MB * rounds, "MB", label=f"{name}: ")
    return [
        Row(what="loopback TCP", unit="MB/s", floor=statistics.median(tcp)),
        Row(what="local pipe", unit="MB/s", floor=statistics.median(pipe)),
        *rows,
    ]


async def _run(daemon: sandd.Daemon) -> int:
    result = await daemon.run(WRITE_OUTPUT, max_output=MAX_OUTPUT, check=True)
    return result.stdout_total


async def _read_stdout(daemon: sandd.Daemon) -> int:
    received = 0
    async with daemon.open_process(WRITE_OUTPUT, stdin=False) as process:
        async for data in process.stdout:
            received += len(data)
        await process.wait()
    return received


async def measure_input(quick: bool) -> list[Row]:
    """The rate and the CPU."""
    data = bytes(INPUT)
    ours: list[float] = []
    local: list[float] = []
    rounds = ROUNDS_QUICK if quick else ROUNDS
    async with open_fleet(1) as fleet:
        meter = CpuMeter(fleet)
        for _ in range(rounds):
            started = time.perf_counter()
            with meter.counting():
                result = await fleet.daemons[0].run(["wc", "-c"], input=data, check=True)
            ours.append(_rate(INPUT, time.perf_counter() - started))
            assert int(result.stdout) == INPUT, f"{result.stdout!r} bytes arrived"
            local.append(_rate(INPUT, floors.write_pipe(data)))
        cpu = meter.rows(INPUT // MB * rounds, "MB")
    return [compare("run(input=...)", "MB/s", ours=ours, floor=local), *cpu]


def _rate(size: int, seconds: float) -> float:
    return size / MB / seconds
