"""`SecureStream`: TLS over a `MeteredStream`, and what a peer is told that fails to get in."""

from __future__ import annotations

import operator
import ssl
from typing import TYPE_CHECKING, Final, final

import trio

from sandd._core.transport._streams import RECEIVE_BYTES
from sandd._core.transport._tls import PIECE_BYTES, TlsEnd

if TYPE_CHECKING:
    from sandd._core.transport._streams import MeteredStream
    from sandd.wire import Buffer

SENT_AT_ONCE: Final = 1024 * 1024
"""Of what takes several, so many bytes are encrypted before they are sent, and other tasks run."""

ALERT_TIMEOUT: Final = 1.0
"""Seconds for telling the peer why its certificate is refused."""


@final
class SecureStream(trio.abc.Stream):
    """A stream through TLS. Call `do_handshake` first.

    The WebSocket close handshake says what TLS' own would, hence that is left out (as HTTPS does).

    Args:
        meter: what it goes through; it belongs to this object from now on.
        context: what it demands and presents.
        server_hostname: whom it is a client of; None: it is a server.
    """

    def __init__(
        self,
        meter: MeteredStream,
        context: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
    ) -> None:
        self._meter = meter
        meter.most_bytes = PIECE_BYTES
        self._tls = TlsEnd(context, server_hostname=server_hostname)
        self._is_server = server_hostname is None
        self._sending = False
        self._receiving = False

    @property
    def peer_uri(self) -> str | None:
        """See `TlsEnd`."""
        return self._tls.peer_uri

    @property
    def peer_certificate(self) -> bytes:
        """See `TlsEnd`."""
        return self._tls.peer_certificate

    async def do_handshake(self) -> None:
        """Do the handshake; if that fails, the peer is told why before this raises `trio.BrokenResourceError`.

        In TLS 1.3 a client whose certificate is refused has finished its handshake by then: without that word all was
        well, and then the connection ended.
        """
        tls, meter = self._tls, self._meter
        try:
            while not tls.shake_hands():
                await self._send_besides()
                tls.feed(await meter.receive_some())
        except (ssl.SSLError, ssl.CertificateError) as exc:
            error = trio.BrokenResourceError(f"the TLS handshake failed: {exc}")
            error.__cause__ = exc
            alert = tls.take_outgoing()  # garbage gets none
            if alert and not spoke_http(error):  # that is answered in HTTP
                await self._tell(alert)
            raise error from exc
        # What a server has to say besides, in TLS 1.3, goes with its first bytes: a client that has ended before it
        # reads that would be reset.
        if not (self._is_server and tls.version == "TLSv1.3"):
            await self._send_besides()

    async def _send_besides(self) -> None:
        outgoing = self._tls.take_outgoing()
        if outgoing:
            await self._meter.send_all(outgoing)

    async def _tell(self, alert: bytes) -> None:
        with trio.move_on_after(ALERT_TIMEOUT):
            try:
                await self._meter.send_all(alert)
                await self._meter.send_eof()
                # Closed with bytes unread, it would be lost.
                while await self._meter.receive_some():
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                pass  # whoever has gone doesn't want to know

    # ---- sending --------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """`send_nowait` has nothing before it."""
        return not self._sending and self._meter.is_idle

    @property
    def has_unsent(self) -> bool:
        """A part of a `send_nowait` waits for the next `send_all`."""
        return self._meter.has_unsent

    def send_nowait(self, *pieces: Buffer) -> bool:
        """As `MeteredStream.send_nowait`: it saves a keystroke, or a short command, a turn of the loop."""
        meter = self._meter
        if self._sending or not meter.is_idle:
            return False
        try:
            encrypted = self._tls.encrypt(*pieces)
        except ssl.SSLError:
            return False  # broken: `send_all` will meet the same, and tell
        if not meter.send_nowait(*encrypted):
            meter.put_before_all(*encrypted)  # said once, it must be next: records are numbered
        return True

    def put_before_all(self, data: bytes) -> None:
        """As `MeteredStream.put_before_all`."""
        self._meter.put_before_all(*self._tls.encrypt(data))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; when cancelled or broken halfway nothing more can be sent: the meter is `torn`."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        begun = False
        self._sending = True
        try:
            if not data:
                await self._meter.send_pieces(())
            with memoryview(data) as view:
                for start in range(0, len(view), SENT_AT_ONCE):
                    await trio.lowlevel.checkpoint_if_cancelled()
                    begun = True
                    encrypted = self._tls.encrypt(view[start : start + SENT_AT_ONCE])
                    await self._meter.send_pieces(encrypted)
                    begun = start + SENT_AT_ONCE < len(view)
        except ssl.SSLError as exc:
            raise trio.BrokenResourceError(f"sending failed: {exc}") from exc
        finally:
            if begun:
                self._meter.torn = True
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await self._meter.wait_send_all_might_not_block()
        finally:
            self._sending = False

    # ---- receiving ------------------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Whatever is there; without `max_bytes` up to `RECEIVE_BYTES` of it."""
        limit = RECEIVE_BYTES if max_bytes is None else operator.index(max_bytes)
        if limit < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        tls, meter = self._tls, self._meter
        self._receiving = True
        try:
            if tls.has_more and not meter.is_closed:
                await trio.lowlevel.checkpoint()
            else:
                tls.feed(await meter.receive_some())
            while (parts := tls.decrypt(limit)) is None:
                tls.feed(await meter.receive_some())
            if max_bytes is None and parts:
                self._add_more(parts)
            return _joined(parts)
        except ssl.SSLError as exc:
            raise trio.BrokenResourceError(f"receiving failed: {exc}") from exc
        finally:
            self._receiving = False

    @property
    def has_more(self) -> bool:
        """Something has come that the socket can't tell of."""
        return self._tls.has_more

    def receive_ready(self) -> bytes | None:
        """As `MeteredStream.receive_ready`; None, too, where no whole record has come."""
        data = self._meter.receive_ready()
        if data is None:
            return None
        self._tls.feed(data)
        try:
            parts = self._tls.decrypt(RECEIVE_BYTES)
        except ssl.SSLError as exc:
            raise trio.BrokenResourceError(f"receiving failed: {exc}") from exc
        return None if parts is None else _joined(parts)

    def _add_more(self, parts: list[bytes]) -> None:
        """Add to them what else can be had without waiting.

        A turn of the loop for each piece, or even for each record, would be a third of the time that bulk takes (m).
        """
        tls = self._tls
        left = RECEIVE_BYTES - sum(map(len, parts))
        while left > 0 and (data := self._meter.receive_nowait()):
            tls.feed(data)
            try:
                more = tls.decrypt(left)
            except ssl.SSLError:
                break  # whoever reads next is told
            if more is not None:
                if not more:
                    break  # it has ended, whatever it sends behind that
                parts += more
                left -= sum(map(len, more))

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._meter.aclose()


def _joined(parts: list[bytes]) -> bytes:
    return parts[0] if len(parts) == 1 else b"".join(parts)


def spoke_http(error: trio.BrokenResourceError) -> bool:
    """Whether a handshake failed because the peer spoke plain HTTP."""
    return getattr(error.__cause__, "reason", None) == "HTTP_REQUEST"


def why_broken(error: trio.BrokenResourceError) -> str:
    """What broke a stream, in words: TLS says it best itself."""
    return str(error.__cause__ or error) or "the connection broke"
