"""A workspace is its tenant's, and what a tenant makes in its own leads nowhere else."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from process_tools import linux_only, root_only
from trusted_files import trusted_directory

if sys.platform == "win32":
    pytest.skip("POSIX only", allow_module_level=True)

from sandd._core.files.writing import open_writing
from sandd._core.isolation.allotments import Allotments
from sandd._core.isolation.credentials import acting_as
from sandd._core.isolation.tenant_files import TenantFiles
from sandd._core.isolation.workspaces import WorkspaceError, Workspaces
from sandd._core.transfers.partials import open_partial
from sandd.wire import WriteMode

if TYPE_CHECKING:
    from collections.abc import Iterator

UIDS = (2_000_000, 2_000_009)


@pytest.fixture
def workspaces() -> Iterator[Workspaces]:
    """Of tenants that are users of their own."""
    with trusted_directory() as directory:
        directory.chmod(0o700)
        users = Allotments(directory / "tenants.json", UIDS)
        yield Workspaces(directory / "w", users, passing=directory)


def test_without_users_they_are_ours(tmp_path: Path) -> None:
    """Of a daemon that can't become anybody; each is private all the same."""
    spaces = Workspaces(tmp_path / "w", None)
    one, two = spaces.open("a"), spaces.open("b")
    assert one.uid is None
    assert one.path != two.path
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o700
    assert one.temporary.is_dir()
    assert spaces.open("a") == one


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "a\0b", "/", "-a", "é", "a" * 64])
def test_a_tenant_that_has_no_name_has_no_workspace(tmp_path: Path, name: str) -> None:
    """It is the controller that says whose a job is, and a path is made of it."""
    with pytest.raises(WorkspaceError):
        Workspaces(tmp_path / "w", None).open(name)
    assert not (tmp_path / "a").exists()


@root_only
@linux_only
def test_ways_are_opened_and_no_more(workspaces: Workspaces) -> None:
    """The state directory is passed, not read, and only once there is a workspace behind it."""
    above = workspaces.directory.parent
    assert workspaces.way_in() is None
    assert stat.S_IMODE(above.stat().st_mode) == 0o700
    workspace = workspaces.open("a")
    assert stat.S_IMODE(above.stat().st_mode) == 0o711
    assert stat.S_IMODE(workspaces.directory.stat().st_mode) == 0o711
    assert workspace.path.stat().st_uid == workspace.temporary.stat().st_uid == workspace.uid


@root_only
def test_a_way_that_is_barred_is_told() -> None:
    """Whose directory somewhere above lets nobody pass is not ours to change."""
    with trusted_directory() as directory:
        (directory / "private").mkdir(0o700)
        users = Allotments(directory / "tenants.json", UIDS)
        assert Workspaces(directory / "private" / "w", users).way_in() == str(directory / "private")


@root_only
@linux_only
def test_what_is_in_a_workspaces_place_is_not_taken(workspaces: Workspaces) -> None:
    """Another's directory, a link, a file: nothing of it is given to the tenant."""
    workspaces.open("a")
    for name, make in (
        ("b", lambda path: path.mkdir()),
        ("c", lambda path: path.symlink_to("/etc")),
        ("d", lambda path: path.write_text("")),
    ):
        path = workspaces.directory / name
        make(path)
        if name == "b":
            os.chown(path, 12345, 12345)
        with pytest.raises(WorkspaceError, match="not tenant"):
            workspaces.open(name)
    assert Path("/etc").stat().st_uid == 0


@root_only
@linux_only
def test_a_workspace_that_was_just_made_is_given(workspaces: Workspaces) -> None:
    """A daemon that is killed before that leaves it root's, and the next one goes on."""
    workspaces.open("a")
    (workspaces.directory / "b").mkdir(0o700)
    workspace = workspaces.open("b")
    assert workspace.path.stat().st_uid == workspace.uid


@root_only
@linux_only
def test_a_tenants_links_change_nothing_elsewhere(workspaces: Workspaces) -> None:
    """Whatever is in the place of what we make there: it is made as its user."""
    workspace = workspaces.open("a")
    target = workspaces.directory.parent / "target"
    target.mkdir(0o700)
    workspace.temporary.rmdir()
    workspace.temporary.symlink_to(target)
    workspaces.open("a")
    assert target.stat().st_uid == 0


# ---- files, as the tenant's user -----------------------------------------------------------------


@root_only
@linux_only
def test_a_thread_is_somebody_else_for_a_moment() -> None:
    """In the eyes of the file system, without any of our groups; then it is as before, whatever happened."""
    with trusted_directory() as directory:
        directory.chmod(0o777)
        with contextlib.suppress(RuntimeError), acting_as(2_000_000, 2_000_001):
            (directory / "x").write_text("")
            with pytest.raises(PermissionError):
                os.listdir("/root")
            with pytest.raises(PermissionError):
                os.chown(directory / "x", 0, 0)
            raise RuntimeError
        status = (directory / "x").stat()
        assert (status.st_uid, status.st_gid) == (2_000_000, 2_000_001)
        os.listdir("/root")
        os.chown(directory / "x", 0, 0)


