"""What strangers, and each actor, may cause to be written of what costs them nothing: some of it in full, of the rest
the number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import define, field

from sandd._core.audit.records import Record, RecordType
from sandd._core.rate_limits.bounded_table import BoundedTable

if TYPE_CHECKING:
    from collections.abc import Iterator

BURST: Final = 100
"""Lines in full, at once: an attack is seen, and a cluster with a wrong token is seen whole."""
PER_SECOND: Final = 1.0
"""And then: 86,400 lines a day, 30 MB."""
MAX_ACTORS: Final = 1000
"""Actors who are counted by themselves, once for each type of record; further ones share a bucket. With the operators'
common token anybody may have any name."""

Actor: TypeAlias = tuple[RecordType, str | None, str | None]
"""What is told of him, his tenant and his name."""


@define
class Flood:
    """A bucket of lines. Clock readings in, decisions out."""

    _room: float = BURST
    _at: float | None = None
    _left_out: int = 0

    def admits(self, now: float) -> bool:
        """Whether one more may be written; else it counts."""
        if self._at is not None:
            self._room = min(BURST, self._room + (now - self._at) * PER_SECOND)
        self._at = now
        if self._room < 1:
            self._left_out += 1
            return False
        self._room -= 1
        return True

    def take_count(self) -> int:
        """How many were left out since the last time."""
        count, self._left_out = self._left_out, 0
        return count

    def is_full(self, now: float) -> bool:
        """As many may be written as of one that was never heard of, and all that was left out has been told."""
        idle = 0.0 if self._at is None else now - self._at
        return not self._left_out and self._room + idle * PER_SECOND >= BURST


@define(eq=False)
class Floods:
    """Who may still cause lines: strangers all together, and each actor by itself."""

    _strangers: Flood = field(factory=Flood)
    _others: dict[RecordType, Flood] = field(factory=dict)
    """Of actors there is no room to tell apart."""
    _actors: BoundedTable[Actor, Flood] = field(
        factory=lambda: BoundedTable(MAX_ACTORS, lambda flood, now: not flood.is_full(now))
    )
    _withheld: set[Actor] = field(factory=set)
    """Actors of whom something was left out; they are in the table, which forgets none such."""

    def admits_stranger(self, now: float) -> bool:
        """Whether one more may be written that somebody has caused who was not let in."""
        return self._strangers.admits(now)

    def admits(self, record: Record, now: float) -> bool:
        """Whether one more of this type, and of its actor, may be written."""
        actor = (record.type, record.tenant, record.actor)
        flood = self._actors.get(actor)
        if flood is None:
            flood = Flood()
            self._actors.put(actor, flood, now)
            if self._actors.get(actor) is None:
                return self._others.setdefault(record.type, Flood()).admits(now)
        if flood.admits(now):
            return True
        self._withheld.add(actor)
        return False

    def summaries(self) -> Iterator[Record]:
        """What was left out since the last time, as numbers."""
        yield from _left_out(self._strangers, (RecordType.REFUSAL, None, None))
        for what, flood in self._others.items():
            yield from _left_out(flood, (what, None, None))
        for actor in sorted(self._withheld, key=str):
            flood_of_one = self._actors.get(actor)
            assert flood_of_one is not None
            yield from _left_out(flood_of_one, actor)
        self._withheld.clear()


def _left_out(flood: Flood, actor: Actor) -> Iterator[Record]:
    what, tenant, name = actor
    count = flood.take_count()
    if count:
        outcome, said = _WORDS.get(what, (what.value, "came"))
        reason = f"{count} more {said}, and are not told one by one"
        yield Record(type=what, outcome=outcome, reason=reason, tenant=tenant, actor=name)


_WORDS: Final = {
    RecordType.REFUSAL: ("refused", "were refused"),
    RecordType.ATTACH: ("asked", "attached as had been told before"),
}
"""The outcome, and how the number is told."""
