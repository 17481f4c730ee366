"""Secrets that are known are left out of what is written, wherever they stand and however they arrive."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from sandd._core.audit.escaping import as_text, canonical

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MASK: Final = "[redacted]"
LEAST_LENGTH: Final = 6
"""Bytes of a secret: a shorter one would stand in half of all words, and is none."""
PIECE_LENGTH: Final = 256
"""Bytes of a secret that are looked for in one: so much of a stream may have to be held back."""
MAX_VARIABLES: Final = 64
"""Secrets of one request: to look for each in each text takes time, and whoever asks for it gives many."""
MAX_TOKEN_LENGTH: Final = 160
"""Characters of a token of ours that are held back while it may go on: they have about 70."""
_TOKEN: Final = rb"sd[jo]_[0-9A-Za-z]{16,%d}" % MAX_TOKEN_LENGTH
"""Tokens for daemons and operators tell by their form what they are, so they needn't be known."""
_TOKEN_MARKS: Final = (b"sdj_", b"sdo_")
_TOKEN_BEGINNING: Final = re.compile(
    rb"(?:sd[jo]_[0-9A-Za-z]{0,%d}|sd[jo]?|s)\Z" % MAX_TOKEN_LENGTH
)
_OF_THE_LOG: Final = frozenset({"type", "v", "seq", "prev", "ts", "mono", "log", "segment", "key"})
"""Fields of a line that are the log's own: a secret that has the digits of a part of a hash would break the chain."""
_GIVEN: Final = frozenset({"argv", "cwd"})
"""Fields in which a program may be told what its environment has: who gives that can't have anything else masked, not
its own name and not what it asked for."""
_SECRET_NAME: Final = re.compile(
    rb"token|secret|passw|passphrase|credential|api_?key|access_?key|private_?key|auth",
    re.IGNORECASE,
)
"""Variables so named are taken to hold something that a command line must not show either."""


def secrets_in(variables: Mapping[bytes, bytes]) -> tuple[bytes, ...]:
    """Values of an environment that its names call secret, the longest first."""
    found = {
        value
        for name, value in variables.items()
        if len(value) >= LEAST_LENGTH and _SECRET_NAME.search(name)
    }
    return tuple(sorted(found, key=lambda value: (-len(value), value))[:MAX_VARIABLES])


def without_given(fields: dict[str, Any], secrets: Iterable[bytes]) -> dict[str, Any]:
    """What a request's record says, without what its environment calls secret."""
    return {
        name: without(each, secrets) if name in _GIVEN else each for name, each in fields.items()
    }


def without(value: Any, secrets: Iterable[bytes]) -> Any:
    """What JSON is made of without a few secrets, the longest first."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(as_text(secret), MASK)
        return value
    if isinstance(value, dict):
        return {name: without(each, secrets) for name, each in value.items()}
    if isinstance(value, list):
        return [without(each, secrets) for each in value]
    return value


class Redactor:
    """Masks what it knows: of a secret of several lines each line, as a terminal changes what is between them."""

    def __init__(self, secrets: Iterable[bytes | str] = ()) -> None:
        self._known: frozenset[bytes] = frozenset()
        self.learn(secrets)

    def learn(self, secrets: Iterable[bytes | str]) -> None:
        """From now on these are secrets, too."""
        known = set(self._known)
        for each in secrets:
            secret = each.encode("utf-8", "surrogateescape") if isinstance(each, str) else each
            # Also as it reads in a line, should it be no text.
            known.update(_pieces(secret), _pieces(as_text(secret).encode()))
        self._known = frozenset(known)
        # The longest first, so that of two which begin alike none is left in part.
        self.pieces = sorted(known, key=lambda each: (-len(each), each))
        self.pattern = re.compile(b"|".join([*map(re.escape, self.pieces), _TOKEN]))
        # What they look like in JSON, which writes each character by itself.
        escaped = [
            json.dumps(piece.decode("utf-8", "surrogateescape"))[1:-1] for piece in self.pieces
        ]
        self._in_lines = [*(each.encode("ascii") for each in escaped), *_TOKEN_MARKS]
        self.__dict__.pop("beginnings", None)  # it is of those that were known

    def __repr__(self) -> str:
        return f"<Redactor of {len(self.pieces)} secrets>"

    @cached_property
    def beginnings(self) -> frozenset[bytes]:
        """Everything that may become a secret when more follows."""
        return frozenset(piece[:size] for piece in self.pieces for size in range(1, len(piece)))

    def line(self, fields: dict[str, Any]) -> bytes:
        """The line that the fields come to, without secrets."""
        return canonical(
            {
                name: said if name in _OF_THE_LOG else self.value(said)
                for name, said in fields.items()
            }
        )

    def is_in(self, lines: bytes) -> bool:
        """Whether there may be a secret in lines that were made without looking for any.

        Hardly any line has one, and to look for them in many at once costs a hundredth of looking in each text.
        """
        return any(each in lines for each in self._in_lines)

    def text(self, text: str) -> str:
        """The text without secrets."""
        data = text.encode("utf-8", "surrogateescape")
        if self.pattern.search(data) is None:
            return text
        return self.pattern.sub(MASK.encode(), data).decode("utf-8", "surrogateescape")

    def value(self, value: Any) -> Any:
        """The same of what JSON is made of; names are ours, and stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {name: self.value(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        return value

    def stream(self) -> RedactedStream:
        """For what arrives in pieces."""
        return RedactedStream(self)


def _pieces(secret: bytes) -> Iterator[bytes]:
    """What is looked for: its lines, each in parts of about the same length."""
    for line in secret.splitlines():
        if len(line) >= LEAST_LENGTH:
            size = -(-len(line) // -(-len(line) // PIECE_LENGTH))
            yield from (line[start : start + size] for start in range(0, len(line), size))


class RedactedStream:
    """A stream without its secrets, also those that lie across the ends of its pieces.

    What may be the beginning of one is held back until it is known whether it is.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """What can be shown by now."""
        return self._take(piece, is_last=False)

    def finish(self) -> bytes:
        """The rest."""
        return self._take(b"", is_last=True)

    def _take(self, piece: bytes, *, is_last: bool) -> bytes:
        data = self._held + piece
        shown = bytearray()
        position = 0
        hold = len(data) if is_last else self._undecided(data, 0)
        for match in self._redactor.pattern.finditer(data):
            if match.start() >= hold:
                break
            shown += data[position : match.start()] + MASK.encode()
            position = match.end()
            if position > hold:
                hold = self._undecided(data, position)
        if position < hold:
            shown += data[position:hold]
            position = hold
        self._held = data[position:]
        return bytes(shown)

    def _undecided(self, data: bytes, start: int) -> int:
        """Where the earliest beginning of a secret stands that may go on in the next piece."""
        earliest = len(data)
        token = _TOKEN_BEGINNING.search(data, max(start, len(data) - MAX_TOKEN_LENGTH - 4))
        if token is not None:
            earliest = token.start()
        longest = len(self._redactor.pieces[0]) if self._redactor.pieces else 0
        for position in range(max(start, len(data) - longest + 1), earliest):
            if data[position:] in self._redactor.beginnings:
                return position
        return earliest
