"""Our daemons in numbers: ``python -m benchmarks.peers.cores URL COUNT --prefix PREFIX``.

Each has a connection, a job table and a job runner of its own, as in `sandd._core.daemon_program`; what they
run is real, and started by the one spawner of this program. It says "ready", dials when a line comes on
stdin, and ends when that does.
"""

from __future__ import annotations

import argparse
import gc
import secrets

import trio

from sandd import __version__
from sandd._core.daemon_end import DaemonEnd
from sandd._core.dialer import Dialer
from sandd._core.identity.keyring import Keyring
from sandd._core.jobs import JobTable
from sandd._core.link import Backoff, Identity
from sandd._core.processes import ProcessHost, open_process_host, raise_open_files_limit
from sandd._core.runner import JobRunner
from sandd._core.statistics_requests import StatisticsRequests
from sandd.daemon import COLLECTED_OBJECTS

MAX_RUNNING = 16
"""Jobs at once in each."""


def start(url: str, name: str, host: ProcessHost, nursery: trio.Nursery) -> None:
    """One daemon, which lives as long as the nursery does."""
    table = JobTable(secrets.token_hex(8))
    runner = JobRunner(table, host, nursery, max_running=MAX_RUNNING)
    identity = Identity(
        name, table.instance, {"env": "bench"}, "core", "linux", "core", __version__
    )
    end = DaemonEnd(identity, Keyring(None, name, None), runner)
    runner.requests.offer(StatisticsRequests(table, measure=host.measure, meter=end.meter).doers)
    nursery.start_soon(runner.count_leases)
    nursery.start_soon(Dialer(url, end, Backoff()).run)


async def main() -> None:
    """Be all of them until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("count", type=int)
    parser.add_argument("--prefix", default="daemon-")
    options = parser.parse_args()
    gc.freeze()  # as the daemon does
    gc.set_threshold(*COLLECTED_OBJECTS)
    raise_open_files_limit()
    stdin = trio.lowlevel.FdStream(0)
    async with open_process_host() as host, trio.open_nursery() as nursery:
        print("ready", flush=True)
        if not await stdin.receive_some():
            return
        for number in range(options.count):
            start(options.url, f"{options.prefix}{number}", host, nursery)
        while await stdin.receive_some():
            pass
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
