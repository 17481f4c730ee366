"""A stand-in for the original's daemon: ``python -m benchmarks.peers.stand_in PORT COUNT [OPTION ...]``.

The original's own is a Rust program that PyPI doesn't have. This one speaks its documented protocol,
`sandd.v1`: JSON in WebSocket text messages. It does what the benchmarks ask for, and no more: commands,
sessions, heartbeats. It is as fast as a Python program gets, so that what is measured is the original's
server: one epoll loop over plain sockets, `posix_spawn`, no task and no object more than there has to be.

As many daemons as `COUNT` says are in it, each with a connection of its own. Each does one thing after the
other, as the original documents of its commands and as its daemon does with all that comes; with
``--at-once`` commands run beside each other. It says "ready", dials when a line comes on stdin, and ends
when that does.
"""

from __future__ import annotations

import argparse
import base64
import heapq
import json
import os
import socket
import sys
import time
from collections import deque
from typing import Any

from benchmarks.peers import frames
from benchmarks.peers.stand_in_commands import READ_BYTES, Command, Loop, Session

HOST = "127.0.0.1"
SUBPROTOCOL = "sandd.v1"
HEARTBEAT_SECONDS = 5.0
"""As in 0.2.1, whose server takes a daemon for lost after thirty."""


class Daemon:
    """One connection to the server."""

    def __init__(self, loop: Loop, port: int, name: str, *, at_once: bool) -> None:
        self._loop, self._at_once = loop, at_once
        self._received = bytearray()
        self._waiting: deque[dict[str, Any]] = deque()
        self._busy = False
        self._sessions: dict[str, Session] = {}
        self._name = name
        self.registered = False
        self._socket = socket.create_connection((HOST, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(frames.request(HOST, port, "/ws", SUBPROTOCOL))
        loop.watch(self._socket.fileno(), self._read_head)

    def _read_head(self) -> None:
        self._receive()
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        if not head.startswith(b"HTTP/1.1 101"):
            raise RuntimeError(f"the server didn't upgrade: {bytes(head)!r}")
        self._received = rest
        self._loop.forget(self._socket.fileno())
        self._loop.watch(self._socket.fileno(), self._read)
        metadata = {
            "hostname": "stand-in",
            "platform": "linux",
            "arch": "x86_64",
            "version": "0.2.1",
            "labels": {"env": "bench"},
        }
        self._send({"type": "register", "daemon_id": self._name, "metadata": metadata})

    def _receive(self) -> None:
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise EOFError(f"the server has let go of {self._name}")
        self._received += data

    def _read(self) -> None:
        self._receive()
        while (taken := frames.take_frame(self._received)) is not None:
            opcode, payload = taken
            if opcode == frames.TEXT:
                self._waiting.append(json.loads(payload))
            elif opcode == frames.PING:
                self._socket.sendall(frames.frame(payload, frames.PONG))
            elif opcode == frames.CLOSE:
                raise EOFError(f"the server has closed {self._name}'s connection")
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and not (self._busy and not self._at_once):
            self._do(self._waiting.popleft())

    def _do(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "execute_command":
                self._busy = True
                started = time.monotonic()
                request_id = message["request_id"]

                def over(out: bytes, err: bytes, exit_code: int) -> None:
                    self._busy = False
                    answer = {
                        "type": "command_output",
                        "request_id": request_id,
                        "stdout": out.decode("utf-8", "replace"),
                        "stderr": err.decode("utf-8", "replace"),
                        "exit_code": exit_code,
                        "duration_ms": int((time.monotonic() - started) * 1e3),
                    }
                    self._send(answer)
                    self._go_on()

                Command(self._loop, message["command"], over)
            case "new_session":
                session_id = message["session_id"]

                def show(data: bytes) -> None:
                    text = base64.b64encode(data).decode()
                    output = {"type": "session_output", "session_id": session_id, "data": text}
                    self._send(output)

                self._sessions[session_id] = Session(
                    self._loop, message["rows"], message["cols"], message["term"], show
                )
                started_message = {"session_id": session_id, "success": True, "error": None}
                self._send({"type": "session_started", **started_message})
            case "session_input":
                self._sessions[message["session_id"]].write(base64.b64decode(message["data"]))
            case "session_close":
                self._sessions.pop(message["session_id"]).close()
            case "register_ack":
                self.registered = True

    def beat(self) -> None:
        """Say that it is there."""
        self._send({"type": "heartbeat"})

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(frames.frame(json.dumps(message).encode()))

    def close(self) -> None:
        """End what it runs."""
        for session in self._sessions.values():
            session.close()
        self._socket.close()


def main() -> None:
    """Be all of them until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--prefix", default="daemon-")
    parser.add_argument("--heartbeat", type=float, default=HEARTBEAT_SECONDS)
    parser.add_argument("--at-once", action="store_true")
    options = parser.parse_args()
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    loop = Loop()
    daemons = [
        Daemon(loop, options.port, f"{options.prefix}{number}", at_once=options.at_once)
        for number in range(options.count)
    ]
    # Spread over the interval, as those of daemons are that have started at different times.
    now, between = time.monotonic(), options.heartbeat / options.count
    beats = [(now + number * between, number) for number in range(1, options.count + 1)]
    over = False

    def end() -> None:
        nonlocal over
        over = not os.read(0, READ_BYTES)

    loop.watch(0, end)
    try:
        while not over:
            loop.turn(max(0.0, beats[0][0] - time.monotonic()))
            while beats[0][0] <= time.monotonic():
                due, number = beats[0]
                heapq.heapreplace(beats, (due + options.heartbeat, number))
                if daemons[number - 1].registered:
                    daemons[number - 1].beat()
    except (EOFError, ConnectionError) as error:
        print(f"stand-in: {error}", file=sys.stderr)
    finally:
        for daemon in daemons:
            daemon.close()


if __name__ == "__main__":
    main()
