"""OpenSSH, asked as the other peers are: its client is a program of its own each time, as for its users."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.openssh import open_openssh
from benchmarks.peers.drivers import Answer
from benchmarks.peers.echo import ECHO, READY, TYPING_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.openssh import OpenSsh

_BLOCK_BYTES = 1 << 16


class OpenSshPeer:
    """A server on loopback, and what it is asked to do."""

    name = "OpenSSH"

    def __init__(self, ssh: OpenSsh, stack: ExitStack) -> None:
        self._ssh, self._stack = ssh, stack
        self._session: subprocess.Popen[bytes] | None = None
        self._load: threading.Thread | None = None
        self._loading = threading.Event()

    def ask(self, work: str, **arguments: Any) -> Answer:
        """What came of it."""
        works: dict[str, Callable[..., object]] = {
            "type": self.type,
            "load": self.load,
            "upload": lambda source, target: self._ssh.copy(Path(source), Path(target)),
            "download": lambda source, target: self._ssh.fetch(Path(source), Path(target)),
            "upload_tree": lambda source, target: self._ssh.copy_tree(Path(source), Path(target)),
            "pipe_tree": lambda source, target: self._ssh.pipe_tree(Path(source), Path(target)),
        }
        return Answer(works[work](**arguments), 0.0)

    def type(self, count: int) -> list[float]:
        """Seconds for each of so many keystrokes to a program in a session, and back."""
        if self._session is None:
            self._session = self._stack.enter_context(self._open(ECHO, "-tt"))
            assert self._session.stdout is not None
            shown = b""
            while READY not in shown:
                shown += self._session.stdout.read(_BLOCK_BYTES)
        assert self._session.stdin is not None
        assert self._session.stdout is not None
        samples = []
        for _ in range(count):
            started = time.perf_counter()
            self._session.stdin.write(b"x")
            received = self._session.stdout.read(_BLOCK_BYTES)
            samples.append(time.perf_counter() - started)
            assert received == b"x", received
            time.sleep(TYPING_SECONDS)
        return samples

    def load(self, command: str | None) -> None:
        """Have the command run there, by the session's connection, again and again; None ends it."""
        if command is None:
            assert self._load is not None
            self._loading.clear()
            self._load.join()
            return

        def keep_running() -> None:
            while self._loading.is_set():
                with self._open(command) as process:
                    assert process.stdout is not None
                    while process.stdout.read(_BLOCK_BYTES):
                        pass

        self._loading.set()
        self._load = threading.Thread(target=keep_running, daemon=True)
        self._load.start()

    @contextmanager
    def _open(self, command: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """A client, without buffers; it ends with the block."""
        with subprocess.Popen(
            self._ssh.command(command, *options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@contextmanager
def open_openssh_peer() -> Iterator[OpenSshPeer | None]:
    """A server of our own; None where there is no OpenSSH."""
    with tempfile.TemporaryDirectory(prefix="sandd-bench-") as name, ExitStack() as stack:
        ssh = stack.enter_context(open_openssh(Path(name) / "ssh"))
        yield None if ssh is None else OpenSshPeer(ssh, stack)
