"""What is demanded of a peer, as `ssl.SSLContext`; and what a server presents, as `ServerTls`.

TLS 1.3 on both ends: every peer is this program, on a Python that has it.
"""

from __future__ import annotations

import hashlib
import ssl
from typing import TYPE_CHECKING, Literal, NoReturn

from attrs import field, frozen

from sandd._core._errors import ConfigurationError
from sandd._core.tls.pins import Pin, read_certificates

if TYPE_CHECKING:
    from pathlib import Path

ClientCertificates = Literal["off", "optional", "required"]
"""Whether a server asks whoever dials in for a certificate, and whether it takes no for an answer."""


@frozen
class ServerTls:
    """What one server presents, at one time. Handshakes that have begun go on with it whatever follows it."""

    context: ssl.SSLContext
    channel_binding: bytes
    """SHA-256 of the certificate, in DER: whoever is connected to this very server knows the same."""
    bundle: bytes = b""
    """CA certificates for peers to trust, in PEM; empty where they know them from elsewhere."""
    requires_certificate: bool = False
    """Whoever has shown none gets nothing but the bundle."""
    certificate: bytes = b""
    """The one that is presented, in DER."""
    bundle_digest: str = field(init=False)
    """Changes with the bundle."""

    @bundle_digest.default
    def _digest_of_bundle(self) -> str:
        return digest_of(self.bundle) if self.bundle else ""


def digest_of(bundle: bytes) -> str:
    """A short name for a bundle's content, ``sha256:HEX``."""
    return str(Pin.of(bundle))


def server_tls(
    certificate_file: Path,
    key_file: Path,
    *,
    bundle: bytes = b"",
    client_authorities: bytes = b"",
    client_certificates: ClientCertificates = "off",
) -> ServerTls:
    """What a server with this certificate presents. Blocks.

    Args:
        certificate_file: PEM: its certificate first, then those between it and its CA.
        key_file: PEM; may be the same file.
        bundle: see `ServerTls`.
        client_authorities: PEM: who may have issued the certificates of whoever dials in.
        client_certificates: whether to ask for these.

    Raises:
        ConfigurationError: the pair can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # A resumed session would outlive its client certificate, and a new handshake costs two milliseconds.
    context.num_tickets = 0
    try:
        before = certificate_file.read_bytes()
        context.load_cert_chain(certificate_file, key_file, password=_no_password)
        after = certificate_file.read_bytes()
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"the certificate {certificate_file} and the key {key_file} can't be used: {_reason(error)}"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"can't read the certificate {certificate_file}, or its key {key_file}: {error.strerror}"
        ) from error
    if before != after:
        raise ConfigurationError(f"{certificate_file} was being replaced as it was read")
    if client_certificates != "off":
        # Also where one is required: that is asked for above TLS, since on first contact, by a pin, a peer shows none.
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=client_authorities.decode("ascii"))
    leaf = read_certificates(before)[0]  # one is there: OpenSSL has found it
    return ServerTls(
        context, hashlib.sha256(leaf).digest(), bundle, client_certificates == "required", leaf
    )


def client_context(
    *,
    authorities: bytes | None = None,
    certificate_file: Path | None = None,
    key_file: Path | None = None,
) -> ssl.SSLContext:
    """Demands of a server that it is the one whose name was dialled. Blocks.

    Args:
        authorities: PEM: these alone are trusted; None: those of this system.
        certificate_file: what to present if it asks for that, in PEM.
        key_file: to that; may be the same file.

    Raises:
        ConfigurationError: a file can't be used, or there is no certificate among the authorities.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if authorities is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        certificates = read_certificates(authorities)
        if not certificates:
            raise ConfigurationError("there is no certificate in what is to be trusted")
        try:
            context.load_verify_locations(cadata=b"".join(certificates))
        except ssl.SSLError as error:
            raise ConfigurationError(f"a CA certificate can't be used: {_reason(error)}") from error
    if certificate_file is not None:
        try:
            context.load_cert_chain(certificate_file, key_file, password=_no_password)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"the client certificate {certificate_file} and its key {key_file or 'in it'} can't be used: "
                f"{_reason(error)}"
            ) from error
        except OSError as error:
            raise ConfigurationError(
                f"can't read the client certificate {certificate_file}, or its key: {error.strerror}"
            ) from error
    return context


def unverified_context() -> ssl.SSLContext:
    """Demands nothing: for what is public, and is checked in another way."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> NoReturn:
    # Without this OpenSSL would ask whoever sits at the terminal.
    raise ConfigurationError("the key is encrypted; give one that is not, in a file for you alone")


def _reason(error: ssl.SSLError) -> str:
    """What OpenSSL says, without where in its source it does."""
    reasons = {
        "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
        "NO_START_LINE": "there is no PEM in it",
    }
    if not error.reason:
        return "it is not in PEM, or damaged"
    return reasons.get(error.reason, error.reason.lower().replace("_", " "))
