"""The demo's steps: each says what it does, does it, and checks that it was so."""

from __future__ import annotations

import hashlib
import random
import secrets
from typing import TYPE_CHECKING, Final

import trio

from sandd._core._errors import CommandTimeout
from sandd.controller import DaemonState
from sandd.demo.programs import COUNT, LINES, PACK, PRIMES, TREE, UNPACK, pipeline, python
from sandd.testing.fault_proxy import UP, Ending

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

    from sandd._core.results import CommandResult
    from sandd.controller import DaemonEvent, Process
    from sandd.demo.stage import Stage

PRIMES_BELOW: Final = 48_000
PRIMES_PER_LINE: Final = 2_000
COUNTERS: Final = {"first": "cyan", "second": "magenta", "third": "green", "fourth": "blue"}
PIPE_BYTES: Final = 4 * 1024 * 1024
TREE_SIZE: Final = 4
TREE_TIMEOUT: Final = 2.5
LINE_COUNT: Final = 60_000
CUTS: Final = 4
CUT_BYTES: Final = 512
"""Sent by the daemon before each cut: more than a heartbeat has, so it falls into a command's output."""


class CheckFailed(Exception):
    """Something that the demo was about to claim is not so."""


def check(holds: bool, claim: str) -> None:
    """Insist on it."""
    if not holds:
        raise CheckFailed(f"not so: {claim}")


async def commands_at_once(stage: Stage) -> str:
    """Run several commands at once, and show their output as it comes."""
    stage.screen.explain(
        f"Four commands count the primes below {PRIMES_BELOW:,}, a quarter each, all at once. "
        "Each line is shown when it arrives."
    )
    quarter = PRIMES_BELOW // len(COUNTERS)
    total = running = most = 0

    async def follow(name: str, style: str, first: int) -> None:
        nonlocal total, running, most
        bounds = (str(first), str(first + quarter), str(PRIMES_PER_LINE))
        async with stage.worker.open_process(python(PRIMES, *bounds), stdin=False) as process:
            running += 1
            most = max(most, running)
            expected = first
            async for line in lines_of(process.stdout):
                stage.screen.output(name, line, style)
                start, _, count = line.partition(":")
                check(int(start.split()[0]) == expected, f"the next line begins at {expected}")
                expected += PRIMES_PER_LINE
                total += int(count.split()[0])
            check(expected == first + quarter, f"the {name} command printed all its lines")
            await expect_success(process)
            running -= 1

    async with trio.open_nursery() as nursery:
        for number, (name, style) in enumerate(COUNTERS.items()):
            nursery.start_soon(follow, name, style, number * quarter)
    check(most == len(COUNTERS), "all four ran at the same time")
    check(total == count_primes(PRIMES_BELOW), "together they found as many primes as a sieve does")
    return f"four at once, all lines in order; {total:,} primes, as a sieve finds too"


async def through_a_pipeline(stage: Stage) -> str:
    """Send bytes through a shell pipeline's stdin, and have the same ones come back."""
    stage.screen.explain(
        f"{PIPE_BYTES // 2**20} MiB of random bytes go into a shell pipeline of two processes, "
        "which packs and unpacks them."
    )
    data = random.Random(4).randbytes(PIPE_BYTES)  # noqa: S311 - no secret, the same each time
    came_back = bytearray()

    async def send(process: Process) -> None:
        await process.stdin.send_all(data)
        await process.stdin.aclose()

    began = trio.current_time()
    async with stage.worker.open_process(pipeline(python(PACK), python(UNPACK))) as process:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, process)
            async for chunk in process.stdout:
                came_back += chunk
        await expect_success(process)
    seconds = trio.current_time() - began
    digest = hashlib.sha256(came_back).hexdigest()
    check(digest == hashlib.sha256(data).hexdigest(), "the bytes that came back are those sent")
    return f"the same bytes came back after {seconds:.2f} s: SHA-256 {digest[:16]}..."


