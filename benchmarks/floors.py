"""What the system itself needs for the same thing, without `sandd`: nothing of ours can be faster.

All of these but one block, and are called from the controller's own thread: while one runs, `sandd` rests.
Their processes are out of Ctrl-C's reach, in groups of their own: they end soon enough.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = ["sh", "-c", "true"]
"""What ``run("true")`` comes to."""
_BUFFER_BYTES = 1 << 20
_ACCEPT_SECONDS = 30.0
"""For a Python to start and connect."""

_SENDER = """
import socket, sys
block, left = bytes(1 << 20), int(sys.argv[2])
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    while left:
        left -= connection.send(block[:left])
"""

_FILE_SENDER = """
import hashlib, socket, sys
digest, buffer = hashlib.sha256(), bytearray(1 << 20)
with open(sys.argv[2], "rb", buffering=0) as file:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        while count := file.readinto(buffer):
            part = memoryview(buffer)[:count]
            digest.update(part)
            connection.sendall(part)
print(digest.hexdigest())
"""

_PIPE_READER = """
import os, subprocess, sys, time
started, received = time.perf_counter(), 0
command = ["head", "-c", sys.argv[1], "/dev/zero"]
with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
    while data := os.read(process.stdout.fileno(), 1 << 20):
        received += len(data)
print(time.perf_counter() - started, received)
"""

READY = b"ready\r\n"
ECHO = ["sh", "-c", "stty -echo -icanon min 1; echo ready; exec cat"]
"""A program that sends back what is typed, byte by byte, after it has said that it is there."""


@contextlib.contextmanager
def open_local_echo() -> Iterator[int]:
    """The master of a local pseudo-terminal with `ECHO` in it, non-blocking."""
    master, slave = os.openpty()
    try:
        terminal = os.ttyname(slave)
        process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <>"$0" >&0 2>&0', terminal, *ECHO], start_new_session=True
        )
        try:
            shown = b""
            while READY not in shown:
                shown += os.read(master, 4096)
            os.set_blocking(master, False)
            yield master
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(slave)
        os.close(master)


async def type_locally(master: int) -> float:
    """Seconds for one keystroke to the program and back, as seen by a trio program."""
    started = time.perf_counter()
    os.write(master, b"x")
    await trio.lowlevel.wait_readable(master)
    received = os.read(master, 4096)
    seconds = time.perf_counter() - started
    assert received == b"x", received
    return seconds


def run_local() -> float:
    """Seconds for one command, from here to its end."""
    started = time.perf_counter()
    subprocess.run(COMMAND, check=True, process_group=0)
    return time.perf_counter() - started


def run_local_many(count: int, in_flight: int) -> float:
    """Seconds for `count` commands, that many of which run at any time."""
    running: deque[subprocess.Popen[bytes]] = deque()
    started = time.perf_counter()
    for _ in range(count):
        if len(running) == in_flight:
            running.popleft().wait()
        running.append(subprocess.Popen(COMMAND, process_group=0))
    for process in running:
        process.wait()
    return time.perf_counter() - started


def read_pipe(size: int) -> float:
    """Seconds until `size` bytes that a local command writes have come through a pipe.

    In a program of its own: here it would have from `sandd` that memory for buffers is kept, and be four times as fast.
    """
    command = [sys.executable, "-c", _PIPE_READER, str(size)]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True, process_group=0).stdout
    seconds, received = said.split()
    assert int(received) == size, f"{received!r} bytes came through the pipe, not {size}"
    return float(seconds)


def write_pipe(data: bytes) -> float:
    """Seconds until a local command has read `data` from a pipe."""
    started = time.perf_counter()
    result = subprocess.run(
        ["wc", "-c"], input=data, stdout=subprocess.PIPE, check=True, process_group=0
    )
    seconds = time.perf_counter() - started
    assert int(result.stdout) == len(data), f"{result.stdout!r} bytes went through the pipe"
    return seconds


def copy_tcp(size: int) -> float:
    """Seconds for `size` bytes from another process through a loopback connection, from the first on."""
    buffer = bytearray(_BUFFER_BYTES)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_ACCEPT_SECONDS)
        port = str(listener.getsockname()[1])
        command = [sys.executable, "-c", _SENDER, port, str(size)]
        with subprocess.Popen(command, process_group=0):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(_ACCEPT_SECONDS)
                received, started = 0, time.perf_counter()
                while count := connection.recv_into(buffer):
                    received += count
                seconds = time.perf_counter() - started
    assert received == size, f"{received} bytes came through the connection, not {size}"
    return seconds


def copy_file_tcp(source: Path, target: Path) -> float:
    """Seconds for a file from another process through a loopback connection to another file, hashed at both ends."""
    buffer, digest = bytearray(_BUFFER_BYTES), hashlib.sha256()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_ACCEPT_SECONDS)
        port = str(listener.getsockname()[1])
        command = [sys.executable, "-c", _FILE_SENDER, port, str(source)]
        with subprocess.Popen(command, process_group=0, stdout=subprocess.PIPE) as sender:
            connection, _ = listener.accept()
            with connection, target.open("wb", buffering=0) as file:
                connection.settimeout(_ACCEPT_SECONDS)
                started = time.perf_counter()
                while count := connection.recv_into(buffer):
                    part = memoryview(buffer)[:count]
                    digest.update(part)
                    file.write(part)
                seconds = time.perf_counter() - started
            assert sender.stdout is not None
            sent = sender.stdout.read().decode().strip()
    assert sent == digest.hexdigest(), "what came is not what was sent"
    return seconds


def write_files(source: Path, target: Path) -> float:
    """Seconds to make every file of a tree anew: created under another name, hashed, and renamed."""
    started = time.perf_counter()
    for directory, _, names in os.walk(source):
        there = target / Path(directory).relative_to(source)
        there.mkdir(parents=True)
        for name in names:
            data = (Path(directory) / name).read_bytes()
            hashlib.sha256(data).digest()
            partial = there / f".{name}.part"
            partial.write_bytes(data)
            partial.rename(there / name)
    return time.perf_counter() - started
