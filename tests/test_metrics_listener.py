"""Figures over HTTP: who asks in whatever way gets an answer or nothing, and disturbs nobody."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from metrics_client import ask, connect
from peers import receive_all
from process_tools import until

from sandd._core._errors import ConfigurationError
from sandd._core.metrics import listener
from sandd._core.metrics.catalogue import OPERATORS, Reading, one
from sandd._core.metrics.http_answers import MetricsAddress
from sandd._core.metrics.listener import Pages, serve_pages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Program:
    """Whose figures they are."""

    def __init__(self) -> None:
        self.reads = 0
        self.problem: str | None = None

    def read(self) -> list[Reading]:
        """How often this was called."""
        self.reads += 1
        return [one(OPERATORS, self.reads)]

    async def why_not_ready(self) -> str | None:
        """What the test says."""
        await trio.lowlevel.checkpoint()
        return self.problem


@asynccontextmanager
async def served(program: Program | None = None, token: bytes | None = None) -> AsyncIterator[str]:
    """The address where they are to be had."""
    program = Program() if program is None else program
    pages = Pages(program.read, program.why_not_ready)
    async with trio.open_nursery() as nursery:
        address = MetricsAddress("127.0.0.1", 0, token)
        host, port = await nursery.start(partial(serve_pages, pages, address))
        yield f"{host}:{port}"
        nursery.cancel_scope.cancel()


async def say(address: str, *pieces: bytes) -> bytes:
    """All that comes back when this was said."""
    async with await connect(address) as stream:
        for piece in pieces:
            await stream.send_all(piece)
        return await receive_all(stream)


async def test_figures_are_to_be_had() -> None:
    """In Prometheus' text, of this moment, and not to be kept."""
    async with served() as address:
        answer = await ask(address)
    assert (answer.status, answer.value("sandd_controller_operators")) == (200, 1)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["connection"] == "close"
    assert answer.headers["date"].endswith("GMT")


async def test_head_has_the_length_and_no_body() -> None:
    """As of the page that GET gets."""
    async with served() as address:
        head = await say(address, GET.replace(b"GET", b"HEAD"))
        health = await say(address, b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert b"Content-Length: 3\r\n" in health
    assert health.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 404),
        ("/metrics", "POST", 405),
        ("/metrics", "GET", 401),
        ("/healthz", "GET", 200),
    ],
)
async def test_each_request_has_its_status(path: str, method: str, status: int) -> None:
    """And a body that says what there would be."""
    async with served(token=b"secret") as address:
        answer = await ask(address, path, method=method)
        assert (answer.status, bool(answer.body)) == (status, True)
        granted = await ask(address, headers=[("Authorization", "Bearer secret")])
        assert granted.status == 200


async def test_readiness_is_what_the_program_says() -> None:
    """503 with the reason, which only who has the token is told."""
    program = Program()
    program.problem = "the disk is full"
    async with served(program, b"secret") as address:
        told = await ask(address, "/readyz", headers=[("Authorization", "Bearer secret")])
        assert (told.status, told.body) == (503, b"not ready: the disk is full\n")
        assert (await ask(address, "/readyz")).body == b"not ready\n"
        program.problem = None
        assert (await ask(address, "/readyz")).status == 200


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20) + b"\r\n\r\n",
            b"400 Bad Request",
        ),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"GET /" + b"x" * 20_000, b"431 Request Header Fields Too Large"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5_000, b"431 Request Header Fields Too Large"),
    ],
    ids=["nonsense", "tls", "no-host", "long-path", "many-headers"],
)
async def test_what_is_no_request_has_an_answer(said: bytes, status: bytes) -> None:
    """A bounded part of it is read."""
    async with served() as address:
        assert (await say(address, said)).startswith(b"HTTP/1.1 " + status)
        assert (await ask(address)).status == 200


async def test_one_request_a_connection() -> None:
    """What follows is not answered, and doesn't cut the answer to the first; nor does a body."""
    async with served() as address:
        assert (await say(address, GET + GET)).count(b"HTTP/1.1") == 1
        post = b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000\r\n\r\n"
        # More than is read before the answer: were it still unread at the end, that would be a reset.
        assert (await say(address, post + bytes(20_000))).startswith(b"HTTP/1.1 405")


async def test_a_request_may_come_in_pieces() -> None:
    """A byte at a time."""
    async with served() as address:
        assert b" 200 OK" in await say(address, *(GET[i : i + 1] for i in range(len(GET))))


