"""What a daemon can prove: its key towards the controller that gave it, else what it was told."""

from __future__ import annotations

import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sandd import wire
from sandd._core.identity.keyring import KEYS_FILE, MAX_KEYS, Keyring
from sandd._core.identity.proofs import DaemonKey, SharedSecret
from sandd._core.state_directory import replace_file

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
    keyring.keeper(enrolment)()
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
    keyring.keeper(SECOND)()
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
    keyring.keeper(SECOND)()
    assert keyring.choose("c") == key_of(SECOND)
    bare = Keyring(tmp_path, "d", None)
    bare.choose("c")
    assert not bare.has_another()


def test_so_many_controllers_are_remembered(tmp_path: Path) -> None:
    """The oldest key goes."""
    keyring = Keyring(tmp_path, "d", GIVEN)
    for number in range(MAX_KEYS + 1):
        keyring.choose(f"c{number}")
        keyring.keeper(FIRST)()
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
    keyring.keeper(FIRST)()
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
    keyring.keeper(SECOND)()
    assert "key_not_kept" in caplog.text
    assert keyring.choose("c") == key_of(FIRST)
    assert Keyring(tmp_path, "d", None).choose("c") == key_of(FIRST)
    keyring.keeper(
        wire.Enrolment("another", 1, b"new")
    )()  # it has joined anew, and the first is good for nothing
    assert keyring.choose("c") == DaemonKey("another", 1, b"new")
    blocker.rmdir()
    keyring.keeper(SECOND)()
    assert Keyring(tmp_path, "d", None).choose("c") == key_of(SECOND)


def test_a_thread_that_was_left_alone_disturbs_no_later_one(tmp_path: Path) -> None:
    """What it keeps is for the controller that gave it, and never in the place of what came after it."""
    keyring = Keyring(tmp_path, "d", GIVEN)
    keyring.choose("c")
    slow, later = keyring.keeper(FIRST), keyring.keeper(SECOND)
    keyring.choose("another")
    later()
    slow()
    assert keyring.choose("c") == key_of(SECOND)
    assert keyring.choose("another") == GIVEN
    assert Keyring(tmp_path, "d", None).choose("c") == key_of(SECOND)


def test_two_threads_take_turns_at_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits until a disk that hung has the first one's, and what it writes is whole."""
    at_disk, go_on = threading.Event(), threading.Event()
    under_way: list[int] = []

    def replace(path: Path, content: bytes, *, mode: int) -> None:
        under_way.append(1)
        assert len(under_way) == 1
        at_disk.set()
        assert go_on.wait(20)
        replace_file(path, content, mode=mode)
        under_way.pop()

    monkeypatch.setattr("sandd._core.identity.keyring.replace_file", replace)
    keyring = Keyring(tmp_path, "d", GIVEN)
    keyring.choose("c")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(keyring.keeper(FIRST))
        assert at_disk.wait(20)
        second = threads.submit(keyring.keeper(SECOND))
        go_on.set()
        first.result(20)
        second.result(20)
    assert Keyring(tmp_path, "d", None).choose("c") == key_of(SECOND)
