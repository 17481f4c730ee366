"""Thousands of daemons that have nothing to do, on one controller: what each costs it.

It runs in a program of its own, as memory is counted: ``python -m benchmarks.many [--quick] [--profile]``.
``--profile`` tells instead which files' objects an idle connection consists of, and what is called while all are idle.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import pstats
import resource
import subprocess
import sys
import time
import tracemalloc
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

import sandd
from benchmarks.report import Row, Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

COUNT, COUNT_QUICK = 5_000, 1_000
IDLE_SECONDS, IDLE_SECONDS_QUICK = 60.0, 10.0
"""The heartbeat is the default one, of 20 s, and all that happens then."""
SETTLE_SECONDS = 3.0
"""After the last one has come: what a handshake leaves is gone by then."""
PROGRAMS = 2
"""That the daemons are in."""
ROUNDS = 5
"""Broadcasts, of which the median counts."""
BROADCAST = 200
ADMITTED = 100_000.0
"""Connections let in per second. By default it is 200: 5,000 would take 25 s, whatever they cost."""
TOKEN = "of-all-the-daemons"
SPARE_FILES = 200


async def measure(quick: bool) -> list[Row]:
    """Run it in a program of its own; its rows."""
    command = [sys.executable, "-m", "benchmarks.many", "--json", *(["--quick"] if quick else [])]
    ended = await trio.run_process(command, capture_stdout=True)
    return [
        Row(**{**row, "target": None if row["target"] is None else Target(**row["target"])})
        for row in json.loads(ended.stdout)
    ]


def main() -> None:
    """Measure, and print the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{COUNT_QUICK} daemons, 10 s idle")
    parser.add_argument("--profile", action="store_true", help="tell where it goes")
    parser.add_argument("--json", action="store_true", help="rows for a program")
    options = parser.parse_args()
    count = COUNT_QUICK if options.quick else COUNT
    allow_files(count + SPARE_FILES)
    seconds = IDLE_SECONDS_QUICK if options.quick else IDLE_SECONDS
    if options.profile:
        trio.run(_profile, count, seconds)
        return
    rows = [*trio.run(_stay_idle, count, seconds), *trio.run(_broadcast, count)]
    if options.json:
        fields = ("what", "unit", "ours", "target")
        shown = [{name: getattr(row, name) for name in fields} for row in rows]
        print(json.dumps(shown, default=lambda target: {"limit": target.limit, "of": target.of}))
    else:
        for row in rows:
            target = "" if row.target is None else f"  (at most {row.target.limit:g})"
            print(f"{row.what:60} {row.ours:10,.2f} {row.unit}{target}")


