"""What a job may use: a value, the least of several, and how it is written."""

from __future__ import annotations

import math

import pytest

from sandd import Limits
from sandd._core.limits import LIMIT_NAMES, NO_LIMITS, limits_from, read_limits

MIB = 1 << 20


def test_the_least_of_each_limit_counts() -> None:
    """Whoever says it; of `nice` that is the lowest priority, and None limits nothing."""
    one = Limits(wall=9.0, processes=7, nice=3)
    other = Limits(processes=4, nice=1, memory_bytes=MIB)
    assert Limits.least(one, NO_LIMITS, other) == Limits(
        wall=9.0, processes=4, nice=3, memory_bytes=MIB
    )
    assert Limits.least(other, one) == Limits.least(one, other)


@pytest.mark.parametrize("limits", [(), (NO_LIMITS,), (NO_LIMITS, NO_LIMITS)])
def test_no_limits_come_to_none(limits: tuple[Limits, ...]) -> None:
    """And to the very object, by which they are told at once."""
    assert Limits.least(*limits) is NO_LIMITS


@pytest.mark.parametrize("name", LIMIT_NAMES)
def test_the_least_never_raises_a_limit(name: str) -> None:
    """However much somebody else allows."""
    low, high = (19, 0) if name == "nice" else (2 * MIB, 3 * MIB)
    if name in ("cpus", "processes"):
        low, high = 2, 3
    for order in ((low, high), (high, low)):
        assert getattr(Limits.least(*(Limits(**{name: each}) for each in order)), name) == low


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wall", 0),
        ("wall", math.inf),
        ("wall", math.nan),
        ("cpu_seconds", -1),
        ("cpus", 0),
        ("memory_bytes", MIB - 1),
        ("processes", 0),
        ("open_files", 7),
        ("file_bytes", -1),
        ("output_bytes", 2**63),
        ("nice", -1),
        ("nice", 20),
    ],
)
def test_what_can_be_no_limit_is_refused(name: str, value: float) -> None:
    """By its name; a negative `nice` would raise the priority."""
    with pytest.raises(ValueError, match=f"the limit {name} is .*; it must be"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("wall", "3"), ("processes", 2.5), ("memory_bytes", True), ("cpus", b"1")]
)
def test_a_limit_of_another_type_is_refused(name: str, value: object) -> None:
    """Whole numbers where there is no half."""
    with pytest.raises(TypeError, match=f"the limit {name} is"):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_limits_are_written_as_texts() -> None:
    """With units of size, with short names, and several at a time."""
    texts = ["memory=64M", "file = 1kb", "output_bytes=3", "cpu=1.5", "processes=9", "files=64"]
    assert read_limits(texts) == Limits(
        memory_bytes=64 * MIB,
        file_bytes=1000,
        output_bytes=3,
        cpu_seconds=1.5,
        processes=9,
        open_files=64,
    )
    assert limits_from({"memory": 2 * MIB, "wall": 3}, place="x") == Limits(
        memory_bytes=2 * MIB, wall=3
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("memory", "is not of the form KEY=VALUE"),
        ("memory=much", "must be a size"),
        ("memory=1", "1 MiB or more"),
        ("processes=2.5", "must be a number"),
        ("wall=soon", "must be a number"),
        ("speed=1", "there is no limit 'speed'"),
    ],
)
def test_a_text_that_is_no_limit_is_told_in_one_line(text: str, why: str) -> None:
    """With the option that it was given to."""
    with pytest.raises(ValueError, match=f"^--limit.*{why}") as caught:
        read_limits([text])
    assert "\n" not in str(caught.value)


def test_a_limit_by_both_its_names_is_ambiguous() -> None:
    """Which of them was meant nobody could say."""
    with pytest.raises(ValueError, match="memory_bytes is given twice"):
        read_limits(["memory=2M", "memory_bytes=3M"])
