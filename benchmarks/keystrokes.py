"""How long a keystroke takes to a program in a session and back, also while the link is full of output."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from attrs import frozen

from benchmarks import floors
from benchmarks.fleet import open_fleet
from benchmarks.report import Row, Target, compare, percentile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import sandd

TURN = 20
"""Keystrokes in a row, ours or local: short, so that a disturbance hits both."""
BESIDE = "head -c 100000000 /dev/zero"
"""What fills the link: 100 MB of output, again and again."""
MAX_OUTPUT = 64 * 1024
TYPING_SECONDS = 0.005
"""Between two keystrokes: a fast typist, so that each finds all caches and the link as others left them."""


@frozen
class Plan:
    """How much is measured."""

    rounds: int
    turns: int
    """In each round, for either side."""


FULL, QUICK = Plan(rounds=5, turns=10), Plan(rounds=2, turns=2)


async def measure(quick: bool) -> list[Row]:
    """Percentiles of the round trip: with nothing else on the link, and beside 100 MB outputs."""
    plan = QUICK if quick else FULL
    async with open_fleet(1) as fleet:
        daemon = fleet.daemons[0]
        with floors.open_local_echo() as local:
            async with _open_echo(daemon) as session:
                idle: list[list[float]] = [[] for _ in range(plan.rounds)]
                floor: list[list[float]] = [[] for _ in range(plan.rounds)]
                loaded: list[list[float]] = [[] for _ in range(plan.rounds)]
                for number in range(plan.rounds):
                    for _ in range(plan.turns):
                        for _ in range(TURN):
                            idle[number].append(await _type(session))
                            await trio.sleep(TYPING_SECONDS)
                        for _ in range(TURN):
                            floor[number].append(await floors.type_locally(local))
                            await trio.sleep(TYPING_SECONDS)
                for number in range(plan.rounds):
                    async with _beside_output(daemon):
                        for _ in range(plan.turns * TURN):
                            loaded[number].append(await _type(session))
                            await trio.sleep(TYPING_SECONDS)
    return [
        _row("idle: p50", 50, idle, floor, Target(4.0, "ratio")),
        _row("idle: p99", 99, idle, floor, None),
        _row("beside 100 MB outputs: p50", 50, loaded, floor, None),
        _row("beside 100 MB outputs: p99", 99, loaded, floor, Target(15.0, "ours")),
    ]


@asynccontextmanager
async def _open_echo(daemon: sandd.Daemon) -> AsyncIterator[sandd.Session]:
    """A session in which a program, not the kernel, sends back each byte."""
    async with daemon.open_session(floors.ECHO) as session:
        shown = b""
        while floors.READY not in shown:
            shown += await session.receive_some()
        yield session


async def _type(session: sandd.Session) -> float:
    started = time.perf_counter()
    await session.send_all(b"x")
    received = await session.receive_some()
    seconds = time.perf_counter() - started
    assert received == b"x", received
    return seconds


@asynccontextmanager
async def _beside_output(daemon: sandd.Daemon) -> AsyncIterator[None]:
    """Output runs over the same link all the time."""

    async def run() -> None:
        while True:
            await daemon.run(BESIDE, max_output=MAX_OUTPUT, check=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(0.2)
        yield
        nursery.cancel_scope.cancel()


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
