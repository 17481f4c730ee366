"""A controller by itself, for others to connect to: ``python -m benchmarks.standalone TOKEN``.

It says its URL, and ends when its stdin does.
"""

from __future__ import annotations

import sys

import trio

import sandd


async def main() -> None:
    """Be a controller until stdin ends."""
    async with sandd.open_controller(port=0, operator_token=sys.argv[1]) as controller:
        print(controller.url, flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    trio.run(main)
