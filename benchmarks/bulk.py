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


async def measure_output(*, quick: bool) -> list[Row]:
    """The rows; each byte goes through a pipe and a loopback connection: the slower one is the floor."""
    rounds = ROUNDS_QUICK if quick else ROUNDS
    ways: dict[str, Callable[[sandd.Daemon], Awaitable[int]]] = {
        "run(), most of it dropped here": _run,
        "open_process(), read by stdout": _read_stdout,
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
            is_slower = "the slower of the two above"
            what = f"{OUTPUT // MB} MB out: {name}"
            rows.append(compare(what, "MB/s", ours=ours, floor=slower, floor_is=is_slower))
            rows += meter.rows("per MB", OUTPUT // MB * rounds)
    return [
        _reference("loopback TCP, one process to another", tcp),
        _reference("local pipe from head", pipe),
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


async def measure_input(*, quick: bool) -> list[Row]:
    """The rows; the floor is the same command reading from a local pipe."""
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
        cpu = meter.rows("per MB", INPUT // MB * rounds)
    what, floor_is = f"{INPUT // MB} MB in: run(input=...)", "subprocess.run(input=...)"
    return [compare(what, "MB/s", ours=ours, floor=local, floor_is=floor_is), *cpu]


def _rate(size: int, seconds: float) -> float:
    return size / MB / seconds


def _reference(what: str, rates: list[float]) -> Row:
    return Row(what=what, unit="MB/s", floor=statistics.median(rates))