def allow_files(count: int) -> None:
    """Let this program, and those that it starts, have as many files open; a connection is one, at either end."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (resource.RLIM_INFINITY, -1) and hard < count:
        sys.exit(
            f"{count} open files are needed, and {hard} allowed: raise the hard limit (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


@asynccontextmanager
async def open_programs(
    module: str, url: str, *arguments: str
) -> AsyncIterator[list[trio.Process]]:
    """The programs that the daemons are in: each is ready when it has said a line. They end with the block."""
    programs: list[trio.Process] = []
    try:
        for number in range(PROGRAMS):
            command = [sys.executable, "-m", module, url, *arguments, f"many-{number}-"]
            programs.append(
                await trio.lowlevel.open_process(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
        yield programs
    finally:
        with trio.CancelScope(shield=True):
            for program in programs:
                assert program.stdin is not None
                await program.stdin.aclose()
            for program in programs:
                await program.wait()


async def heard(programs: Sequence[trio.Process]) -> None:
    """Each has said a line."""
    for program in programs:
        assert program.stdout is not None
        if not await program.stdout.receive_some():
            raise RuntimeError("a program with daemons has ended")


async def tell(programs: Sequence[trio.Process]) -> None:
    """Say a line to each."""
    for program in programs:
        assert program.stdin is not None
        await program.stdin.send_all(b"\n")


async def until_told(events: AsyncIterator[sandd.DaemonEvent], kind: str, count: int) -> None:
    """So many daemons have done that. To look at all of them now and then would be counted, too."""
    async for event in events:
        count -= event.count if event.kind == "missed" else event.kind == kind
        if count <= 0:
            return


def resident() -> tuple[int, int]:
    """Bytes of memory that this program has, and those that are its alone."""
    told = Path("/proc/self/smaps_rollup").read_text().splitlines()
    sizes = {
        name: int(rest.split()[0]) * 1024
        for name, _, rest in (line.partition(":") for line in told[1:])
    }
    return sizes["Rss"], sizes["Private_Clean"] + sizes["Private_Dirty"]


async def _stay_idle(count: int, idle_seconds: float) -> list[Row]:
    async with (
        sandd.open_controller(
            port=0, token=TOKEN, max_handshakes_per_second=ADMITTED
        ) as controller,
        open_bare(controller, count) as programs,
    ):
        gc.collect()
        before = resident()
        started, cpu = time.perf_counter(), time.process_time()
        async with controller.open_events() as events:
            await tell(programs)
            await until_told(events, "connected", count)
        connecting, handshakes = time.perf_counter() - started, time.process_time() - cpu
        await heard(programs)
        await trio.sleep(SETTLE_SECONDS)
        gc.collect()
        rss, own = (after - was for after, was in zip(resident(), before, strict=True))
        started, cpu = time.perf_counter(), time.process_time()
        await trio.sleep(idle_seconds)
        idle = (time.process_time() - cpu) / (time.perf_counter() - started)
        started = time.perf_counter()
        async with controller.open_events() as events:
            for program in programs:
                program.kill()
            await until_told(events, "away", count)
        lost = time.perf_counter() - started
    them = f"{count:,} daemons"
    return [
        Row(what=f"{them} dial at once: until the last is in", unit="s", ours=connecting),
        Row(what="controller CPU per handshake", unit="ms", ours=handshakes / count * 1e3),
        Row(
            what="memory of each while idle (RSS)",
            unit="KiB",
            ours=rss / count / 1024,
            target=Target(20.0, "ours"),
        ),
        Row(what="memory of each while idle (USS)", unit="KiB", ours=own / count / 1024),
        Row(
            what=f"controller CPU while {them} are idle",
            unit="%",
            ours=idle * 100,
            target=Target(4.0, "ours"),
        ),
        Row(what=f"{them} die at once: until the last is known to be away", unit="s", ours=lost),
    ]


@asynccontextmanager
async def open_bare(controller: sandd.Controller, count: int) -> AsyncIterator[list[trio.Process]]:
    """Bare daemons that dial when they are told."""
    each = str(count // PROGRAMS)
    async with open_programs("benchmarks.bare_daemons", controller.url, TOKEN, each) as programs:
        await heard(programs)
        yield programs


async def _broadcast(count: int) -> list[Row]:
    rows: list[Row] = []
    for targets in (BROADCAST, count):
        options: dict[str, Any] = {"port": 0, "max_handshakes_per_second": ADMITTED}
        async with (
            sandd.open_controller(**options) as controller,
            controller.open_events() as events,
            open_programs("benchmarks.soak.cores", controller.url, str(targets // PROGRAMS)),
        ):
            await until_told(events, "connected", targets)
            await trio.sleep(SETTLE_SECONDS)
            seconds, cpu = [], time.process_time()
            for _ in range(ROUNDS):
                started = time.perf_counter()
                answers = await controller.broadcast("true", check=True)
                seconds.append(time.perf_counter() - started)
                failed = [each for each in answers.values() if isinstance(each, Exception)]
                assert len(answers) == targets, f"{len(answers)} of {targets} have answered"
                assert not failed, failed[0]
            each = (time.process_time() - cpu) / ROUNDS / targets
        what = f"broadcast to {targets:,} daemons that play it"
        rows.append(Row(what=what, unit="ms", ours=sorted(seconds)[ROUNDS // 2] * 1e3))
        rows.append(Row(what="  controller CPU per command", unit="ms", ours=each * 1e3))
    return rows


async def _profile(count: int, idle_seconds: float) -> None:
    options: dict[str, Any] = {"token": TOKEN, "max_handshakes_per_second": ADMITTED}
    async with (
        sandd.open_controller(port=0, **options) as controller,
        open_bare(controller, count) as programs,
    ):
        tracemalloc.start()
        before = tracemalloc.take_snapshot()
        await tell(programs)
        await heard(programs)
        await trio.sleep(SETTLE_SECONDS)
        gc.collect()
        after = tracemalloc.take_snapshot()
        tracemalloc.stop()
        print(
            f"bytes and objects of each of {count:,} idle connections, by the file that made them"
        )
        for each in after.compare_to(before, "filename")[:30]:
            name = os.sep.join(each.traceback[0].filename.split(os.sep)[-3:])
            print(f"{each.size_diff / count:8.0f} {each.count_diff / count:6.1f}  {name}")
        profile = cProfile.Profile()
        profile.enable()
        await trio.sleep(idle_seconds)
        profile.disable()
        print(f"\ncalls while {count:,} are idle for {idle_seconds:g} s")
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
