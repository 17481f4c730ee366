"""The socket below everything else, and the names of its two ends."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final, final

import trio
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandd._core.transport._resting import RestingPlace
    from sandd.wire import Buffer

NOTSENT_LOWAT: Final = 512 * 1024
"""Bytes the kernel takes beyond what the network has: a keystroke waits for these, and for the rest of the message
that is under way. The size of the largest message: with less it takes several wake-ups to be rid of one, and 128 KiB
cost a copy a tenth of its speed (m; trio's default is 16). A slow line is given less (`limit_unsent`)."""

RECEIVE_BYTES: Final = 1024 * 1024
"""The largest read: any message of bulk as a whole, and some of the next. trio-websocket's default of 4 KiB halves the
speed of bulk transfers (m)."""

GATHERED_BYTES: Final = 4 * 1024
"""Up to here two pieces are copied into one: cheaper than telling the kernel of both."""

PIECES_AT_ONCE: Final = 64
"""Given to the kernel by one call, which takes 16 at least and 1024 mostly (IOV_MAX)."""

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
        self.most_bytes = RECEIVE_BYTES
        """The largest read, where nobody says how much."""
        self._is_drained = True  # the latest read took all there was
        self._sending = False
        # What the kernel left of a `send_nowait`; goes before all else.
        self._unsent: Sequence[Buffer] = ()
        self.bytes_received = 0
        """So many have come so far, whether they make a message or not: whoever sends them is there."""
        self.last_write_progress = self._now()
        """When a write last got on (seconds of `trio.current_time`)."""
        self.write_pending_since: float | None = None
        """When the write now under way last got on; None: none is."""
        self.resting_place: RestingPlace | None = None
        """Where it may rest; see `rest`."""
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
    def is_closed(self) -> bool:
        """We have closed it."""
        return self._descriptor == -1

    @property
    def has_unsent(self) -> bool:
        """A part of a `send_nowait` waits for the next `send_all`."""
        return bool(self._unsent)

    def send_nowait(self, *pieces: Buffer) -> bool:
        """Send them without a checkpoint, if nothing stands before them; False: nothing was sent.

        What the kernel doesn't take goes out before the next `send_all`; see that one comes soon.
        """
        if self._sending or self._unsent or _ON_WINDOWS:  # as `is_idle`, called for each message
            return False
        if len(pieces) == 2 and len(pieces[1]) < GATHERED_BYTES:
            pieces = (b"".join(pieces),)
        try:
            sent = self._write(pieces)
        except OSError:
            return False  # full or broken: `send_all` will meet the same, and tell
        if sent < sum(map(len, pieces)):
            self._unsent = _behind(pieces, sent)
        return True

    def put_before_all(self, *pieces: bytes) -> None:
        """Have them sent before the next `send_all`'s; only where this `is_idle`."""
        self._unsent = pieces

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; when cancelled or broken halfway the stream is `torn`."""
        await self.send_pieces([data if isinstance(data, bytes) else memoryview(data)])

    async def send_pieces(self, pieces: Sequence[Buffer]) -> None:
        """As `send_all`, of several pieces."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        if self._tcp.socket.did_shutdown_SHUT_WR or self._descriptor == -1:
            raise trio.ClosedResourceError("this stream was closed for sending")
        await trio.lowlevel.checkpoint_if_cancelled()
        begun = bool(self._unsent)
        left = [*self._unsent, *(each for each in pieces if len(each))]
        self._unsent = ()
        has_waited = False
        self._sending = True
        try:
            while left:
                try:
                    if sys.platform == "win32":
                        self.write_pending_since = self._now()
                        sent = await self._tcp.socket.send(left[0])
                        self.last_write_progress = self._now()
                    else:
                        sent = self._write(left)
                    begun = True
                    left = _behind(left, sent)
                    if self.write_pending_since is not None:
                        self.write_pending_since = self.last_write_progress
                except BlockingIOError:
                    if self.write_pending_since is None:
                        self.write_pending_since = self._now()
                    has_waited = True
                    await trio.lowlevel.wait_writable(self._descriptor)
            if not has_waited:
                await trio.lowlevel.cancel_shielded_checkpoint()
        except OSError as exc:
            if exc.errno in _CLOSED_ERRNOS:
                raise trio.ClosedResourceError("this stream was closed") from None
            raise trio.BrokenResourceError(f"sending failed: {exc}") from exc
        finally:
            self._sending = False
            self.write_pending_since = None
            if left and begun:
                self.torn = True

    def _write(self, pieces: Sequence[Buffer]) -> int:
        """How many bytes of them the kernel has taken."""
        if sys.platform == "win32" or len(pieces) == 1:
            sent = os.write(self._descriptor, pieces[0])
        else:
            sent = os.writev(self._descriptor, pieces[:PIECES_AT_ONCE])
        self.last_write_progress = self._now()
        return sent

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await self._tcp.wait_send_all_might_not_block()
        finally:
            self._sending = False

    has_more: Final = False
    """Something has come that the socket can't tell of."""

    @property
    def may_rest(self) -> bool:
        """Whether `rest` doesn't return at once."""
        place = self.resting_place
        return place is not None and place.takes_more and self._descriptor != -1

    async def rest(self, look: Callable[[], None]) -> bytes | None:
        """Wait for `end_rest`, and have `look` called, a moment later than it could be, whenever something has come.

        Returns what that was given; raises what `look` does. Only where it `may_rest`.
        """
        assert self.resting_place is not None
        return await self.resting_place.rest(self._descriptor, look)

    def end_rest(self, came: bytes | None = None) -> None:
        """Have whoever waits in `rest` go on, with this."""
        if self.resting_place is not None:
            self.resting_place.wake(self._descriptor, came)

    def receive_ready(self) -> bytes | None:
        """What has come, after that was told of; b"": the end; None: nothing has."""
        try:
            return self._received(os.read(self._descriptor, self._receive_bytes))
        except BlockingIOError:
            return None
        except OSError as exc:
            if exc.errno in _CLOSED_ERRNOS:
                raise trio.ClosedResourceError("this stream was closed") from None
            raise trio.BrokenResourceError(f"receiving failed: {exc}") from exc

    def receive_nowait(self) -> bytes:
        """More of what has arrived; b"" if the latest read took all, or if that can't be told."""
        if self._is_drained or self._descriptor == -1 or _ON_WINDOWS:
            return b""
        try:
            return self._received(os.read(self._descriptor, self._receive_bytes))
        except OSError:  # if it broke, or ended, whoever waits for more will meet the same
            return self._received(b"")

    def _received(self, data: bytes) -> bytes:
        """`data`, which a read of the size that follows what comes has brought."""
        size, count = self._receive_bytes, len(data)
        self.bytes_received += count
        # The rest of what one read couldn't take says nothing of what follows.
        is_rest, self._is_drained = not self._is_drained, count < size
        if not self._is_drained:
            self._receive_bytes = min(4 * size, self.most_bytes)
        elif size > _FIRST_RECEIVE_BYTES and count < size // 4 and not is_rest:
            self._receive_bytes = max(size // 2, _FIRST_RECEIVE_BYTES)
        return data

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Whatever is there. Without `max_bytes` the size follows what comes, up to `RECEIVE_BYTES`.

        A large buffer for every small read would cost an mmap and munmap each.
        """
        if max_bytes is not None or _ON_WINDOWS:  # (Windows: no read(2) on sockets)
            size = self.most_bytes if max_bytes is None else max_bytes
            data = bytes(await self._tcp.receive_some(size))
            self.bytes_received += len(data)
            return data
        if self._descriptor == -1:
            raise trio.ClosedResourceError("this stream was closed")
        if self._is_drained:  # then to ask first would be in vain
            await trio.lowlevel.wait_readable(self._descriptor)
        else:
            await trio.lowlevel.checkpoint()
        while (ready := self.receive_ready()) is None:
            await trio.lowlevel.wait_readable(self._descriptor)
        return ready

    async def send_eof(self) -> None:
        """See `trio.abc.HalfCloseableStream`."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await self._tcp.send_eof()

    def close(self) -> None:
        """Close the socket now; tasks that use it get `trio.ClosedResourceError`."""
        self.end_rest()
        self._descriptor = -1
        self._tcp.socket.close()

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        self.close()
        await trio.lowlevel.checkpoint()


def _behind(pieces: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What of these, none of which is empty, is behind the first `sent` bytes."""
    for number, piece in enumerate(pieces):
        if sent < len(piece):
            return [memoryview(piece)[sent:] if sent else piece, *pieces[number + 1 :]]
        sent -= len(piece)
    return []
