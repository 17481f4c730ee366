"""The driver of a server that is trio-websocket as it comes, with `stand_in`'s daemons connected to it.

A program of its own, ``python -m benchmarks.peers.stock DAEMONS HEARTBEAT``: what a connection costs where nobody
has thought about it. It answers a registration and each heartbeat, and can't do anything else.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import trio
from trio_websocket import ConnectionClosed, serve_websocket

from benchmarks.peers.answering import answer_each, open_program
from benchmarks.peers.hosting import HOSTS, LOOK_SECONDS, resident_kib, share_out

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Awaitable, Callable

    from trio_websocket import WebSocketRequest

CONNECT_SECONDS = 120.0


class Stock:
    """The server, and its daemons."""

    def __init__(self, daemons: int) -> None:
        self.port = 0
        self.hosts: list[subprocess.Popen[str]] = []
        self._daemons = daemons
        self._online = 0

    @property
    def works(self) -> dict[str, Callable[..., Awaitable[object]]]:
        """All that it can be asked for."""
        return {"connect": self.connect, "idle": trio.sleep, "memory": self.memory}

    async def serve(self, task_status: trio.TaskStatus[int]) -> None:
        """Listen; it starts with the port."""
        async with trio.open_nursery() as nursery:
            listening = await nursery.start(serve_websocket, self._attend, "127.0.0.1", 0, None)
            task_status.started(listening.port)

    async def _attend(self, request: WebSocketRequest) -> None:
        connection = await request.accept(subprotocol="sandd.v1")
        try:
            while True:
                message = json.loads(await connection.get_message())
                kind = message["type"]
                if kind == "register":
                    self._online += 1
                answer = {"type": f"{kind}_ack", "success": True, "message": ""}
                await connection.send_message(json.dumps(answer))
        except ConnectionClosed:
            self._online -= 1

    async def connect(self) -> float:
        """Seconds until all of the daemons are there, from when they were told to dial."""
        started = time.perf_counter()
        for host in self.hosts:
            print(file=host.stdin, flush=True)
        with trio.fail_after(CONNECT_SECONDS):
            while self._online < self._daemons:  # noqa: ASYNC110 - as all look
                await trio.sleep(LOOK_SECONDS)
        return time.perf_counter() - started

    async def memory(self) -> int:
        """What this process has in memory now, in KiB."""
        return resident_kib()


async def main() -> None:
    """Answer until stdin ends."""
    daemons, heartbeat = int(sys.argv[1]), sys.argv[2]
    stock = Stock(daemons)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(stock.serve)
        with ExitStack() as stack:
            for first, count in share_out(daemons, HOSTS):
                options = ["--prefix", f"daemon-{first}-", "--heartbeat", heartbeat]
                program = open_program("peers.stand_in", str(port), str(count), *options)
                stock.hosts.append(stack.enter_context(program)[0])
            await answer_each(stock.works, trio.to_thread.run_sync)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
