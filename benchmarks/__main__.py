"""``python -m benchmarks``: what `sandd` costs here, in a table.

It takes about two minutes, or twenty seconds with ``--quick``. Exit codes: 0 when everything was
measured, whether targets were met or not; 1 when something broke; 130 after Ctrl-C. Nothing is left
behind in any case: the daemons end with this process, even if it is killed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from benchmarks import broadcast, bulk, exec_latency, throughput
from benchmarks.report import Machine, Row, print_table, write_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

BENCHMARKS: dict[str, Callable[..., Awaitable[list[Row]]]] = {
    "exec": exec_latency.measure,
    "throughput": throughput.measure,
    "output": bulk.measure_output,
    "input": bulk.measure_input,
    "broadcast": broadcast.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print it; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="What sandd costs on this machine, beside floors."
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: 20 seconds")
    parser.add_argument(
        "--only",
        action="append",
        choices=BENCHMARKS,
        metavar="NAME",
        help=f"only this one, may be given often: {', '.join(BENCHMARKS)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(arguments)
    if sys.platform == "win32":
        parser.error("the floors need a POSIX system")

    machine = Machine()  # now: we have put no load on it yet
    results: dict[str, list[Row]] = {}
    selected = [name for name in BENCHMARKS if name in (options.only or BENCHMARKS)]
    stopped_by: list[int] = []
    try:
        trio.run(_measure, selected, options.quick, results, stopped_by)
    except BaseException:
        # Ctrl-C reaches the commands of the floors too; what they say of it is of no interest.
        if not stopped_by:
            raise
    finally:
        if results:  # what was measured before something broke is still good
            print_table(results, machine, quick=options.quick)
            if options.json is not None:
                write_json(options.json, results, machine, quick=options.quick)
    if stopped_by:
        print("stopped", file=sys.stderr)
        return 128 + stopped_by[0]
    return 0


async def _measure(
    selected: Sequence[str], quick: bool, results: dict[str, list[Row]], stopped_by: list[int]
) -> None:
    """Fill in `results`, one benchmark after the other; a signal ends that in good order."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                async for number in signals:
                    stopped_by.append(number)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(stop)
            for name in selected:
                print(f"{name} ... ", end="", file=sys.stderr, flush=True)
                started = time.perf_counter()
                results[name] = await BENCHMARKS[name](quick=quick)
                print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    sys.exit(main())
