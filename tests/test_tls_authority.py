"""What the controller's own CA says in its certificates, and what OpenSSL makes of that, to the letter."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from tls_peers import NAMES, server_pair, shake_hands, strict_client, write_pair

from sandd._core.tls import authority
from sandd._core.tls.authority import (
    AUTHORITY_SECONDS,
    BACK_DATED,
    DAY,
    SERVER_SECONDS,
    check_authority,
    is_issued_by,
    issue_client,
    new_authority,
    read_facts,
)
from sandd._core.tls.key_pair import KeyPair

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_800_000_000.0
CA = new_authority(time.time())
OTHER_CA = new_authority(time.time())


def server_context(pair: KeyPair, directory: Path, **settings: object) -> ssl.SSLContext:
    """A server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(write_pair(pair, directory))
    for name, value in settings.items():
        setattr(context, name, value)
    return context


def test_a_strict_client_believes_it(tmp_path: Path) -> None:
    """By each of its names, in TLS 1.3."""
    context = server_context(server_pair(CA), tmp_path)
    for name in NAMES:
        client, _ = shake_hands(strict_client(CA), context, name)
        assert client.version() == "TLSv1.3"


def test_another_name_or_another_authority_is_refused(tmp_path: Path) -> None:
    """Names are those that were asked for, and no CA is taken for another."""
    context = server_context(server_pair(CA), tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'elsewhere'"):
        shake_hands(strict_client(CA), context, "elsewhere")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake_hands(strict_client(OTHER_CA), context)


def test_a_daemon_can_not_be_the_controller(tmp_path: Path) -> None:
    """A client's certificate is none for a server, though it is of the same CA and for the same name."""
    pair = issue_client(CA, "sandd:daemon:1234", time.time())
    lenient = strict_client(CA, check_hostname=False)  # a URI is no host's name, anyway
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unsuit|purpose"):
        shake_hands(lenient, server_context(pair, tmp_path))


def test_a_controller_can_not_be_a_daemon(tmp_path: Path) -> None:
    """The other way round it is the same."""
    context = server_context(server_pair(CA), tmp_path, verify_mode=ssl.CERT_REQUIRED)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=CA.certificate)
    daemon = strict_client(CA)
    daemon.load_cert_chain(
        write_pair(issue_client(CA, "sandd:daemon:1", time.time()), tmp_path, "d")
    )
    _, server = shake_hands(daemon, context)
    certificate = server.getpeercert()
    assert certificate is not None
    assert certificate["subjectAltName"] == (("URI", "sandd:daemon:1"),)
    rogue = strict_client(CA)
    rogue.load_cert_chain(write_pair(server_pair(CA), tmp_path, "r"))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unsuit|purpose"):
        shake_hands(rogue, context)


def test_lives() -> None:
    """Ten years for a CA, a week for a server, back-dated by as much as clocks differ; a new one after two thirds."""
    ca = new_authority(NOW)
    facts = read_facts(ca.certificate)
    assert facts.not_before == NOW - BACK_DATED
    assert facts.not_after == NOW + AUTHORITY_SECONDS
    assert AUTHORITY_SECONDS / DAY == 3652
    server = read_facts(server_pair(ca, now=NOW).certificate)
    assert (server.not_before, server.not_after) == (NOW - BACK_DATED, NOW + SERVER_SECONDS)
    assert server.renew_at == pytest.approx(NOW + SERVER_SECONDS * 2 / 3, abs=BACK_DATED)
    client = read_facts(issue_client(ca, "sandd:operator:me", NOW, seconds=5 * DAY).certificate)
    assert client.not_after == NOW + 5 * DAY


def test_nothing_outlives_its_authority() -> None:
    """A certificate beyond its CA's end would look valid, and isn't."""
    ca = new_authority(NOW)
    late = NOW + AUTHORITY_SECONDS - DAY
    assert read_facts(server_pair(ca, now=late).certificate).not_after == NOW + AUTHORITY_SECONDS


def test_what_certificates_say() -> None:
    """Who they are for, of whom they are, and what they are good for; serial numbers are never used twice."""
    server, client = server_pair(CA), issue_client(CA, "sandd:daemon:u", time.time())
    facts = read_facts(server.certificate)
    assert facts.names == authority.names_in(NAMES)
    assert facts.serves
    assert not read_facts(client.certificate).serves
    assert read_facts(client.certificate).names == {"sandd:daemon:u"}
    assert (
        facts.issuer
        == read_facts(CA.certificate).subject
        != read_facts(OTHER_CA.certificate).subject
    )
    serials = {read_facts(server_pair(CA).certificate).serial for _ in range(5)}
    assert len(serials) == 5
    with pytest.raises(ValueError, match="PEM"):
        read_facts("no certificate")


def test_an_authority_signs_no_other_authority() -> None:
    """What it has signed can't sign: one stolen certificate is one, and no source of others."""
    extensions = x509.load_pem_x509_certificate(CA.certificate.encode()).extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    leaf = x509.load_pem_x509_certificate(server_pair(CA).certificate.encode()).extensions
    assert not leaf.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_who_has_signed_is_found_out_by_the_signature() -> None:
    """Not by names."""
    pair = server_pair(CA)
    assert is_issued_by(pair.certificate, CA)
    assert not is_issued_by(pair.certificate, OTHER_CA)


def test_an_authority_is_whole() -> None:
    """A key of another certificate, or none at all, is found before it signs."""
    check_authority(CA)
    for key in (OTHER_CA.key, "no key", CA.certificate):
        with pytest.raises(ValueError, match=r".+"):
            check_authority(KeyPair(CA.certificate, key))


@pytest.mark.parametrize("name", ["", "a" * 64 + ".example", "a..b", "a b", "http://a"], ids=repr)
def test_a_name_that_can_not_be_is_named(name: str) -> None:
    """It was typed by somebody."""
    assert not authority.can_be_named(name)
    with pytest.raises(ValueError, match="host name"):
        authority.issue_server(CA, [name], time.time())


def test_names_beyond_ascii_are_as_dns_has_them() -> None:
    """A client encodes them the same way."""
    assert authority.names_in(["bücher.example"]) == {"xn--bcher-kva.example"}
    assert authority.names_in(["0:0::1", "::1"]) == {"::1"}


def test_no_key_is_shown() -> None:
    """Wherever a pair is printed."""
    assert "PRIVATE" not in repr(CA)
    assert b"PRIVATE" in CA.pem
