"""WebSocket frames for a client that has to be fast and may trust its server. Pure.

Source: RFC 6455, section 5.2.
"""

from __future__ import annotations

import base64
import os
import struct

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
_FINAL, _MASKED = 0x80, 0x80


def request(host: str, port: int, path: str, subprotocol: str) -> bytes:
    """What asks for an upgrade."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    ).encode()


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """One whole message. Its mask is of zeros, which is allowed, and costs nothing to apply."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", _FINAL | opcode, _MASKED | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", _FINAL | opcode, _MASKED | 126, size)
    else:
        head = struct.pack("!BBQ", _FINAL | opcode, _MASKED | 127, size)
    return b"".join((head, b"\0\0\0\0", payload))


def take_frame(received: bytearray) -> tuple[int, bytes] | None:
    """The first frame's opcode and payload, which is taken from `received`; None if it isn't all there.

    For a server that sends each message as one frame, as that of the original does.
    """
    if len(received) < 2:
        return None
    size, start = received[1], 2
    if size == 126:
        size, start = int.from_bytes(received[2:4], "big"), 4
    elif size == 127:
        size, start = int.from_bytes(received[2:10], "big"), 10
    if len(received) < start + size:
        return None
    opcode, payload = received[0] & 0x0F, bytes(received[start : start + size])
    del received[: start + size]
    return opcode, payload
