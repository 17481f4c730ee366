"""What the system itself needs for the same thing, asked as the peers are."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import floors
from benchmarks.peers import raw_tls
from benchmarks.peers.drivers import Answer
from benchmarks.peers.echo import TYPING_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK_BYTES = 1 << 20


class Local:
    """This process, and no daemon."""

    name = "floor"

    def ask(self, work: str, **arguments: Any) -> Answer:
        """What came of it."""
        works: dict[str, Callable[..., object]] = {
            "exec": lambda count: [floors.run_local() for _ in range(count)],
            "many": floors.run_local_many,
            "output": run_for_text,
            "stream": read_pipe_afresh,
            "type": type_locally,
            "upload": lambda source, target: floors.copy_file_tcp(Path(source), Path(target)),
            "upload_tree": lambda source, target: floors.write_files(Path(source), Path(target)),
        }
        return Answer(works[work](**arguments), 0.0)


class RawTls:
    """A copy over TLS."""

    name = "raw TLS copy"

    def ask(self, work: str, **arguments: Any) -> Answer:
        """What came of it: up and down are the same here."""
        assert work in ("upload", "download"), work
        source, target = Path(arguments["source"]), Path(arguments["target"])
        return Answer(raw_tls.copy(source, target), 0.0)


def run_for_text(command: str, size: int) -> float:
    """Seconds until what a local command writes is here as text."""
    started = time.perf_counter()
    result = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, check=True, text=True)
    seconds = time.perf_counter() - started
    assert len(result.stdout) == size, f"{len(result.stdout)} characters came, not {size}"
    return seconds


def read_pipe_afresh(command: str, size: int) -> float:
    """`read_pipe` in a Python of its own.

    It is several times as fast in one that has had large objects: glibc's malloc then has no new pages for each read.
    """
    script = f"from {__name__} import read_pipe; print(read_pipe({command!r}, {size}))"
    return float(
        subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE).stdout
    )


def read_pipe(command: str, size: int) -> float:
    """Seconds until what a local command writes has been read from a pipe."""
    received, started = 0, time.perf_counter()
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), _BLOCK_BYTES):
            received += len(data)
    assert received == size, f"{received} bytes came, not {size}"
    return time.perf_counter() - started


def type_locally(count: int) -> list[float]:
    """Seconds for each of so many keystrokes to a program in a local pseudo-terminal, and back."""
    samples = []
    with floors.open_local_echo() as master:
        for _ in range(count):
            started = time.perf_counter()
            os.write(master, b"x")
            select.select([master], [], [])
            received = os.read(master, 64)
            samples.append(time.perf_counter() - started)
            assert received == b"x", received
            time.sleep(TYPING_SECONDS)
    return samples