@root_only
@linux_only
def test_a_thread_that_is_somebody_else_has_none_of_our_groups() -> None:
    """What is for one of them is not for a tenant; afterwards they are ours again."""
    ours, group = os.getgroups(), 54_321
    with trusted_directory() as directory:
        (directory / "x").write_text("")
        os.chown(directory / "x", 0, group)
        (directory / "x").chmod(0o040)
        os.setgroups([*ours, group])
        try:
            with acting_as(2_000_000, 2_000_000), pytest.raises(PermissionError):
                os.open(directory / "x", os.O_RDONLY)
            assert group in os.getgroups()
        finally:
            os.setgroups(ours)


@pytest.fixture
def files(workspaces: Workspaces) -> Iterator[TenantFiles]:
    """One tenant's."""
    root = TenantFiles(workspaces, "a")
    yield root
    root.close()


@root_only
@linux_only
def test_files_are_made_and_read_as_the_tenant(workspaces: Workspaces, files: TenantFiles) -> None:
    """What it may not read is not read for it; what is made for it is its own."""
    workspace = workspaces.open("a")
    files.mkdir(b"d")
    os.close(files.open(b"d/f", os.O_WRONLY | os.O_CREAT, 0o644))
    files.symlink(b"f", b"d/l")
    files.link(b"d/f", b"d/h")
    files.rename(b"d/h", b"d/i")
    files.chmod(b"d/f", 0o640)
    files.utime(b"d/f", (1, 1))
    assert files.readlink(b"d/l") == b"f"
    assert files.locate(b"d/l") == os.fsencode(workspace.path / "d" / "f")
    found = dict(files.scan(b"d"))
    assert found.keys() == {b"f", b"l", b"i"}
    assert {status.st_uid for status in found.values()} == {workspace.uid}
    secret = workspace.path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    with pytest.raises(PermissionError):
        files.open(b"secret", os.O_RDONLY)
    for name in (b"d/f", b"d/l", b"d/i"):
        files.unlink(name)
    files.rmdir(b"d")


@root_only
@linux_only
def test_what_is_done_by_descriptors_is_done_as_the_tenant(files: TenantFiles) -> None:
    """So a file of root's that is in its workspace never makes another one root's, with its mode."""
    descriptor = files.open(b"f", os.O_WRONLY | os.O_CREAT)
    try:
        with files.as_owner() as owner:
            assert os.fstat(descriptor).st_uid == owner
            with pytest.raises(PermissionError):
                os.fchown(descriptor, 0, 0)
    finally:
        os.close(descriptor)


@root_only
@linux_only
def test_writing_makes_no_file_that_is_roots(workspaces: Workspaces, files: TenantFiles) -> None:
    """What takes an old file's place gets its owner where the *tenant* may give it away: setuid is its own then."""
    workspace = workspaces.open("a")
    old = workspace.path / "tool"
    old.write_text("root's")
    old.chmod(0o4777)
    writing = open_writing(files, b"tool", WriteMode.REPLACE)
    writing.write(b"the tenant's")
    writing.commit()
    assert old.read_text() == "the tenant's"
    assert old.stat().st_uid == workspace.uid


@root_only
@linux_only
def test_what_is_in_the_making_is_found_again(files: TenantFiles) -> None:
    """By whom it belongs to: a transfer that was cut goes on with it; one of root's is not ours there."""
    for is_new in (True, False):
        descriptor = open_partial(files, b"x.part", create=is_new)
        assert descriptor is not None
        os.close(descriptor)
    with files.as_owner() as owner:
        assert files.stat(b"x.part").st_uid == owner


@root_only
@linux_only
def test_a_directory_that_the_tenant_may_not_read_is_not_listed(
    workspaces: Workspaces, files: TenantFiles
) -> None:
    """Nor opened, whoever has put it there."""
    (workspaces.open("a").path / "roots").mkdir(0o700)
    with pytest.raises(PermissionError):
        list(files.scan(b"roots"))
    with pytest.raises(PermissionError):
        files.stat(b"roots/file")


@root_only
@linux_only
def test_a_workspace_that_was_removed_is_made_again(
    workspaces: Workspaces, files: TenantFiles
) -> None:
    """By whoever looks after the machine; the daemon needs no restart."""
    files.mkdir(b"d")
    workspace = workspaces.open("a")
    (workspace.path / "d").rmdir()
    workspace.temporary.rmdir()
    workspace.path.rmdir()
    files.mkdir(b"e")
    assert (workspace.path / "e").is_dir()


def test_a_tenant_without_a_workspace_has_no_files(tmp_path: Path) -> None:
    """That is an error like any other of the system's."""
    files = TenantFiles(Workspaces(tmp_path / "w", None), "../x")
    with pytest.raises(PermissionError, match="no tenant's name"):
        files.stat(b".")
