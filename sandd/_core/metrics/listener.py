"""Answers requests for figures, on a listener of its own: HTTP/1.1, one request a connection, everything bounded.

Whoever is slow here, or comes in numbers, has a few places to itself, and costs nobody else anything: what is shown is
read in one turn, and put into words in a thread, at most `1 / FRESH_SECONDS` times a second.
"""

from __future__ import annotations

import os
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11
import trio
from attrs import define, field

from sandd._core._errors import ConfigurationError
from sandd._core.logs import get_logger
from sandd._core.metrics.exposition import CONTENT_TYPE, load_exposition
from sandd._core.metrics.http_answers import Answer, Page, Wanted, health

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandd._core.metrics.catalogue import Reading
    from sandd._core.metrics.http_answers import MetricsAddress

log = get_logger("metrics")

MOST_CONNECTIONS: Final = 32
"""At once: two recorders, some probes, and those who hang. When one more comes, the oldest makes way."""
MAX_HEAD_BYTES: Final = 8 * 1024
"""Of a request; a recorder's has some 400."""
REQUEST_SECONDS: Final = 10.0
"""For a connection, from its first byte to our last: Prometheus gives up after ten."""
LINGER_SECONDS: Final = 1.0
"""For the peer to take the answer before the socket is closed: with something unread, that would cut the answer."""
LINGER_BYTES: Final = 64 * 1024
"""Of what it still sends: then it is cut."""
READ_BYTES: Final = 4096
FRESH_SECONDS: Final = 0.1
"""A page is good for so long: however many ask, it is made ten times a second at most."""
FRESH_SHARE: Final = 20.0
"""And for so many times what it took to make, which with 200 tenants is some 40 ms: so those who ask, however many,
cost a twentieth of a processor."""


@define(eq=False)
class Pages:
    """What there is to be had."""

    read: Callable[[], list[Reading]]
    """The figures of this moment."""
    why_not_ready: Callable[[], Awaitable[str | None]]
    """None: it is; bounded."""
    _render: Callable[[list[Reading]], bytes] | None = None
    _latest: Answer | None = None
    _fresh_until: float = 0.0
    _one_at_a_time: trio.Lock = field(factory=trio.Lock)

    async def load(self) -> None:
        """Be able to show figures. ConfigurationError if that can't be."""
        self._render = await trio.to_thread.run_sync(load_exposition)

    async def answer(self, wanted: Wanted) -> Answer:
        """The page."""
        match wanted.page:
            case Page.METRICS:
                return await self._metrics()
            case Page.HEALTH:
                return health(wanted, None)  # the loop has come to this
            case Page.READINESS:
                return health(wanted, await self.why_not_ready())

    async def _metrics(self) -> Answer:
        async with self._one_at_a_time:
            now = trio.current_time()
            if self._latest is not None and now < self._fresh_until:
                return self._latest
            assert self._render is not None  # the listener has seen to it
            text, cost = await trio.to_thread.run_sync(_timed, self._render, self.read())
            self._latest = Answer(200, text, CONTENT_TYPE)
            self._fresh_until = now + max(FRESH_SECONDS, cost * FRESH_SHARE)
            return self._latest


def _timed(
    render: Callable[[list[Reading]], bytes], readings: list[Reading]
) -> tuple[bytes, float]:
    """The page, and the seconds of processor that it took."""
    began = time.thread_time()
    return render(readings), time.thread_time() - began


async def serve_pages(
    pages: Pages,
    address: MetricsAddress,
    *,
    task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until cancelled; starts with the host and the real port.

    Raises:
        ConfigurationError: the address can't be listened on, or figures can't be shown.
    """
    await pages.load()
    try:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as error:
        number = error.errno or 0
        why = os.strerror(number) if number > 0 else error.strerror or error
        raise ConfigurationError(f"can't serve metrics on {address}: {why}") from error
    host, port = listeners[0].socket.getsockname()[:2]
    desk = _Desk(pages, address)
    log.info("metrics_served", address=f"{host}:{port}")
    async with trio.open_nursery() as nursery:
        task_status.started((host, port))
        await trio.serve_listeners(desk.handle, listeners, handler_nursery=nursery)


@define(eq=False)
class _Desk:
    """The connections there are."""

    pages: Pages
    address: MetricsAddress
    _scopes: dict[trio.CancelScope, None] = field(factory=dict)
    """One for each, the oldest first."""

    @trio.lowlevel.enable_ki_protection
    async def handle(self, stream: trio.SocketStream) -> None:
        """One connection. Nothing that happens on it is anybody else's business."""
        with trio.move_on_after(REQUEST_SECONDS) as scope:
            self._scopes[scope] = None
            if len(self._scopes) > MOST_CONNECTIONS:
                # Once: else all that come until it has gone would have nobody else make way.
                oldest = next(iter(self._scopes))
                del self._scopes[oldest]
                oldest.cancel()
            try:
                await self._serve(stream)
            except trio.BrokenResourceError:
                pass  # it went away, which it may
            except Exception:
                log.exception("request_failed_inside")
            finally:
                self._scopes.pop(scope, None)
                await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        is_head = False
        try:
            request = await _receive_request(http, stream)
            if request is None:
                return
            is_head = request.method == b"HEAD"
            answer = self.address.judge(request.method, request.target, request.headers)
            if isinstance(answer, Wanted):
                answer = await self.pages.answer(answer)
        except h11.RemoteProtocolError as error:
            answer = Answer(error.error_status_hint, b"that is no request that can be answered\n")
        await stream.send_all(_encode(http, answer, is_head=is_head))
        await _see_off(stream)


async def _receive_request(http: h11.Connection, stream: trio.SocketStream) -> h11.Request | None:
    """The first request; None: there is none, and won't be."""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some(READ_BYTES))
        elif isinstance(event, h11.Request):
            return event
        else:
            return None


def _encode(http: h11.Connection, answer: Answer, *, is_head: bool) -> bytes:
    """The bytes of the response; to HEAD without its body, to which its length belongs all the same."""
    headers = [
        ("Date", formatdate(usegmt=True)),
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *answer.headers,
    ]
    status = HTTPStatus(answer.status)
    response = h11.Response(status_code=status, reason=status.phrase.encode(), headers=headers)
    said = http.send(response) or b""
    if not is_head:
        said += http.send(h11.Data(answer.body)) or b""
    return said + (http.send(h11.EndOfMessage()) or b"")


async def _see_off(stream: trio.SocketStream) -> None:
    """Let the peer have all of the answer."""
    with trio.move_on_after(LINGER_SECONDS):
        await stream.send_eof()
        left = LINGER_BYTES
        while left > 0 and (piece := await stream.receive_some(READ_BYTES)):
            left -= len(piece)