async def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection ends, without an answer; and so does that of who goes away."""
    monkeypatch.setattr(listener, "REQUEST_SECONDS", 0.1)
    async with served() as address:
        assert await say(address) == b""
        assert await say(address, GET[:20]) == b""
        (await connect(address)).socket.close()
        monkeypatch.undo()
        assert (await ask(address)).status == 200


async def test_the_oldest_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever hangs there in numbers keeps out nobody who has something to say."""
    monkeypatch.setattr(listener, "MOST_CONNECTIONS", 4)
    monkeypatch.setattr(listener, "REQUEST_SECONDS", 3600.0)
    async with served() as address:
        silent = [await connect(address) for _ in range(12)]
        try:
            assert (await ask(address)).status == 200
            with trio.fail_after(60):
                assert await silent[0].receive_some() == b""
        finally:
            for stream in silent:
                await stream.aclose()


async def test_one_that_can_not_go_at_once_makes_way_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile the next ones have to, or there would be as many as come."""
    monkeypatch.setattr(listener, "MOST_CONNECTIONS", 2)
    monkeypatch.setattr(listener, "REQUEST_SECONDS", 3600.0)
    asked, answered = trio.Event(), trio.Event()

    async def why_not_ready() -> str | None:
        asked.set()
        with trio.CancelScope(shield=True):
            await answered.wait()
        return None

    program = Program()
    monkeypatch.setattr(program, "why_not_ready", why_not_ready)
    async with served(program) as address, await connect(address) as slow:
        await slow.send_all(GET.replace(b"metrics", b"readyz"))
        await asked.wait()
        silent = [await connect(address) for _ in range(6)]
        try:
            with trio.fail_after(60):
                for stream in silent[:4]:
                    assert await stream.receive_some() == b""
        finally:
            answered.set()
            for stream in silent:
                await stream.aclose()


async def test_who_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that isn't taken is given up, and others have theirs meanwhile."""
    monkeypatch.setattr(listener, "REQUEST_SECONDS", 2.0)
    pages_read = Program()

    def large() -> list[Reading]:
        pages_read.reads += 1
        metric = OPERATORS
        return [Reading(metric, {(): 1})] * 50_000  # some megabytes: more than sockets hold

    pages_read.read = large  # type: ignore[method-assign]
    async with served(pages_read) as address:
        async with await connect(address) as deaf:
            await deaf.send_all(GET)
            await until(lambda: pages_read.reads)
            assert (await ask(address, "/healthz")).status == 200
            await until(lambda: _is_cut(deaf), within=60)


def _is_cut(stream: trio.SocketStream) -> bool:
    """The other side has closed it: it takes nothing more."""
    try:
        stream.socket._sock.send(b"x")  # type: ignore[attr-defined]
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


@pytest.mark.parametrize(("name", "value"), [("FRESH_SECONDS", 60.0), ("FRESH_SHARE", 1e9)])
async def test_however_many_ask_the_page_is_made_once(
    name: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a tenth of a second, or a multiple of what it costs."""
    monkeypatch.setattr(listener, name, value)
    program = Program()
    async with served(program) as address, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask, address)
    assert program.reads == 1


async def test_a_mistake_costs_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails inside is logged, and the next one is answered."""
    program = Program()

    def fail() -> list[Reading]:
        monkeypatch.undo()
        raise RuntimeError("a mistake")

    monkeypatch.setattr(program, "read", fail)
    async with served(program) as address:
        assert await say(address, GET) == b""
        assert (await ask(address, "/healthz")).status == 200


async def test_an_address_that_is_taken_is_said_so() -> None:
    """In one line."""
    async with served() as address:
        taken = MetricsAddress("127.0.0.1", int(address.rpartition(":")[2]))
        program = Program()
        with pytest.raises(
            ConfigurationError, match=r"can't serve metrics on 127\.0\.0\.1:\d+: Addr"
        ):
            await serve_pages(Pages(program.read, program.why_not_ready), taken)


@pytest.mark.parametrize("said", [b"", GET[:10], GET], ids=["silent", "half", "asked"])
async def test_nothing_is_left_when_it_ends(said: bytes) -> None:
    """Whatever a connection is at: its socket is closed, and no task goes on."""
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with served() as address:
        stream = await connect(address)
        await stream.send_all(said)
        await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(60):
        try:
            await receive_all(stream)
        except trio.BrokenResourceError:
            pass
    await stream.aclose()
    assert trio.lowlevel.current_statistics().tasks_living == tasks
