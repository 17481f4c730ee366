"""Secrets that are known are left out of what is written, wherever they stand and however they arrive."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MASK: Final = "[redacted]"
LEAST_LENGTH: Final = 6
"""Characters of a secret: a shorter one would stand in half of all words, and is none."""
MAX_TOKEN_LENGTH: Final = 160
"""Characters of a token of ours that are held back while it may go on: they have about 70."""
_TOKEN: Final = rb"sd[jo]_[0-9A-Za-z]{16,%d}" % MAX_TOKEN_LENGTH
"""Tokens for daemons and operators tell by their form what they are, so they needn't be known."""
_TOKEN_BEGINNING: Final = re.compile(
    rb"(?:sd[jo]_[0-9A-Za-z]{0,%d}|sd[jo]?|s)\Z" % MAX_TOKEN_LENGTH
)
_SECRET_NAME: Final = re.compile(
    r"token|secret|passw|passphrase|credential|api_?key|access_?key|private_?key|auth",
    re.IGNORECASE,
)
"""Variables so named are taken to hold something that a command line must not show either."""


def secrets_in(variables: Mapping[bytes, bytes]) -> list[bytes]:
    """Values of an environment that its names call secret."""
    return [
        value
        for name, value in variables.items()
        if len(value) >= LEAST_LENGTH and _SECRET_NAME.search(name.decode("utf-8", "replace"))
    ]


class Redactor:
    """Masks what it knows."""

    def __init__(self, secrets: Iterable[bytes | str] = ()) -> None:
        known = {
            each.encode("utf-8", "surrogateescape") if isinstance(each, str) else each
            for each in secrets
        }
        # The longest first, so that of two which begin alike none is left in part.
        self._secrets = sorted(
            (each for each in known if len(each) >= LEAST_LENGTH),
            key=lambda each: (-len(each), each),
        )
        self._pattern = re.compile(b"|".join([*map(re.escape, self._secrets), _TOKEN]))
        beginnings = {each[:size] for each in self._secrets for size in range(1, len(each))}
        self._beginnings = frozenset(beginnings)
        self._longest = max((len(each) for each in self._secrets), default=0)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._secrets)} secrets>"

    def text(self, text: str) -> str:
        """The text without secrets."""
        if len(text) < LEAST_LENGTH:
            return text
        data = text.encode("utf-8", "surrogateescape")
        if self._pattern.search(data) is None:
            return text
        return self._pattern.sub(MASK.encode(), data).decode("utf-8", "surrogateescape")

    def value(self, value: Any) -> Any:
        """The same of what JSON is made of; keys are ours, and stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.value(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        return value

    def stream(self) -> RedactedStream:
        """For what arrives in pieces."""
        return RedactedStream(self)


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
        for match in self._redactor._pattern.finditer(data):
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
        redactor = self._redactor
        earliest = len(data)
        token = _TOKEN_BEGINNING.search(data, max(start, len(data) - MAX_TOKEN_LENGTH - 4))
        if token is not None:
            earliest = token.start()
        for position in range(max(start, len(data) - redactor._longest + 1), earliest):
            if data[position:] in redactor._beginnings:
                return position
        return earliest
