"""Lines that are whole, whatever the chunks they came in, and however long they are."""

from __future__ import annotations

import itertools
import tracemalloc

from hypothesis import example, given
from hypothesis import strategies as st

from sandd.fleet import lines as module
from sandd.fleet.lines import MOST_OF_A_LINE, Lines


def all_lines(*chunks: bytes) -> list[bytes]:
    """What comes out of these chunks, to the end."""
    lines = Lines()
    return [line for chunk in chunks for line in lines.feed(chunk)] + lines.finish()


@given(
    text=st.binary(max_size=200) | st.text("ab\n", max_size=200).map(str.encode),
    cuts=st.lists(st.integers(0, 200), max_size=10),
)
@example(text=b"a\n\nb", cuts=[1, 2])
def test_lines_are_those_of_the_whole_text(text: bytes, cuts: list[int]) -> None:
    """Wherever it was cut; the last one needs no newline, and there is none behind the last newline."""
    bounds = [0, *sorted(cuts), len(text)]
    chunks = [text[start:end] for start, end in itertools.pairwise(bounds)]
    expected = text.split(b"\n")
    assert all_lines(*chunks) == (expected[:-1] if not expected[-1] else expected)


def test_a_line_is_there_as_soon_as_its_end_is() -> None:
    """Nobody waits for the next chunk."""
    lines = Lines()
    assert lines.feed(b"one\ntw") == [b"one"]
    assert lines.feed(b"o") == []
    assert lines.feed(b"\n") == [b"two"]
    assert lines.finish() == []


def test_a_line_that_is_too_long_is_several() -> None:
    """Nothing of it is lost, and nothing more is held."""
    lines = Lines()
    got = []
    for _ in range(10):
        got += lines.feed(b"x" * (MOST_OF_A_LINE // 2 + 1))
        assert len(lines._rest) <= MOST_OF_A_LINE
    got += lines.feed(b"\nnext\n")
    assert {len(line) for line in got[:-2]} == {MOST_OF_A_LINE}
    assert b"".join(got[:-1]) == b"x" * 10 * (MOST_OF_A_LINE // 2 + 1)
    assert got[-1] == b"next"


def test_no_character_is_cut() -> None:
    """Each part of a long line is text of its own; what is no UTF-8 is cut where it must be."""
    for offset in range(4):
        text = "a" * offset + "\N{GRINNING FACE}\N{EURO SIGN}" * MOST_OF_A_LINE
        got = all_lines(text.encode(), b"\n")
        assert len(got) > 2
        assert "".join(line.decode() for line in got) == text
        assert max(map(len, got)) <= MOST_OF_A_LINE
    assert b"".join(all_lines(b"\x80" * 3 * MOST_OF_A_LINE)) == b"\x80" * 3 * MOST_OF_A_LINE


def test_memory_is_bounded_without_any_newline() -> None:
    """A gigabyte of progress bars takes no more than a line."""
    lines = Lines()
    chunk = b"\r" * 32 * 1024
    lines.feed(chunk * 3)
    tracemalloc.start()
    try:
        for _ in range(100):
            lines.feed(chunk)
        assert tracemalloc.get_traced_memory()[0] < 2 * module.MOST_OF_A_LINE
    finally:
        tracemalloc.stop()
