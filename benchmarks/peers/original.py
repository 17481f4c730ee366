"""The original's driver: its server, from PyPI, in this process, and `stand_in`'s daemons in others.

A program of its own, ``python -P -m benchmarks.peers.original [--daemons N] [--at-once]``. `sandd` is its import
name, too: PYTHONPATH has it first here, and nothing of ours is imported.
"""

from __future__ import annotations

import argparse
import socket
import threading
import time
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.peers.answering import answer_all, open_program
from benchmarks.peers.echo import ECHO_LINE, READY, TYPING_SECONDS
from benchmarks.peers.hosting import HOSTS, LOOK_SECONDS, resident_kib, share_out

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECT_SECONDS = 60.0
READ_SECONDS = 10.0


class Original:
    """The server, and what it is asked to do on its first daemon."""

    def __init__(self, stack: ExitStack, daemons: int, *, at_once: bool) -> None:
        with socket.create_server(("127.0.0.1", 0)) as found:
            port = found.getsockname()[1]
        self._stack = stack
        self._daemons = daemons
        self._server: Any = import_module("sandd").Server("127.0.0.1", port, verbose=False)
        self._hosts = []
        for first, count in share_out(daemons, HOSTS):
            options = ["--prefix", f"daemon-{first}-", *(["--at-once"] if at_once else [])]
            host, _ = stack.enter_context(
                open_program("peers.stand_in", str(port), str(count), *options)
            )
            self._hosts.append(host)
        self._loaded = threading.Event()
        self._load: threading.Thread | None = None
        self._session: Any = None
        self.first = "daemon-0-0"

    @property
    def works(self) -> dict[str, Callable[..., object]]:
        """All that it can be asked for."""
        return {
            "connect": self.connect,
            "exec": self.exec,
            "many": self.many,
            "output": self.output,
            "broadcast": self.broadcast,
            "type": self.type,
            "load": self.load,
            "idle": lambda seconds: time.sleep(seconds),
            "memory": resident_kib,
        }

    def connect(self) -> float:
        """Seconds until all of its daemons are there, from when they were told to dial."""
        started = time.perf_counter()
        for host in self._hosts:
            print(file=host.stdin, flush=True)
        while self._server.daemon_count() < self._daemons:
            assert time.perf_counter() < started + CONNECT_SECONDS, "not all of the daemons came"
            time.sleep(LOOK_SECONDS)
        return time.perf_counter() - started

    def exec(self, count: int) -> list[float]:
        """Seconds for each of so many commands, one after the other."""
        return [self._run("true")[0] for _ in range(count)]

    def many(self, count: int, in_flight: int) -> float:
        """Seconds for so many commands, so many of them at any time."""

        def take_turns(commands: range) -> None:
            for _ in commands:
                self._run("true")

        threads = [
            threading.Thread(target=take_turns, args=(range(worker, count, in_flight),))
            for worker in range(in_flight)
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    def output(self, command: str, size: int) -> float:
        """Seconds until what the command writes is here as text."""
        seconds, text = self._run(command)
        assert len(text) == size, f"{len(text)} characters came, not {size}"
        return seconds

    def broadcast(self) -> float:
        """Seconds for one command on all of them."""
        started = time.perf_counter()
        results = self._server.broadcast({"env": "bench"}, "true")
        seconds = time.perf_counter() - started
        assert len(results) == self._daemons, f"{len(results)} answered"
        assert all(result.success for result in results.values())
        return seconds

    def type(self, count: int) -> list[float]:
        """Seconds for each of so many keystrokes to a program in a session, and back."""
        if self._session is None:
            self._session = self._server.new_session(self.first)
            self._session.write(ECHO_LINE)
            shown = b""
            while READY not in shown:
                shown += self._session.read(READ_SECONDS)
        samples = []
        for _ in range(count):
            started = time.perf_counter()
            self._session.write(b"x")
            received = self._session.read(READ_SECONDS)
            samples.append(time.perf_counter() - started)
            assert received == b"x", received
            time.sleep(TYPING_SECONDS)
        return samples

    def load(self, command: str | None) -> None:
        """Have the command run there, again and again; None ends it."""
        if command is None:
            assert self._load is not None
            self._loaded.clear()
            self._load.join()
            return

        def keep_running() -> None:
            while self._loaded.is_set():
                self._run(command)

        self._loaded.set()
        self._load = threading.Thread(target=keep_running, daemon=True)
        self._load.start()

    def _run(self, command: str) -> tuple[float, str]:
        started = time.perf_counter()
        result = self._server.exec(self.first, command)
        text: str = result.stdout
        seconds = time.perf_counter() - started
        assert result.exit_code == 0, result
        return seconds, text


def main() -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--daemons", type=int, default=1)
    parser.add_argument("--at-once", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        original = Original(stack, options.daemons, at_once=options.at_once)
        answer_all(original.works)


if __name__ == "__main__":
    main()
