"""asyncssh's driver: its client in this process, its server in another.

A program of its own, ``python -P -m benchmarks.peers.asyncssh_client``; PYTHONPATH has asyncssh.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh

from benchmarks.peers.answering import answer_each, open_program
from benchmarks.peers.echo import ECHO, READY, TYPING_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_BLOCK = 1 << 16


class Client:
    """One connection, and what it is asked to do."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._session: Any = None
        self._load: asyncio.Task[None] | None = None

    @property
    def works(self) -> dict[str, Callable[..., Awaitable[object]]]:
        """All that it can be asked for."""
        return {
            "exec": self.exec,
            "many": self.many,
            "output": self.output,
            "stream": self.output,
            "type": self.type,
            "load": self.load,
            "upload": self.upload,
            "download": self.download,
            "upload_tree": self.upload_tree,
        }

    async def exec(self, count: int) -> list[float]:
        """Seconds for each of so many commands, one after the other."""
        return [(await self._run("true"))[0] for _ in range(count)]

    async def many(self, count: int, in_flight: int) -> float:
        """Seconds for so many commands, so many of them at any time."""

        async def take_turns(commands: range) -> None:
            for _ in commands:
                await self._run("true")

        started = time.perf_counter()
        workers = [take_turns(range(worker, count, in_flight)) for worker in range(in_flight)]
        await asyncio.gather(*workers)
        return time.perf_counter() - started

    async def output(self, command: str, size: int) -> float:
        """Seconds until what the command writes is here as text."""
        seconds, text = await self._run(command)
        assert len(text) == size, f"{len(text)} characters came, not {size}"
        return seconds

    async def type(self, count: int) -> list[float]:
        """Seconds for each of so many keystrokes to a program in a session, and back."""
        if self._session is None:
            self._session = await self._connection.create_process(
                ECHO, term_type="xterm-256color", encoding=None
            )
            shown = b""
            while READY not in shown:
                shown += await self._session.stdout.read(_BLOCK)
        samples = []
        for _ in range(count):
            started = time.perf_counter()
            self._session.stdin.write(b"x")
            received = await self._session.stdout.read(_BLOCK)
            samples.append(time.perf_counter() - started)
            assert received == b"x", received
            await asyncio.sleep(TYPING_SECONDS)
        return samples

    async def load(self, command: str | None) -> None:
        """Have the command run there, again and again; None ends it."""
        if command is None:
            assert self._load is not None
            self._load.cancel()
            await asyncio.wait([self._load])
            return

        async def keep_running() -> None:
            while True:
                await self._run(command)

        self._load = asyncio.create_task(keep_running())

    async def upload(self, source: str, target: str) -> float:
        """Seconds for a file to the server."""
        started = time.perf_counter()
        await asyncssh.scp(source, (self._connection, target))
        return time.perf_counter() - started

    async def download(self, source: str, target: str) -> float:
        """Seconds for a file from the server."""
        started = time.perf_counter()
        await asyncssh.scp((self._connection, source), target)
        return time.perf_counter() - started

    async def upload_tree(self, source: str, target: str) -> float:
        """Seconds for a directory to the server."""
        started = time.perf_counter()
        async with self._connection.start_sftp_client() as sftp:
            await sftp.put(source, target, recurse=True)
        return time.perf_counter() - started

    async def _run(self, command: str) -> tuple[float, str]:
        started = time.perf_counter()
        result = await self._connection.run(command, check=True)
        return time.perf_counter() - started, result.stdout


async def main() -> None:
    """Answer until stdin ends."""
    with tempfile.TemporaryDirectory(prefix="sandd-bench-") as name:
        directory = Path(name)
        for key in ("host", "user"):
            asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(directory / key))
        user = asyncssh.read_private_key(str(directory / "user"))
        user.write_public_key(str(directory / "authorized"))
        with open_program("peers.asyncssh_server", name) as (_, port):
            async with asyncssh.connect(
                "127.0.0.1", int(port), known_hosts=None, client_keys=[user], config=None
            ) as connection:
                await answer_each(Client(connection).works, asyncio.to_thread)


if __name__ == "__main__":
    asyncio.run(main())
