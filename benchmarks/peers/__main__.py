"""``python -m benchmarks.peers``: ours beside others that do the same, in turns within one run.

It takes about ten minutes, or one with ``--quick``. The peers come from PyPI, into ``.peers/`` in the
checkout, when they are not there yet. Exit codes: 0 when everything was measured, whether targets were met
or not; 1 when something broke; 130 after Ctrl-C, 143 after SIGTERM. What was measured before is shown in any
case. All processes end with this one, even if it is killed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from benchmarks.cpu import OthersMeter
from benchmarks.peers import contestants, packages
from benchmarks.peers.figures import Section, show
from benchmarks.peers.works import (
    broadcasting,
    copying,
    executing,
    idle,
    keystrokes,
    output,
    small_files,
)
from benchmarks.report import Machine, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.peers.figures import Figure


@frozen
class Work:
    """One that can be asked for by name."""

    about: str
    measure: Callable[[bool], list[Figure]]
    """Takes whether to be quick."""


WORKS = {
    "exec": Work(executing.ABOUT, executing.measure),
    "broadcast": Work(broadcasting.ABOUT, broadcasting.measure),
    "output": Work(output.ABOUT, output.measure),
    "copy": Work(copying.ABOUT, copying.measure),
    "keystrokes": Work(keystrokes.ABOUT, keystrokes.measure),
    "files": Work(small_files.ABOUT, small_files.measure),
    "idle": Work(idle.ABOUT, idle.measure),
}

METHOD = """\
Everybody is a program of its own, and they take turns within each round. A value is the median of the rounds, a
target's ratio the median of the ratios within each round. The original is the server of the sandd 0.2.1 wheel from
PyPI; its daemon, a Rust program that PyPI doesn't have, is represented by a stand-in of ours, which speaks its
protocol, sandd.v1, and does one thing after the other as that documents; "at once" is one that doesn't wait."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument(
        "--only",
        action="append",
        choices=WORKS,
        metavar="NAME",
        help=f"only this one, may be given often: {', '.join(WORKS)}",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the figures there too; what it has of others stays",
    )
    parser.add_argument(
        "--no-install", action="store_true", help="do without the peers that aren't installed"
    )
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("it needs Linux")

    notes = []
    if not options.no_install:
        for name in packages.REQUIREMENTS:
            if complaint := packages.install(name):
                notes.append(f"{name} could not be installed: {complaint}")
    notes += [f"{name} was skipped: {reason}." for name, reason in contestants.missing().items()]
    machine = Machine(versions=packages.versions())
    others = OthersMeter()
    sections: list[Section] = []
    try:
        for name in options.only or WORKS:
            print(f"{name} ... ", end="", file=sys.stderr, flush=True)
            started = time.perf_counter()
            sections.append(Section(name, WORKS[name].about, WORKS[name].measure(options.quick)))
            print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    finally:
        if sections:  # what was measured before something broke is still good
            notes = [METHOD, machine.describe(), *notes]
            if (share := others.share()) is not None:
                notes.append(f"Other programs used {share:.0%} of this machine's CPU meanwhile.")
            if options.quick:
                notes.append(
                    "--quick: few and short rounds; good for a look, not for a conclusion."
                )
            show(sections, notes)
            if options.json is not None:
                write_json(options.json, sections, machine, notes, [*WORKS])
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main())
