"""How a peer shows that it knows a secret: by an answer to one challenge, for one Hello, on one channel.

What is authenticated is the nonce, the controller's id and every field of the Hello, the channel's binding among
them; so a proof serves for nothing else: not again, not elsewhere, not through somebody in between who ends TLS, and
not for another claim. Each piece is prefixed by its length, so no two Hellos make the same text.

- A secret that both sides have, and a daemon's own key: HMAC-SHA256 of that text.
- A token, of which the controller has ``sha256(secret)`` only: ``secret XOR HMAC(sha256(secret), text)``, as in SCRAM
  (RFC 5802, section 3). The controller takes the mask off and looks whether the hash of what it finds is the one it
  has. So neither the wire nor a stolen store is enough to come in.

Only the standard library: the daemon needs nothing more.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs
from attrs import field, frozen

from sandd import wire
from sandd._core.identity.tokens import Token, TokenKind, digest_of, is_token, parse_token

if TYPE_CHECKING:
    from typing import TypeVar

    HelloT = TypeVar("HelloT", wire.Hello, wire.OperatorHello)

DOMAIN: Final = b"sandd.2 hello proof"
_KEY_DOMAIN: Final = b"sandd.2 daemon key"


@frozen
class SharedSecret:
    """What all daemons of a controller know, or all its operators."""

    secret: bytes = field(repr=False)


@frozen
class DaemonKey:
    """A daemon's own, which its controller gave it."""

    uid: str
    generation: int
    secret: bytes = field(repr=False)


Credential: TypeAlias = SharedSecret | Token | DaemonKey


def read_credential(text: bytes, kind: TokenKind) -> Credential:
    """What somebody was given in a file or a variable: a token of this kind, or a secret that others have as well.

    Raises:
        ConfigurationError: it is a token that was damaged, or one of the other kind.
    """
    return parse_token(text, kind) if is_token(text) else SharedSecret(text)


def daemon_secret(master_key: bytes, uid: str, generation: int) -> bytes:
    """The secret of a daemon's key: the controller makes it anew each time, and so keeps none."""
    parts = (_KEY_DOMAIN, uid.encode(), generation.to_bytes(8, "big"))
    return hmac.digest(master_key, b"".join(map(_piece, parts)), hashlib.sha256)


def sign(
    hello: HelloT, challenge: wire.Challenge, credential: Credential | None, channel_binding: bytes
) -> HelloT:
    """The Hello, with what it is proven by; without a credential it proves nothing."""
    said = attrs.evolve(
        hello, channel_binding=channel_binding, proof=b"", **_claimed_by(credential)
    )
    text = _text(challenge, said)
    match credential:
        case None:
            return said
        case Token():
            proof = _xor(credential.secret, _mac(credential.digest, text))
        case _:
            proof = _mac(credential.secret, text)
    return attrs.evolve(said, proof=proof)


def _claimed_by(credential: Credential | None) -> dict[str, Any]:
    """What a Hello says of it."""
    match credential:
        case DaemonKey(uid, generation):
            return {
                "credential": wire.CredentialKind.KEY,
                "key_id": uid,
                "generation": generation,
            }
        case Token(TokenKind.JOIN, key_id):
            return {"credential": wire.CredentialKind.JOIN, "key_id": key_id}
        case Token(_, key_id):
            return {"credential": wire.CredentialKind.OPERATOR, "key_id": key_id}
    return {}


def proves_secret(
    hello: wire.Hello | wire.OperatorHello, challenge: wire.Challenge, secret: bytes
) -> bool:
    """Whether the peer knows this secret, and says this Hello in answer to this challenge."""
    return hmac.compare_digest(hello.proof, _mac(secret, _text(challenge, hello)))


def proves_token(
    hello: wire.Hello | wire.OperatorHello, challenge: wire.Challenge, digest: bytes
) -> bool:
    """Whether the peer knows the token's secret that has this digest; and says this Hello, as above."""
    mask = _mac(digest, _text(challenge, hello))
    if len(hello.proof) != len(mask):
        return False
    return hmac.compare_digest(digest_of(_xor(hello.proof, mask)), digest)


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, hashlib.sha256)


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


_CLAIMS: Final = {
    kind: tuple(
        (each.name, each.name.encode(), each.default)
        for each in attrs.fields(kind)
        if each.name != "proof"
    )
    for kind in (wire.Hello, wire.OperatorHello)
}
"""Name, its bytes and default of each field that is authenticated."""


def _text(challenge: wire.Challenge, hello: wire.Hello | wire.OperatorHello) -> bytes:
    """What is authenticated.

    Fields at their default are left out, as they are on the wire: so a newer peer that doesn't use a field which we
    don't know is understood.
    """
    pieces = [
        DOMAIN,
        wire.CONTROL_TAGS[type(hello)].encode(),
        challenge.nonce,
        challenge.controller_id.encode(),
    ]
    for name, encoded_name, default in _CLAIMS[type(hello)]:
        value = getattr(hello, name)
        # A default that is made anew each time is an empty map.
        if value != default and value != {}:
            pieces += [encoded_name, _canonical(value)]
    return b"".join(map(_piece, pieces))


def _canonical(value: object) -> bytes:
    """One value as bytes, which no other value has; of a map, whatever order it is in."""
    match value:
        case bytes():
            return b"b" + value
        case enum.Enum():
            return b"e" + str(value.value).encode()
        case str():
            return b"s" + value.encode("utf-8", "surrogatepass")
        case int():
            return b"i%d" % value
        case tuple():
            return b"t" + b"".join(_piece(_canonical(item)) for item in value)
        case Mapping():
            items = sorted((_canonical(key), _canonical(item)) for key, item in value.items())
            return b"m" + b"".join(_piece(key) + _piece(item) for key, item in items)
    raise TypeError(f"a Hello has no {type(value).__name__} in it")


def _piece(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content
