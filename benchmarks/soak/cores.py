"""A program with many daemon cores: ``python -m benchmarks.soak.cores URL COUNT PREFIX``.

To a line on stdin it answers how many jobs were started in all of them. It ends when stdin does.
"""

from __future__ import annotations

import json
import sys

import trio

from sandd.testing import open_daemon_cores

RECONNECT_MAX = 5.0
"""Seconds; with the usual thirty the herd would be thinner, and the soak longer."""


async def main() -> None:
    """Be all of them until stdin ends."""
    url, count, prefix = sys.argv[1:]
    options = {"prefix": prefix, "reconnect_max": RECONNECT_MAX}
    async with open_daemon_cores(url, int(count), **options) as cores:  # type: ignore[arg-type]
        async for _ in trio.lowlevel.FdStream(0):
            print(json.dumps({"started": sum(core.host.started for core in cores)}), flush=True)


if __name__ == "__main__":
    trio.run(main)
