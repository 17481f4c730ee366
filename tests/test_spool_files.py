"""The spool's files: private, in their own directory, and gone when nobody needs them."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from sandd._core.spool import Delete, Fetch, Spill
from sandd._core.spool_files import SpoolFiles, SpoolLost, open_spool_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> Iterator[SpoolFiles]:
    """The files of a daemon whose state directory is `tmp_path`."""
    with open_spool_files(tmp_path) as files:
        yield files


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The events that were logged."""
    return [record.msg["event"] for record in caplog.records if isinstance(record.msg, dict)]


def test_what_was_written_can_be_read_back(files: SpoolFiles) -> None:
    """Anywhere in it; a file may begin with a hole, and be written piece by piece."""
    files.perform(Spill("0.0", 5, 5, b"abcd"))
    files.perform(Spill("0.0", 9, 9, b"efgh"))
    files.perform(Spill("1.0", 0, 0, b"ABCD"))
    assert files.perform(Fetch("0.0", 5, 5, 8)) == b"abcdefgh"
    assert files.perform(Fetch("0.0", 7, 7, 3)) == b"cde"
    assert files.perform(Fetch("1.0", 0, 0, 4)) == b"ABCD"


def test_a_write_that_is_repeated_is_written_once(files: SpoolFiles) -> None:
    """After a failure nobody knows how much of it was done."""
    files.perform(Spill("0.0", 0, 0, b"ab"))
    files.perform(Spill("0.0", 0, 0, b"abcd"))
    assert (files.directory / "0.0").read_bytes() == b"abcd"


