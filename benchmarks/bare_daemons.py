"""Daemons that say what a daemon says, and nothing more: sockets in one loop, so that others than they are measured.

``python -m benchmarks.bare_daemons URL TOKEN COUNT PREFIX`` says ``ready``; to a line on stdin they dial, `AT_ONCE` at
a time, and it says when the last of them was let in. Then each pings as often as its Welcome says. They are gone,
without a word, when stdin ends.

Asked for a command, they run it as the stand-in for another's daemon does (`peers.stand_in_commands`): one that is a
text for the shell and has no input. Nothing of it is kept, so a link that breaks loses it.
"""

from __future__ import annotations

import base64
import heapq
import os
import select
import socket
import sys
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgpack
from attrs import define, field

from benchmarks.peers.stand_in_commands import Command, Loop
from sandd import __version__, wire
from sandd._core.identity.introductions import answer_challenge
from sandd._core.identity.proofs import SharedSecret
from sandd._core.link import Identity
from sandd.wire import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

LABELS = {"env": "bench"}
AT_ONCE = 60
"""Handshakes under way in one program: two of them stay below what a controller hears at a time."""


@define(eq=False)
class BareDaemon:
    """One of them, from its dial on."""

    sock: socket.socket
    identity: Identity
    request: bytes
    proven_by: SharedSecret
    heartbeat: float = 0.0
    """Seconds between its pings; 0.0 until it is let in."""
    pings: int = 0
    received: bytes = b""
    loop: Loop = field(factory=Loop)
    """Where its commands are waited for."""
    _take: Callable[[], bool] = field(init=False)
    """Takes the next piece of what was received; False: it isn't all there."""

    def __attrs_post_init__(self) -> None:
        self._take = self._take_upgrade

    @classmethod
    def dial(cls, url: str, identity: Identity, proven_by: SharedSecret, loop: Loop) -> BareDaemon:
        """It has begun to connect: `greet` once that has come to something."""
        parts = urlsplit(url)
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex((parts.hostname, parts.port))
        key = base64.b64encode(os.urandom(16)).decode()
        lines = (
            f"GET {parts.path} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Protocol: {wire.SUBPROTOCOL}",
        )
        return cls(sock, identity, "\r\n".join((*lines, "", "")).encode(), proven_by, loop=loop)

    def greet(self) -> None:
        """Ask for a WebSocket."""
        self.sock.send(self.request)

    def receive(self) -> bool:
        """Read what is there, and answer; whether it was let in by that."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError(f"{self.identity.daemon_id} was sent away")
        was_in = bool(self.heartbeat)
        self.received += data
        while self._take():
            pass
        return bool(self.heartbeat) and not was_in

    def ping(self) -> None:
        """Say that it lives."""
        self.pings += 1
        self._say(wire.Ping(self.pings))

    def _take_upgrade(self) -> bool:
        head, end, rest = self.received.partition(b"\r\n\r\n")
        if not end:
            return False
        if not head.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(f"no WebSocket: {head!r:.200}")
        self.received, self._take = rest, self._take_challenge
        return True

    def _take_challenge(self) -> bool:
        message = self._next_message()
        if message is None:
            return False
        self._say(answer_challenge(message, self.identity, 1, self.proven_by))
        self._take = self._take_welcome
        return True

    def _take_welcome(self) -> bool:
        message = self._next_message()
        if message is None:
            return False
        if not isinstance(message, wire.Welcome):
            raise ConnectionError(f"not let in: {message}")
        self.heartbeat = message.heartbeat
        self._take = self._take_requests
        return True

    def _take_requests(self) -> bool:
        message = self._next_bytes()
        if message is None:
            return False
        for frame in wire.decode_frames(message):
            # By msgpack alone, as the other stand-in takes JSON: farewells and pongs ask for nothing.
            asked = msgpack.unpackb(frame.payload)
            if asked["t"] == "attach":
                self._run(frame.channel, asked["spec"])
        return True

    def _run(self, channel: int, encoded: bytes) -> None:
        spec = msgpack.unpackb(encoded)
        if not (spec["kind"] == "command" and spec["shell"] and not spec.get("stdin", True)):
            raise ValueError(f"not a bare daemon's work: {spec}")
        started = time.monotonic()

        def over(out: bytes, err: bytes, exit_code: int) -> None:
            event = {
                "t": "exited",
                "outcome": "exited",
                "code": exit_code,
                "signal": None,
                "seconds": time.monotonic() - started,
                "finals": {int(Stream.OUTPUT): len(out), int(Stream.ERROR): len(err)},
            }
            frames = [
                *(wire.encode_data(channel, Stream.OUTPUT, 0, out) if out else ()),
                *(wire.encode_data(channel, Stream.ERROR, 0, err) if err else ()),
                *wire.encode_data(channel, Stream.EVENTS, 0, msgpack.packb(event)),
            ]
            self._send(b"".join(frames))

        Command(self.loop, spec["argv"][0].decode(), over)

    def _next_message(self) -> wire.Control | wire.Unknown | None:
        message = self._next_bytes()
        if message is None:
            return None
        (frame,) = wire.decode_frames(message)
        return wire.decode_control(frame)

    def _next_bytes(self) -> bytes | None:
        data = self.received
        if len(data) < 4:
            return None
        size, begin = (int.from_bytes(data[2:4], "big"), 4) if data[1] == 126 else (data[1], 2)
        if len(data) < begin + size:
            return None
        self.received = data[begin + size :]
        return data[begin : begin + size]

    def _say(self, message: wire.Control) -> None:
        self._send(b"".join(wire.encode_control(0, message)))

    def _send(self, body: bytes) -> None:
        size = len(body)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        key = os.urandom(4)
        mask = int.from_bytes((key * (size // 4 + 1))[:size], "big")
        masked = (int.from_bytes(body, "big") ^ mask).to_bytes(size, "big")
        self.sock.send(b"\x82" + length + key + masked)


def main() -> None:
    """Be all of them until stdin ends."""
    url, token, count, prefix = sys.argv[1:]
    say("ready")
    sys.stdin.readline()
    run(url, SharedSecret(token.encode()), int(count), prefix)


def say(word: str) -> None:
    """Tell whoever started us: in one piece, which `print` doesn't do where Python buffers nothing."""
    os.write(1, f"{word}\n".encode())


