"""The controller's own certificate authority: what its certificates say. Pure but for the randomness of keys.

Server and client certificates are strictly apart (extended key usage): a daemon that turns against the others can't
pass for their controller with the certificate it was given. All of them pass ``VERIFY_X509_STRICT``.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from typing import TYPE_CHECKING, Final

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sandd._core.tls.key_pair import KeyPair
from sandd._core.tls.pins import Pin

if TYPE_CHECKING:
    from collections.abc import Iterable

DAY: Final = 24 * 3600.0
AUTHORITY_SECONDS: Final = 3652 * DAY
"""Ten years: until then somebody will have rotated it."""
SERVER_SECONDS: Final = 7 * DAY
"""What is stolen is worth so little for so short a time that no list of revoked certificates is needed."""
CLIENT_SECONDS: Final = 90 * DAY
"""Somebody has to carry them to where they are used."""
RENEWED_AT: Final = 2 / 3
"""Of a certificate's life: there is time left to repair whatever keeps it from being renewed."""
HOST_NAME: Final = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
BACK_DATED: Final = 300.0
"""Seconds that a peer's clock may be behind ours."""


@frozen
class CertificateFacts:
    """What a certificate says."""

    subject: str
    issuer: str
    serial: int
    not_before: float
    """Seconds of Unix time."""
    not_after: float
    names: frozenset[str]
    """Host names, addresses and URIs that it is for."""
    serves: bool
    """It may be a server's."""
    pin: Pin

    @property
    def renew_at(self) -> float:
        """When a new one is due."""
        return self.not_before + (self.not_after - self.not_before) * RENEWED_AT


def new_authority(now: float) -> KeyPair:
    """A new CA; its name is like no other's, as two of one name would be taken for each other in a rotation."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    name = _name(f"sandd CA {serial:040x}"[:25])
    builder = (
        _builder(name, name, key, serial, now, AUTHORITY_SECONDS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue_server(authority: KeyPair, names: Iterable[str], now: float) -> KeyPair:
    """A certificate for a server of these host names and addresses.

    ValueError names one that can't be.
    """
    entries = [_general_name(name) for name in names]
    return _issue(
        authority, "sandd controller", entries, ExtendedKeyUsageOID.SERVER_AUTH, now, SERVER_SECONDS
    )


def issue_client(
    authority: KeyPair, uri: str, now: float, *, seconds: float = CLIENT_SECONDS
) -> KeyPair:
    """A certificate for whoever dials in: ``sandd:daemon:UID`` or ``sandd:operator:NAME``."""
    entries: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    return _issue(authority, uri[:64], entries, ExtendedKeyUsageOID.CLIENT_AUTH, now, seconds)


def read_facts(pem: str) -> CertificateFacts:
    """What the first certificate in a PEM text says. ValueError if there is none."""
    certificate = x509.load_pem_x509_certificate(pem.encode())
    extensions = certificate.extensions
    names: set[str] = set()
    serves = True  # a certificate that says nothing of its use is for all
    for extension in extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            names = {str(each.value) for each in extension.value}
        elif isinstance(extension.value, x509.ExtendedKeyUsage):
            serves = ExtendedKeyUsageOID.SERVER_AUTH in extension.value
    return CertificateFacts(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        names=frozenset(names),
        serves=serves,
        pin=Pin.of(certificate.public_bytes(serialization.Encoding.DER)),
    )


def check_authority(pair: KeyPair) -> None:
    """ValueError if it is none of ours: another kind of key, or one that is not that of the certificate."""
    certificate = x509.load_pem_x509_certificate(pair.certificate.encode())
    key = serialization.load_pem_private_key(pair.key.encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is of another kind")
    if key.public_key() != certificate.public_key():
        raise ValueError("the key is not that of the certificate")


def names_in(names: Iterable[str]) -> frozenset[str]:
    """The names as a certificate for them has them. ValueError as of `issue_server`."""
    return frozenset(str(_general_name(name).value) for name in names)


def can_be_named(name: str) -> bool:
    """Whether a certificate can be for a host of this name."""
    try:
        _general_name(name)
    except ValueError:
        return False
    return True


def public_key_of(certificate: bytes) -> bytes:
    """The public key of a certificate, both in DER (SubjectPublicKeyInfo, RFC 5280 s. 4.1.2.7)."""
    key = x509.load_der_x509_certificate(certificate).public_key()
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(encoding, form)


def is_issued_by(pem: str, authority: KeyPair) -> bool:
    """Whether the certificate is of this authority, by its signature."""
    certificate = x509.load_pem_x509_certificate(pem.encode())
    try:
        certificate.verify_directly_issued_by(
            x509.load_pem_x509_certificate(authority.certificate.encode())
        )
    except Exception:  # cryptography raises three, and each means no
        return False
    return True


def _issue(
    authority: KeyPair,
    common_name: str,
    names: list[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    now: float,
    seconds: float,
) -> KeyPair:
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    issuer_key = serialization.load_pem_private_key(authority.key.encode(), password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)  # as new_authority makes them
    key = ec.generate_private_key(ec.SECP256R1())
    end = min(seconds, issuer.not_valid_after_utc.timestamp() - now)  # nothing outlives its CA
    builder = (
        _builder(
            _name(common_name), issuer.subject, key, x509.random_serial_number(), now, max(end, 1.0)
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    serial: int,
    now: float,
    seconds: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(_time(now - BACK_DATED))
        .not_valid_after(_time(now + seconds))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        ascii_name = name.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ValueError(f"{name!r} is neither a host name nor an address: {error}") from error
    if not HOST_NAME.fullmatch(ascii_name):
        raise ValueError(f"{name!r} is neither a host name nor an address")
    return x509.DNSName(ascii_name)


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode("ascii"),
    )
