"""Our driver: a controller in this process, and daemons in others.

A program of its own, ``python -m benchmarks.peers.ours [--tls | --bare]``: one daemon, with all that it can do; or
a bare one (`bare_daemons`), which runs commands.
"""

from __future__ import annotations

import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import trio

import sandd
from benchmarks.fleet import open_keeper, wait_online, warm_up
from benchmarks.peers.answering import answer_each, open_program
from benchmarks.peers.echo import ECHO, READY, TYPING_SECONDS
from benchmarks.throughput import run_many

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TOKEN = "token of a bare one"
CONNECT_SECONDS = 30.0
MAX_OUTPUT = 64 * 1024
"""What is kept of what runs beside the keystrokes."""


class Ours:
    """One daemon, and what it is asked to do."""

    def __init__(self, daemon: sandd.Daemon, nursery: trio.Nursery, stack: AsyncExitStack) -> None:
        self._daemon, self._nursery, self._stack = daemon, nursery, stack
        self._session: sandd.Session | None = None
        self._load = trio.CancelScope()
        self._unloaded = trio.Event()

    @property
    def works(self) -> dict[str, Callable[..., Awaitable[object]]]:
        """All that it can be asked for."""
        return {
            "exec": self.exec,
            "many": self.many,
            "output": self.output,
            "stream": self.stream,
            "type": self.type,
            "load": self.load,
            "upload": self.upload,
            "download": self.download,
            "upload_tree": self.upload,
        }

    async def exec(self, count: int) -> list[float]:
        """Seconds for each of so many commands, one after the other."""
        samples = []
        for _ in range(count):
            started = time.perf_counter()
            await self._daemon.run("true", check=True)
            samples.append(time.perf_counter() - started)
        return samples

    async def many(self, count: int, in_flight: int) -> float:
        """Seconds for so many commands, so many of them at any time."""
        return await run_many([self._daemon], count, in_flight)

    async def output(self, command: str, size: int) -> float:
        """Seconds until what the command writes is here as text."""
        started = time.perf_counter()
        result = await self._daemon.run(command, max_output=size, check=True)
        text = result.stdout
        seconds = time.perf_counter() - started
        assert len(text) == size, f"{len(text)} characters came, not {size}"
        return seconds

    async def stream(self, command: str, size: int) -> float:
        """Seconds until what the command writes has been read, piece by piece."""
        received, started = 0, time.perf_counter()
        async with self._daemon.open_process(command, stdin=False) as process:
            async for data in process.stdout:
                received += len(data)
        assert received == size, f"{received} bytes came, not {size}"
        return time.perf_counter() - started

    async def type(self, count: int) -> list[float]:
        """Seconds for each of so many keystrokes to a program in a session, and back."""
        if self._session is None:
            opening = self._daemon.open_session(["sh", "-c", ECHO])
            self._session = await self._stack.enter_async_context(opening)
            shown = b""
            while READY not in shown:
                shown += await self._session.receive_some()
        samples = []
        for _ in range(count):
            started = time.perf_counter()
            await self._session.send_all(b"x")
            received = await self._session.receive_some()
            samples.append(time.perf_counter() - started)
            assert received == b"x", received
            await trio.sleep(TYPING_SECONDS)
        return samples

    async def load(self, command: str | None) -> None:
        """Have the command run there, again and again; None ends it."""
        if command is None:
            self._load.cancel()
            await self._unloaded.wait()
            return

        async def keep_running() -> None:
            with self._load:
                while True:
                    await self._daemon.run(command, max_output=MAX_OUTPUT, check=True)
            self._unloaded.set()

        self._load, self._unloaded = trio.CancelScope(), trio.Event()
        self._nursery.start_soon(keep_running)

    async def upload(self, source: str, target: str) -> float:
        """Seconds for a file, or a tree, to the daemon."""
        started = time.perf_counter()
        await self._daemon.upload(Path(source), target)
        return time.perf_counter() - started

    async def download(self, source: str, target: str) -> float:
        """Seconds for a file from the daemon."""
        started = time.perf_counter()
        await self._daemon.download(source, Path(target))
        return time.perf_counter() - started


async def _start(controller: sandd.Controller, stack: AsyncExitStack) -> sandd.Daemon:
    pin = ["--ca-pin", controller.ca_pin] if controller.ca_pin is not None else []
    keeper = await stack.enter_async_context(open_keeper(controller.url, *pin))
    _, log = await keeper.start("peer")
    return await wait_online(controller, "peer", log)


async def _start_bare(controller: sandd.Controller, stack: AsyncExitStack) -> sandd.Daemon:
    program = open_program("bare_daemons", controller.url, TOKEN, "1", "peer")
    host, _ = stack.enter_context(program)
    print(file=host.stdin, flush=True)
    with trio.fail_after(CONNECT_SECONDS):
        return await controller.wait_for_daemon("peer0")


async def main() -> None:
    """Answer until stdin ends."""
    tls, bare = "--tls" in sys.argv[1:], "--bare" in sys.argv[1:]
    async with sandd.open_controller(
        port=0, tls="auto" if tls else None, token=TOKEN if bare else None
    ) as controller:
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            daemon = await (_start_bare if bare else _start)(controller, stack)
            await warm_up(daemon)
            await answer_each(Ours(daemon, nursery, stack).works, trio.to_thread.run_sync)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
