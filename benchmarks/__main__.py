"""``python -m benchmarks``: what `sandd` costs here, in a table.

It takes less than five minutes, or one with ``--quick``. Exit codes: 0 when everything was
measured, whether targets were met or not; 1 when something broke; 130 after Ctrl-C. Nothing is left
behind in any case: the daemons end with this process, even if it is killed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import frozen

from benchmarks import (
    audit,
    broadcast,
    bulk,
    exec_latency,
    files,
    keystrokes,
    limits,
    many,
    ports,
    routed,
    throughput,
    tls,
)
from benchmarks.cpu import OthersMeter
from benchmarks.fleet import Stopped
from benchmarks.report import METHOD, Machine, Section, print_table, write_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.report import Row


@frozen
class Benchmark:
    """One that can be asked for by name."""

    about: str
    floor: str
    measure: Callable[[bool], Awaitable[list[Row]]]
    """Takes whether to be quick."""
    is_long: bool = False
    """It is measured only where it is asked for by name."""


BENCHMARKS = {
    "exec": Benchmark(
        'run("true"), one at a time', 'subprocess.run(["sh", "-c", "true"])', exec_latency.measure
    ),
    "throughput": Benchmark(
        'run("true") on one daemon, several in flight',
        "as many subprocess.Popen in flight, from one thread",
        throughput.measure,
    ),
    "output": Benchmark(
        "100 MB of output",
        "loopback TCP from another process, or a local pipe from the same command: the slower one",
        bulk.measure_output,
    ),
    "input": Benchmark(
        "20 MB of input for wc -c", "subprocess.run(input=...) of the same", bulk.measure_input
    ),
    "file": Benchmark(
        f"one file of {files.LARGE >> 30} GiB, up and down",
        "a file from another process through loopback TCP to a file, hashed at both ends, never synced",
        files.measure_large,
    ),
    "files": Benchmark(
        f"{files.SMALL_COUNT:,} files of 1 KiB, up and down",
        "a loop here that makes each under another name, hashes it and renames it, never synced",
        files.measure_small,
    ),
    "keystrokes": Benchmark(
        "a keystroke in a session, and its echo by a program",
        "the same program in a local pseudo-terminal",
        keystrokes.measure,
    ),
    "ports": Benchmark(
        "connections through a forwarded port to a server on the daemon's side",
        "the same client and server, without anything between them",
        ports.measure,
    ),
    "routed": Benchmark(
        "a controller in another process, with a client here",
        "a controller in this process, which the daemon dials directly",
        routed.measure,
    ),
    "audit": Benchmark('run("true"), with an audit log', "the same without", audit.measure),
    "limits": Benchmark('run("true"), with limits', "the same without", limits.measure),
    "tls": Benchmark("a daemon that has dialled in over TLS", "the same without TLS", tls.measure),
    "broadcast": Benchmark(
        '"true" on many daemons at once',
        "as many subprocess.Popen in flight, from one thread",
        broadcast.measure,
    ),
    "many": Benchmark(
        "5,000 daemons that have nothing to do",
        "none; the daemons are bare sockets, but for those of the broadcasts",
        many.measure,
        is_long=True,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print it; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="What sandd costs on this machine, beside floors."
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument(
        "--only",
        action="append",
        choices=BENCHMARKS,
        metavar="NAME",
        help=f"only this one, may be given often: {', '.join(BENCHMARKS)}",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the figures there too; what it has of others stays",
    )
    options = parser.parse_args(arguments)
    if sys.platform == "win32":
        parser.error("the floors need a POSIX system")

    machine = Machine()  # now: we have put no load on it yet
    others = OthersMeter()
    sections: list[Section] = []
    short = [name for name, benchmark in BENCHMARKS.items() if not benchmark.is_long]
    selected = [name for name in BENCHMARKS if name in (options.only or short)]
    exit_code = 0
    try:
        trio.run(_measure, selected, options.quick, sections)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        exit_code = 128 + stopped.signal_number
    finally:
        if sections:  # what was measured before something broke is still good
            notes = _notes(machine, others.share(), options.quick)
            print_table(sections, notes)
            if options.json is not None:
                write_json(options.json, sections, machine, [METHOD, *notes], [*BENCHMARKS])
    return exit_code


def _notes(machine: Machine, others: float | None, quick: bool) -> list[str]:
    notes = [machine.describe()]
    if others is not None:
        notes.append(f"Other programs used {others:.0%} of this machine's CPU meanwhile.")
    if quick:
        notes.append("--quick: few and short rounds; good for a look, not for a conclusion.")
    return notes


async def _measure(selected: Sequence[str], quick: bool, sections: list[Section]) -> None:
    """Add to `sections`, one benchmark after the other."""
    for name in selected:
        print(f"{name} ... ", end="", file=sys.stderr, flush=True)
        started = time.perf_counter()
        benchmark = BENCHMARKS[name]
        rows = await benchmark.measure(quick)
        sections.append(Section(name, benchmark.about, benchmark.floor, rows))
        print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