def test_a_write_goes_on_where_the_system_stopped(
    files: SpoolFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may take less than it was given, and give less than it was asked for."""
    write, read = os.write, os.read
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
        files.perform(Spill("0.0", 0, 0, b"abcdefgh"))
        patch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 3)))
        assert files.perform(Fetch("0.0", 0, 0, 8)) == b"abcdefgh"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_files_are_their_owners_alone(files: SpoolFiles) -> None:
    """Output may be secret; the umask is not relied upon."""
    before = os.umask(0)
    try:
        files.perform(Spill("0.0", 0, 0, b"secret"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(files.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((files.directory / "0.0").stat().st_mode) == 0o600


def test_nothing_is_made_before_it_is_needed(files: SpoolFiles, tmp_path: Path) -> None:
    """A daemon whose jobs are short leaves no trace."""
    assert list(tmp_path.iterdir()) == []
    files.perform(Delete(("0.0",), 4))
    assert list(tmp_path.iterdir()) == []


def test_deleted_files_are_gone(files: SpoolFiles) -> None:
    """Others stay; what is gone already is no error."""
    for name in ("0.0", "0.1", "1.0"):
        files.perform(Spill(name, 0, 0, b"abcd"))
    files.perform(Delete(("0.0", "0.1", "0.2"), 8))
    assert [path.name for path in files.directory.iterdir()] == ["1.0"]


def test_what_cannot_be_deleted_is_logged(
    files: SpoolFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """And left to the removal of the directory; the others are deleted all the same."""
    files.perform(Spill("0.1", 0, 0, b"abcd"))
    (files.directory / "0.0").mkdir()
    with caplog.at_level(logging.WARNING, "sandd"):
        files.perform(Delete(("0.0", "0.1"), 8))
    assert lines(caplog) == ["spool_file_not_deleted"]
    assert [path.name for path in files.directory.iterdir()] == ["0.0"]


def test_the_end_takes_everything_along(tmp_path: Path) -> None:
    """Whatever ends the block."""
    with contextlib.suppress(RuntimeError), open_spool_files(tmp_path) as files:
        files.perform(Spill("0.0", 0, 0, b"abcd"))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_daemon_left_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the next start, before anything is written; and a line says so."""
    for name in ("0.0", "7.12"):
        SpoolFiles(tmp_path / "spool").perform(Spill(name, 0, 0, b"stale"))
    with caplog.at_level(logging.WARNING, "sandd"), open_spool_files(tmp_path):
        assert list(tmp_path.iterdir()) == []
    assert lines(caplog) == ["stale_spool_removed"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need privileges there")
def test_links_are_not_followed(tmp_path: Path) -> None:
    """Whoever can write to the state directory can't make us delete or overwrite anything elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    state = tmp_path / "state"
    state.mkdir()
    (state / "spool").symlink_to(elsewhere)
    with open_spool_files(state) as files:
        assert list(state.iterdir()) == []
        files.perform(Spill("0.0", 0, 0, b"abcd"))
        (files.directory / "0.1").symlink_to(elsewhere / "precious")
        with pytest.raises(OSError, match="symbolic links"):
            files.perform(Spill("0.1", 0, 0, b"abcd"))
        with pytest.raises(OSError, match="symbolic links"):
            files.perform(Fetch("0.1", 0, 0, 4))
    assert (elsewhere / "precious").read_text() == "kept"
    assert list(state.iterdir()) == []


def test_a_directory_that_cannot_be_removed_is_no_reason_not_to_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and each write tells its own error."""
    (tmp_path / "spool").write_text("a file")
    with caplog.at_level(logging.WARNING, "sandd"), open_spool_files(tmp_path) as files:
        with pytest.raises(NotADirectoryError):
            files.perform(Spill("0.0", 0, 0, b"abcd"))
    assert set(lines(caplog)) == {"spool_not_removed"}


def test_what_is_gone_is_told_from_what_cannot_be_read(files: SpoolFiles) -> None:
    """A file that was deleted or cut short will never have it; anything else may pass."""
    with pytest.raises(SpoolLost, match="gone"):
        files.perform(Fetch("0.0", 0, 0, 4))
    files.perform(Spill("0.0", 0, 0, b"abcd"))
    os.truncate(files.directory / "0.0", 2)
    with pytest.raises(SpoolLost, match="shorter"):
        files.perform(Fetch("0.0", 0, 0, 4))
    (files.directory / "0.1").mkdir()
    with pytest.raises(OSError, match="directory"):
        files.perform(Fetch("0.1", 0, 0, 4))


@pytest.mark.parametrize("emptied", [False, True])
def test_what_was_taken_away_is_gone_though_the_file_goes_on(
    files: SpoolFiles, emptied: bool
) -> None:
    """Zeros are never taken for what was there."""
    files.perform(Spill("0.0", 2, 2, b"abcd"))
    if emptied:
        (files.directory / "0.0").write_bytes(b"")
    else:
        (files.directory / "0.0").unlink()
    files.perform(Spill("0.0", 6, 6, b"efgh"))
    for start in (2, 5):
        with pytest.raises(SpoolLost, match="taken away, or emptied"):
            files.perform(Fetch("0.0", start, start, 2))
    assert files.perform(Fetch("0.0", 6, 6, 4)) == b"efgh"
    files.perform(Delete(("0.0",), 10))
    files.perform(Spill("0.0", 0, 0, b"ABCD"))
    assert files.perform(Fetch("0.0", 0, 0, 4)) == b"ABCD"


def test_a_directory_that_was_deleted_is_made_again(files: SpoolFiles) -> None:
    """As long as the daemon lives; afterwards not even by a thread that comes late."""
    files.perform(Spill("0.0", 0, 0, b"abcd"))
    (files.directory / "0.0").unlink()
    files.directory.rmdir()
    files.perform(Spill("0.0", 4, 4, b"efgh"))
    assert (files.directory / "0.0").exists()


def test_a_write_after_the_end_makes_no_file(tmp_path: Path) -> None:
    """A thread that was abandoned in the middle leaves nothing behind."""
    with open_spool_files(tmp_path) as files:
        pass
    with pytest.raises(FileNotFoundError):
        files.perform(Spill("0.0", 0, 0, b"abcd"))
    assert list(tmp_path.iterdir()) == []
