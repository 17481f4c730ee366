"""`Pace`: messages as large as the line takes in a moment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandd._core.pace import (
    FIRST_BYTES,
    LARGE_BYTES,
    LARGE_SLOW_SECONDS,
    LEAST_BYTES,
    MOST_BYTES,
    SLOW_SECONDS,
    Pace,
)


def settle(bytes_per_second: float, *, latency: float = 0.0) -> Pace:
    """The pace after forty full messages on a line of that speed."""
    pace = Pace()
    for _ in range(40):
        size = pace.batch_bytes
        pace.sent(size, latency + size / bytes_per_second)
    return pace


@pytest.mark.parametrize(
    ("bytes_per_second", "least", "most"),
    [
        (4_000, LEAST_BYTES, LEAST_BYTES),
        (64_000, 4_096, 16_384),
        (1_000_000, 65_536, 262_144),
        (15_000_000, LARGE_BYTES, LARGE_BYTES),
        (100_000_000, MOST_BYTES, MOST_BYTES),
    ],
)
def test_messages_take_a_moment_on_any_line(bytes_per_second: float, least: int, most: int) -> None:
    """From a modem's to a loopback's."""
    pace = settle(bytes_per_second)
    assert least <= pace.batch_bytes <= most
    assert pace.batch_bytes / bytes_per_second <= max(
        2 * SLOW_SECONDS, LEAST_BYTES / bytes_per_second
    )


def test_it_begins_small_and_grows_fast() -> None:
    """Nothing is known of a new line; twelve quick messages show that it is fast."""
    pace = Pace()
    assert pace.batch_bytes == FIRST_BYTES
    grown = [pace.sent(pace.batch_bytes, 0.001) for _ in range(14)]
    assert grown == [False, True] * 6 + [False] * 2
    assert pace.batch_bytes == MOST_BYTES


def test_one_quick_message_tells_nothing_of_the_line() -> None:
    """The kernel had room; the next one must wait for the line."""
    pace = Pace()
    for _ in range(20):
        size = pace.batch_bytes
        assert not pace.sent(size, 0.0)
        assert not pace.sent(size, 0.2)
    assert pace.batch_bytes == FIRST_BYTES


def test_small_messages_tell_nothing_of_the_line() -> None:
    """That they went quickly is no reason to send large ones."""
    pace = Pace()
    for _ in range(100):
        assert not pace.sent(100, 0.0)
    assert pace.batch_bytes == FIRST_BYTES


def test_a_line_that_slows_down_is_followed() -> None:
    """Within a few messages, and back."""
    pace = settle(100_000_000)
    for _ in range(7):
        pace.sent(pace.batch_bytes, pace.batch_bytes / 8_000)
    assert pace.batch_bytes == LEAST_BYTES
    for _ in range(14):
        pace.sent(pace.batch_bytes, 0.009)
    assert pace.batch_bytes == MOST_BYTES


def test_the_largest_messages_are_for_lines_that_take_them_in_a_blink() -> None:
    """A keystroke would wait for them; so one that takes a while is the last of its size."""
    pace = settle(100_000_000)
    assert pace.sent(MOST_BYTES, LARGE_SLOW_SECONDS + 0.001)
    assert pace.batch_bytes == LARGE_BYTES
    for _ in range(20):
        assert not pace.sent(LARGE_BYTES, 0.02)


@given(st.lists(st.tuples(st.integers(0, 4 * MOST_BYTES), st.floats(0, 100)), max_size=50))
def test_it_stays_within_its_bounds(messages: list[tuple[int, float]]) -> None:
    """Whatever is measured; it says whenever it has changed."""
    pace = Pace()
    for size, seconds in messages:
        before = pace.batch_bytes
        changed = pace.sent(size, seconds)
        assert changed == (pace.batch_bytes != before)
        assert LEAST_BYTES <= pace.batch_bytes <= MOST_BYTES
