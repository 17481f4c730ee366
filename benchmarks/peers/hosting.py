"""How many daemons are in how many programs, and what they take of the controller: the same for whoever is measured."""

from __future__ import annotations

from pathlib import Path

HOSTS = 2
"""Programs that the daemons are in where there are many: this machine couldn't hold a process for each."""

LOOK_SECONDS = 0.02
"""Between two looks at how many daemons are there."""


def share_out(count: int, hosts: int) -> list[tuple[int, int]]:
    """The number of each program that is needed, and how many daemons are in it."""
    hosts = min(hosts, count)
    return [(number, len(range(number, count, hosts))) for number in range(hosts)]


def resident_kib() -> int:
    """What this process has in memory now, in KiB; Linux alone tells."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/status doesn't tell")
