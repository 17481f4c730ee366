"""What a server has for requests that are not for a WebSocket: it takes nothing from those who come for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import define, field
from raw_peer import assert_works, serving

from sandd._core.transport import Document, Question, Refusal
from sandd._core.transport import _server as server

if TYPE_CHECKING:
    import pytest

    from sandd._core.transport import ListenAddress

LIMIT = 50.0
GET = b"GET /it HTTP/1.1\r\nHost: a\r\n\r\n"


@define
class Documents:
    """One, of which the test says when it is there."""

    answer_with: Document | Refusal
    asked: trio.Event = field(factory=trio.Event)
    there: trio.Event = field(factory=trio.Event)
    paths: tuple[str, ...] = ("/it",)
    most: int = 0
    patience: float = 0.0
    """Seconds that there were for the latest answer."""

    async def answer(self, question: Question) -> Document | Refusal:
        """It, in time."""
        self.most += 1
        self.patience = trio.current_effective_deadline() - trio.current_time()
        if self.most >= server.MAX_DOCUMENTS:
            self.asked.set()
        await self.there.wait()
        return self.answer_with


async def ask(address: ListenAddress) -> bytes:
    """All that is answered."""
    async with await trio.open_tcp_stream(address.host, address.port) as stream:
        await stream.send_all(GET)
        try:
            return b"".join([piece async for piece in stream])
        except trio.BrokenResourceError:
            return b"reset"


async def test_who_waits_for_a_document_has_no_place_that_others_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one place for all handshakes; and who is one too many of those who wait is told at once."""
    monkeypatch.setattr(server, "MAX_DOCUMENTS", 2)
    documents = Documents(Document(b"here", "text/plain"))
    answers = []

    async def note(address: ListenAddress) -> None:
        answers.append(await ask(address))

    with trio.fail_after(LIMIT):
        async with serving(documents=documents, max_handshakes=1) as address:
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(note, address)
                await documents.asked.wait()
                await assert_works(address)
                refused = await ask(address)
                assert refused.startswith(b"HTTP/1.1 503 ")
                assert b"retry-after: 10" in refused.lower()
                # A handshake has ten seconds.
                assert 30 < documents.patience <= server.DOCUMENT_SECONDS
                documents.there.set()
            assert [answer.rpartition(b"\r\n\r\n")[2] for answer in answers] == [b"here", b"here"]
            assert all(b"content-type: text/plain\r\n" in each.lower() for each in answers)
            assert (await ask(address)).endswith(b"here")  # theirs is free again


async def test_what_is_refused_is_told_and_its_place_is_free_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As any other refusal, in the log as well."""
    caplog.set_level("INFO", "sandd.transport")
    monkeypatch.setattr(server, "MAX_DOCUMENTS", 1)
    documents = Documents(Refusal(403, "not you"))
    documents.there.set()
    with trio.fail_after(LIMIT):
        async with serving(documents=documents) as address:
            for _ in range(3):
                answer = await ask(address)
                assert answer.startswith(b"HTTP/1.1 403 ")
                assert b"not you." in answer
    assert {record.msg["event"] for record in caplog.records} == {"handshake_refused"}


async def test_who_does_not_take_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute at most, made or not; and so is one who stops reading in the middle."""
    monkeypatch.setattr(server, "DOCUMENT_SECONDS", 1.0)
    monkeypatch.setattr(server, "MAX_DOCUMENTS", 1)
    documents = Documents(Document(bytes(8_000_000)))
    with trio.fail_after(LIMIT):
        async with serving(documents=documents) as address:
            assert await ask(address) in (b"", b"reset")  # it was never made
            documents.there.set()
            async with await trio.open_tcp_stream(address.host, address.port) as stream:
                await stream.send_all(GET)
                assert await stream.receive_some(10)
                # Nothing is read any more, until another one has the place.
                while b" 503 " in await ask(address):
                    await trio.sleep(0.05)


async def test_a_document_is_cancelled_with_the_server() -> None:
    """Whatever it waits for."""
    documents = Documents(Document(b""))
    answers = []
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            async with serving(documents=documents) as address:

                async def note() -> None:
                    answers.append(await ask(address))

                nursery.start_soon(note)
                while not documents.most:
                    await trio.sleep(0.01)
    assert answers[0] in (b"", b"reset")
