"""What a certificate authority is known by: the SHA-256 of its certificate, as ``sha256:HEX``. No I/O.

Of the whole certificate in DER, and not of its public key alone: that takes no ASN.1, so a peer needs nothing but a
hash, and ``openssl x509 -in ca.pem -outform der | sha256sum`` gives the same. An authority never renews its certificate
with the same key, so the key's hash would live no longer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

from attrs import frozen

from sandd._core._errors import ConfigurationError

MAX_PINS: Final = 4
"""Of one controller: that of today, and that of tomorrow, twice."""
MAX_BUNDLE_BYTES: Final = 64 * 1024
"""Of all CA certificates together, in PEM; one has about 700 bytes, of a company's own perhaps 3,000."""
_PIN: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_BLOCK: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----"
)


@frozen(order=True)
class Pin:
    """One certificate's SHA-256."""

    digest: bytes

    @classmethod
    def of(cls, certificate: bytes) -> Pin:
        """Of a certificate in DER."""
        return cls(hashlib.sha256(certificate).digest())

    def __str__(self) -> str:
        return f"sha256:{self.digest.hex()}"


def read_pins(text: str) -> tuple[Pin, ...]:
    """The pins in ``sha256:HEX[,sha256:HEX...]``, sorted. ConfigurationError says what is wrong with any other text."""
    pins = set()
    for each in text.split(","):
        match = _PIN.fullmatch(each.strip())
        if match is None:
            raise ConfigurationError(
                f"{each.strip()!r} is no CA pin: it must be sha256: and 64 hexadecimal digits, as the "
                "controller prints it"
            )
        pins.add(Pin(bytes.fromhex(match[1])))
    if len(pins) > MAX_PINS:
        raise ConfigurationError(f"{len(pins)} CA pins; {MAX_PINS} at most can be used")
    return tuple(sorted(pins))


def read_certificates(pem: bytes) -> list[bytes]:
    """The certificates in a PEM text, in DER; what else is in there is passed over."""
    found = []
    for match in _BLOCK.finditer(pem):
        try:
            found.append(base64.b64decode(b"".join(match[1].split()), validate=True))
        except binascii.Error:
            continue
    return found


def write_certificates(certificates: list[bytes]) -> bytes:
    """A PEM text of certificates in DER."""
    parts = []
    for certificate in certificates:
        lines = base64.encodebytes(certificate).replace(b"\n", b"")
        parts.append(b"-----BEGIN CERTIFICATE-----\n")
        parts += [lines[at : at + 64] + b"\n" for at in range(0, len(lines), 64)]
        parts.append(b"-----END CERTIFICATE-----\n")
    return b"".join(parts)
