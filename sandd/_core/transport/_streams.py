"""The socket below everything else, and the names of its two ends."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import ssl
import sys
from ipaddress import IPv6Address, ip_address
from typing import Any, Final, final

import trio
from attrs import frozen

NOTSENT_LOWAT: Final = 128 * 1024
"""Bytes the kernel takes beyond what the network has: a keystroke waits for these, and for the rest of the message
that is under way (trio's default of 16 KiB costs a wake-up for each 16 KiB of it)."""

RECEIVE_BYTES: Final = 1024 * 1024
"""The largest read: any message of bulk as a whole, and some of the next. trio-websocket's default of 4 KiB halves the
speed of bulk transfers (m)."""

GATHERED_BYTES: Final = 4 * 1024
"""Up to here two pieces are copied into one: cheaper than telling the kernel of both."""

_FIRST_RECEIVE_BYTES: Final = 16 * 1024

_ON_WINDOWS: Final = os.name == "nt"

_CLOSED_ERRNOS: Final = (errno.EBADF, errno.ENOTSOCK)  # the second is Windows' word for it


@frozen
class Address:
    """One end of a TCP connection; `str` gives ``host:port``, in brackets where IPv6 needs it."""

    host: str
    port: int

    @classmethod
    def of(cls, socket_name: tuple[Any, ...]) -> Address:
        """From what `getsockname` and `getpeername` return."""
        return cls(socket_name[0], socket_name[1])

    @property
    def is_loopback(self) -> bool:
        """Whether it is this very machine: 127.0.0.0/8, ::1, or the former mapped into IPv6."""
        return _is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@functools.lru_cache(1024)
def _is_loopback(host: str) -> bool:
    address = ip_address(host.partition("%")[0])  # "fe80::1%eth0" has its zone behind it
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


@final
class MeteredStream(trio.abc.HalfCloseableStream):
    """A TCP stream that knows when the kernel last took a byte, and whether a write was cut short.

    It stands below TLS, because only here can progress be seen inside of one long write.

    Args:
        tcp: a connected stream; it belongs to this object from now on.

    Raises:
        OSError: the peer is gone already.
    """

    def __init__(self, tcp: trio.SocketStream) -> None:
        self._tcp = tcp
        self._now = trio.lowlevel.current_clock().current_time
        self._descriptor = tcp.socket.fileno()
        """Of the socket; -1 once that is closed."""
        self._receive_bytes = _FIRST_RECEIVE_BYTES
        self._is_drained = True  # the latest read took all there was
        self._sending = False
        self._unsent = b""  # what the kernel left of a `send_nowait`; goes before everything else
        self.bytes_received = 0
        self.last_write_progress = self._now()
        """When a write last got on (seconds of `trio.current_time`)."""
        self.write_pending_since: float | None = None
        """When the write now under way last got on; None: none is."""
        self.torn = False
        """A write ended halfway: whatever is written now, the peer can't make sense of it."""
        try:
            self.remote = Address.of(tcp.socket.getpeername())
            self.local = Address.of(tcp.socket.getsockname())
            # (TCP_NODELAY is set: `trio.SocketStream` does that.)
            if hasattr(trio.socket, "TCP_NOTSENT_LOWAT"):  # Linux, macOS, FreeBSD
                tcp.socket.setsockopt(
                    trio.socket.IPPROTO_TCP, trio.socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT
                )
        except OSError:
            tcp.socket.close()
            raise

    def limit_unsent(self, count: int) -> None:
        """Let the kernel take about so many bytes beyond what the network has; NOTSENT_LOWAT at most."""
        if hasattr(trio.socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):  # the peer is gone: whoever sends will meet it
                self._tcp.socket.setsockopt(
                    trio.socket.IPPROTO_TCP,
                    trio.socket.TCP_NOTSENT_LOWAT,
                    min(count, NOTSENT_LOWAT),
                )

    @property
    def is_idle(self) -> bool:
        """`send_nowait` has nothing before it."""
        return not (self._sending or self._unsent or _ON_WINDOWS)  # (no write(2) on sockets there)

    @property
    def has_unsent(self) -> bool:
        """A part of a `send_nowait` waits for the next `send_all`."""
        return bool(self._unsent)

    def send_nowait(self, head: bytes, body: bytes = b"") -> bool:
        """Send both without a checkpoint, if nothing stands before them; False: nothing was sent.

        What the kernel doesn't take goes out before the next `send_all`; see that one comes soon.
        """
        if self._sending or self._unsent or _ON_WINDOWS:  # as `is_idle`, called for each message
            return False
        try:
            if len(body) < GATHERED_BYTES or sys.platform == "win32":
                head, body = head + body, b""
                sent = os.write(self._descriptor, head)
            else:
                sent = os.writev(self._descriptor, (head, body))
        except OSError:
            return False  # full or broken: `send_all` will meet the same, and tell
        clock = self._now  # (to call what is not a method by its name takes Python longer)
        self.last_write_progress = clock()
        if sent < len(head) + len(body):
            self._unsent = head[sent:] + body[max(0, sent - len(head)) :]
        return True

    def put_before_all(self, data: bytes) -> None:
        """Have it sent before the next `send_all`'s; only where this `is_idle`."""
        self._unsent = data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; when cancelled or broken halfway the stream is `torn`."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        socket = self._tcp.socket
        if socket.did_shutdown_SHUT_WR or socket.fileno() == -1:
            raise trio.ClosedResourceError("this stream was closed for sending")
        begun = bool(self._unsent)
        if begun:
            data, self._unsent = self._unsent + bytes(data), b""
        sent, total = 0, len(data)
        if not total:
            await trio.lowlevel.checkpoint()
            return
        self._sending = True
        self.write_pending_since = self._now()
        try:
            with memoryview(data) as view:
                while sent < total:
                    with view[sent:] as rest:
                        sent += await socket.send(rest)
                    self.last_write_progress = self.write_pending_since = self._now()
        except OSError as exc:
            if exc.errno in _CLOSED_ERRNOS:
                raise trio.ClosedResourceError("this stream was closed") from None
            raise trio.BrokenResourceError(f"sending failed: {exc}") from exc
        finally:
            self._sending = False
            self.write_pending_since = None
            if sent < total and (sent or begun):
                self.torn = True

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await self._tcp.wait_send_all_might_not_block()
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Whatever is there. Without `max_bytes` the size follows what comes, up to `RECEIVE_BYTES`.

        A large buffer for every small read would cost an mmap and munmap each.
        """
        if max_bytes is not None or _ON_WINDOWS:  # (Windows: no read(2) on sockets)
            size = RECEIVE_BYTES if max_bytes is None else max_bytes
            data = bytes(await self._tcp.receive_some(size))
            self.bytes_received += len(data)
            return data
        size = self._receive_bytes
        if self._descriptor == -1:
            raise trio.ClosedResourceError("this stream was closed")
        if self._is_drained:  # then to ask first would be in vain
            await trio.lowlevel.wait_readable(self._descriptor)
        else:
            await trio.lowlevel.checkpoint()
        while True:
            try:
                data = os.read(self._descriptor, size)
                break
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._descriptor)
            except OSError as exc:
                if exc.errno in _CLOSED_ERRNOS:
                    raise trio.ClosedResourceError("this stream was closed") from None
                raise trio.BrokenResourceError(f"receiving failed: {exc}") from exc
        count = len(data)
        self.bytes_received += count
        self._is_drained = count < size
        if not self._is_drained:
            self._receive_bytes = min(4 * size, RECEIVE_BYTES)
        elif size > _FIRST_RECEIVE_BYTES and count < size // 4:
            self._receive_bytes = max(size // 2, _FIRST_RECEIVE_BYTES)
        return data

    async def send_eof(self) -> None:
        """See `trio.abc.HalfCloseableStream`."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await self._tcp.send_eof()

    def close(self) -> None:
        """Close the socket now; tasks that use it get `trio.ClosedResourceError`."""
        self._descriptor = -1
        self._tcp.socket.close()

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        self.close()
        await trio.lowlevel.checkpoint()


ALERT_TIMEOUT: Final = 1.0
"""Seconds for telling the peer why its certificate is refused."""


async def shake_hands_over_tls(stream: trio.SSLStream[MeteredStream]) -> None:
    """Do the handshake; if that fails, the peer is told why before this raises `trio.BrokenResourceError`.

    trio leaves the alert unsent (`_outgoing`, a private name that a test holds). In TLS 1.3 a client whose certificate
    is refused has finished its handshake by then: without the alert all was well, and then the connection ended.
    """
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as exc:
        # Whoever spoke plain HTTP is answered in HTTP.
        alert = b"" if spoke_http(exc) else stream._outgoing.read()
        meter = stream.transport_stream
        if alert:
            with trio.move_on_after(ALERT_TIMEOUT):
                try:
                    await meter.send_all(alert)
                    await meter.send_eof()
                    while await meter.receive_some():  # closed with bytes unread, it would be lost
                        pass
                except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                    pass  # whoever has gone doesn't want to know
        raise


def send_encrypted_nowait(stream: trio.SSLStream[MeteredStream], head: bytes, body: bytes) -> bool:
    """As `MeteredStream.send_nowait`, through TLS: it saves a keystroke, or a short command, a turn of the loop.

    `_ssl_object`, `_outgoing`, `_delayed_outgoing` and `_inner_send_lock` are private names that a test holds.
    """
    meter = stream.transport_stream
    if stream._inner_send_lock.locked() or stream._delayed_outgoing or not meter.is_idle:
        return False
    try:
        stream._ssl_object.write(head + body)
    except ssl.SSLError:
        return False  # broken: `send_all` will meet the same, and tell
    encrypted = stream._outgoing.read()
    if not meter.send_nowait(encrypted):
        meter.put_before_all(encrypted)  # said once, it must be next: records are numbered
    return True


def read_decrypted(stream: trio.SSLStream[MeteredStream], first: bytes | bytearray) -> bytes:
    """`first`, and what else has arrived and can be read without waiting, up to `RECEIVE_BYTES`.

    TLS comes in records of 16 KiB, and trio gives one at a time, with a turn of its loop for each: a third of the time
    that bulk takes (m). `_ssl_object` is a private name that a test holds.
    """
    parts: list[bytes | bytearray] = [first]
    total = len(first)
    while parts[-1] and total < RECEIVE_BYTES:
        try:
            part = stream._ssl_object.read(RECEIVE_BYTES - total)
        except ssl.SSLError:
            break  # no more is here; or it is broken, which whoever reads next is told
        parts.append(part)
        total += len(part)
    return b"".join(parts)


def spoke_http(error: trio.BrokenResourceError) -> bool:
    """Whether a handshake failed because the peer spoke plain HTTP."""
    return getattr(error.__cause__, "reason", None) == "HTTP_REQUEST"


def why_broken(error: trio.BrokenResourceError) -> str:
    """What broke a stream, in words; trio's own text is mostly empty where TLS is concerned."""
    return str(error.__cause__ or error) or "the connection broke"


def over_tls(
    stream: MeteredStream, context: ssl.SSLContext, *, server_hostname: str | None = None
) -> trio.SSLStream[MeteredStream]:
    """TLS over `stream`: as a client of `server_hostname`, or without one as a server.

    The WebSocket close handshake says what TLS' own would, hence it is left out (as HTTPS does).
    """
    return trio.SSLStream(
        stream,
        context,
        server_hostname=server_hostname,
        server_side=server_hostname is None,
        https_compatible=True,
    )
