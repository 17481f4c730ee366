"""What a controller serves by: its own CA's certificate, made where it is due; or files, if a server may use them."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest
from tls_peers import pem_of, server_pair, shake_hands, write_pair

from sandd import ConfigurationError
from sandd._core.tls import authority
from sandd._core.tls.authority import DAY, issue_client, new_authority
from sandd._core.tls.certificates import (
    LOCAL_NAMES,
    OwnAuthority,
    OwnFiles,
    choose_certificates,
    server_names,
)
from sandd._core.tls.contexts import client_context
from sandd._core.tls.files import AuthorityFiles
from sandd._core.tls.rotation import Phase, Rotation

if TYPE_CHECKING:
    from pathlib import Path

    from sandd._core.tls.contexts import ServerTls

CA = new_authority(time.time())


@pytest.fixture
def files(tmp_path: Path) -> AuthorityFiles:
    """Nothing is there yet."""
    return AuthorityFiles(tmp_path / "tls")


def own(files: AuthorityFiles, *names: str) -> OwnAuthority:
    """As a controller has it."""
    return OwnAuthority(files, names or LOCAL_NAMES)


def facts(files: AuthorityFiles) -> authority.CertificateFacts:
    """Of the kept server's certificate."""
    return authority.read_facts(files.server_file.read_text())


def assert_trusted(presented: ServerTls, bundle: bytes) -> None:
    """Who trusts this bundle is served."""
    shake_hands(client_context(authorities=bundle), presented.context)


# ---- a CA of its own ----------------------------------------------------------------------------


def test_what_is_missing_is_made_and_what_is_there_is_used(files: AuthorityFiles) -> None:
    """The next run has the same CA and certificate, and the same pin."""
    now = time.time()
    first = own(files)
    presented = first.load(now)
    assert_trusted(presented, presented.bundle)
    assert (files.directory / "ca.pem").read_bytes() == presented.bundle
    second = own(files)
    assert second.load(now + 1).channel_binding == presented.channel_binding
    assert second.pin == first.pin is not None


def test_a_certificate_is_renewed_after_two_thirds(files: AuthorityFiles) -> None:
    """Not before; and the CA stays."""
    now = time.time()
    certificates = own(files)
    before = certificates.load(now)
    pin = certificates.pin
    due = now + 7 * DAY * 2 / 3
    assert not certificates.is_due(due - 600)
    assert certificates.load(due - 600).channel_binding == before.channel_binding
    assert certificates.is_due(due)
    after = certificates.load(due)
    assert after.channel_binding != before.channel_binding
    assert not certificates.is_due(due)
    assert (certificates.pin, after.bundle) == (pin, before.bundle)


@pytest.mark.parametrize(
    "cause", ["other names", "damaged", "other key", "not yet valid", "other CA"]
)
def test_a_certificate_that_does_not_fit_is_replaced(files: AuthorityFiles, cause: str) -> None:
    """By one that does: for other names, after a crash or a clock that was set, or of another CA."""
    now = time.time()
    first = own(files).load(now)
    names = LOCAL_NAMES
    if cause == "other names":
        names = ("localhost", "new.example")
    elif cause == "damaged":
        files.server_file.write_text("damaged")
    elif cause == "other key":
        text = files.server_file.read_text()
        key = server_pair(CA).key
        files.server_file.write_text(key + text[text.index("-----BEGIN CERTIFICATE") :])
    elif cause == "not yet valid":
        now -= 2 * DAY
    else:
        rotation = files.read()
        assert rotation is not None
        files.write(Rotation(Phase.ISSUE_NEW, now, rotation.old, new_authority(now)))
    certificates = own(files, *names)
    second = certificates.load(now)
    assert second.channel_binding != first.channel_binding
    assert facts(files).names == authority.names_in(names)
    assert not certificates.is_due(now)


def test_a_rotation_on_the_disk_is_followed(files: AuthorityFiles) -> None:
    """At each step: what is due, who signs, and whom peers are told to trust."""
    now = time.time()
    certificates = own(files)
    first = certificates.load(now)
    rotation = files.read()
    assert rotation is not None
    old, new = rotation.old, new_authority(now)

    files.write(rotation := rotation.begin(new, now))
    assert certificates.is_due(now)
    both = certificates.load(now)
    assert both.channel_binding == first.channel_binding
    assert both.bundle == pem_of(old) + pem_of(new)
    assert_trusted(both, pem_of(old))

    files.write(rotation := rotation.go_on(now, patient=False))
    issue = certificates.load(now)
    assert issue.bundle == pem_of(new) + pem_of(old)
    assert_trusted(issue, pem_of(new))
    assert certificates.pin == authority.read_facts(new.certificate).pin

    files.write(rotation.go_on(now, patient=False))
    done = certificates.load(now)
    assert done.bundle == pem_of(new)
    assert done.channel_binding == issue.channel_binding


def test_a_damaged_authority_is_told(files: AuthorityFiles) -> None:
    """And not replaced: all peers would be locked out."""
    own(files).load(time.time())
    rotation = files.read()
    assert rotation is not None
    other = authority.KeyPair(rotation.old.certificate, CA.key)
    files.write(Rotation(Phase.STEADY, 0.0, other))
    with pytest.raises(ConfigurationError, match=r"CA in .* is damaged"):
        own(files).load(time.time())


