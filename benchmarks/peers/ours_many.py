"""Our driver for many daemons: a controller in this process, `cores` in others, or bare daemons (`bare_daemons`).

A program of its own, ``python -m benchmarks.peers.ours_many DAEMONS [--bare]``.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import trio

import sandd
from benchmarks.peers.answering import answer_each, open_program
from benchmarks.peers.hosting import HOSTS, resident_kib, share_out
from sandd._core.job_link import LATE_SECONDS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Awaitable, Callable, Sequence

HANDSHAKES_PER_SECOND = 100_000
"""No limit: the peers have none."""
TOKEN = "token of many"
CONNECT_SECONDS = 120.0
FAREWELL_SECONDS = 2 * LATE_SECONDS
"""Nobody waits for the farewells to a broadcast's jobs; they count as its processor time, and are in nobody's way."""


class Many:
    """Many daemons, and what they are asked to do."""

    def __init__(
        self, controller: sandd.Controller, daemons: int, hosts: Sequence[subprocess.Popen[str]]
    ) -> None:
        self._controller, self._daemons, self._hosts = controller, daemons, hosts

    @property
    def works(self) -> dict[str, Callable[..., Awaitable[object]]]:
        """All that they can be asked for."""
        return {
            "connect": self.connect,
            "broadcast": self.broadcast,
            "idle": trio.sleep,
            "memory": self.memory,
        }

    async def connect(self) -> float:
        """Seconds until all of the daemons are there, from when they were told to dial."""
        started = time.perf_counter()
        with trio.fail_after(CONNECT_SECONDS):
            # To look at all of them now and then would take long, and be counted, too.
            async with self._controller.open_events() as events:
                for host in self._hosts:
                    print(file=host.stdin, flush=True)
                left = self._daemons
                async for event in events:
                    left -= event.count if event.kind == "missed" else event.kind == "connected"
                    if left <= 0:
                        return time.perf_counter() - started
        raise RuntimeError("there are no more events")

    async def broadcast(self) -> float:
        """Seconds for one command on all of them."""
        started = time.perf_counter()
        results = await self._controller.broadcast("true", labels={"env": "bench"})
        seconds = time.perf_counter() - started
        assert len(results) == self._daemons, f"{len(results)} answered"
        for result in results.values():
            if isinstance(result, Exception):
                raise result
            assert result.success, result
        await trio.sleep(FAREWELL_SECONDS)
        return seconds

    async def memory(self) -> int:
        """What this process has in memory now, in KiB."""
        return resident_kib()


async def main() -> None:
    """Answer until stdin ends."""
    daemons, bare = int(sys.argv[1]), "--bare" in sys.argv
    async with sandd.open_controller(
        port=0, token=TOKEN if bare else None, max_handshakes_per_second=HANDSHAKES_PER_SECOND
    ) as controller:
        stack = ExitStack()
        try:
            hosts = [
                stack.enter_context(
                    open_program("bare_daemons", controller.url, TOKEN, str(count), prefix)
                    if bare
                    else open_program("peers.cores", controller.url, str(count), "--prefix", prefix)
                )[0]
                for prefix, count in (
                    (f"daemon-{first}-", count) for first, count in share_out(daemons, HOSTS)
                )
            ]
            await answer_each(Many(controller, daemons, hosts).works, trio.to_thread.run_sync)
        finally:
            with trio.CancelScope(shield=True):  # they wait for the controller to say goodbye
                await trio.to_thread.run_sync(stack.close)


if __name__ == "__main__":
    trio.run(main)
