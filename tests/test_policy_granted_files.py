"""Files that a policy grants: each call is confined to one grant, and reading is not writing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from sandd._core.policy.granted_files import GrantedFiles
from sandd._core.policy.rules import Policy

if TYPE_CHECKING:
    from pathlib import Path


class Place:
    """A directory to read, one to write, and one that is nobody's business."""

    def __init__(self, home: Path) -> None:
        self.read, self.write, self.other = (home / name for name in ("read", "write", "other"))
        for directory in (self.read, self.write, self.other):
            directory.mkdir()
            (directory / "file").write_text(directory.name)
            (directory / "link").symlink_to(home / "other" / "file")
        policy = Policy(files_read=(str(self.read),), files_write=(str(self.write),))
        self.root = GrantedFiles(policy)

    def text(self, path: Path | str) -> str:
        """What is in a file."""
        descriptor = self.root.open(os.fsencode(path), os.O_RDONLY)
        with os.fdopen(descriptor) as file:
            return file.read()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where all of it is."""
    return Place(tmp_path)


posix_only = pytest.mark.skipif(os.name == "nt", reason="no daemon there has a policy")
pytestmark = posix_only


def test_what_is_granted_is_read(place: Place) -> None:
    """What may be written may be read as well."""
    assert place.text(place.read / "file") == "read"
    assert place.text(place.write / "file") == "write"
    for directory in (place.read, place.write):
        path = os.fsencode(directory)
        assert {name for name, _ in place.root.scan(path)} == {b"file", b"link"}
        assert place.root.stat(path + b"/file").st_size == len(directory.name)
        assert place.root.locate(path) == os.fsencode(directory.resolve())
        assert place.root.readlink(path + b"/link").endswith(b"/other/file")


@pytest.mark.parametrize(
    "path", ["other/file", "read/link", "read/../other/file", "write/link", "readable", "."]
)
def test_what_is_not_granted_is_not_there(path: str, place: Place) -> None:
    """By name or by link; nor does a relative path lead anywhere."""
    with pytest.raises(PermissionError):
        place.text(f"{place.read.parent}/{path}")
    with pytest.raises(PermissionError):
        place.text(path)
    with pytest.raises(PermissionError):
        place.root.stat(os.fsencode(f"{place.read.parent}/{path}"))


def test_every_call_that_changes_something_needs_a_grant_to_write(place: Place) -> None:
    """None of them is done where reading is all that is granted."""
    read, write = os.fsencode(place.read), os.fsencode(place.write)
    root = place.root
    changes = {
        "open": lambda at: os.close(root.open(at + b"/new", os.O_WRONLY | os.O_CREAT)),
        "truncate": lambda at: os.close(root.open(at + b"/file", os.O_RDONLY | os.O_TRUNC)),
        "mkdir": lambda at: root.mkdir(at + b"/directory"),
        "rmdir": lambda at: root.rmdir(at + b"/directory"),
        "symlink": lambda at: root.symlink(b"/x", at + b"/symlink"),
        "link": lambda at: root.link(at + b"/file", at + b"/hardlink"),
        "rename": lambda at: root.rename(at + b"/hardlink", at + b"/renamed"),
        "chmod": lambda at: root.chmod(at + b"/file", 0o600),
        "utime": lambda at: root.utime(at + b"/file", None),
        "unlink": lambda at: root.unlink(at + b"/renamed"),
    }
    for change in changes.values():
        change(write)
    for change in changes.values():
        with pytest.raises(PermissionError):
            change(read)
    for source, target in ((read, write), (write, read)):
        with pytest.raises(PermissionError):
            root.rename(source + b"/file", target + b"/moved")
        with pytest.raises(PermissionError):
            root.link(source + b"/file", target + b"/moved")


def test_a_grant_may_come_and_go(place: Place) -> None:
    """It is a name: what is there at the time is what is granted."""
    (place.read / "file").unlink()
    (place.read / "link").unlink()
    place.read.rmdir()
    with pytest.raises(FileNotFoundError):
        place.text(place.read / "file")
    place.read.mkdir()
    (place.read / "file").write_text("again")
    assert place.text(place.read / "file") == "again"
