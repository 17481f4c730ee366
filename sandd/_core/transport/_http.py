"""What the server's port says to a request: a WebSocket, or a sentence about what it does speak.

Requests are parsed here rather than by trio-websocket, which answers a stray browser or health
check with a bare 400 or not at all, and leaves its task behind. No I/O.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import h11
from attrs import field, frozen
from wsproto.utilities import RemoteProtocolError as WsprotoError
from wsproto.utilities import split_comma_header

if TYPE_CHECKING:
    from collections.abc import Collection

    from sandd._core.transport._protocol import GuardedProtocol

MAX_REASON: Final = 200
"""Characters; reasons quote what the peer sent, which may be a head of 16 KiB."""

_OF_PROXIES: Final = (b"forwarded", b"x-forwarded-for", b"via", b"x-real-ip")
"""What only a proxy says (RFC 7239, and what came before it)."""

_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
"""Names, addresses, and a port. What it stands in is run: it has nothing that means something else there."""

_TLS_HELLO: Final = 0x16
"""First byte of a TLS handshake (RFC 8446 s. 5.1), which no HTTP request begins with."""


BUNDLE_PATH: Final = "/ca.pem"
"""Where a server whose CA is its own has the certificates that its peers are to trust. Who reads them without trust in
them yet knows what they are by a pin."""

BUNDLE_HEADER: Final = b"sandd-ca"
"""In the answer to an upgrade: the digest of what is there now, so that peers needn't look in vain."""


def _shortened(reason: str) -> str:
    return reason[:MAX_REASON]


@frozen
class Refusal:
    """An HTTP error to answer with, and why, for the peer and our log alike."""

    status: int
    """0: not worth an answer."""
    reason: str = field(converter=_shortened)
    headers: tuple[tuple[str, str], ...] = ()


@frozen
class Document:
    """What a request without a WebSocket asks for, and gets."""

    body: bytes
    content_type: str = "application/x-pem-file"


@frozen
class Question:
    """A request for what is found, or made, when it is asked for."""

    path: str
    host: str
    """HOST or HOST:PORT by which the server was found, with no other characters than those have in a URL."""
    is_private: bool
    """Nobody on the way can have changed it, or will what it is answered."""


@frozen
class Upgrade:
    """A request that may become a WebSocket connection."""

    path: str
    headers: list[tuple[bytes, bytes]]


