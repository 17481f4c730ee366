"""What strangers may cause to be written: some of it in full, of the rest the number."""

from __future__ import annotations

from typing import Final

from attrs import define

BURST: Final = 100
"""Refusals in full, at once: an attack is seen, and a cluster with a wrong token is seen whole."""
PER_SECOND: Final = 1.0
"""And then: 86,400 lines a day, 30 MB."""


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
