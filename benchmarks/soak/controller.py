"""A controller that waits for its daemons: ``python -m benchmarks.soak.controller PORT COUNT RATE``.

It says its URL, starts a job on each daemon or takes over the one that is there, and when all have
answered and it is asked by a line on stdin, says what it saw. It ends when stdin does.
"""

from __future__ import annotations

import json
import resource
import sys
from collections import deque

import trio

import sandd

JOB_ID = "soak"
COMMAND = ["cat"]


class Watch:
    """Who came, and when."""

    def __init__(self) -> None:
        self.began = trio.current_time()
        self.came: list[float] = []
        self.pids: dict[str, int] = {}
        self.slowest = 0.0
        self.runs = 0
        """Commands that were asked for besides the jobs, on cores."""

    @property
    def peak(self) -> int:
        """The most that came within any one second."""
        most, within = 0, deque[float]()
        for time in self.came:
            within.append(time)
            while within[0] <= time - 1.0:
                within.popleft()
            most = max(most, len(within))
        return most


async def main() -> None:
    """Be a controller until stdin ends."""
    port, count, rate = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    async with (
        sandd.open_controller(port=port, max_handshakes_per_second=rate) as controller,
        controller.open_events() as events,
        trio.open_nursery() as nursery,
    ):
        print(json.dumps({"url": controller.url}), flush=True)
        watch, cpu = Watch(), processor_seconds()
        everybody, settled = trio.Event(), trio.Event()

        async def hold(daemon: sandd.Daemon) -> None:
            """Keep a job on the daemon, which answers."""
            async with daemon.open_process(COMMAND, job_id=JOB_ID, kill_grace=0) as process:
                await process.stdin.send_all(b"%d\n" % port)
                while not (await process.stdout.receive_some()).endswith(b"\n"):
                    pass
                watch.pids[daemon.id] = process.pid
                if len(watch.pids) == count:
                    everybody.set()
                await trio.sleep_forever()

        @nursery.start_soon
        async def take() -> None:
            async for event in events:
                if event.kind == "connected":
                    watch.came.append(trio.current_time())
                    daemon = controller.daemon(event.daemon_id)
                    nursery.start_soon(hold, daemon)
                    if not watch.runs and daemon.id.startswith("core-"):
                        watch.runs = 1
                        nursery.start_soon(run_all_the_time, daemon)

        async def run_all_the_time(daemon: sandd.Daemon) -> None:
            """Commands on the first that is there, while the others come."""
            while True:
                started = trio.current_time()
                await daemon.run("true", check=True)
                watch.slowest = max(watch.slowest, trio.current_time() - started)
                await trio.sleep(0.02)
                if everybody.is_set():
                    break
                watch.runs += 1
            settled.set()

        async for _ in trio.lowlevel.FdStream(0):
            await everybody.wait()
            await settled.wait()  # or one more command would be started that is not in the answer
            answer = {
                "pids": watch.pids,
                "last": max(watch.came) - watch.began,
                "peak": watch.peak,
                "cpu": processor_seconds() - cpu,
                "slowest": watch.slowest,
                "runs": watch.runs,
            }
            print(json.dumps(answer), flush=True)
        nursery.cancel_scope.cancel()


def processor_seconds() -> float:
    """What this program has used so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    trio.run(main)