def run(url: str, secret: SharedSecret, count: int, prefix: str) -> None:
    """Dial, ping, and run what is asked for."""
    loop = Loop()
    dialled = live = 0
    is_over = False
    due: list[tuple[float, int, BareDaemon]] = []

    def end() -> None:
        nonlocal is_over
        is_over = True

    def dial() -> None:
        nonlocal dialled
        if dialled < count:
            about = ("bare", sys.platform, "bare", __version__)
            identity = Identity(f"{prefix}{dialled}", os.urandom(8).hex(), LABELS, *about)
            daemon = BareDaemon.dial(url, identity, secret, loop)
            loop.watch(daemon.sock.fileno(), lambda: greet(daemon), select.POLLOUT)
            dialled += 1

    def greet(daemon: BareDaemon) -> None:
        daemon.greet()
        loop.forget(daemon.sock.fileno())
        loop.watch(daemon.sock.fileno(), lambda: hear(daemon))

    def hear(daemon: BareDaemon) -> None:
        nonlocal live
        if daemon.receive():
            live += 1
            dial()
            heapq.heappush(due, (time.monotonic() + daemon.heartbeat, live, daemon))
            if live == count:
                say("live")

    loop.watch(sys.stdin.fileno(), end)
    for _ in range(AT_ONCE):
        dial()
    while not is_over:
        loop.turn(max(0.0, due[0][0] - time.monotonic()) if due else None)
        while due and due[0][0] <= time.monotonic():
            when, number, daemon = heapq.heappop(due)
            daemon.ping()
            heapq.heappush(due, (when + daemon.heartbeat, number, daemon))


if __name__ == "__main__":
    main()
