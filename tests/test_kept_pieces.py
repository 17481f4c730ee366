"""What was received for nobody: the next one gets it, whole and in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from sandd import OutputGap
from sandd._core.kept_pieces import KeptItems, KeptPieces, Piece

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Source:
    """Gives bytes as they are asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def receive(self, max_bytes: int | None) -> bytes:
        """The next ones."""
        await trio.lowlevel.checkpoint()
        end = len(self.data) if max_bytes is None else max_bytes
        taken, self.data = self.data[:end], self.data[end:]
        return taken


@given(
    st.binary(max_size=40),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), max_size=30),
)
def test_no_byte_is_lost_or_moved(data: bytes, steps: list[tuple[int, int]]) -> None:
    """Whatever is put back, and however late: what is kept in the end is the source, piece by piece."""

    async def main() -> bytes:
        kept = KeptPieces(Source(data).receive)
        late: list[Piece] = []
        shown: list[Piece] = []
        for size, fate in steps:
            piece = await kept.take(size)
            if fate == 0:
                shown.append(piece)
            elif fate == 1:
                kept.put_back(piece)
            else:
                late.append(piece)
        for piece in late:
            kept.put_back(piece)
        while (piece := await kept.take()).data:
            shown.append(piece)
        assert kept.size == 0
        shown = sorted((each for each in shown if each.data), key=lambda each: each.end)
        end = 0
        for each in shown:
            assert each.end - len(each.data) == end
            end = each.end
        return b"".join(each.data for each in shown)

    assert trio.run(main) == data


async def test_a_gap_is_a_piece() -> None:
    """It is put back as bytes are, and counts."""
    gap = OutputGap(3, 10)

    async def receive(_max_bytes: int | None) -> bytes:
        await trio.lowlevel.checkpoint()
        raise gap

    kept = KeptPieces(receive)
    piece = await kept.take()
    assert (piece.end, piece.data, piece.gap) == (10, b"", gap)
    kept.put_back(piece)
    assert (await kept.take()).gap is gap


async def test_closed_it_keeps_nothing() -> None:
    """Neither what was put back nor what is."""
    kept = KeptPieces(Source(b"abc").receive)
    piece = await kept.take(2)
    kept.put_back(piece)
    kept.close()
    kept.put_back(piece)
    assert kept.size == 0
    assert (await kept.take()).data == b"c"


async def test_who_takes_waits_for_the_one_before() -> None:
    """A call that was cancelled may be there still."""
    source, asked, may_answer = Source(b"abc"), trio.Event(), trio.Event()

    async def receive(max_bytes: int | None) -> bytes:
        asked.set()
        await may_answer.wait()
        return await source.receive(max_bytes)

    kept = KeptPieces(receive)
    taken: list[bytes] = []

    async def take() -> None:
        taken.append((await kept.take(1)).data)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(take)
        await asked.wait()
        assert kept.is_busy
        may_answer.set()
    assert b"".join(taken) == b"abc"
    assert not kept.is_busy


async def test_items_come_back_first() -> None:
    """And the end is the iterator's."""

    async def count() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    kept = KeptItems(count())
    assert await kept.take() == 0
    kept.put_back(0)
    assert [await kept.take() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StopAsyncIteration):
        await kept.take()
