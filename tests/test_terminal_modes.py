"""What a program leaves switched on is switched off, and nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd.terminal.modes import Modes

SEQUENCES = [
    *(
        b"\x1b[?1049h",
        b"\x1b[?1049l",
        b"\x1b[?25l",
        b"\x1b[?25h",
        b"\x1b[?1000;1006h",
        b"\x1b[?1006l",
    ),
    *(b"\x1b[?2004h", b"\x1b=", b"\x1b>", b"\x1b[>4;2m", b"\x1b[>4m", b"\x1b[2;10r", b"\x1b[r"),
    *(
        b"\x1b[1;31m",
        b"\x1b[m",
        b"\x1b[38;5;0m",
        b"\x1b[4 q",
        b"\x1bc",
        b"\x1b[!p",
        b"text",
        b"\x1b",
        b"\x1b[",
    ),
    *(b"\x1b[?", b"7", b";", b"m", b"h"),
]
OUTPUT = st.lists(st.sampled_from(SEQUENCES), max_size=20).map(b"".join)


def after(*pieces: bytes) -> bytes:
    """What is to be undone after these."""
    modes = Modes()
    for each in pieces:
        modes.feed(each)
    return modes.reset()


@pytest.mark.parametrize(
    ("shown", "undo"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"\x1b[31mred\x1b[0m \x1b[H\x1b[2J", b"", id="nothing-left"),
        pytest.param(b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l", id="vi"),
        pytest.param(b"\x1b[?1049h\x1b[?1049l", b"", id="vi-closed"),
        pytest.param(b"\x1b[?1002;1006h", b"\x1b[?1002l\x1b[?1006l", id="mouse"),
        pytest.param(b"\x1b[?2004h", b"\x1b[?2004l", id="bracketed-paste"),
        pytest.param(b"\x1b[?25l\x1b[?25h", b"", id="cursor-shown-again"),
        pytest.param(b"\x1b[?7l", b"\x1b[?7h", id="wrapping"),
        pytest.param(b"\x1b[>4;2m", b"\x1b[>4m", id="modified-keys"),
        pytest.param(b"\x1b[>4;2m\x1b[>4;0m", b"", id="modified-keys-off"),
        pytest.param(b"\x1b=", b"\x1b>", id="keypad"),
        pytest.param(b"\x1b[1;20r", b"\x1b7\x1b[r\x1b8", id="scrolling-region"),
        pytest.param(b"\x1b[1;31m", b"\x1b[m", id="colour"),
        pytest.param(b"\x1b[38;5;0m", b"\x1b[m", id="colour-zero"),
        pytest.param(b"\x1b[5 q", b"\x1b[0 q", id="cursor-shape"),
        pytest.param(b"\x1b[?1049h\x1b[?1000h\x1b[31m\x1bc", b"", id="full-reset"),
        pytest.param(
            b"\x1b[?25l\x1b[2;3r\x1b[1m\x1b[?1000h\x1b[!p", b"\x1b[?1000l", id="soft-reset"
        ),
        pytest.param(b"\x1b[?9999h\x1b[?12h", b"", id="unknown"),
        pytest.param(b"\x1b[?h", b"", id="no-number"),
    ],
)
def test_modes_undo_what_is_left_on(shown: bytes, undo: bytes) -> None:
    """Each mode by its own sequence, the screen last; nothing where nothing is left on."""
    assert after(shown) == undo


@given(OUTPUT, st.lists(st.integers(0, 100), max_size=10))
def test_modes_are_the_same_however_output_is_cut(shown: bytes, cuts: list[int]) -> None:
    """A sequence that comes in pieces counts as one."""
    ends = sorted({0, len(shown), *(min(cut, len(shown)) for cut in cuts)})

    assert after(*(shown[start:end] for start, end in pairwise(ends))) == after(shown)


@given(OUTPUT)
def test_what_undoes_leaves_nothing_to_undo(shown: bytes) -> None:
    """To show the resets, too, is enough: there is nothing left then."""
    assert after(shown, b"\x18", after(shown)) == b""


def test_an_endless_sequence_is_not_kept() -> None:
    """Whatever is shown, what is remembered of it stays small."""
    modes = Modes()
    modes.feed(b"\x1b[?")
    for _ in range(1000):
        modes.feed(b"1;" * 100)
    assert len(modes._tail) <= 128
    modes.feed(b"h\x1b[?25l")

    assert modes.reset() == b"\x1b[?25h"
