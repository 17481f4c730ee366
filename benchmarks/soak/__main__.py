"""``python -m benchmarks.soak NAME [--quick] [--seed N]``."""

from __future__ import annotations

import argparse
import secrets
import sys
from typing import TYPE_CHECKING

import trio
from attrs import evolve

from benchmarks.fleet import Stopped
from benchmarks.soak import cuts, files, operators, restart, stalled
from benchmarks.soak.findings import Findings

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one and print what was found; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description="Long tests of what must never happen."
    )
    parser.add_argument("name", choices=["cuts", "files", "operators", "restart", "stalled"])
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--seed", type=int, help="of all that is drawn by lot; default: a new one")
    parser.add_argument(
        "--gib",
        type=float,
        help="stalled: how much the command wants to write; files: the large one",
    )
    parser.add_argument("--away", type=float, help="restart: seconds without a controller")
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("what a process holds is read from /proc, which only Linux has")

    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"{options.name}, seed {seed}", flush=True)
    findings = Findings()
    try:
        match options.name:
            case "cuts":
                trio.run(cuts.soak, cuts.QUICK if options.quick else cuts.FULL, seed, findings)
            case "files":
                copies = files.QUICK if options.quick else files.FULL
                if options.gib is not None:
                    copies = evolve(copies, size=int(options.gib * stalled.GIB))
                trio.run(files.soak, copies, seed, findings)
            case "operators":
                task = operators.QUICK if options.quick else operators.FULL
                trio.run(operators.soak, task, seed, findings)
            case "stalled":
                plan = stalled.QUICK if options.quick else stalled.FULL
                if options.gib is not None:
                    plan = evolve(plan, size=int(options.gib * stalled.GIB))
                trio.run(stalled.soak, plan, findings)
            case "restart":
                trial = restart.QUICK if options.quick else restart.FULL
                if options.away is not None:
                    trial = evolve(trial, away=options.away)
                trio.run(restart.soak, trial, findings)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal_number
    return findings.conclude()


if __name__ == "__main__":
    sys.exit(main())
