"""A token as text: ``sdj_`` lets a daemon join, ``sdo_`` is an operator's; then key id, secret and checksum.

The key id tells which token it is, and is no secret: lists and logs show it. The checksum finds a token that was
cut off or mistyped before anybody is asked. Whoever finds the prefix in a public place knows what it is.
"""

from __future__ import annotations

import enum
import hashlib
import re
import secrets
import string
import zlib
from typing import Final

from attrs import field, frozen

from sandd._core._errors import ConfigurationError

ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
KEY_ID_LENGTH: Final = 12
"""Characters: 71 bits, so that no two of a controller's tokens are ever the same."""
SECRET_BYTES: Final = 32
"""What nobody guesses; so it needs no slow hash, which would be a way to keep a controller busy."""
_SECRET_LENGTH: Final = 43
"""Characters that 32 bytes take."""
_CHECKSUM_LENGTH: Final = 6
"""Characters that 32 bits take."""
CLIENT_PREFIX_LENGTH: Final = 8
"""Hexadecimal digits: who has one token can't find a client's name of another's that isn't so by chance."""
TOKEN_LENGTH: Final = 4 + KEY_ID_LENGTH + _SECRET_LENGTH + _CHECKSUM_LENGTH


class TokenKind(enum.StrEnum):
    """What a token is for, by its prefix."""

    JOIN = "sdj_"
    OPERATOR = "sdo_"


@frozen
class Token:
    """One token. It shows its key id and nothing more, wherever it is printed."""

    kind: TokenKind
    key_id: str
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls, kind: TokenKind) -> Token:
        """One that nobody has had before."""
        key_id = "".join(secrets.choice(ALPHABET) for _ in range(KEY_ID_LENGTH))
        return cls(kind, key_id, secrets.token_bytes(SECRET_BYTES))

    def __str__(self) -> str:
        return f"{self.kind.value}{self.key_id}..."

    @property
    def text(self) -> str:
        """All of it, the secret included: to be shown once, or sent to nobody but its owner."""
        body = self.kind.value + self.key_id + _digits(self.secret, _SECRET_LENGTH)
        return body + _checksum(body)

    @property
    def digest(self) -> bytes:
        """What a controller keeps of the secret."""
        return digest_of(self.secret)


def digest_of(secret: bytes) -> bytes:
    """SHA-256 of a token's secret."""
    return hashlib.sha256(secret).digest()


def client_prefix(key_id: str) -> str:
    """How the names begin under which clients come with this token: so no two tokens' have one name."""
    return hashlib.sha256(key_id.encode()).hexdigest()[:CLIENT_PREFIX_LENGTH]


def is_client_of(client: str, key_id: str) -> bool:
    """Whether it is a client's name, and one for this token."""
    return re.fullmatch(r"[0-9a-f]{24}", client) is not None and client.startswith(
        client_prefix(key_id)
    )


def is_token(text: bytes) -> bool:
    """Whether it begins as tokens do; anything else is a secret that somebody has chosen."""
    return text.startswith(tuple(kind.value.encode() for kind in TokenKind))


def parse_token(text: bytes, kind: TokenKind) -> Token:
    """The token in a text that begins as tokens do.

    Raises:
        ConfigurationError: it is one of another kind, or was damaged.
    """
    if not text.startswith(kind.value.encode()):
        other = "an operator's" if kind is TokenKind.JOIN else "for daemons to join"
        raise ConfigurationError(
            f"that token is {other}: one that begins with {kind.value} is needed here"
        )
    try:
        shown = text.decode("ascii")
        body, checksum = shown[:-_CHECKSUM_LENGTH], shown[-_CHECKSUM_LENGTH:]
        if len(shown) == TOKEN_LENGTH and checksum == _checksum(body):
            key_id = body[4 : 4 + KEY_ID_LENGTH]
            secret = _number(body[4 + KEY_ID_LENGTH :]).to_bytes(SECRET_BYTES, "big")
            return Token(kind, key_id, secret)
    except (ValueError, OverflowError):  # what is no ASCII, no digit, or too large a number
        pass
    raise ConfigurationError(
        f"the token is damaged: {TOKEN_LENGTH} letters and digits are needed, just as they were printed "
        f"when it was made, and these are {len(text)} bytes"
    )


def key_id_in(text: str) -> str | None:
    """The key id that is meant: by itself, with the prefix before it, or in a whole token; None: there is none."""
    if is_token(text.encode(errors="replace")):
        try:
            return parse_token(text.encode(), TokenKind(text[:4])).key_id
        except (ConfigurationError, ValueError):
            text = text[4:]
    return text if len(text) == KEY_ID_LENGTH and set(text) <= set(ALPHABET) else None


def _digits(content: bytes, length: int) -> str:
    number = int.from_bytes(content, "big")
    found = []
    for _ in range(length):
        number, digit = divmod(number, len(ALPHABET))
        found.append(ALPHABET[digit])
    return "".join(reversed(found))


def _number(text: str) -> int:
    number = 0
    for character in text:
        number = number * len(ALPHABET) + ALPHABET.index(character)
    return number


def _checksum(body: str) -> str:
    return _digits(zlib.crc32(body.encode()).to_bytes(4, "big"), _CHECKSUM_LENGTH)
