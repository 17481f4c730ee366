"""`serve`: an accept loop that nothing a peer or a handler does can end."""

from __future__ import annotations

import errno
import math
import socket
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import define, field, frozen
from wsproto import ConnectionType

from sandd._core._errors import ConfigurationError, ConnectionLost, RemoteProtocolError
from sandd._core.admission import Place
from sandd._core.logs import get_logger
from sandd._core.rate_limits.networks import network_of
from sandd._core.transport._connection import Connection
from sandd._core.transport._http import (
    BUNDLE_HEADER,
    Document,
    Question,
    Refusal,
    RequestReader,
    Upgrade,
)
from sandd._core.transport._places import HandshakePlaces, Hearing
from sandd._core.transport._protocol import GuardedProtocol
from sandd._core.transport._resting import open_resting_place
from sandd._core.transport._secure_stream import SecureStream, spoke_http
from sandd._core.transport._streams import Address, MeteredStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator

    from sandd._core.admission import Admission
    from sandd._core.tls.contexts import ServerTls
    from sandd._core.transport._places import Place as HandshakePlace
    from sandd._core.transport._resting import RestingPlace

CLOSE_TIMEOUT: Final = 2.0
"""Seconds a peer gets to answer our goodbye."""

LINGER_TIMEOUT: Final = 1.0
"""Seconds a refused peer gets to read why. Closing with its bytes unread would reset the connection
and throw our answer away."""

DOCUMENT_SECONDS: Final = 60.0
"""For making a document, and for a peer to take it: 0.7 MB, on a line of 100 kbit/s."""

MAX_DOCUMENTS: Final = 16
"""Under way at a time. They have no handshake's place, which others may need: who is slow holds up documents alone."""

ACCEPT_PAUSE: Final = 0.1
"""Seconds without accepting once the system is out of descriptors or memory (as in trio)."""

CERTIFICATE_REQUIRED: Final = Refusal(
    403, "a client certificate is required here: --client-cert, made by 'sandd ca issue'"
)

log = get_logger("transport")


class Documents(Protocol):
    """What a server has for requests that are not for a WebSocket."""

    @property
    def paths(self) -> Collection[str]:
        """Where."""

    async def answer(self, question: Question) -> Document | Refusal:
        """What is there for this one; cancelled if that takes longer than `DOCUMENT_SECONDS`."""


@frozen
class ListenAddress:
    """Where a server listens; `port` is the real one."""

    host: str
    port: int


