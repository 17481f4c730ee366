"""A ring of bytes: what it gives back, what it keeps, and what it doesn't copy."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from sandd._core.byte_ring import GATHERED_BYTES, LARGE_BYTES, ByteRing

SIZES = st.one_of(st.integers(0, 20), st.integers(LARGE_BYTES - 2, LARGE_BYTES + 2))
STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "append view", "discard", "read", "copy"]), SIZES, SIZES),
    max_size=40,
)


@given(STEPS)
def test_it_holds_what_was_appended_and_not_discarded(steps: list[tuple[str, int, int]]) -> None:
    """Whatever the sizes, and whoever changes what it was given."""
    ring, model = ByteRing(), b""
    for index, (step, first, second) in enumerate(steps):
        data = bytes([index]) * first
        match step:
            case "append":
                ring.append(data)
                model += data
            case "append view":
                mutable = bytearray(data)
                ring.append(memoryview(mutable))
                model += data
                mutable[:] = bytes(len(mutable))
            case "discard":
                count = min(first, len(model))
                ring.discard(count)
                model = model[count:]
            case "read":
                start = min(first, len(model))
                read = ring.read(start, second)
                assert model[start : start + second].startswith(bytes(read))
                assert len(read) or not second or start == len(model)
            case "copy":
                assert ring.copy(first) == model[:first]
        assert len(ring) == len(model)
    assert ring.copy(len(model)) == model


def test_a_large_piece_is_not_copied() -> None:
    """Neither when it comes nor when it is read: the same object stands behind it all."""
    ring, data = ByteRing(), bytes(4 * LARGE_BYTES)
    ring.append(b"before")
    ring.append(data)
    ring.append(memoryview(data)[: 2 * LARGE_BYTES])
    for start in (6, 6 + len(data)):
        view = ring.read(start, LARGE_BYTES)
        assert isinstance(view, memoryview)
        assert view.obj is data


def test_a_small_part_of_something_large_is_copied() -> None:
    """Else a few bytes could keep any amount of memory from being freed."""
    ring, data = ByteRing(), bytes(4 * LARGE_BYTES)
    ring.append(memoryview(data)[:LARGE_BYTES])
    view = ring.read(0, LARGE_BYTES)
    assert isinstance(view, memoryview)
    assert view.obj is not data


def test_crumbs_cost_little_more_than_themselves() -> None:
    """A program that writes byte by byte makes no object of each."""
    ring = ByteRing()
    for _ in range(3 * GATHERED_BYTES):
        ring.append(b"x")
    assert len(ring._pieces) <= 4
    assert sum(sys.getsizeof(piece) for piece in ring._pieces) < 4 * GATHERED_BYTES


def test_a_read_is_as_long_as_a_frame() -> None:
    """What lies in pieces that are too short for one is put together."""
    ring = ByteRing()
    for number in range(10):
        ring.append(bytes([number]) * LARGE_BYTES)
    assert ring.read(5, 8 * LARGE_BYTES) == ring.copy(5 + 8 * LARGE_BYTES)[5:]
    ring.append(bytes(GATHERED_BYTES))
    assert len(ring.read(10 * LARGE_BYTES, 2 * GATHERED_BYTES)) == GATHERED_BYTES
    assert ring.read(10 * LARGE_BYTES + GATHERED_BYTES, 1) == b""


def test_what_is_large_is_not_taken_apart_to_fill_a_frame_up() -> None:
    """Else a few bytes before it would have it, and all that is like it behind it, copied."""
    ring, data = ByteRing(), bytes(2 * GATHERED_BYTES)
    ring.append(b"before")
    ring.append(data)
    ring.append(data)

    assert ring.read(0, len(data)) == b"before"
    for start in (6, 6 + len(data)):
        view = ring.read(start, len(data))
        assert isinstance(view, memoryview)
        assert view.obj is data
        assert len(view) == len(data)
    assert len(ring.read(0, 6 + len(data))) == 6 + len(data)
