"""The spawner's `NamedTuple` makes what typing's makes."""

from __future__ import annotations

import typing

import pytest

from sandd._core.processes import named_tuples


class Theirs(typing.NamedTuple):
    """What it is."""

    first: int
    second: str = "two"
    """Has a default."""
    third: tuple[int, ...] | None = None

    @property
    def both(self) -> str:
        """Something that is made of them."""
        return f"{self.first} {self.second}"

    def times(self, number: int) -> int:
        """A method."""
        return self.first * number


class Ours(named_tuples.NamedTuple):
    """What it is."""

    first: int
    second: str = "two"
    """Has a default."""
    third: tuple[int, ...] | None = None

    @property
    def both(self) -> str:
        """Something that is made of them."""
        return f"{self.first} {self.second}"

    def times(self, number: int) -> int:
        """A method."""
        return self.first * number


def test_a_class_is_what_typing_makes_of_it() -> None:
    """Its bases, fields, defaults, words and place."""
    for name in (
        "_fields",
        "_field_defaults",
        "__doc__",
        "__module__",
        "__match_args__",
        "__mro__",
    ):
        theirs, ours = getattr(Theirs, name), getattr(Ours, name)
        assert ours == ((Ours, *theirs[1:]) if name == "__mro__" else theirs)
    assert (Ours.__name__, Ours.__qualname__) == ("Ours", "Ours")


def test_a_value_is_a_tuple_with_names() -> None:
    """Made by position and by name, compared and shown as one, and without room for more."""
    value = Ours(1, third=(2, 3))
    assert value == (1, "two", (2, 3)) == Theirs(1, third=(2, 3))
    assert repr(value) == repr(Theirs(1, third=(2, 3))).replace("Theirs", "Ours")
    assert (value.both, value.times(7), value._replace(first=5).first) == ("1 two", 7, 5)
    assert tuple.__new__(Ours, (1, "two", None)).second == "two"
    with pytest.raises(AttributeError):
        value.fourth = 4  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        value.first = 2  # type: ignore[misc]


def test_what_is_missing_or_too_much_is_refused() -> None:
    """As by any function."""
    with pytest.raises(TypeError):
        Ours()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Ours(1, fourth=4)  # type: ignore[call-arg]
