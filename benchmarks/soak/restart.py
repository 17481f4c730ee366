"""A controller that dies under hundreds of daemons, and the next one on the same port.

Most of the daemons are cores, without processes, a hundred in a program; some are real. Each has one
job that must live through it. The controllers are programs of their own (`benchmarks.soak.controller`):
the first is killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from attrs import frozen

from benchmarks.fleet import open_keeper, until_signal
from sandd._core.admission import Admission

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.soak.findings import Findings

CORES_IN_A_PROGRAM = 125
UP_SECONDS = 180.0
"""For all daemons to come, and for all of them to come back, on a machine that is busy."""
MEASURED_LATE = 1.15
"""The rate that one sees may be so much above the one at which places came up: who waited for the
processor comes together with the next."""


@frozen
class Plan:
    """How many, and for how long nobody is there."""

    cores: int
    daemons: int
    away: float
    rate: float
    """Handshakes per second that the controllers let in."""


FULL = Plan(cores=500, daemons=20, away=60.0, rate=200.0)
QUICK = Plan(cores=40, daemons=2, away=0.5, rate=40.0)


async def soak(plan: Plan, findings: Findings) -> None:
    """See the module."""
    count = plan.cores + plan.daemons
    async with AsyncExitStack() as stack:
        with socket.socket() as holder:
            # Nobody else gets the port while there is no controller.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
            port = holder.getsockname()[1]
            await stack.enter_async_context(until_signal())
            arguments = [str(port), str(count), str(plan.rate)]
            first = await stack.enter_async_context(open_program("controller", *arguments))
            url = await first.say("url")
            programs = []
            for begin in range(0, plan.cores, CORES_IN_A_PROGRAM):
                share = min(CORES_IN_A_PROGRAM, plan.cores - begin)
                program = open_program("cores", url, str(share), f"core-{begin}-")
                programs.append(await stack.enter_async_context(program))
            keeper = await stack.enter_async_context(open_keeper(url, "--reconnect-max", "5"))
            for number in range(plan.daemons):
                await keeper.start(f"real-{number}")
            with trio.fail_after(UP_SECONDS):
                before = await first.ask()
            findings.figure("up", f"{count} daemons, each with a job")

            first.kill()
            await trio.sleep(plan.away)
            second = await stack.enter_async_context(open_program("controller", *arguments))
            with trio.fail_after(UP_SECONDS):
                await second.say("url")
                after = await second.ask()
            findings.figure("back, the last of them", f"after {after['last']:.1f} s")
            findings.figure("peak", f"{after['peak']} in a second; {plan.rate:g} are let in")
            findings.figure(
                "controller's processor", f"{after['cpu'] / count * 1000:.1f} ms for each"
            )
            findings.figure(
                "a command on who is back, meanwhile", f"{after['slowest']:.3f} s at most"
            )
            findings.check(f"all {count} are back", after["pids"].keys() == before["pids"].keys())
            findings.check("every job is the one that was started", after["pids"] == before["pids"])
            limit = plan.rate * MEASURED_LATE + Admission(plan.rate).burst
            findings.check(f"never more than {limit:.0f} in a second", after["peak"] <= limit)
            starts = [(await program.ask())["started"] for program in programs]
            # The job of each, and the commands that the controllers ran meanwhile.
            asked_for = plan.cores + before["runs"] + after["runs"]
            findings.check(
                f"{asked_for} jobs were asked for in cores, {plan.cores} of them to live; "
                f"{sum(starts)} were started",
                sum(starts) == asked_for,
            )


class Program:
    """A program of this package, which answers with a line of JSON to each line that it is sent."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._said = b""

    async def say(self, key: str) -> Any:
        """One field of the next line."""
        return (await self._read())[key]

    async def ask(self) -> dict[str, Any]:
        """Its next answer."""
        await self._stdin.send_all(b"\n")
        return await self._read()

    def kill(self) -> None:
        """By SIGKILL."""
        self._process.send_signal(signal.SIGKILL)

    async def _read(self) -> dict[str, Any]:
        while b"\n" not in self._said:
            data = await self._stdout.receive_some()
            if not data:
                raise RuntimeError(f"{self._process.args!r} has ended")
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def open_program(name: str, *arguments: str) -> AsyncIterator[Program]:
    """``python -m benchmarks.soak.NAME``; it ends when its stdin does."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", f"benchmarks.soak.{name}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for us
        env=os.environ,
    )
    program = Program(process)
    try:
        yield program
    finally:
        with trio.CancelScope(shield=True):
            await program._stdin.aclose()
            with trio.move_on_after(20):
                await process.wait()
            process.kill()
            await process.wait()
            await program._stdout.aclose()
