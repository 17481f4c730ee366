"""`TlsEnd`: one end of TLS, without I/O. Plain bytes go in and encrypted ones come out, and the other way round."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandd.wire import Buffer

PIECE_BYTES: Final = 128 * 1024
"""Encrypted, and decrypted, at a time: OpenSSL's buffers stay as large as the largest piece that ever was in them, as
long as the connection lasts. Larger ones are no faster (m)."""

RECORD_BYTES: Final = 16 * 1024
"""The most that is encrypted as one (RFC 8446 s. 5.1)."""


@final
class TlsEnd:
    """One end of a TLS connection.

    Args:
        context: what it demands and presents.
        server_hostname: whom it is a client of; None: it is a server.

    Every call may raise `ssl.SSLError` or `ssl.CertificateError`: then the connection is over, and an alert that says
    why may have to be sent still (`take_outgoing`). TLS 1.3 is spoken; of older versions, renegotiation is not, which
    ends the connection.
    """

    def __init__(self, context: ssl.SSLContext, *, server_hostname: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._end = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
        )
        self._outcome: ssl.SSLError | None = None  # how what the peer says has ended, if it has

    def shake_hands(self) -> bool:
        """Get on with the handshake; whether it is over. Either way something may have to be sent."""
        try:
            self._end.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def feed(self, data: bytes) -> None:
        """Take what came from the peer; b"" is its end."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    @property
    def has_more(self) -> bool:
        """Something was fed that `decrypt` has not looked at."""
        return bool(self._incoming.pending or self._end.pending() or self._outcome)

    def decrypt(self, max_bytes: int) -> list[bytes] | None:
        """Up to so many bytes of what was fed, in pieces; None: there is no whole record; no piece: the peer has ended.

        It may have ended without saying so: whether anything is missing is told by what TLS carries (as in HTTPS).
        """
        parts: list[bytes] = []
        left = max_bytes
        if self._outcome is None:
            read = self._end.read
            try:
                while left > 0:
                    size = RECORD_BYTES if left > RECORD_BYTES else left
                    part = read(size)
                    if not part:
                        raise ssl.SSLZeroReturnError("the peer has ended")
                    parts.append(part)
                    count = len(part)
                    left -= count
                    # (Behind a full one there mostly is another: then it isn't asked for.)
                    if count < size and not (self._incoming.pending or self._end.pending()):
                        break
            except ssl.SSLWantReadError:
                return parts or None
            except ssl.SSLError as error:
                self._outcome = error
        if self._outcome is not None and not parts and not _is_end(self._outcome):
            raise self._outcome
        return parts

    def encrypt(self, *parts: Buffer) -> list[bytes]:
        """What to send for all of them, and for what had to be sent before, in pieces."""
        write, take = self._end.write, self._outgoing.read
        *heads, data = parts
        if heads:
            head = b"".join(heads)
            first = RECORD_BYTES - len(head)
            if 0 < first < len(data):
                # One record has the head and the beginning of what is large: to join all of it would be one more copy.
                data = memoryview(data)
                write(head + data[:first])
                data = data[first:]
            else:
                data = head + data
        if len(data) <= PIECE_BYTES:
            write(data)
            return [take()]
        pieces = []
        with memoryview(data) as view:
            for start in range(0, len(view), PIECE_BYTES):
                write(view[start : start + PIECE_BYTES])
                pieces.append(take())
        return pieces

    def take_outgoing(self) -> bytes:
        """What has to be sent besides."""
        return self._outgoing.read()

    @property
    def version(self) -> str | None:
        """Of the protocol that is spoken, once the handshake is over."""
        return self._end.version()

    @property
    def peer_uri(self) -> str | None:
        """The URI in the peer's certificate, which was verified; None: it has shown none, or it names none."""
        certificate: Mapping[str, Any] = self._end.getpeercert() or {}
        for kind, value in certificate.get("subjectAltName", ()):
            if kind == "URI":
                return str(value)
        return None

    @property
    def peer_certificate(self) -> bytes:
        """The peer's certificate, in DER, verified or not; b"": it has shown none."""
        return self._end.getpeercert(binary_form=True) or b""


def _is_end(error: ssl.SSLError) -> bool:
    """It says no more than that the peer has ended (in two ways, as OpenSSL's versions go)."""
    return isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) or (
        error.reason == "UNEXPECTED_EOF_WHILE_READING"
    )
