"""Each tenant has a user of its own, which is nobody else's, and keeps it."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from process_tools import root_only

if sys.platform == "win32":
    pytest.skip("POSIX only", allow_module_level=True)

from sandd._core._errors import ConfigurationError
from sandd._core.isolation import allotments
from sandd._core.isolation.allotments import Allotments, NoUserLeftError
from sandd._core.isolation.options import DEFAULT_UIDS

if TYPE_CHECKING:
    from pathlib import Path

UIDS = (2_000_000, 2_000_003)


def test_a_tenant_keeps_its_user(tmp_path: Path) -> None:
    """Also when the daemon was restarted, and with a wider range."""
    file = tmp_path / "tenants.json"
    first = Allotments(file, UIDS)
    uids = [first.uid_of(name) for name in ("a", "b", "a")]
    assert uids == [2_000_000, 2_000_001, 2_000_000]
    again = Allotments(file, (1_999_000, 2_000_010))
    assert [again.uid_of(name) for name in ("b", "a")] == [2_000_001, 2_000_000]
    assert again.tenants == ("a", "b")
    assert file.stat().st_mode & 0o777 == 0o600


def test_no_user_is_two_tenants(tmp_path: Path) -> None:
    """When all are taken there is an error, and nobody's user is given away."""
    users = Allotments(tmp_path / "tenants.json", UIDS)
    assert len({users.uid_of(name) for name in "abcd"}) == 4
    with pytest.raises(NoUserLeftError, match="2000000-2000003 are taken"):
        users.uid_of("e")
    assert users.uid_of("d") == 2_000_003


def test_somebodys_user_is_no_tenants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is in the system's database, or has a group of that number, is left out."""
    monkeypatch.setattr(allotments, "_is_somebodys", lambda uid: uid == UIDS[0])
    assert Allotments(tmp_path / "tenants.json", UIDS).uid_of("a") == UIDS[0] + 1
    monkeypatch.undo()
    assert allotments._is_somebodys(0)
    assert not allotments._is_somebodys(UIDS[0])


def test_daemons_that_were_given_no_range_begin_in_different_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They know nothing of each other, and would both give the same user to whoever comes first."""
    first, last = DEFAULT_UIDS
    monkeypatch.setattr(allotments, "_is_somebodys", lambda uid: False)
    users = []
    for begin in (7, last - first):
        monkeypatch.setattr("secrets.randbelow", lambda size, begin=begin: begin)
        daemon = Allotments(tmp_path / f"{begin}.json", DEFAULT_UIDS)
        users.append([daemon.uid_of(name) for name in "ab"])
    assert users == [[first + 7, first + 8], [last, first]]


def test_a_range_that_leaves_a_tenant_out_is_refused(tmp_path: Path) -> None:
    """Its files belong to that user, who may be somebody else by now."""
    file = tmp_path / "tenants.json"
    Allotments(file, UIDS).uid_of("a")
    with pytest.raises(ConfigurationError, match="leaves out uid 2000000"):
        Allotments(file, (3_000_000, 3_000_001))


@pytest.mark.parametrize("content", ["", "[]", '{"a": "x"}', '{"a": 2000000, "b": 2000000}'])
def test_a_file_that_says_nothing_is_refused(tmp_path: Path, content: str) -> None:
    """To begin anew would give a tenant's files to another."""
    file = tmp_path / "tenants.json"
    file.write_text(content)
    with pytest.raises(ConfigurationError):
        Allotments(file, UIDS)


def test_a_user_that_can_not_be_kept_is_not_given(tmp_path: Path) -> None:
    """Without a line on the disk there is none: the next start would give it to another."""
    directory = tmp_path / "gone"
    directory.mkdir()
    users = Allotments(directory / "tenants.json", UIDS)
    directory.rmdir()
    with pytest.raises(OSError, match="No such file"):
        users.uid_of("a")
    directory.mkdir()
    assert users.uid_of("b") == UIDS[0]


def test_threads_agree(tmp_path: Path) -> None:
    """Of many that ask at once for two tenants each gets one of two users."""
    users = Allotments(tmp_path / "tenants.json", UIDS)
    got: list[tuple[str, int]] = []
    threads = [
        threading.Thread(target=lambda name=name: got.append((name, users.uid_of(name))))
        for name in "abababab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 2


@root_only
def test_a_lost_file_gives_nobody_anothers_user(tmp_path: Path) -> None:
    """Whose user has a workspace has that user; what belongs to it is not the next tenant's."""
    for name, uid in (("a", 2_000_002), ("b", 2_000_000), ("other", 12)):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, uid, uid)
    users = Allotments(tmp_path / "tenants.json", UIDS, workspaces=tmp_path)
    assert [users.uid_of(name) for name in ("c", "a", "b")] == [2_000_001, 2_000_002, 2_000_000]
    assert Allotments(tmp_path / "new.json", UIDS, workspaces=tmp_path / "none").tenants == ()
