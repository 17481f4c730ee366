"""Operators and the controller's own agent on many daemons, while the controller is killed and started again.

The controller is a program of its own (`benchmarks.soak.host`), and so are the daemons. Each operator has, on each
daemon, long jobs that live through the controllers' deaths, short commands one after the other, and a stream there
and back.
The agent in the controller's program dies with it, and goes on with the jobs that it finds.
"""

from __future__ import annotations

import hashlib
import random
import shlex
import socket
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from attrs import field, frozen

import sandd
from benchmarks.fleet import open_keeper, until_signal
from benchmarks.soak.restart import open_program
from benchmarks.soak.work import LongJob, name_of
from sandd._core.controller_state import TOKEN_FILE

if TYPE_CHECKING:
    from benchmarks.soak.findings import Findings

UP_SECONDS = 120.0
"""For all daemons to come, on a machine that is busy."""
WORK_SECONDS = 600.0
"""For all the work to be done."""
STREAM_BYTES = 1_000_000


@frozen
class Plan:
    """How many, how much work, and when the controller dies."""

    daemons: int
    operators: int
    long_jobs: int
    """Of each operator, and of the agent, on each daemon, one after the other."""
    kills: int
    pause: tuple[float, float]
    """Seconds between two kills, at least and at most."""
    away: tuple[float, float]
    """Seconds without a controller."""


FULL = Plan(daemons=20, operators=3, long_jobs=3, kills=2, pause=(6.0, 12.0), away=(0.5, 3.0))
QUICK = Plan(daemons=2, operators=2, long_jobs=1, kills=1, pause=(1.0, 2.0), away=(0.2, 0.5))


@frozen
class Tally:
    """What the operators did, and what was wrong."""

    wrong: list[str] = field(factory=list)
    long: list[str] = field(factory=list)
    short: list[str] = field(factory=list)
    streams: list[str] = field(factory=list)


async def soak(plan: Plan, seed: int, findings: Findings) -> None:
    """See the module."""
    lot = random.Random(seed)
    tally = Tally()
    async with AsyncExitStack() as stack:
        directory = tempfile.TemporaryDirectory(prefix="sandd-soak-")
        state = Path(stack.enter_context(directory))
        (state / "started").mkdir()
        with socket.socket() as holder:
            # Nobody else gets the port while there is no controller.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
            port = holder.getsockname()[1]
            await stack.enter_async_context(until_signal())
            arguments = [str(port), str(state), str(plan.daemons), str(plan.long_jobs)]
            host = await stack.enter_async_context(open_program("host", *arguments))
            url = await host.say("url")
            keeper = await stack.enter_async_context(open_keeper(url, "--reconnect-max", "2"))
            for number in range(plan.daemons):
                await keeper.start(name_of(number))
            token = (state / "controller" / TOKEN_FILE).read_text()
            with trio.fail_after(WORK_SECONDS):
                async with trio.open_nursery() as nursery:
                    for number in range(plan.operators):
                        nursery.start_soon(operate, url, token, f"op{number}", state, plan, tally)
                    for _ in range(plan.kills):
                        await trio.sleep(lot.uniform(*plan.pause))
                        host.kill()
                        await trio.sleep(lot.uniform(*plan.away))
                        host = await stack.enter_async_context(open_program("host", *arguments))
                        await host.say("url")
                wrong = await host.say("wrong")
            left = await left_over(url, token, plan)
        starts = {
            path.name: path.read_text().count("started") for path in (state / "started").iterdir()
        }
        expected = len(tally.long) + len(tally.short) + plan.daemons * plan.long_jobs
        findings.figure("kills of the controller", str(plan.kills))
        findings.figure("long jobs of operators, through them", str(len(tally.long)))
        findings.figure("short commands of operators", str(len(tally.short)))
        findings.figure("streams there and back", f"{len(tally.streams)} of {STREAM_BYTES} bytes")
        findings.check(f"all output was exact {tally.wrong[:3]}", not tally.wrong)
        findings.check(f"that of the controller's own agent, too {wrong[:3]}", not wrong)
        findings.check(
            f"{expected} jobs were asked for, and each was started once",
            len(starts) == expected and set(starts.values()) == {1},
        )
        findings.check(f"no job is left {left[:3]}", not left)


async def operate(url: str, token: str, name: str, state: Path, plan: Plan, tally: Tally) -> None:
    """One operator's work on all daemons at once."""
    async with (
        sandd.connect_controller(url, token=token) as controller,
        trio.open_nursery() as nursery,
    ):
        for number in range(plan.daemons):
            nursery.start_soon(work_on, controller, name_of(number), name, state, plan, tally)


async def work_on(
    controller: sandd.Controller, daemon_id: str, name: str, state: Path, plan: Plan, tally: Tally
) -> None:
    """One operator's work on one daemon."""
    with trio.fail_after(UP_SECONDS):
        daemon = await controller.wait_for_daemon(daemon_id)
    done = trio.Event()

    async def run_long() -> None:
        for number in range(plan.long_jobs):
            job = LongJob(f"{name}-{daemon_id}-{number}", state, lines=60)
            async with daemon.open_process(job.command, stdin=False) as process:
                complaint = await job.read(process)
            tally.long.append(job.id)
            if complaint is not None:
                tally.wrong.append(complaint)
        done.set()

    async def run_short() -> None:
        number = 0
        while not done.is_set():
            job = f"{name}-{daemon_id}-short-{number}"
            mark = shlex.quote(str(state / "started" / job))
            result = await daemon.run(f"echo started >> {mark}; echo {job}; exit 7")
            tally.short.append(job)
            if (result.stdout, result.exit_code) != (f"{job}\n", 7):
                tally.wrong.append(f"{job}: {result!r}")
            number += 1
            await trio.sleep(0.2)

    async def stream() -> None:
        number = 0
        while not done.is_set():
            data = random.Random(f"{name}{daemon_id}{number}").randbytes(STREAM_BYTES)
            result = await daemon.run(["cat"], input=data)
            tally.streams.append(daemon_id)
            if digest(result.stdout_bytes) != digest(data):
                tally.wrong.append(f"{name}-{daemon_id}: stream {number} is not what was sent")
            number += 1
            await trio.sleep(1.0)

    async with trio.open_nursery() as nursery:
        for work in (run_long, run_short, stream):
            nursery.start_soon(work)


async def left_over(url: str, token: str, plan: Plan) -> list[Any]:
    """The jobs that are still known anywhere."""
    left: list[Any] = []
    async with sandd.connect_controller(url, token=token) as controller:
        for number in range(plan.daemons):
            daemon = await controller.wait_for_daemon(name_of(number))
            left += await daemon.jobs()
    return left


def digest(data: bytes) -> str:
    """To compare by."""
    return hashlib.sha256(data).hexdigest()
