"""`connect`: a `Connection` to a WebSocket server, or a `ConnectionLost` that says why not."""

from __future__ import annotations

import hashlib
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import h11
import idna
import trio
from attrs import frozen
from wsproto import ConnectionType
from wsproto.events import Request

from sandd._core._errors import ConfigurationError, ConnectionLost
from sandd._core.transport._connection import Connection
from sandd._core.transport._protocol import GuardedProtocol
from sandd._core.transport._secure_stream import SecureStream, why_broken
from sandd._core.transport._streams import Address, MeteredStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable


@asynccontextmanager
async def connect(
    url: str,
    *,
    subprotocol: str,
    timeout: float = 10.0,
    max_message_bytes: int,
    ssl_context: ssl.SSLContext | None = None,
    headers: Iterable[tuple[str, str]] = (),
) -> AsyncIterator[Connection]:
    """Dial `url`; leaving the block closes the connection, within 2 s whatever the peer does.

    permessage-deflate is not offered. An exception of the block comes out as itself.

    Args:
        url: ``ws://HOST[:PORT]/PATH`` or ``wss://...``.
        subprotocol: the one to offer; a server that doesn't choose it is no server of ours.
        timeout: seconds for all of it: name lookup, TCP, TLS and the WebSocket handshake.
        max_message_bytes: a longer message from the server ends the connection.
        ssl_context: for ``wss``; by default the system's certificate authorities are trusted.
        headers: added to the request.

    Raises:
        ConfigurationError: the URL or a header can't be used. Nothing was sent.
        ConnectionLost: there is no connection; the message says what was tried and what happened.
    """
    target = _Target.parse(url, ssl_context)
    raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    target.check_request(subprotocol, raw_headers)

    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            connection = await _dial(
                nursery,
                target,
                subprotocol=subprotocol,
                timeout=timeout,
                max_message_bytes=max_message_bytes,
                headers=raw_headers,
            )
            try:
                yield connection
            except BaseException:
                await connection.aclose(1001)
                raise
            else:
                await connection.aclose()
        except BaseException as exc:
            error = exc  # raised again below, where the nursery can't wrap it into a group
    if error is not None:
        try:
            raise error
        finally:
            del error  # it refers to this frame: a cycle


