"""`KeyPair`: a certificate and the private key to it. No I/O."""

from __future__ import annotations

from attrs import field, frozen


@frozen
class KeyPair:
    """Both in PEM. The key is never shown."""

    certificate: str
    key: str = field(repr=False)

    @property
    def pem(self) -> bytes:
        """Both in one text, as OpenSSL reads them from one file."""
        return (self.key + self.certificate).encode("ascii")
