"""Who may write a file is read off every directory and link on the way there."""

from __future__ import annotations

import os
import sys

import pytest
from process_tools import root_only
from trusted_files import trusted_directory

if sys.platform == "win32":
    pytest.skip("owners and modes", allow_module_level=True)

from typing import TYPE_CHECKING

from sandd import ConfigurationError
from sandd._core.policy.trust import read_trusted, writable_part

if TYPE_CHECKING:
    from pathlib import Path

USER, GROUP = 65534, 65534


def part(path: Path, *, uid: int = USER, groups: tuple[int, ...] = (GROUP,)) -> str | None:
    """What of the path that user may write."""
    return writable_part(str(path), uid=uid, groups=groups)


@root_only
def test_a_file_is_as_safe_as_the_way_to_it() -> None:
    """Its owner, its mode, that of each directory, and of those that links on the way are in."""
    with trusted_directory() as home:
        file, link = home / "a" / "file", home / "link"
        file.parent.mkdir()
        file.write_text("x")
        link.symlink_to("a/../a/file")
        assert part(file) is part(link) is part(file, uid=0) is None
        file.chmod(0o646)
        assert part(link) == str(file)
        file.chmod(0o664)
        assert part(file) is None
        assert part(file, groups=(GROUP, 0)) == str(file)
        file.chmod(0o644)
        os.chown(file, USER, 0)
        assert part(file) == part(file, uid=0) == str(file)
        assert part(file, uid=USER + 1) is None  # a third one is trusted
        os.chown(file, 0, 0)
        file.parent.chmod(0o1777)
        assert part(file) == str(file.parent)
        file.parent.chmod(0o755)
        (home / "open").mkdir()
        (home / "open").chmod(0o777)
        (home / "open" / "link").symlink_to(file)
        assert part(home / "open" / "link") == str(home / "open")
        link.unlink()
        link.symlink_to(link)
        with pytest.raises(OSError, match="Too many levels"):
            part(link)


@root_only
def test_an_access_list_counts_as_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entries are behind the group's bits, and any of them may be the user's."""
    with trusted_directory() as home:
        file = home / "file"
        file.write_text("x")
        file.chmod(0o664)
        assert part(file) is None
        monkeypatch.setattr(os, "getxattr", lambda *_: b"entries")
        assert part(file) == str(file)


def test_what_only_we_may_write_is_read(tmp_path: Path) -> None:
    """In a sticky directory, too, where others may put files beside it."""
    file = tmp_path / "file"
    file.write_text("content")
    assert read_trusted(str(file), max_bytes=100, option="--x") == b"content"
    assert read_trusted(str(file), max_bytes=3, option="--x") == b"cont"
    (tmp_path / "link").symlink_to(file)
    assert read_trusted(str(tmp_path / "link"), max_bytes=100, option="--x") == b"content"


def test_what_others_may_write_is_not_read(tmp_path: Path) -> None:
    """The file or a directory above it; nor what is no file, or not there."""

    def complaint(path: Path) -> str:
        with pytest.raises(ConfigurationError) as caught:
            read_trusted(str(path), max_bytes=100, option="--x")
        assert "--x" in str(caught.value)
        return str(caught.value)

    file = tmp_path / "a" / "file"
    file.parent.mkdir()
    file.write_text("content")
    file.chmod(0o646)
    assert f"{file} may be written by everybody" in complaint(file)
    file.chmod(0o644)
    file.parent.chmod(0o757)
    assert f"{file.parent} may be written by everybody" in complaint(file)
    file.parent.chmod(0o755)
    assert "Is a directory" in complaint(file.parent)
    assert "No such file" in complaint(tmp_path / "none")
    os.mkfifo(tmp_path / "fifo")
    assert "is no regular file" in complaint(tmp_path / "fifo")
    if os.geteuid() == 0:
        os.chown(file, USER, 0)
        assert f"{file} belongs to user {USER}" in complaint(file)