@trio.lowlevel.enable_ki_protection
async def serve(
    handler: Callable[[Connection], Awaitable[Callable[[], Awaitable[None]] | None]],
    *,
    host: str,
    port: int,
    paths: Collection[str] = ("/ws",),
    subprotocol: str,
    max_message_bytes: int,
    handshake_timeout: float = 10.0,
    max_connections: int = 16384,
    max_handshakes: int = 256,
    admission: Admission | None = None,
    until_admitted: bool = False,
    rest_seconds: float = 0.0,
    barred_for: Callable[[str, str], float] = lambda _host, _path: 0.0,
    tls: Callable[[], ServerTls | None] = lambda: None,
    documents: Documents | None = None,
    task_status: trio.TaskStatus[list[ListenAddress]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `handler` for each WebSocket connection, until cancelled.

    No exception of a connection or its handler leaves that connection: it is closed, with 1011 if
    the handler failed, and logged. permessage-deflate is not accepted. When cancelled, nothing more
    is accepted, handlers are cancelled, and every peer is told 1001, all at once and within 2 s.

    Args:
        handler: gets each connection; when it returns, and what it may have returned has been called and has ended,
            the connection is closed. So nothing of a handler need stay that only greets.
        host: an address or a name; ``""`` is every address of this machine.
        port: 0 picks a free one, the same for all addresses.
        paths: where the WebSockets are (`Connection.path` tells them apart); anything else is 404.
        subprotocol: the one a client must offer.
        max_message_bytes: a longer message ends its connection with 1009.
        handshake_timeout: seconds from accept to open, TLS included; the wait for its place is not.
        max_connections: open at a time; one more is answered 503.
        max_handshakes: under way at a time; more wait in the system's queue, until one of these has
            to make way: see `_places`.
        admission: who asks for a WebSocket waits for its place, or is answered 503 with a
            Retry-After; None: everybody comes in at once.
        until_admitted: a handshake is over when the handler calls `Connection.admit`, not before. Then handlers
            speak first, and read all the time: while they don't, nobody notices what their peer does.
        rest_seconds: so much later may be heard what peers say of whom nothing is expected (`Connection.rest`); 0.0:
            not at all. Then each costs less, but on Linux alone.
        barred_for: of a host and a path: seconds for which it isn't heard there, and answered 429 with a
            Retry-After; 0.0: it is heard.
        tls: asked at the beginning of each connection what to present to it; None: no TLS.
        documents: what else there is to read here, by HTTP.
        task_status: gets the addresses once they take connections.

    Raises:
        OSError: listening failed.
        ConfigurationError: no such port can be.
    """
    listeners = await _listen(host, port)
    server = _Server(
        handler=handler,
        paths=tuple(paths),
        subprotocol=subprotocol,
        max_message_bytes=max_message_bytes,
        handshake_timeout=handshake_timeout,
        max_connections=max_connections,
        places=HandshakePlaces(max_handshakes),
        admission=admission,
        until_admitted=until_admitted,
        barred_for=barred_for,
        tls=tls,
        documents=documents,
        resting_place=open_resting_place(rest_seconds) if until_admitted and rest_seconds else None,
    )
    async with trio.open_nursery() as nursery:
        if server.resting_place is not None:
            nursery.start_soon(server.resting_place.run)
        for listener in listeners:
            nursery.start_soon(server.accept_loop, listener, nursery)
        names = (listener.socket.getsockname() for listener in listeners)
        task_status.started([ListenAddress(name[0], name[1]) for name in names])


@define(eq=False)
class _Server:
    handler: Callable[[Connection], Awaitable[Callable[[], Awaitable[None]] | None]]
    paths: tuple[str, ...]
    subprotocol: str
    max_message_bytes: int
    handshake_timeout: float
    max_connections: int
    places: HandshakePlaces
    admission: Admission | None
    until_admitted: bool
    barred_for: Callable[[str, str], float]
    tls: Callable[[], ServerTls | None]
    documents: Documents | None = None
    resting_place: RestingPlace | None = None
    open_documents: int = field(default=0, init=False)
    open_connections: int = field(default=0, init=False)
    """Those that wait for their place included."""

    @trio.lowlevel.enable_ki_protection
    async def accept_loop(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        with listener.socket:  # closed at once when cancelled, before the goodbyes
            in_trouble = False
            while True:
                try:
                    tcp = await listener.accept()
                except OSError as exc:
                    # Out of descriptors (EMFILE, ENFILE) or memory. Whatever it is, those who are
                    # connected are better served by a loop that goes on.
                    if not in_trouble:
                        log.error("accept_failed", error=str(exc), retry_after=ACCEPT_PAUSE)
                    in_trouble = True
                    await trio.sleep(ACCEPT_PAUSE)
                    continue
                in_trouble = False
                try:
                    network = network_of(tcp.socket.getpeername()[0])
                except OSError:  # it is gone already
                    tcp.socket.close()
                    continue
                try:
                    # After accept, not before: a listener that only waits must not hold a place
                    # that another one needs.
                    place = await self.places.take(network)
                except BaseException:
                    tcp.socket.close()
                    raise
                nursery.start_soon(self.run_connection, tcp, place, nursery)

    @trio.lowlevel.enable_ki_protection
    async def run_connection(
        self, tcp: trio.SocketStream, place: HandshakePlace, nursery: trio.Nursery
    ) -> None:
        hearing = Hearing(self.places, place)
        try:
            connection = await self.shake_hands(tcp, hearing)
            if connection is None:
                return
            try:
                if self.until_admitted:
                    connection.on_admitted = hearing.end
                else:
                    hearing.end()
                connection.start(nursery, quietly=self.until_admitted)
                await self.run_handler(connection, hearing)
            finally:
                self.open_connections -= 1
        finally:
            hearing.end()

    async def shake_hands(self, tcp: trio.SocketStream, hearing: Hearing) -> Connection | None:
        """The connection; None if there is none: then the socket is closed and it was logged."""
        remote = "?"
        try:
            meter = MeteredStream(tcp)
            meter.resting_place = self.resting_place
            remote = str(meter.remote)
            with trio.move_on_after(self.handshake_timeout) as deadline:
                return await self._shake_hands(meter, hearing, deadline)
            log.info("handshake_timed_out", remote=remote, timeout=self.handshake_timeout)
        except (trio.BrokenResourceError, ConnectionLost, OSError) as exc:
            log.info("handshake_failed", remote=remote, reason=str(exc.__cause__ or exc))
        except Exception:
            log.exception("handshake_failed_inside", remote=remote)
        return None

    async def _shake_hands(
        self, meter: MeteredStream, hearing: Hearing, deadline: trio.CancelScope
    ) -> Connection | None:
        counted = accepted = False
        presented = self.tls()
        try:
            protocol = GuardedProtocol(
                ConnectionType.SERVER, max_message_bytes=self.max_message_bytes
            )
            reader = RequestReader(
                protocol,
                paths=self.paths,
                subprotocol=self.subprotocol,
                secure=presented is not None,
                bundle=b"" if presented is None else presented.bundle,
                documents=() if self.documents is None else self.documents.paths,
                own_names=_own_names() if meter.local.is_loopback else None,
            )
            with hearing.listen() as unheard:
                stream, verdict = await self._hear_request(meter, reader, presented)
            if unheard.cancelled_caught:
                raise ConnectionLost(
                    "it was slow to say what it wants, and had to make way for others"
                )
            wait = 0.0
            identity = stream.peer_uri if isinstance(stream, SecureStream) else None
            if isinstance(verdict, (Upgrade, Question)):
                if presented is not None and presented.requires_certificate and identity is None:
                    verdict = CERTIFICATE_REQUIRED
                elif isinstance(verdict, Question):
                    hearing.end()
                    deadline.deadline = trio.current_time() + DOCUMENT_SECONDS
                    await self._hand_out(verdict, stream, meter, reader)
                    return None
                else:
                    wait, refusal = self._find_place(meter.remote.host, verdict.path)
                    verdict = refusal or verdict
            if not isinstance(verdict, Upgrade):
                await _answer(stream, meter, reader, verdict)
                return None
            self.open_connections += 1  # before the next await: another handshake looks at it
            counted = True
            if wait:
                deadline.deadline += wait
                await hearing.interrupt(wait)
            connection = Connection(
                meter,
                stream,
                protocol,
                path=verdict.path,
                subprotocol=self.subprotocol,
                request_headers=verdict.headers,
                channel_binding=b"" if presented is None else presented.channel_binding,
                peer_identity=identity,
            )
            headers = []
            if presented is not None and presented.bundle:
                headers.append((BUNDLE_HEADER, presented.bundle_digest.encode()))
            await connection.accept(self.subprotocol, headers, speaks_first=self.until_admitted)
            accepted = True
            return connection
        finally:
            if not accepted:
                self.open_connections -= counted
                meter.close()

    async def _hear_request(
        self, meter: MeteredStream, reader: RequestReader, presented: ServerTls | None
    ) -> tuple[MeteredStream | SecureStream, Upgrade | Question | Document | Refusal]:
        """TLS if there is any, and what the peer asks for, judged."""
        stream: MeteredStream | SecureStream = meter
        if presented is not None:
            stream = SecureStream(meter, presented.context)
            try:
                await stream.do_handshake()
            except trio.BrokenResourceError as exc:
                if not spoke_http(exc):
                    raise
                return meter, Refusal(400, "spoke plain HTTP to a port that wants TLS")
        while (verdict := reader.feed(bytes(await stream.receive_some()))) is None:
            pass
        return stream, verdict

    async def _hand_out(
        self,
        question: Question,
        stream: trio.abc.Stream,
        meter: MeteredStream,
        reader: RequestReader,
    ) -> None:
        assert self.documents is not None  # or there was no question
        refusal = self._bar(meter.remote.host, self.paths[0])
        if refusal is None and self.open_documents >= MAX_DOCUMENTS:
            refusal = Refusal(503, "too many are reading", (("Retry-After", "10"),))
        if refusal is not None:
            await _answer(stream, meter, reader, refusal)
            return
        self.open_documents += 1
        try:
            answer = await self.documents.answer(question)
            await _answer(stream, meter, reader, answer, patience=DOCUMENT_SECONDS)
        finally:
            self.open_documents -= 1
        if isinstance(answer, Document):
            log.info("document_handed_out", remote=str(meter.remote), path=question.path)

    def _bar(self, host: str, path: str) -> Refusal | None:
        barred = self.barred_for(host, path)
        if barred <= 0.0:
            return None
        why = "too many credentials from this address were wrong"
        return Refusal(429, why, _retry_after(barred))

    def _find_place(self, host: str, path: str) -> tuple[float, Refusal | None]:
        """Seconds until there is a place for one more WebSocket, or why there is none."""
        if (refusal := self._bar(host, path)) is not None:
            return 0.0, refusal
        if self.open_connections >= self.max_connections:
            return 0.0, Refusal(503, "too many connections", (("Retry-After", "10"),))
        if self.admission is None:
            return 0.0, None
        answer = self.admission.ask(trio.current_time())
        if isinstance(answer, Place):
            return answer.wait, None
        return 0.0, Refusal(503, "too many at once", _retry_after(answer.retry_after))

    async def run_handler(self, connection: Connection, hearing: Hearing) -> None:
        """Run the handler to its end, and close the connection with the code that fits that end."""
        code, reason = 1001, "the server is going away"  # the handler was cancelled
        stay = None
        try:
            try:
                with hearing.listen() as unheard:
                    stay = await self.handler(connection)
                if stay is not None:
                    staying, stay = stay(), None
                    await staying
                code, reason = 1000, ""
                if unheard.cancelled_caught:
                    log.info(
                        "handshake_failed",
                        remote=connection.remote,
                        reason="it was slow to say who it is, and had to make way for others",
                    )
                    code, reason = 1013, "others are waiting"  # "try again later" (IANA)
            except BaseExceptionGroup as group:
                failures, rest = group.split(Exception)
                if failures is not None:
                    code, reason = _close_code_for(failures, connection)
                if rest is not None:
                    raise rest from None  # cancellation, and what ends programs
            except Exception as exc:
                code, reason = _close_code_for(exc, connection)
        finally:
            await connection.aclose(code, reason, timeout=CLOSE_TIMEOUT)


def _retry_after(seconds: float) -> tuple[tuple[str, str], ...]:
    """The header: in whole seconds (RFC 9110 s. 10.2.3), and not before the time."""
    return (("Retry-After", str(math.ceil(seconds))),)


def _close_code_for(error: Exception, connection: Connection) -> tuple[int, str]:
    """How to tell the peer that its handler failed; tells the log, too."""
    leaves = list(_leaves(error))  # a handler's nursery puts what its reader raised into a group
    if all(isinstance(leaf, ConnectionLost) for leaf in leaves):
        log.debug("connection_lost", remote=connection.remote, reason=str(leaves[0]))
        return 1000, ""
    if all(isinstance(leaf, (ConnectionLost, RemoteProtocolError)) for leaf in leaves):
        breach = next(str(leaf) for leaf in leaves if isinstance(leaf, RemoteProtocolError))
        log.warning("connection_broke_rules", remote=connection.remote, reason=breach)
        return 1002, breach
    log.error("connection_handler_failed", remote=connection.remote, exc_info=error)
    return 1011, "internal error"


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _own_names() -> set[str]:
    """What this machine calls itself, and what its users may have as a name of one of its loopback addresses."""
    name = socket.gethostname().lower()
    return {name, name.partition(".")[0]}


async def _answer(
    stream: trio.abc.Stream,
    meter: MeteredStream,
    reader: RequestReader,
    answer: Document | Refusal,
    *,
    patience: float = LINGER_TIMEOUT,
) -> None:
    """Send a response, which takes `patience` at most, and wait a moment for the peer to take it and go."""
    if isinstance(answer, Refusal):
        log.info(
            "handshake_refused",
            remote=str(meter.remote),
            status=answer.status,
            reason=answer.reason,
        )
    response = reader.render(answer)
    if not response:
        return
    with trio.move_on_after(patience) as sending:
        await stream.send_all(response)
    if sending.cancelled_caught:
        return
    with trio.move_on_after(LINGER_TIMEOUT):
        if stream is meter:
            await meter.send_eof()
        while await stream.receive_some():
            pass


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    """A listener on each address that `host` has and this machine can use, all on one port.

    ``localhost`` and ``""`` stand for an IPv4 and an IPv6 address; a machine without the latter
    (many containers) is no reason to refuse.
    """
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"no port has the number {port}: it must be 0 to 65535")
    found = await trio.socket.getaddrinfo(
        host or None, port, type=trio.socket.SOCK_STREAM, flags=trio.socket.AI_PASSIVE
    )
    hosts = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    for attempts_left in reversed(range(5)):
        try:
            return await _listen_on(hosts, port)
        except OSError as exc:
            # The free port of the first address may be taken on the second one.
            if port == 0 and len(hosts) > 1 and exc.errno == errno.EADDRINUSE and attempts_left:
                continue
            raise
    raise AssertionError("the last attempt returns or raises")


async def _listen_on(hosts: list[str], port: int) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    skipped: OSError | None = None
    try:
        for host in hosts:
            try:
                listeners += await trio.open_tcp_listeners(port, host=host)
            except OSError as exc:
                if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    skipped = skipped or exc
                    continue
                raise OSError(
                    exc.errno, f"{exc.strerror or exc} (listening on {Address(host, port)})"
                ) from exc
            port = port or listeners[0].socket.getsockname()[1]
        if not listeners:
            assert skipped is not None  # getaddrinfo returns an address or raises
            raise skipped
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners
