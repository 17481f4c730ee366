"""Recordings: what is written is the format, says what was shown and when, and stays within its bound."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pyte
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandd._core.asciicast import AsciicastEncoder

START = 1000.0
"""What the clock says at the beginning."""


def encoder(**options: Any) -> AsciicastEncoder:
    """A recording of a small terminal that begins at `START`."""
    return AsciicastEncoder(
        **{
            "rows": 24,
            "cols": 80,
            "term": "xterm-256color",
            "timestamp": 1504467315,
            "now": START,
            **options,
        }
    )


class Event(NamedTuple):
    """One line behind the header."""

    interval: float
    code: str
    data: str


def read(recording: bytes) -> tuple[dict[str, Any], list[Event]]:
    """Header and events, as the specification has them; fails at what isn't so."""
    assert recording.endswith(b"\n")
    assert all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in recording)
    first, *lines = recording.splitlines()
    header = json.loads(first)
    assert header["version"] == 3
    assert {key: type(value) for key, value in header["term"].items()} == {
        "cols": int,
        "rows": int,
        "type": str,
    }
    assert header.keys() <= {"version", "term", "timestamp", "command", "title"}
    events = [Event(*json.loads(line)) for line in lines]
    for interval, code, data in events:
        assert type(interval) is float
        assert interval >= 0
        assert code in {"o", "i", "m", "r", "x"}
        assert type(data) is str
        data.encode("utf-8")  # no lone surrogates
    return header, events


def text_of(events: list[Event], code: str) -> str:
    """All data of one kind."""
    return "".join(event.data for event in events if event.code == code)


# ---- the format ----------------------------------------------------------------------------------


def test_a_session_as_the_format_has_it() -> None:
    """Header, then intervals, codes and texts; sizes are columns first."""
    one = encoder(command="/bin/sh", title="Demo")
    recording = b"".join(
        [
            one.header,
            one.output(b"\x1b[1mHi\r\n", now=START + 0.248),
            one.input(b"ls\r", now=START + 1.249),
            one.resized(30, 90, now=START + 3.299),
            one.gap(10, 25, now=START + 3.3),
            one.left_out("i", 7, now=START + 3.3),
            one.ended(3, None, now=START + 63.3),
        ]
    )
    assert recording.decode().splitlines() == [
        '{"version":3,"term":{"cols":80,"rows":24,"type":"xterm-256color"},"timestamp":1504467315,'
        '"command":"/bin/sh","title":"Demo"}',
        '[0.248,"o","\\u001b[1mHi\\r\\n"]',
        '[1.001,"i","ls\\r"]',
        '[2.050,"r","90x30"]',
        '[0.001,"m","15 bytes of output were dropped"]',
        '[0.000,"m","7 bytes of input were not recorded"]',
        '[60.000,"x","3"]',
    ]
    assert one.size == len(recording)


@pytest.mark.parametrize(
    ("code", "signal", "event"),
    [
        (0, None, ("x", "0")),
        (255, None, ("x", "255")),
        (None, 9, ("x", "137")),
        (None, None, ("m", "exit status unknown")),
    ],
    ids=["success", "failure", "killed", "lost"],
)
def test_the_end_is_the_exit_status(
    code: int | None, signal: int | None, event: tuple[str, str]
) -> None:
    """A number as a text; none is made up where it isn't known."""
    one = encoder()
    _, events = read(one.header + one.ended(code, signal, now=START))
    assert [each[1:] for each in events] == [event]


def test_names_that_are_no_unicode_are_written_as_such_that_are() -> None:
    """Surrogates, which stand for bytes in Python's names, would make the header unreadable for others."""
    header, _ = read(
        encoder(command="caf\udce9 \N{SNOWMAN}", title="\ud800", term="x\udc80").header
    )
    assert (header["command"], header["title"]) == ("caf? \N{SNOWMAN}", "?")
    assert header["term"]["type"] == "x?"


# ---- text ----------------------------------------------------------------------------------------


def test_a_character_is_never_divided() -> None:
    """Nor mixed with the other direction's."""
    one = encoder()
    lines = [
        one.output("é".encode()[:1], now=START),
        one.input("ß".encode()[:1], now=START),
        one.output("é".encode()[1:] + b"!", now=START),
        one.input("ß".encode()[1:], now=START),
    ]
    assert lines[:2] == [b"", b""]
    _, events = read(one.header + b"".join(lines))
    assert [event[1:] for event in events] == [("o", "é!"), ("i", "ß")]


def test_what_no_character_comes_of_is_replaced() -> None:
    """In the middle, at a gap, where something was left out, and at the end."""
    one = encoder()
    piece = "€".encode()
    _, events = read(
        one.header
        + one.output(b"a\xff" + piece[:2], now=START)
        + one.gap(5, 6, now=START)
        + one.output(piece[2:] + b"b" + piece[:1], now=START)
        + one.left_out("o", 1, now=START)
        + one.input(piece[:1], now=START)
        + one.output(piece[:1], now=START)
        + one.ended(0, None, now=START)
    )
    assert [event.data for event in events if event.code in "oi"] == [
        "a\N{REPLACEMENT CHARACTER}",
        "\N{REPLACEMENT CHARACTER}",
        "\N{REPLACEMENT CHARACTER}b",
        "\N{REPLACEMENT CHARACTER}",
        "\N{REPLACEMENT CHARACTER}",
        "\N{REPLACEMENT CHARACTER}",
    ]
    assert [event.code for event in events] == list("oomoomoix")


