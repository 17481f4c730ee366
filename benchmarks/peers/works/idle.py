"""Many connections on which nothing happens but heartbeats."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from benchmarks.peers import contestants as who
from benchmarks.peers.figures import at_most, figure

if TYPE_CHECKING:
    from benchmarks.peers.figures import Figure

ABOUT = "daemons that have nothing to do, at everybody's own heartbeat"
DAEMONS, DAEMONS_QUICK = 5_000, 300
SECONDS, SECONDS_QUICK = 20.0, 2.0
SETTLE_SECONDS = 2.0
OTHER_FILES = 200
"""What a controller has open beside its connections, and more."""


def measure(quick: bool) -> list[Figure]:
    """What they cost the controller, and how long they take to come."""
    daemons, seconds = (DAEMONS_QUICK, SECONDS_QUICK) if quick else (DAEMONS, SECONDS)
    daemons = min(daemons, _raise_open_files() - OTHER_FILES)
    arrival: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    for name in (who.OURS, who.ORIGINAL, who.STOCK):
        # One after the other: all of them beside each other wouldn't be idle.
        with who.open_crowds(daemons, name, bare=True) as present:
            for each in present:
                before = each.ask("memory").value
                arrival[name] = [each.ask("connect").value]
                each.ask("idle", seconds=SETTLE_SECONDS)
                memory[name] = [(each.ask("memory").value - before) / daemons]
                cpu[name] = [each.ask("idle", seconds=seconds).cpu / seconds * 100]
    return [
        figure(f"until all {daemons:,} are there", "s", arrival, at_most(1.2, who.ORIGINAL)),
        figure("controller's memory for each", "KiB", memory, at_most(20)),
        figure("controller's CPU, of one core", "%", cpu, at_most(4)),
    ]


def _raise_open_files() -> int:
    """How many files each program that is started from now on may have open: all that this one may ask for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
