"""``[LOCAL:]HOST:PORT``: where to listen, and where that leads. No I/O.

As for ssh's -L and -R, the listening end comes first. Each end is ``HOST:PORT``, a port alone (of
127.0.0.1), or ``unix:PATH``; an IPv6 address is written in brackets. A path ends at the next colon.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from typing import Self

LOOPBACK = "127.0.0.1"
_PIECE = re.compile(r"\[([^][]*)\](?=:|$)|([^][:]*)(?=:|$)")
"""Between two colons; what stands in brackets may have some."""


class BadTarget(ValueError):
    """It means nothing; says why."""


@frozen
class End:
    """Where a connection comes in, or where it goes to."""

    host: str
    port: int
    """0, of an end that listens: any that is free."""
    path: str | None = None
    """Of a Unix socket, instead of both."""

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class Forward:
    """One port that leads somewhere."""

    listen: End
    target: End
    is_open: bool = False
    """It has been said where it listens."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what the command line says.

        Raises:
            BadTarget: it says nothing, or too much.
        """
        pieces = _split(text)
        ends = []
        while pieces:
            ends.append(_take_end(pieces, text))
        match ends:
            case [target]:
                listen = End(LOOPBACK, 0)
            case [listen, target]:
                pass
            case _:
                raise BadTarget(f"{text!r} has {len(ends)} ends; it is [LOCAL:]HOST:PORT")
        if target.path is None and target.port == 0:
            raise BadTarget(f"{text!r} leads to port 0, where nobody can listen")
        return cls(listen, target)


def _split(text: str) -> list[tuple[str, bool]]:
    """What stands between the colons, and whether it stood in brackets."""
    pieces, position = [], 0
    while True:
        found = _PIECE.match(text, position)
        if found is None:
            raise BadTarget(f"{text!r} has a bracket where none can be: [ADDRESS]:PORT")
        in_brackets = found[1] is not None
        pieces.append((found[1] if in_brackets else found[2], in_brackets))
        if found.end() == len(text):
            return pieces
        position = found.end() + 1


def _take_end(pieces: list[tuple[str, bool]], text: str) -> End:
    """The end that the pieces begin with; they are taken away."""
    first, in_brackets = pieces.pop(0)
    if not first:
        raise BadTarget(f"{text!r} has nothing before a colon, or behind one")
    if not in_brackets and first.isascii() and first.isdecimal():
        return End(LOOPBACK, _port(first, text))
    if not pieces:
        raise BadTarget(f"{text!r} has no port behind {first!r}: HOST:PORT")
    second, brackets_again = pieces.pop(0)
    if not in_brackets and first == "unix":
        if not second or brackets_again:
            raise BadTarget(f"{text!r} has no path behind 'unix:'")
        return End("", 0, second)
    if brackets_again or not (second.isascii() and second.isdecimal()):
        hint = "" if brackets_again or ":" not in text else "; an IPv6 address needs brackets"
        raise BadTarget(f"{text!r}: {second!r} is no port{hint}")
    return End(first, _port(second, text))


def _port(digits: str, text: str) -> int:
    if len(digits) > 5 or int(digits) > 65535:
        raise BadTarget(f"{text!r}: {digits} is no TCP port: 0 to 65535")
    return int(digits)
