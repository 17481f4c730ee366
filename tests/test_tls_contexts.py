"""What a server presents and what is demanded of it: TLS 1.3, whole pairs, and clear words for what can't be used."""

from __future__ import annotations

import hashlib
import ssl
import time
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from tls_peers import pem_of, server_pair, shake_hands, strict_client, write_pair

from sandd import ConfigurationError
from sandd._core.tls.authority import issue_client, new_authority
from sandd._core.tls.contexts import client_context, digest_of, server_tls, unverified_context
from sandd._core.tls.key_pair import KeyPair
from sandd._core.tls.pins import read_certificates

if TYPE_CHECKING:
    from pathlib import Path

CA = new_authority(time.time())


@pytest.fixture
def pair_file(tmp_path: Path) -> Path:
    """A server's certificate and key."""
    return write_pair(server_pair(CA), tmp_path)


def test_both_ends_know_the_same_certificate(pair_file: Path) -> None:
    """The channel binding is what a client sees of it."""
    presented = server_tls(pair_file, pair_file, bundle=pem_of(CA))
    client, _ = shake_hands(client_context(authorities=pem_of(CA)), presented.context)
    seen = client.getpeercert(binary_form=True)
    assert seen is not None
    assert presented.channel_binding == hashlib.sha256(seen).digest()
    assert presented.bundle_digest == digest_of(pem_of(CA))


def test_nothing_older_than_tls_1_3(pair_file: Path) -> None:
    """Neither end takes it."""
    older = strict_client(CA, maximum_version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"):
        shake_hands(older, server_tls(pair_file, pair_file).context)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair_file)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    for client in (client_context(authorities=pem_of(CA)), unverified_context()):
        with pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"):
            shake_hands(client, server)


def test_no_session_is_resumed(pair_file: Path) -> None:
    """It would outlive the certificate that was shown for it."""
    presented = server_tls(pair_file, pair_file)
    client, server = shake_hands(client_context(authorities=pem_of(CA)), presented.context)
    server.write(b"x")
    assert client.read(1) == b"x"
    session = client.session
    assert session is None or not session.has_ticket


def test_client_certificates_are_asked_for(pair_file: Path, tmp_path: Path) -> None:
    """Off: nobody is; else one that is shown has to be good. (That one is required is asked for above TLS.)"""
    authorities = pem_of(CA)
    contexts = {
        how: server_tls(
            pair_file, pair_file, client_authorities=authorities, client_certificates=how
        ).context
        for how in ("off", "optional", "required")  # type: ignore[misc] # literals
    }
    bare = client_context(authorities=authorities)
    good_file = write_pair(issue_client(CA, "sandd:daemon:u", time.time()), tmp_path, "good")
    past = issue_client(CA, "sandd:daemon:u", time.time() - 1000, seconds=500)
    past_file = write_pair(past, tmp_path, "past")
    good = client_context(authorities=authorities, certificate_file=good_file)
    late = client_context(authorities=authorities, certificate_file=past_file)
    for how, client, refused in (
        ("off", bare, None),
        ("off", late, None),
        ("optional", bare, None),
        ("optional", good, None),
        ("optional", late, "expired"),
        ("required", bare, None),
        ("required", good, None),
        ("required", late, "expired"),
    ):
        if refused is None:
            shake_hands(client, contexts[how])
        else:
            with pytest.raises(ssl.SSLError, match=refused):
                shake_hands(client, contexts[how])


def test_what_can_not_be_presented_is_told(tmp_path: Path) -> None:
    """Which files, and what is wrong with them; and nobody is asked for a password."""
    pair, other = server_pair(CA), server_pair(CA)
    good, mixed = write_pair(pair, tmp_path), tmp_path / "mixed"
    mixed.write_bytes(KeyPair(pair.certificate, other.key).pem)
    junk = tmp_path / "junk"
    junk.write_text("junk")
    key = serialization.load_pem_private_key(pair.key.encode(), password=None)
    encrypted = tmp_path / "locked"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for certificate_file, key_file, words in (
        (mixed, mixed, "not that of the certificate"),
        (junk, good, "junk"),
        (good, junk, "junk"),
        (good, encrypted, "the key is encrypted"),
        (tmp_path / "none", good, "No such file"),
        (good, tmp_path / "none", "No such file"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            server_tls(certificate_file, key_file)
        with pytest.raises(ConfigurationError, match=words):
            client_context(certificate_file=certificate_file, key_file=key_file)


def test_a_certificate_that_is_just_replaced_is_not_half_taken(
    pair_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What clients see, and what they compare it with, are of the same one."""
    load = ssl.SSLContext.load_cert_chain

    def load_slowly(context: ssl.SSLContext, *args: object, **options: object) -> None:
        load(context, *args, **options)  # type: ignore[arg-type] # as they came
        write_pair(server_pair(CA), pair_file.parent)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_slowly)
    with pytest.raises(ConfigurationError, match="being replaced"):
        server_tls(pair_file, pair_file)


def test_what_is_trusted_has_to_be_there(tmp_path: Path) -> None:
    """Nothing to trust would be no trust in anybody, and is a mistake."""
    for nothing in (
        b"",
        b"junk",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ):
        with pytest.raises(ConfigurationError, match="certificate"):
            client_context(authorities=nothing)


def test_without_authorities_those_of_the_system_are_trusted(pair_file: Path) -> None:
    """And no other is."""
    context = client_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(context, server_tls(pair_file, pair_file).context)


def test_the_unverified_trusts_anybody(pair_file: Path) -> None:
    """It is for reading what is public, and carries nothing."""
    client, _ = shake_hands(unverified_context(), server_tls(pair_file, pair_file).context, "any")
    assert client.getpeercert(binary_form=True) == read_certificates(pair_file.read_bytes())[0]
