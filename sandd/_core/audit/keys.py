"""The key that signs checkpoints: Ed25519, one for each controller, in a file that only its owner may read."""

from __future__ import annotations

import base64
import contextlib
from typing import TYPE_CHECKING, Final

from attrs import frozen

from sandd._core._errors import ConfigurationError
from sandd._core.state_directory import write_new

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

KEY_FILE: Final = "audit.key"
"""In a controller's state directory."""
_SCHEME: Final = "ed25519:"


@frozen
class PublicKey:
    """Tells what the controller has signed."""

    _key: Ed25519PublicKey

    def __str__(self) -> str:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        raw = self._key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return _SCHEME + base64.b64encode(raw).decode("ascii")

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """The key that was printed so; ConfigurationError if it is none."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            scheme, _, encoded = text.strip().partition(":")
            if scheme + ":" != _SCHEME:
                raise ValueError(f"it doesn't begin with {_SCHEME}")
            raw = base64.b64decode(encoded, validate=True)
            return cls(Ed25519PublicKey.from_public_bytes(raw))
        except ValueError as error:
            raise ConfigurationError(
                f"{text.strip()!r:.80} is no public key of an audit log: {error}; "
                "'sandd audit key' prints it"
            ) from error

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        """Whether the signature is the controller's, of this message."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@frozen
class SigningKey:
    """The controller's own."""

    _key: Ed25519PrivateKey

    def sign(self, message: bytes) -> bytes:
        """The signature of a message."""
        return self._key.sign(message)

    @property
    def public(self) -> PublicKey:
        """What others tell its signatures by."""
        return PublicKey(self._key.public_key())


def make_key(path: Path) -> SigningKey:
    """The key in the file, which is made if it is missing. OSError, ConfigurationError as `read_key`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    if not path.exists():
        fresh = Ed25519PrivateKey.generate()
        pem = fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with contextlib.suppress(FileExistsError):
            write_new(path, pem.decode("ascii"))
    return read_key(path)


def read_key(path: Path) -> SigningKey:
    """The key in the file. OSError if it can't be read, ConfigurationError if it is none."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} holds no key for the audit log: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} holds a key of another kind than Ed25519")
    return SigningKey(key)