def test_input_left_out_divides_no_output() -> None:
    """Each direction has its own characters."""
    one = encoder()
    _, events = read(
        one.header
        + one.output("é".encode()[:1], now=START)
        + one.left_out("i", 1, now=START)
        + one.output("é".encode()[1:], now=START)
    )
    assert text_of(events, "o") == "é"


PIECES = st.lists(
    st.tuples(
        st.sampled_from("oi"),
        st.binary(max_size=20) | st.text(max_size=10).map(str.encode),
        st.floats(0, 100),
    )
)


def record(pieces: list[tuple[str, bytes, float]], one: AsciicastEncoder) -> tuple[bytes, float]:
    """A recording of these pieces, each so many seconds after the one before; and when it ended."""
    now = START
    lines = [one.header]
    for direction, data, pause in pieces:
        now += pause
        write = one.output if direction == "o" else one.input
        lines.append(write(data, now=now))
    lines.append(one.ended(0, None, now=now))
    return b"".join(lines), now


@given(PIECES)
@example([("o", "€".encode()[:n], 0.0) for n in range(4)])
def test_all_text_is_there(pieces: list[tuple[str, bytes, float]]) -> None:
    """Per direction the data is what the bytes decode to, however they were divided."""
    recording, _ = record(pieces, encoder())
    _, events = read(recording)
    for direction in "oi":
        whole = b"".join(data for each, data, _ in pieces if each == direction)
        assert text_of(events, direction) == whole.decode("utf-8", "replace")
    assert events[-1].code == "x"


@given(st.lists(st.floats(0, 0.01), max_size=200))
@example([0.0005] * 200)
@example([0.0004] * 200)
def test_intervals_add_up(pauses: list[float]) -> None:
    """However many there are, each event's time is right to half a millisecond."""
    one = encoder()
    now, time = START, 0.0
    for pause in pauses:
        now += pause
        ((interval, _, _),) = read(one.header + one.output(b"x", now=now))[1]
        time += interval
        assert time == pytest.approx(now - START, abs=0.00051)


def test_a_clock_that_goes_back_gives_no_negative_interval() -> None:
    """Threads and clocks being what they are."""
    one = encoder()
    _, events = read(
        one.header + one.output(b"a", now=START + 1) + one.output(b"b", now=START + 0.5)
    )
    assert [event.interval for event in events] == [1.0, 0.0]


# ---- the bound -----------------------------------------------------------------------------------


@given(PIECES, st.integers(0, 700))
def test_the_bound_is_kept_and_said(pieces: list[tuple[str, bytes, float]], more: int) -> None:
    """Never a byte too much; what is recorded is a beginning of it all, and then one marker says so."""
    least = len(encoder().header) + 100
    unbounded, _ = record(pieces, encoder())
    one = encoder(max_bytes=least + more)
    recording, now = record(pieces, one)
    assert len(recording) == one.size <= least + more
    if not one.full:
        assert recording == unbounded
        return
    *rest, marker = recording.splitlines(keepends=True)
    assert unbounded.startswith(b"".join(rest))
    assert json.loads(marker)[1:] == ["m", "recording ended: its size limit is reached"]
    assert one.output(b"more", now=now) == one.ended(0, None, now=now) == b""
    read(recording)


def test_a_bound_that_nothing_fits_in_is_refused() -> None:
    """It says what would do; and that does."""
    with pytest.raises(ValueError, match="max_bytes must be at least ") as caught:
        encoder(max_bytes=10)
    least = int(str(caught.value).split()[5])
    with pytest.raises(ValueError, match="max_bytes must be at least "):
        encoder(max_bytes=least - 1)
    one = encoder(max_bytes=least)
    recording = one.header + one.resized(1, 1, now=START + 10**12)
    assert one.full
    assert len(recording) == least
    read(recording)


# ---- replay --------------------------------------------------------------------------------------

SESSION = (
    "\x1b[2J\x1b[H\x1b[1;32mlisting\x1b[0m\r\n"
    "één\ttwo\tdr\N{LATIN SMALL LETTER E WITH DIAERESIS}i\r\n"
    "\x1b[10;20H\N{BOX DRAWINGS LIGHT HORIZONTAL}\N{BOX DRAWINGS LIGHT VERTICAL}"
    "\x1b[3;5Hover\x1b[Kwritten\x1b[7mreverse\x1b[27m\b\b!\r\n"
    "\N{CJK UNIFIED IDEOGRAPH-65E5}\N{CJK UNIFIED IDEOGRAPH-672C}\x1b[A\x1b[2Dend" * 3
).encode()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_a_replay_shows_the_same_screen(size: int) -> None:
    """What a terminal shows that is fed the events is what it shows that is fed the bytes."""
    one = encoder()
    lines = [one.header]
    direct = pyte.Screen(80, 24)
    stream = pyte.ByteStream(direct)
    for at in range(0, len(SESSION), size):
        piece = SESSION[at : at + size]
        stream.feed(piece)
        lines.append(one.output(piece, now=START + at))
        if at == 0:
            direct.resize(30, 100)
            lines.append(one.resized(30, 100, now=START + at))
    header, events = read(b"".join(lines))
    replayed = pyte.Screen(header["term"]["cols"], header["term"]["rows"])
    player = pyte.Stream(replayed)
    for event in events:
        if event.code == "r":
            cols, rows = map(int, event.data.split("x"))
            replayed.resize(rows, cols)
        else:
            player.feed(event.data)
    assert any(line.strip() for line in replayed.display)
    assert replayed.display == direct.display
    assert replayed.buffer == direct.buffer
    assert (replayed.cursor.x, replayed.cursor.y) == (direct.cursor.x, direct.cursor.y)