class RequestReader:
    """Reads one HTTP request and judges it: feed bytes until a verdict comes.

    Args:
        protocol: what will speak WebSocket if the request is an upgrade; it checks the handshake.
        paths: where the WebSockets are; the first is the one to be told of.
        subprotocol: the one that must be among those offered.
        secure: whether TLS is below; for the sentence only.
        bundle: what is at `BUNDLE_PATH`; nothing, where it is empty.
        documents: where there is more to ask for.
        own_names: what this machine is called, besides its loopback addresses, where the peer is on it; None: it isn't.
    """

    def __init__(
        self,
        protocol: GuardedProtocol,
        *,
        paths: tuple[str, ...],
        subprotocol: str,
        secure: bool,
        bundle: bytes = b"",
        documents: Collection[str] = (),
        own_names: Collection[str] | None = None,
    ) -> None:
        self._documents = documents
        self._is_private = secure or own_names is not None
        self._own_names = own_names
        self._bundle = bundle
        self._http = protocol.http  # bounds the head at 16 KiB by itself
        self._protocol = protocol
        self._paths = paths
        self._subprotocol = subprotocol
        self._spoken = (
            f"This port speaks WebSocket{' over TLS (wss)' if secure else ''},"
            f" subprotocol {subprotocol}, at {paths[0]}"
        )
        self._bytes_seen = 0
        self._wants_body = True

    def feed(self, data: bytes) -> Upgrade | Question | Document | Refusal | None:
        """The verdict, or None: more bytes are needed. `b""` means there are no more."""
        if not data and not self._bytes_seen:
            return Refusal(0, "connected and left without a word")
        if not self._bytes_seen and data[0] == _TLS_HELLO:
            return Refusal(400, "spoke TLS to a port that does not")
        self._bytes_seen += len(data)
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
        except h11.RemoteProtocolError as exc:
            return Refusal(exc.error_status_hint, f"not an HTTP request: {exc}")
        if event is h11.NEED_DATA:
            return None
        if isinstance(event, h11.Request):
            return self._judge(event)
        return Refusal(0, "left in the middle of its request")

    def render(self, answer: Refusal | Document) -> bytes:
        """The answer as an HTTP response; nothing, where nobody would read it."""
        if isinstance(answer, Document):
            return self._render(200, answer.content_type, answer.body)
        if self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE} or not answer.status:
            return b""
        body = f"{answer.reason}.\n{self._spoken}\n".encode()
        return self._render(answer.status, "text/plain; charset=utf-8", body, answer.headers)

    def _render(
        self, status: int, content_type: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()
    ) -> bytes:
        head = h11.Response(
            status_code=status,
            headers=[
                ("Content-Type", content_type),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
                *headers,
            ],
        )
        if not self._wants_body:  # h11 would refuse to send one
            return self._http.send(head) or b""
        parts = [self._http.send(part) for part in (head, h11.Data(body), h11.EndOfMessage())]
        return b"".join(part for part in parts if part)

    def _judge(self, request: h11.Request) -> Upgrade | Question | Document | Refusal:
        self._wants_body = request.method != b"HEAD"
        headers = list(request.headers)
        path = request.target.decode("ascii").partition("?")[0]
        is_bundle = path == BUNDLE_PATH and bool(self._bundle)
        if is_bundle or path in self._documents:
            if request.method not in (b"GET", b"HEAD"):
                return Refusal(405, f"{path} can only be read", (("Allow", "GET, HEAD"),))
            if is_bundle:
                return Document(self._bundle)
            host = dict(headers).get(b"host", b"").decode("latin-1")
            if _HOST.fullmatch(host) is None:
                return Refusal(400, "the Host that was asked for can't stand in a URL")
            return Question(path, host, self._is_private)
        if path not in self._paths:
            return Refusal(404, f"there is nothing at {path}")
        if any(name == b"origin" for name, _ in headers):
            # No daemon sends one, and every browser does: a web page shall not be a daemon.
            return Refusal(403, "browsers are not served here")
        try:
            if not _lists(headers, b"upgrade", "websocket"):
                return Refusal(426, "not a WebSocket handshake", (("Upgrade", "websocket"),))
            if not _lists(headers, b"sec-websocket-protocol", self._subprotocol):
                return Refusal(400, "the handshake offers no subprotocol that is spoken here")
            if self._http.trailing_data[0]:
                # RFC 6455 s. 4.1 has the client wait for our answer; wsproto would lose the bytes.
                return Refusal(400, "the handshake is followed by bytes before its answer")
            self._protocol.read_request(request)
        except WsprotoError as exc:
            hint = exc.event_hint
            status = getattr(hint, "status_code", 400)
            version = (("Sec-WebSocket-Version", "13"),) if status == 426 else ()
            return Refusal(status, f"a faulty WebSocket handshake: {exc}", version)
        except UnicodeError as exc:
            return Refusal(400, f"a faulty WebSocket handshake: {exc}")
        if self._own_names is not None and not _is_meant(headers, self._own_names):
            return Refusal(
                403,
                "the Host that was asked for is not this machine: a proxy that passes on another has to say so, by "
                "Forwarded or X-Forwarded-For",
            )
        return Upgrade(path, headers)


def _is_meant(headers: list[tuple[bytes, bytes]], own_names: Collection[str]) -> bool:
    """Whether the Host is this machine, or a proxy speaks for somebody elsewhere.

    A name that leads to loopback and is none of ours is how a web page has its browser reach what listens there (DNS
    rebinding). A page can't make a browser say what proxies say.
    """
    given = dict(headers)
    if any(name in given for name in _OF_PROXIES):
        return True
    try:
        name = urlsplit(f"//{given.get(b'host', b'').decode('latin-1').lower()}").hostname or ""
        if name == "localhost" or name.endswith(".localhost") or name in own_names:
            return True
        address = ip_address(name)
    except ValueError:  # no address, or not even a host
        return False
    return address.is_loopback or address.is_unspecified  # the latter leads to the former


def _lists(headers: list[tuple[bytes, bytes]], name: bytes, wanted: str) -> bool:
    """Whether the comma-separated header `name` has `wanted` in it."""
    return any(
        wanted in (split_comma_header(value.lower() if name == b"upgrade" else value))
        for header, value in headers
        if header == name
    )
