"""Whole lines out of chunks that end anywhere, in bounded memory. No I/O."""

from __future__ import annotations

from typing import Final

from attrs import define

MOST_OF_A_LINE: Final = 64 * 1024
"""Bytes that are held while a line's end is waited for, of each output of each daemon; what is longer is shown as
several lines."""
_LONGEST_CHARACTER: Final = 4
"""Bytes, in UTF-8."""


@define
class Lines:
    """One output's lines, each without its newline."""

    _rest: bytes = b""
    """The beginning of a line whose end has not come."""

    def feed(self, chunk: bytes | bytearray) -> list[bytes]:
        """The lines that this chunk completes."""
        *whole, rest = (self._rest + chunk).split(b"\n")
        *more, rest = _pieces(rest)
        self._rest = rest
        return [piece for line in whole for piece in _pieces(line)] + more

    def finish(self) -> list[bytes]:
        """The last line, if it has no newline."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


def _pieces(line: bytes) -> list[bytes]:
    """The line, or as many parts as it takes, none of which ends within a character."""
    pieces = []
    start = 0
    while len(line) - start > MOST_OF_A_LINE:
        end = start + MOST_OF_A_LINE
        for earlier in range(end, end - _LONGEST_CHARACTER, -1):
            if line[earlier] & 0xC0 != 0x80:  # a character begins here
                end = earlier
                break
        pieces.append(line[start:end])
        start = end
    return [*pieces, line[start:]]
