"""What a forwarded port costs: bulk both ways, a small request, a new connection; beside the port itself."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from benchmarks.fleet import open_fleet
from benchmarks.report import Row, compare, percentile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

MB: Final = 1_000_000
PIECE: Final = bytes(128 * 1024)
REQUEST: Final = bytes(1024)
TURN: Final = 20
"""Requests in a row, ours or direct: short, so that a disturbance hits both."""
SERVER: Final = """
import functools, trio

async def serve(stream):
    async with stream:
        kind = await stream.receive_some(1)
        if kind == b"s":
            left = int(await stream.receive_some(20))
            while left > 0:
                left -= len(piece[:left])
                await stream.send_all(piece)
        elif kind == b"r":
            size = 0
            async for data in stream:
                size += len(data)
            await stream.send_all(str(size).encode())
        else:
            async for data in stream:
                await stream.send_all(data)

async def main():
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        print(listeners[0].socket.getsockname()[1], flush=True)

piece = bytes(128 * 1024)
trio.run(main)
"""
"""Sends as much as it is asked to, counts what it receives, or echoes; in a process of its own."""


@frozen
class Plan:
    """How much is measured."""

    rounds: int
    size: int
    """Bytes in bulk, in each direction."""
    turns: int
    """Of requests, in each round, for either side."""


FULL, QUICK = Plan(rounds=5, size=100 * MB, turns=10), Plan(rounds=2, size=20 * MB, turns=2)


async def measure(quick: bool) -> list[Row]:
    """Rates and latencies through a forwarded port, and of connections made straight to the server."""
    plan = QUICK if quick else FULL
    with _open_server() as port:
        async with open_fleet(1) as fleet, fleet.daemons[0].forward_port(port) as (_, forwarded):
            ways = {"ours": forwarded, "floor": port}
            rows = []
            for name, move in (("download", _download), ("upload", _upload)):
                rates: dict[str, list[float]] = {side: [] for side in ways}
                for _ in range(plan.rounds):
                    for side, number in ways.items():
                        started = time.perf_counter()
                        await move(number, plan.size)
                        rates[side].append(plan.size / MB / (time.perf_counter() - started))
                rows.append(compare(name, "MB/s", ours=rates["ours"], floor=rates["floor"]))
            for name, measure_one in (
                ("1 KiB there and back", _ask),
                ("connect, ask, close", _visit),
            ):
                samples = await _latencies(plan, ways, measure_one)
                for percent in (50, 99):
                    sides = {
                        side: [percentile(each, percent) * 1e3 for each in rounds]
                        for side, rounds in samples.items()
                    }
                    rows.append(
                        compare(
                            f"{name}: p{percent}", "ms", ours=sides["ours"], floor=sides["floor"]
                        )
                    )
            return rows


async def _latencies(
    plan: Plan, ways: dict[str, int], one: Callable[[trio.SocketStream, int], Awaitable[None]]
) -> dict[str, list[list[float]]]:
    """Seconds of each, by side and round."""
    samples: dict[str, list[list[float]]] = {side: [] for side in ways}
    streams = {side: await _connect(number, b"e") for side, number in ways.items()}
    for _ in range(plan.rounds):
        for side in ways:
            samples[side].append([])
        for _ in range(plan.turns):
            for side, number in ways.items():
                for _ in range(TURN):
                    started = time.perf_counter()
                    await one(streams[side], number)
                    samples[side][-1].append(time.perf_counter() - started)
    for stream in streams.values():
        await stream.aclose()
    return samples


async def _ask(stream: trio.SocketStream, _port: int) -> None:
    await stream.send_all(REQUEST)
    received = 0
    while received < len(REQUEST):
        received += len(await stream.receive_some())


async def _visit(_stream: trio.SocketStream, port: int) -> None:
    async with await _connect(port, b"e") as stream:
        await _ask(stream, port)


async def _download(port: int, size: int) -> None:
    async with await _connect(port, b"s") as stream:
        await stream.send_all(str(size).encode())
        received = 0
        while data := await stream.receive_some(len(PIECE)):
            received += len(data)
    assert received >= size, f"{received} bytes came, not {size}"


async def _upload(port: int, size: int) -> None:
    async with await _connect(port, b"r") as stream:
        sent = 0
        while sent < size:
            await stream.send_all(PIECE)
            sent += len(PIECE)
        await stream.send_eof()
        counted = int(await stream.receive_some())
    assert counted == sent, f"{counted} bytes arrived, not {sent}"


async def _connect(port: int, kind: bytes) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(kind)
    return stream


@contextmanager
def _open_server() -> Iterator[int]:
    # Out of Ctrl-C's reach, as the floors: it ends with the block.
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, process_group=0
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()
