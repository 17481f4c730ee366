"""``python -m benchmarks.profile``: where the time of one ``run("true")`` goes, in each process that has a part in it.

First it measures without looking inside: how long a command takes, and the processor time of the controller, the
daemon and its spawner. Then it runs as many under a profiler, which counts turns of trio's loop, steps of its tasks
and calls, and tells how the time is shared out; the profiler's own cost is not in the milliseconds shown.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio
from attrs import frozen

import sandd
from benchmarks.callgraph import SYSTEM_CALLS, Account, Probe, from_json
from benchmarks.cpu import with_descendants
from benchmarks.fleet import open_keeper, wait_online, warm_up
from benchmarks.report import Machine, percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS, COMMANDS_QUICK = 500, 40
WAIT_SECONDS = 10.0
"""For a daemon to add up."""
SHOWN_SHARE = 0.03
"""What takes less of a process is added up as others."""
OTHERS = "others"


@frozen
class Process:
    """One of the processes, for one command."""

    cpu_ms: float
    turns: int | None = None
    """Of trio's loop; None for the spawner, which has none."""
    steps: int | None = None
    calls: int | None = None
    parts: dict[str, tuple[float, float]] = attrs.Factory(dict)
    """Of the calls, and of the milliseconds; by name, the longest first."""


@frozen
class Profile:
    """Where one command's time goes."""

    machine: Machine | dict[str, Any]
    p50_ms: float
    processes: dict[str, Process]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few commands")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("it needs Linux")
    profile = trio.run(_measure, Machine(), COMMANDS_QUICK if options.quick else COMMANDS)
    for line in told(profile):
        print(line)
    if options.json is not None:
        options.json.write_text(json.dumps(attrs.asdict(profile), indent=1) + "\n", "utf-8")
    return 0


async def _measure(machine: Machine, count: int) -> Profile:
    async with (
        sandd.open_controller(port=0) as controller,
        open_keeper(controller.url, program="benchmarks.profiled_daemon") as keeper,
    ):
        pid, log = await keeper.start("profiled")
        daemon = await wait_online(controller, "profiled", log)
        await warm_up(daemon)
        _, *spawners = with_descendants([pid])
        before = {"controller": cpu([os.getpid()]), "daemon": cpu([pid]), "spawner": cpu(spawners)}
        samples = [await _run(daemon) for _ in range(count)]
        after = {"controller": cpu([os.getpid()]), "daemon": cpu([pid]), "spawner": cpu(spawners)}
        spent = {name: (after[name] - before[name]) / count * 1e3 for name in before}

        os.kill(pid, signal.SIGUSR1)
        await _wait_account(log, 1)
        probe = Probe()
        probe.start()
        for _ in range(count):
            await _run(daemon)
        ours = probe.stop()
        os.kill(pid, signal.SIGUSR1)
        its = from_json(await _wait_account(log, 2))
        return Profile(
            machine,
            percentile(samples, 50) * 1e3,
            {
                "controller": process_of(ours.per(count), spent["controller"]),
                "daemon": process_of(its.per(count), spent["daemon"]),
                "spawner": Process(spent["spawner"]),
            },
        )


async def _run(daemon: sandd.Daemon) -> float:
    started = time.perf_counter()
    await daemon.run("true", check=True)
    return time.perf_counter() - started


async def _wait_account(log: Path, number: int) -> dict[str, Any]:
    """What the daemon said, the so many-th time; its log has other lines, too."""
    with trio.fail_after(WAIT_SECONDS):
        while True:
            *whole, _ = (await trio.Path(log).read_text()).split("\n")
            said = [line for line in whole if line.startswith("{")]
            if len(said) >= number:
                fields: dict[str, Any] = json.loads(said[number - 1])
                return fields
            await trio.sleep(0.05)  # a file has no event


def cpu(pids: Sequence[int]) -> float:
    """Seconds that all threads of these processes have run, to the nanosecond."""
    return sum(
        int((task / "schedstat").read_text().split()[0]) / 1e9
        for pid in pids
        for task in Path(f"/proc/{pid}/task").iterdir()
    )


def process_of(account: Account, cpu_ms: float) -> Process:
    """The process that has this account for each command, and took so long for it."""
    total = sum(part.cpu for part in account.parts.values())
    parts: dict[str, tuple[float, float]] = {}
    for name, part in account.parts.items():
        is_shown = name == SYSTEM_CALLS or part.cpu >= SHOWN_SHARE * total
        shown = name if is_shown else OTHERS
        calls, milliseconds = parts.get(shown, (0.0, 0.0))
        parts[shown] = (calls + part.calls, milliseconds + part.cpu / total * cpu_ms)
    calls = sum(part.calls for part in account.parts.values())
    return Process(cpu_ms, account.turns, account.steps, round(calls), parts)


def told(profile: Profile) -> list[str]:
    """For people."""
    lines = [f"one command takes {profile.p50_ms:.2f} ms (p50)"]
    for name, process in profile.processes.items():
        lines.append(f"{name}: {process.cpu_ms:.3f} ms of CPU")
        if process.turns is not None:
            lines[-1] += f", {process.turns} turns, {process.steps} steps, {process.calls} calls"
        for part, (calls, milliseconds) in process.parts.items():
            lines.append(f"  {part:32} {calls:6.0f} calls {milliseconds:8.3f} ms")
    return lines


if __name__ == "__main__":
    sys.exit(main())