@frozen
class _Target:
    """A URL, taken apart and checked."""

    shown: str
    """For messages: without a query, which may hold what nobody should read."""
    host: str
    port: int
    path: str
    query: str
    ssl_context: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str, ssl_context: ssl.SSLContext | None) -> _Target:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise ConfigurationError(f"not a WebSocket URL: {url!r}: {exc}") from exc
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if parts.scheme not in ("ws", "wss"):
            raise ConfigurationError(
                f"not a WebSocket URL: {shown!r}: it must begin with ws:// or wss://"
            )
        if port == 0:
            raise ConfigurationError(f"not a WebSocket URL: {shown!r}: no port has the number 0")
        if not parts.hostname:
            raise ConfigurationError(f"not a WebSocket URL: {shown!r}: it names no host")
        if parts.username is not None or parts.fragment:
            raise ConfigurationError(
                f"a WebSocket URL has no user name, password or fragment: {shown!r}"
            )
        if parts.scheme == "ws" and ssl_context is not None:
            raise ConfigurationError(f"TLS settings were given for {shown!r}: use wss://")
        if parts.scheme == "wss" and ssl_context is None:
            ssl_context = ssl.create_default_context()
        return cls(
            shown=shown,
            host=parts.hostname,
            port=port or (443 if parts.scheme == "wss" else 80),
            path=parts.path or "/",
            query=parts.query,
            ssl_context=ssl_context,
        )

    @property
    def request_target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def tls_name(self) -> str:
        """What the server's certificate must name: what trio looks up."""
        return self.host if self.host.isascii() else idna.encode(self.host, uts46=True).decode()

    @property
    def host_header(self) -> str:
        standard = 80 if self.ssl_context is None else 443
        address = str(Address(self.host, self.port))
        return address.rpartition(":")[0] if self.port == standard else address

    def check_request(self, subprotocol: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Build the request once, for nobody: what can't be said in HTTP is found out here."""
        request = Request(
            host=self.host_header,
            target=self.request_target,
            subprotocols=[subprotocol],
            extra_headers=headers,
        )
        try:
            self.host.encode("idna")
            GuardedProtocol(ConnectionType.CLIENT, max_message_bytes=0).send(request)
        except (h11.LocalProtocolError, UnicodeError) as exc:
            raise ConfigurationError(f"no request can be made to {self.shown!r}: {exc}") from exc


async def _dial(
    nursery: trio.Nursery,
    target: _Target,
    *,
    subprotocol: str,
    timeout: float,
    max_message_bytes: int,
    headers: list[tuple[bytes, bytes]],
) -> Connection:
    tried = "TCP connection"
    meter: MeteredStream | None = None
    connection: Connection | None = None
    try:
        with trio.fail_after(timeout):
            meter = MeteredStream(await trio.open_tcp_stream(target.host, target.port))
            stream: MeteredStream | SecureStream = meter
            channel_binding = b""
            if target.ssl_context is not None:
                tried = "TLS handshake"
                stream = SecureStream(meter, target.ssl_context, server_hostname=target.tls_name)
                await stream.do_handshake()
                channel_binding = hashlib.sha256(stream.peer_certificate).digest()
            tried = "answer to the WebSocket handshake"
            connection = Connection(
                meter,
                stream,
                GuardedProtocol(ConnectionType.CLIENT, max_message_bytes=max_message_bytes),
                path=target.path,
                request_target=target.request_target,
                host=target.host_header,
                subprotocol=subprotocol,
                request_headers=headers,
                channel_binding=channel_binding,
            )
            connection.start(nursery)
            await connection.wait_answered()
            if connection.subprotocol != subprotocol:
                raise ConnectionLost(f"it speaks WebSocket, but not {subprotocol}")
            return connection
    except BaseException as exc:
        if connection is not None:
            await connection.aclose(1002, f"{subprotocol} is required", timeout=0.1)
        elif meter is not None:
            meter.close()
        if (lost := _as_lost(exc, tried, timeout, target)) is None:
            raise
        raise lost from exc


async def fetch(
    url: str, path: str, *, ssl_context: ssl.SSLContext, timeout: float = 10.0, max_bytes: int
) -> bytes:
    """What the server of a ``wss`` URL has at another path: the body of its answer to a GET.

    For what is too small, and too rarely asked for, to need an HTTP client.

    Raises:
        ConfigurationError: the URL can't be used. Nothing was sent.
        ConnectionLost: there is no such thing, or more than `max_bytes` of it, or no connection; says which.
    """
    target = _Target.parse(url, ssl_context)
    tried = "TCP connection"
    meter: MeteredStream | None = None
    try:
        with trio.fail_after(timeout):
            meter = MeteredStream(await trio.open_tcp_stream(target.host, target.port))
            tried = "TLS handshake"
            stream = SecureStream(meter, ssl_context, server_hostname=target.tls_name)
            await stream.do_handshake()
            tried = f"answer to GET {path}"
            return await _get(stream, target.host_header, path, max_bytes)
    except BaseException as exc:
        if (lost := _as_lost(exc, tried, timeout, target)) is None:
            raise
        raise lost from exc
    finally:
        if meter is not None:
            meter.close()


async def _get(stream: trio.abc.Stream, host: str, path: str, max_bytes: int) -> bytes:
    http = h11.Connection(h11.CLIENT)
    request = h11.Request(
        method="GET", target=path, headers=[("Host", host), ("Connection", "close")]
    )
    await stream.send_all((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    body = b""
    while True:
        try:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(bytes(await stream.receive_some()))
                continue
        except h11.RemoteProtocolError as exc:
            raise ConnectionLost(f"its answer to GET {path} is no HTTP ({exc})") from exc
        if isinstance(event, h11.Response) and event.status_code != 200:
            raise ConnectionLost(f"it has nothing at {path}: HTTP status {event.status_code}")
        if isinstance(event, h11.Data):
            body += event.data
            if len(body) > max_bytes:
                raise ConnectionLost(f"more than {max_bytes} bytes came for {path}")
        if isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
            return body


def _as_lost(
    error: BaseException, tried: str, timeout: float, target: _Target
) -> ConnectionLost | None:
    """Why there is no connection; None: the error is of another kind."""
    retry_after: float | None = None
    match error:
        case trio.TooSlowError():
            problem = f"no {tried} within {timeout:g} s"
        case ConnectionLost():
            problem, retry_after = str(error), error.retry_after
        case OSError():
            problem = _describe_os_error(error)
        case trio.BrokenResourceError():  # of TLS; a connection's come as ConnectionLost
            problem = f"no {tried}: {why_broken(error)}"
        case _:
            return None
    return ConnectionLost(
        f"could not connect to {target.shown}: {problem}", retry_after=retry_after
    )


def _describe_os_error(error: OSError) -> str:
    """What the system said; of several addresses tried, each different answer once."""
    if isinstance(error.__cause__, ExceptionGroup):
        each = [e for e in error.__cause__.exceptions if isinstance(e, OSError)]
        return ", ".join(dict.fromkeys(str(e.strerror or e) for e in each)) or str(error)
    return str(error.strerror or error)
