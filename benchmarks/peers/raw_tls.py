"""A file through TLS, as plain as Python can do it: what our TLS is compared with.

A program of its own, ``python -m benchmarks.peers.raw_tls PORT FILE``, which sends the file.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sandd._core.tls.authority import issue_server, new_authority

HOST = "127.0.0.1"
BLOCK_BYTES = 1 << 18
ACCEPT_SECONDS = 30.0


def copy(source: Path, target: Path) -> float:
    """Seconds for a file from another process to another file, from the first byte on."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    context = _server_context()
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(ACCEPT_SECONDS)
        port = str(listener.getsockname()[1])
        command = [sys.executable, "-m", "benchmarks.peers.raw_tls", port, str(source)]
        with subprocess.Popen(command, process_group=0):
            plain, _ = listener.accept()
            plain.settimeout(ACCEPT_SECONDS)
            with context.wrap_socket(plain, server_side=True) as connection:
                started = time.perf_counter()
                with target.open("wb", buffering=0) as file:
                    while count := connection.recv_into(buffer):
                        file.write(buffer[:count])
                seconds = time.perf_counter() - started
    assert target.stat().st_size == source.stat().st_size, "not all of the file came"
    return seconds


def _server_context() -> ssl.SSLContext:
    pair = issue_server(new_authority(time.time()), [HOST], time.time())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # a sender that closes with one unread would reset the connection
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(pair.pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def main() -> None:
    """Send the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with (
        Path(sys.argv[2]).open("rb", buffering=0) as file,
        socket.create_connection((HOST, int(sys.argv[1]))) as plain,
        context.wrap_socket(plain) as connection,
    ):
        while count := file.readinto(buffer):
            connection.sendall(buffer[:count])


if __name__ == "__main__":
    main()