async def time_out_of_a_tree(stage: Stage) -> str:
    """Let a time-out strike processes that won't end, and look for what is left."""
    stage.screen.explain(
        f"A command starts {TREE_SIZE} processes that ignore SIGTERM, and some leave its session. "
        f"It may run for {TREE_TIMEOUT} s."
    )
    marker = secrets.token_hex(16)
    error: CommandTimeout | None = None

    async def count() -> int:
        looked = await stage.worker.run(python(COUNT), input=marker, check=True, timeout=20)
        return int(looked.stdout)

    async def grow() -> None:
        nonlocal error
        command = python(TREE, TREE, marker, str(TREE_SIZE - 1))
        try:
            await stage.worker.run(command, timeout=TREE_TIMEOUT, kill_grace=0.3)
        except CommandTimeout as expected:
            error = expected

    seen = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(grow)
        while error is None and seen < TREE_SIZE:
            seen = await count()
        stage.screen.event(f"{seen} of its processes found on the machine")
    check(error is not None, "the command ran into its time-out")
    result = printed_before(error)
    check(result.stdout.split() == ["up"] * TREE_SIZE, "its output until then was kept")
    check(seen == TREE_SIZE, f"all {TREE_SIZE} processes were there before the time-out")
    left = await count()
    stage.screen.event(f"{left} left {result.duration:.1f} s after the start")
    check(left == 0, "no process is left")
    return f"{seen} processes before the time-out, none after it; the output until then is kept"


def printed_before(error: CommandTimeout | None) -> CommandResult:
    """What the command had printed; CheckFailed if there is nothing."""
    if error is None or error.result is None:
        raise CheckFailed("not so: a command that was killed has a result")
    return error.result


async def broken_connection(stage: Stage) -> str:
    """Cut the connection while a command streams, again and again."""
    stage.screen.explain(
        f"A command prints {LINE_COUNT:,} numbered lines. {CUTS} times the TCP connection between "
        "daemon and controller is cut in the middle of them."
    )
    expected = hashlib.sha256()
    size = 0
    for number in range(LINE_COUNT):
        line = f"{number:07} {hashlib.sha256(str(number).encode()).hexdigest()}\n".encode()
        expected.update(line)
        size += len(line)
    received = lines = cuts = 0
    digest = hashlib.sha256()

    async with stage.controller.open_events() as events, trio.open_nursery() as nursery:
        nursery.start_soon(tell_of_cuts, stage, events)
        command = python(LINES, str(LINE_COUNT))
        async with stage.worker.open_process(command, stdin=False) as process:
            rest = b""
            async for chunk in process.stdout:
                digest.update(chunk)
                received += len(chunk)
                *whole, rest = (rest + chunk).split(b"\n")
                for each in whole:
                    check(int(each[:7]) == lines, f"line {lines} follows the one before it")
                    lines += 1
                due = received >= size * (cuts + 1) // (CUTS + 1)
                if due and cuts < CUTS and stage.worker.state is DaemonState.ONLINE:
                    cuts += 1
                    stage.screen.event(f"cut, with {received:,} bytes received")
                    stage.proxy.cut_after(CUT_BYTES, UP, Ending.CLOSE)
            await expect_success(process)
    check(cuts == CUTS, f"the connection was cut {CUTS} times")
    check(lines == LINE_COUNT, "every line arrived, once")
    check(digest.digest() == expected.digest(), "the bytes are those that were printed")
    return f"{cuts} cuts, and all {lines:,} lines arrived once: {size:,} bytes, SHA-256 equal"


async def tell_of_cuts(stage: Stage, events: AsyncIterable[DaemonEvent]) -> None:
    """Show the events of the daemon until it has come back from every cut."""
    resumed, away_since = 0, 0.0
    async for event in events:
        if event.kind == "away":
            away_since = trio.current_time()
            stage.screen.event("event: away. The connection is gone, the command goes on")
        elif event.kind == "resumed":
            resumed += 1
            gone = trio.current_time() - away_since
            stage.screen.event(f"event: resumed, by a new connection {gone * 1000:.0f} ms later")
        else:
            raise CheckFailed(f"not so: a cut makes a daemon away, and then resumed; {event.kind}")
        if resumed == CUTS:
            return


async def expect_success(process: Process) -> None:
    """The command must have ended well."""
    status = await process.wait()
    check(status.success, f"the command succeeded (exit code {status.exit_code})")


async def lines_of(stream: trio.abc.ReceiveStream) -> AsyncIterator[str]:
    """The lines of a stream, each as soon as it is complete."""
    rest = b""
    async for chunk in stream:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace").rstrip("\r")


def count_primes(end: int) -> int:
    """By Eratosthenes."""
    prime = bytearray([1]) * end
    prime[:2] = bytes(2)
    for number in range(2, int(end**0.5) + 1):
        prime[number * number :: number] = bytes(len(prime[number * number :: number]))
    return sum(prime)


STEPS: Final = {
    "Several commands at once": commands_at_once,
    "Bytes through a pipeline": through_a_pipeline,
    "A time-out that leaves nothing": time_out_of_a_tree,
    "A connection that breaks": broken_connection,
}
