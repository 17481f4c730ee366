"""What was read back from disk: bounded, whoever wants what, and gone when it is sent."""

from __future__ import annotations

from sandd._core.read_ahead import MOST_WANTED, READ_AHEAD, ReadAhead


def filled(*starts: int) -> ReadAhead:
    """Pieces of four bytes at these offsets."""
    ahead = ReadAhead()
    for start in starts:
        assert ahead.want(start)
        ahead.add(start, bytes(range(start, start + 4)))
    return ahead


def test_a_piece_is_taken_in_any_portions() -> None:
    """It is there for every offset within, and goes with its last byte."""
    ahead = filled(10)
    assert [ahead.has(offset) for offset in (9, 10, 13, 14)] == [False, True, True, False]
    assert ahead.take(10, 3) == (bytes([10, 11, 12]), 14)
    assert ahead.take(11, 2) == (bytes([11, 12]), 14)
    assert ahead.held_bytes == 4
    assert ahead.take(13, 9) == (bytes([13]), 14)
    assert (ahead.held_bytes, ahead.take(13, 9)) == (0, None)


def test_wants_are_known_once_and_bounded() -> None:
    """Asking again changes nothing; who finds no place asks again later."""
    ahead = ReadAhead()
    assert [ahead.want(offset) for offset in (5, 5, 6)] == [True, False, True]
    assert all(ahead.want(offset) for offset in range(7, 5 + MOST_WANTED))
    assert ahead.want(100) is False
    assert list(ahead.wanted) == list(range(5, 5 + MOST_WANTED))
    assert ahead.next_wanted(0, 100) == 5
    ahead.add(5, b"data")
    assert ahead.want(5) is False  # it is here
    assert ahead.want(100) is True


def test_the_oldest_piece_makes_way() -> None:
    """However many come."""
    ahead = filled(0, 4, 8, 12)
    assert [ahead.has(start) for start in (0, 4, 8, 12)] == [False, False, True, True]
    assert ahead.held_bytes == 4 * READ_AHEAD
    assert not ahead.has_place


def test_there_is_place_for_what_is_read_ahead_only_while_nothing_makes_way_for_it() -> None:
    """A reader alone has the next piece fetched while it sends one."""
    ahead = filled(0)
    assert ahead.has_place
    ahead.want(4)
    assert not ahead.has_place


def test_what_nobody_waits_for_is_not_kept() -> None:
    """Its reader is gone, or was overtaken."""
    ahead = ReadAhead()
    ahead.add(0, b"data")
    assert ahead.held_bytes == 0
    ahead.want(0)
    ahead.clear()
    ahead.add(0, b"data")
    assert (ahead.held_bytes, ahead.wanted) == (0, {})


def test_what_was_freed_is_not_kept() -> None:
    """A piece goes when the last of it is freed; wants beyond what is on disk are forgotten."""
    ahead = filled(0, 4)
    ahead.free(7)
    assert [ahead.has(3), ahead.has(4)] == [False, True]
    ahead.want(2)
    ahead.want(50)
    assert (ahead.next_wanted(7, 20), ahead.wanted) == (None, {})
    ahead.want(9)
    ahead.give_up(9)
    assert ahead.next_wanted(7, 20) is None
