"""Shown again is everything but questions, which the terminal would answer again."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd.terminal.replay import ReplayFilter

QUESTIONS = {
    "device": b"\x1b[c",
    "device-2": b"\x1b[>0c",
    "device-3": b"\x1b[=c",
    "old-device": b"\x1bZ",
    "cursor": b"\x1b[6n",
    "dec-cursor": b"\x1b[?6n",
    "background": b"\x1b]11;?\x07",
    "background-st": b"\x1b]11;?\x1b\\",
    "palette": b"\x1b]4;12;?\x07",
    "clipboard": b"\x1b]52;c;?\x07",
    "version": b"\x1b[>q",
    "keyboard": b"\x1b[?u",
    "mode": b"\x1b[?2026$p",
    "setting": b"\x1bP$qm\x1b\\",
    "capability": b"\x1bP+q544e\x1b\\",
    "window": b"\x1b[18t",
    "title": b"\x1b[21t",
    "parameters": b"\x1b[x",
    "graphics": b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\",
    "enquiry": b"\x05",
}
STATEMENTS = [
    *(
        b"text",
        b"\x1b[31m",
        b"\x1b[m",
        b"\x1b[?1049h",
        b"\x1b]0;title\x07",
        b"\x1b]11;#fff\x07",
        b"\x1b[2J",
    ),
    *(
        b"\x1b[3;4H",
        b"\x1b[22;0t",
        b"\x1b[4 q",
        b"\x1b[r",
        b"\x1b(B",
        b"\x1b7",
        b"\xff\x00",
        b"\x1b",
    ),
]
OUTPUT = st.lists(st.sampled_from([*QUESTIONS.values(), *STATEMENTS]), max_size=12).map(b"".join)
CUTS = st.lists(st.integers(0, 120), max_size=8)


def shown(output: bytes, until: int, cuts: list[int]) -> bytes:
    """What is shown of output of which so many bytes are old, and which comes in such pieces."""
    machine = ReplayFilter(until)
    ends = sorted({0, len(output), *(min(cut, len(output)) for cut in cuts)})
    return b"".join(machine.feed(output[start:end], end) for start, end in pairwise(ends))


@pytest.mark.parametrize("question", [pytest.param(q, id=name) for name, q in QUESTIONS.items()])
def test_questions_are_asked_once(question: bytes) -> None:
    """Each is left out of what is old, and passes where it is new."""
    output = b"one" + question + b"two"

    assert shown(output, len(output), []) == b"onetwo"
    assert shown(output, 3, []) == output


@pytest.mark.parametrize("statement", STATEMENTS)
def test_what_asks_nothing_is_shown(statement: bytes) -> None:
    """Colours, titles and movements are what replaying is for."""
    output = b"one" + statement + b"two"

    assert shown(output, len(output), []) == output


@given(OUTPUT, st.integers(0, 120), CUTS)
def test_cuts_have_no_meaning(output: bytes, until: int, cuts: list[int]) -> None:
    """It doesn't matter in which pieces the output comes."""
    until = min(until, len(output))
    assert shown(output, until, cuts) == shown(output, until, [])


@given(OUTPUT, st.integers(0, 120), CUTS)
def test_what_is_new_is_whole(output: bytes, until: int, cuts: list[int]) -> None:
    """Not one byte behind the old ones is left out or held back."""
    until = min(until, len(output))
    assert shown(output, until, cuts).endswith(output[until:])


def test_a_gap_counts() -> None:
    """Old bytes that are gone are not taken for those that come after them."""
    machine = ReplayFilter(100)
    assert machine.feed(b"a\x1b[6nb", 6) == b"ab"
    assert machine.feed(b"c\x1b[6nd", 106) == b"c\x1b[6nd"
    assert machine.feed(b"\x1b[6n", 110) == b"\x1b[6n"
