"""Where a controller keeps its CA: whole, for its owner alone, and one writer at a time."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from process_tools import root_only

from sandd import ConfigurationError
from sandd._core.tls import files as files_module
from sandd._core.tls.files import AuthorityFiles
from sandd._core.tls.key_pair import KeyPair
from sandd._core.tls.rotation import Phase, Rotation

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = KeyPair("old\n", "old's key\n"), KeyPair("new\n", "new's key\n")
ROTATIONS = [
    Rotation(Phase.STEADY, 1.5, OLD),
    Rotation(Phase.TRUST_BOTH, 2.5, OLD, NEW),
    Rotation(Phase.ISSUE_NEW, 3.5, OLD, NEW),
]


@pytest.mark.parametrize("rotation", ROTATIONS, ids=lambda each: each.phase.value)
def test_what_was_written_is_read(rotation: Rotation, tmp_path: Path) -> None:
    """Each step of a rotation, whole."""
    files = AuthorityFiles(tmp_path / "state" / "tls")
    assert files.read() is None
    with files.locked():
        files.write(rotation)
    assert files.read() == rotation


@root_only
def test_what_root_writes_is_its_owners(tmp_path: Path) -> None:
    """An administrator's ``sandd ca rotate`` is for a service, which is not root, and has to read it again."""
    files = AuthorityFiles(tmp_path / "tls")
    with files.locked():
        os.chown(files.directory, 4321, 1234)
        files.write(ROTATIONS[0])
    status = (files.directory / "authority.json").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (4321, 1234, 0o600)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_its_owner_alone_reads_it(tmp_path: Path) -> None:
    """Whatever the umask, and whatever a crash has left behind."""
    files = AuthorityFiles(tmp_path / "tls")
    umask = os.umask(0)
    try:
        with files.locked():
            left = files.directory / "authority.json.new"
            left.write_text("left by a crash")
            left.chmod(0o666)
            files.write(ROTATIONS[0])
            files.write_server(OLD)
            files.publish(b"bundle")
    finally:
        os.umask(umask)
    for name in ("authority.json", "server.pem", "ca.pem"):
        assert (files.directory / name).stat().st_mode & 0o777 == 0o600
    assert files.directory.stat().st_mode & 0o777 == 0o700
    assert not left.exists()


def test_a_change_is_noticed(tmp_path: Path) -> None:
    """Of what is served by, by whomever; publishing the same again is none."""
    files = AuthorityFiles(tmp_path)
    states = [files.state()]
    files.write(ROTATIONS[0])
    states.append(files.state())
    files.write_server(OLD)
    states.append(files.state())
    files.write(ROTATIONS[0])
    states.append(files.state())
    assert len(set(states)) == 4
    files.publish(b"bundle")
    published = (tmp_path / "ca.pem").stat()
    files.publish(b"bundle")
    assert (tmp_path / "ca.pem").stat().st_ino == published.st_ino
    assert files.state() == states[-1]
    files.withdraw()
    files.withdraw()
    assert not (tmp_path / "ca.pem").exists()


def test_one_writer_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one waits, and not for ever."""
    files = AuthorityFiles(tmp_path)
    order: list[str] = []

    def second() -> None:
        with AuthorityFiles(tmp_path).locked():
            order.append("second")

    thread = threading.Thread(target=second)
    with files.locked():
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    monkeypatch.setattr(files_module, "LOCK_SECONDS", 0.05)
    with files.locked(), pytest.raises(ConfigurationError, match="locked by another process"):
        with AuthorityFiles(tmp_path).locked():
            pass


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{}",
        b"\xff",
        b"[]",
        b'{"format": 1}',
        json.dumps({"format": 1, "phase": "odd", "since": 0, "old": {}, "new": None}).encode(),
        json.dumps({"format": 1, "phase": "steady", "since": 0, "old": {}, "new": None}).encode(),
        json.dumps({"format": 1, "phase": "steady", "since": 0, "old": 1, "new": None}).encode(),
        json.dumps(
            {
                "format": 1,
                "phase": "trust-both",
                "since": 0,
                "old": {"certificate": "", "key": ""},
                "new": None,
            }
        ).encode(),
    ],
    ids=repr,
)
def test_damage_is_told_and_nothing_is_made_anew(damage: bytes, tmp_path: Path) -> None:
    """A new CA in its place would lock out every peer without a word."""
    (tmp_path / "authority.json").write_bytes(damage)
    with pytest.raises(ConfigurationError, match="damaged"):
        AuthorityFiles(tmp_path).read()


def test_the_format_of_another_release_is_told(tmp_path: Path) -> None:
    """It is not damage."""
    (tmp_path / "authority.json").write_text('{"format": 2}')
    with pytest.raises(ConfigurationError, match="another version"):
        AuthorityFiles(tmp_path).read()


def test_a_directory_that_can_not_be_is_told(tmp_path: Path) -> None:
    """Which, and why."""
    (tmp_path / "file").write_text("")
    files = AuthorityFiles(tmp_path / "file")
    with pytest.raises(ConfigurationError, match=r"file.*"):
        with files.locked():
            pass
    with pytest.raises(ConfigurationError, match="can't write"):
        files.write(ROTATIONS[0])
    with pytest.raises(ConfigurationError, match="can't read"):
        files.read()
