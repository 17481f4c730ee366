"""What was read back from disk for readers of a log, until they have sent it; and where somebody waits.

Bounded, however many readers there are: who finds no place asks again when something has come.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

READ_AHEAD: Final = 2
"""Pieces held per log: one is sent while the next is read. More readers at different places take turns."""
MOST_WANTED: Final = 64
"""Places remembered at which somebody waits: readers of one log that take turns. Those beyond wait longer."""


@define(eq=False)
class ReadAhead:
    """At most `READ_AHEAD` pieces by offset, and at most `MOST_WANTED` offsets at which pieces are wanted."""

    wanted: dict[int, None] = field(factory=dict)
    """Longest first: who has had its turn, and wants more, stands behind all who wait."""
    _pieces: dict[int, bytes] = field(factory=dict)
    """Oldest first."""

    @property
    def held_bytes(self) -> int:
        """Bytes of all pieces."""
        return sum(map(len, self._pieces.values()))

    @property
    def has_place(self) -> bool:
        """Something more may be read without anything making way for it."""
        return len(self._pieces) + len(self.wanted) < READ_AHEAD

    def has(self, offset: int) -> bool:
        """Whether what stands at `offset` is here."""
        return self._find(offset) is not None

    def take(self, offset: int, limit: int) -> tuple[bytes, int] | None:
        """At most `limit` bytes from `offset`, and where their piece ends; None if they aren't here.

        A piece goes with its last byte: whoever else stands there has it read again.
        """
        start = self._find(offset)
        if start is None:
            return None
        piece = self._pieces[start]
        chunk = piece[offset - start : offset - start + limit]
        end = start + len(piece)
        if offset + len(chunk) == end:
            del self._pieces[start]
        return chunk, end

    def want(self, offset: int) -> bool:
        """Somebody waits at `offset`; True if that was not known, and there was a place for it."""
        if offset in self.wanted or offset in self._pieces or len(self.wanted) >= MOST_WANTED:
            return False
        self.wanted[offset] = None
        return True

    def next_wanted(self, base: int, end: int) -> int | None:
        """Where somebody has waited longest, of the places from `base` to `end`; others are forgotten."""
        for offset in list(self.wanted):
            if base <= offset < end and offset not in self._pieces:
                return offset
            del self.wanted[offset]
        return None

    def add(self, start: int, data: bytes) -> None:
        """It was read. If nobody waits for it any more it isn't kept."""
        if start in self.wanted:
            del self.wanted[start]
            self._pieces[start] = data
            if len(self._pieces) > READ_AHEAD:
                del self._pieces[next(iter(self._pieces))]

    def give_up(self, start: int) -> None:
        """It can't be read, ever."""
        self.wanted.pop(start, None)

    def free(self, base: int) -> None:
        """Nobody needs what stands below `base`."""
        for start, piece in list(self._pieces.items()):
            if start + len(piece) <= base:
                del self._pieces[start]

    def clear(self) -> None:
        """Nobody needs anything."""
        self.wanted.clear()
        self._pieces.clear()

    def _find(self, offset: int) -> int | None:
        for start, piece in self._pieces.items():
            if start <= offset < start + len(piece):
                return start
        return None
