"""What a daemon can prove: its key towards the controller that gave it, else what it was told."""

from __future__ import annotations

import stat
import sys
from typing import TYPE_CHECKING

import pytest

from sandd import wire
from sandd._core.identity.keyring import KEYS_FILE, MAX_KEYS, Keyring
from sandd._core.identity.proofs import DaemonKey, SharedSecret

if TYPE_CHECKING:
    from pathlib import Path

GIVEN = SharedSecret(b"given")
FIRST = wire.Enrolment("u", 1, b"one")
SECOND = wire.Enrolment("u", 2, b"two")


def key_of(enrolment: wire.Enrolment) -> DaemonKey:
    """The credential that it is."""
    return DaemonKey(enrolment.uid, enrolment.generation, enrolment.secret)


def kept(directory: Path, enrolment: wire.Enrolment, controller: str = "c") -> Keyring:
    """A keyring that this controller has given a key."""
    keyring = Keyring(directory, "d", GIVEN)
    keyring.choose(controller)
    keyring.keep(enrolment)
    return keyring


def test_a_key_is_for_the_controller_that_gave_it(tmp_path: Path) -> None:
    """And for the daemon id that it was given for; others get what the daemon was told."""
    keyring = kept(tmp_path, FIRST)
    assert keyring.choose("c") == key_of(FIRST)
    assert keyring.choose("other") == GIVEN
    assert Keyring(tmp_path, "d", None).choose("c") == key_of(FIRST)
    assert Keyring(tmp_path, "another-id", GIVEN).choose("c") == GIVEN
    assert Keyring(tmp_path, "another-id", None).choose("c") is None


def test_the_latest_key_counts(tmp_path: Path) -> None:
    """In memory and on the disk."""
    keyring = kept(tmp_path, FIRST)
    keyring.choose("c")
    keyring.keep(SECOND)
    assert keyring.choose("c") == key_of(SECOND)
    assert Keyring(tmp_path, "d", None).choose("c") == key_of(SECOND)


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX ones")
def test_its_file_is_its_users_alone(tmp_path: Path) -> None:
    """Even where one with another mode was there."""
    path = tmp_path / KEYS_FILE
    path.write_text("{}")
    path.chmod(0o644)
    kept(tmp_path, FIRST)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_refused_key_makes_way_for_what_was_given(tmp_path: Path) -> None:
    """Once; what was given and is refused as well is the end."""
    keyring = kept(tmp_path, FIRST)
    assert keyring.choose("c") == key_of(FIRST)
    assert keyring.has_another()
    assert keyring.choose("c") == GIVEN
    assert not keyring.has_another()
    keyring.keep(SECOND)
    assert keyring.choose("c") == key_of(SECOND)
    bare = Keyring(tmp_path, "d", None)
    bare.choose("c")
    assert not bare.has_another()


def test_so_many_controllers_are_remembered(tmp_path: Path) -> None:
    """The oldest key goes."""
    keyring = Keyring(tmp_path, "d", GIVEN)
    for number in range(MAX_KEYS + 1):
        keyring.choose(f"c{number}")
        keyring.keep(FIRST)
    again = Keyring(tmp_path, "d", GIVEN)
    assert again.choose("c0") == GIVEN
    assert again.choose(f"c{MAX_KEYS}") == key_of(FIRST)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff", b"[]", b'{"keys": 5}', b'{"keys": [{}]}', b"x" * 100_000),
        b'{"keys": [{"controller":"c", "daemon_id":"d", "uid":"u", "generation":1, "secret":"%"}]}',
    ],
    ids=range(7),
)
def test_a_file_that_is_none_is_passed_over(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has a line, without what is in it; the daemon comes by what it was told, and gets another key."""
    (tmp_path / KEYS_FILE).write_bytes(content)
    keyring = Keyring(tmp_path, "d", GIVEN)
    assert "keys_unreadable" in caplog.text
    assert keyring.choose("c") == GIVEN
    keyring.keep(FIRST)
    assert Keyring(tmp_path, "d", None).choose("c") == key_of(FIRST)


def test_a_directory_that_cannot_be_written_costs_the_key_at_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then it is used."""
    keyring = kept(tmp_path / "missing", FIRST)
    assert "key_not_kept" in caplog.text
    assert keyring.choose("c") == key_of(FIRST)


def test_a_key_that_is_not_on_the_disk_does_not_take_the_place_of_one_that_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Were it used, the other one would be taken for a copy at the next start, and the daemon locked."""
    keyring = kept(tmp_path, FIRST)
    blocker = tmp_path / f"{KEYS_FILE}.new"
    blocker.mkdir()  # where a new file is written
    keyring.keep(SECOND)
    assert "key_not_kept" in caplog.text
    assert keyring.choose("c") == key_of(FIRST)
    assert Keyring(tmp_path, "d", None).choose("c") == key_of(FIRST)
    keyring.keep(
        wire.Enrolment("another", 1, b"new")
    )  # it has joined anew, and the first is good for nothing
    assert keyring.choose("c") == DaemonKey("another", 1, b"new")
    blocker.rmdir()
    keyring.keep(SECOND)
    assert Keyring(tmp_path, "d", None).choose("c") == key_of(SECOND)
