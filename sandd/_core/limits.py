"""What a job may use at most, and what it has used: `Limits` and `Usage`, and how a limit is written as text.

Pure. Who holds which limit, and how well, is in docs/limits.rst.
"""

from __future__ import annotations

import re
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MIB: Final = 1 << 20
MOST: Final = 2**62
"""Of any whole number: beyond any machine, and exact in a signed 64-bit integer of any kernel."""
MOST_SECONDS: Final = 1e9
"""31 years, as for every other duration."""
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i?b)?|b)?")


def _number(low: float, high: float, what: str) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"the limit {attribute.name} is {value!r:.60}; it must be {what}")
        if not low <= value <= high:
            raise ValueError(f"the limit {attribute.name} is {value}; it must be {what}")

    return check


def _count(low: int, high: int, what: str) -> Any:
    within = _number(low, high, what)

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and type(value) is not int:
            raise TypeError(f"the limit {attribute.name} is {value!r:.60}; it must be {what}")
        within(instance, attribute, value)

    return check


def _limit(validator: Any) -> Any:
    return attrs.field(default=None, validator=validator)


@frozen(kw_only=True)
class Limits:
    """What a job, with all that it starts, may use at most; None: no limit.

    A job that goes beyond is ended, and its result says which limit it was; but for `cpus` and `nice`, which only slow
    it down, and `open_files` and `file_bytes`, which make a system call of the program fail.

    Raises:
        TypeError, ValueError: a value that can't be a limit.
    """

    wall: float | None = _limit(_number(0.001, MOST_SECONDS, "a number of seconds, more than 0"))
    """Seconds from its start. Unlike a time-out it is no error: the result says LIMIT_EXCEEDED, "wall"."""
    cpu_seconds: float | None = _limit(
        _number(0.01, MOST_SECONDS, "a number of seconds, 0.01 or more")
    )
    """Seconds of processor time, of all its processes together."""
    cpus: float | None = _limit(_number(0.01, 4096, "a number of processors, from 0.01 to 4096"))
    """Processors that it may use at a time, on average over a tenth of a second."""
    memory_bytes: int | None = _limit(_count(MIB, MOST, "a number of bytes, 1 MiB or more"))
    """Of all its processes together, tmpfs and cached pages included where a control group counts."""
    processes: int | None = _limit(_count(1, 1 << 22, "a number from 1 to 4194304"))
    """Processes and threads at a time."""
    open_files: int | None = _limit(_count(8, 1 << 30, "a number from 8 to 2**30"))
    """Descriptors of each process; one more is EMFILE. Fewer than 8 no program starts with."""
    file_bytes: int | None = _limit(_count(0, MOST, "a number of bytes, 0 or more"))
    """Of each file it writes; more is SIGXFSZ, or EFBIG for who ignores that."""
    output_bytes: int | None = _limit(_count(0, MOST, "a number of bytes, 0 or more"))
    """Of its outputs together; what is within that is delivered."""
    nice: int | None = _limit(_count(0, 19, "a number from 0 to 19"))
    """Its priority is at most that; 19 is the lowest priority."""

    def __eq__(self, other: object) -> bool:
        if self is other:  # as mostly: it is asked for each message, whether they are none
            return True
        if not isinstance(other, Limits):
            return NotImplemented
        return _values_of(self) == _values_of(other)

    def __hash__(self) -> int:
        return hash(_values_of(self))

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.given.items())
        return f"{type(self).__name__}({given})"

    @property
    def given(self) -> dict[str, float | int]:
        """Those that there are, by name."""
        values = ((name, getattr(self, name)) for name in LIMIT_NAMES)
        return {name: value for name, value in values if value is not None}

    @classmethod
    def least(cls, *limits: Limits) -> Limits:
        """Of each limit the one that allows the least."""
        for each in limits:
            if each is not NO_LIMITS:
                break
        else:  # as mostly
            return NO_LIMITS
        first, *others = [each for each in limits if each is not NO_LIMITS]
        if not others:
            return first
        least: dict[str, Any] = {}
        for each in (first, *others):
            for name, value in each.given.items():
                stricter = max if name == "nice" else min
                least[name] = stricter(value, least.get(name, value))
        return cls(**least)

    def without(self, names: Iterable[str]) -> Limits:
        """Those that are left when some, by name, are taken away."""
        return attrs.evolve(self, **dict.fromkeys(names))


LIMIT_NAMES: Final = tuple(attribute.name for attribute in attrs.fields(Limits))
_values_of: Final = attrgetter(*LIMIT_NAMES)
NO_LIMITS: Final = Limits()
_SHORT: Final = {
    "memory": "memory_bytes",
    "cpu": "cpu_seconds",
    "files": "open_files",
    "file": "file_bytes",
    "output": "output_bytes",
}
"""What may be written for the names of limits, too."""


@frozen
class Usage:
    """What a job has used."""

    cpu_seconds: float = 0.0
    max_rss_bytes: int = 0


NO_USAGE: Final = Usage()


def read_limits(entries: Iterable[str], *, option: str = "--limit") -> Limits:
    """The limits that are written as ``KEY=VALUE``; ValueError, in one line, for what is none."""
    given: dict[str, Any] = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"{option} {entry!r} is not of the form KEY=VALUE, as in memory=64M")
        given[key.strip()] = value.strip()
    return limits_from(given, place=option)


def limits_from(given: Mapping[str, Any], *, place: str) -> Limits:
    """The limits of a table, whose values may be texts such as ``"64M"``; ValueError, in one line, for what is none."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        name = _SHORT.get(key, key)
        if name not in LIMIT_NAMES:
            raise ValueError(
                f"{place}: there is no limit {key!r:.60}; there are {', '.join(LIMIT_NAMES)}"
            )
        if name in found:
            raise ValueError(f"{place}: the limit {name} is given twice")
        found[name] = _value(place, name, value) if isinstance(value, str) else value
    if not found:
        return NO_LIMITS
    try:
        return Limits(**found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error


def _value(place: str, name: str, text: str) -> float | int:
    try:
        if name.endswith("_bytes"):
            return _size(text)
        return float(text) if name in ("wall", "cpu_seconds", "cpus") else int(text)
    except ValueError:
        kind = "a size, such as 64M" if name.endswith("_bytes") else "a number"
        raise ValueError(f"{place}: {name} is {text!r:.60}; it must be {kind}") from None


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.lower())
    if match is None:
        raise ValueError(text)
    base = (
        1000 if match[3] == "b" else 1024
    )  # as for every size here: GB is decimal; GiB and G are binary
    return int(float(match[1]) * base ** "bkmgt".index(match[2] or "b"))