def test_a_name_that_can_not_be_is_told(files: AuthorityFiles) -> None:
    """As typed."""
    with pytest.raises(ConfigurationError, match="'a b'"):
        own(files, "a b").load(time.time())


def test_names_are_those_that_it_is_dialled_by() -> None:
    """Its address, if that is one; what the user adds; this machine's name, and loopback."""
    here = set(LOCAL_NAMES)
    if authority.can_be_named(socket.gethostname()):
        here.add(socket.gethostname())
    assert set(server_names("0.0.0.0", [])) == set(server_names("::", [])) == here
    assert set(server_names("192.0.2.7", ["a.example"])) == here | {"192.0.2.7", "a.example"}
    assert "fe80::1" in server_names("fe80::1%eth0", [])
    assert server_names("localhost", ["localhost"]).count("localhost") == 1


def test_a_machine_s_odd_name_is_nobody_s_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out."""
    monkeypatch.setattr(socket, "gethostname", lambda: "odd name")
    assert server_names("", []) == list(LOCAL_NAMES)


# ---- files of the user's own --------------------------------------------------------------------


def test_files_are_served_by_as_they_change(tmp_path: Path) -> None:
    """Somebody else renews them."""
    now = time.time()
    path = write_pair(server_pair(CA), tmp_path)
    certificates = OwnFiles(path, path)
    first = certificates.load(now)
    assert (first.bundle, certificates.pin) == (b"", None)
    assert not certificates.is_due(now)
    path.unlink()
    assert certificates.is_due(now)
    write_pair(server_pair(CA), tmp_path)
    assert certificates.is_due(now)
    assert certificates.load(now).channel_binding != first.channel_binding
    assert not certificates.is_due(now)


def test_files_that_no_peer_would_believe_are_refused(tmp_path: Path) -> None:
    """One that is past, one for clients only, one whose key is another's."""
    now = time.time()
    past = write_pair(server_pair(CA, now=now - 10 * DAY), tmp_path, "past")
    client = write_pair(issue_client(CA, "sandd:daemon:u", now), tmp_path, "client")
    good = write_pair(server_pair(CA), tmp_path, "good")
    for certificate_file, key_file, words in (
        (past, past, r"expired 3\.0 days ago"),
        (client, client, "no server's certificate"),
        (good, client, "not that of the certificate"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            OwnFiles(certificate_file, key_file).load(now)


def test_clients_of_a_server_with_files_have_certificates_of_our_ca(
    tmp_path: Path, files: AuthorityFiles
) -> None:
    """It is made for them where there is none."""
    now = time.time()
    path = write_pair(server_pair(CA), tmp_path)
    certificates = OwnFiles(path, path, files, "required")
    presented = certificates.load(now)
    rotation = files.read()
    assert rotation is not None
    client = write_pair(issue_client(rotation.old, "sandd:operator:me", now), tmp_path, "client")
    context = client_context(authorities=pem_of(CA), certificate_file=client)
    _, server = shake_hands(context, presented.context)
    assert server.getpeercert() is not None
    files.write(rotation.begin(new_authority(now), now))
    assert certificates.is_due(now)


# ---- what was asked for -------------------------------------------------------------------------


def choose(tls: object, stack: contextlib.ExitStack, **settings: object) -> object:
    """As open_controller does."""
    defaults = {"host": "", "names": (), "client_certificates": "off", "state_dir": None}
    return choose_certificates(tls, stack=stack, **(defaults | settings))  # type: ignore[arg-type] # a mix


def test_without_a_state_directory_the_ca_is_of_this_run(caplog: pytest.LogCaptureFixture) -> None:
    """It is said, and nothing of it stays."""
    with contextlib.ExitStack() as stack:
        certificates = choose("auto", stack)
        assert isinstance(certificates, OwnAuthority)
        certificates.load(time.time())
        assert certificates.files.server_file.exists()
    assert not certificates.files.directory.exists()
    (record,) = caplog.records
    assert record.msg["event"] == "authority_is_temporary"  # type: ignore[index] # structlog's


def test_arguments_that_make_no_sense_together_are_told(tmp_path: Path) -> None:
    """Each with what would do."""
    pair = (tmp_path / "cert", tmp_path / "key")
    with contextlib.ExitStack() as stack:
        for tls, settings, words in (
            ("on", {}, "auto"),
            (5, {}, "auto"),
            ((tmp_path,), {}, "pair"),
            (pair, {"names": ["a"]}, "tls_names"),
            (pair, {"client_certificates": "required"}, "state directory"),
            ("auto", {"client_certificates": "yes"}, "off, optional or required"),
        ):
            with pytest.raises(ConfigurationError, match=words):
                choose(tls, stack, **settings)  # type: ignore[arg-type] # a mix
        chosen = choose(pair, stack, client_certificates="optional", state_dir=tmp_path)
        assert isinstance(chosen, OwnFiles)
        assert chosen.client_authority == AuthorityFiles(tmp_path / "tls")
