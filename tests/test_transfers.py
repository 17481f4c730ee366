"""Whole transfers: what was at one end is at the other, exactly, and nothing else is."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from transfer_world import Line, Lines, copy, names_below, partials_below, snapshot

from sandd import wire
from sandd._core.transfers.reading import READ_BYTES
from sandd._core.transfers.receiving import BACKLOG_COST, LAZY_BYTES
from sandd._core.transfers.records import PIECE_BYTES
from sandd._core.transfers.walking import BATCH_BYTES
from sandd.wire import KIB, MAX_DATA_BYTES, MIB, Update, UploadSpec

if TYPE_CHECKING:
    from pathlib import Path

SMALL = b"some bytes" * 100
LARGE = os.urandom(64 * KIB) * 40
"""2.5 MiB: some blocks, and one that isn't full."""

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


def make_tree(top: Path) -> None:
    """Something of everything."""
    top.mkdir()
    (top / "empty").mkdir()
    (top / "deep" / "er" / "still").mkdir(parents=True)
    (top / "small").write_bytes(SMALL)
    (top / "nothing").touch()
    (top / "deep" / "large").write_bytes(LARGE)
    (top / "deep" / "er" / "still" / "one").write_bytes(b"1")
    (top / "link").symlink_to("deep/large")
    (top / "deep" / "nowhere").symlink_to("/no/such/file")
    (top / "deep" / "loop").symlink_to("../deep")
    (top / "small").chmod(0o640)
    (top / "deep" / "large").chmod(0o755)
    (top / "deep").chmod(0o750)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, 10**18 + number), follow_symlinks=False)
    os.utime(top, ns=(0, 10**18 - 1))


@pytest.mark.parametrize("data", [b"", b"x", SMALL, LARGE], ids=["empty", "byte", "small", "large"])
async def test_a_file_is_copied(tmp_path: Path, data: bytes) -> None:
    """Bytes, mode and time are the same, and the result says what was done."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    source.chmod(0o640)
    os.utime(source, ns=(0, 1_234_567_890_123_456_789))

    result = (await copy(source, target)).result

    assert target.read_bytes() == data
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert target.stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert (result.bytes, result.size, result.files) == (len(data), len(data), 1)
    assert (result.skipped, result.resumed) == (0, 0)
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    assert names_below(tmp_path) == ["source", "target"]


async def test_a_file_takes_the_place_of_another_one(tmp_path: Path) -> None:
    """Who had the old one open still has it; the name is the new one's."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE)
    target.write_bytes(b"old")
    with target.open("rb") as old:
        (await copy(source, target)).result  # noqa: B018 - raises if it failed

        assert old.read() == b"old"
    assert target.read_bytes() == LARGE


async def test_a_tree_is_copied(tmp_path: Path) -> None:
    """Files, directories and links, with their modes and times, those of directories too."""
    make_tree(tmp_path / "source")

    result = (await copy(tmp_path / "source", tmp_path / "target")).result

    assert snapshot(tmp_path / "target") == snapshot(tmp_path / "source")
    assert result.files == 4
    assert result.size == result.bytes == len(SMALL) + len(LARGE) + 1
    assert result.sha256 is None
    assert not partials_below(tmp_path)


async def test_a_tree_is_copied_over_another_one(tmp_path: Path) -> None:
    """What has no counterpart stays; the rest becomes as in the source, but for the top's own mode and time."""
    make_tree(tmp_path / "source")
    target = tmp_path / "target"
    (target / "deep").mkdir(parents=True)
    (target / "small").write_bytes(b"other")
    (target / "mine").write_bytes(b"mine")
    (target / "deep" / "loop").write_bytes(b"a file, where a link will be")
    target.chmod(0o700)

    (await copy(tmp_path / "source", target)).result  # noqa: B018 - raises if it failed

    expected, found = snapshot(tmp_path / "source"), snapshot(target)
    assert found.pop(b"mine")[3] == b"mine"
    assert found.pop(b"")[1] == 0o700
    del expected[b""]
    assert found == expected


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_records_may_be_cut_anywhere(tmp_path: Path, size: int) -> None:
    """However the lines cut the bytes, the copy is exact."""
    make_tree(tmp_path / "source")
    (tmp_path / "source" / "deep" / "large").write_bytes(LARGE[: 300 * size])
    lines = Lines(Line(piece=size, bound=64 * KIB), Line(piece=1))

    (await copy(tmp_path / "source", tmp_path / "target", lines=lines)).result  # noqa: B018 - raises if it failed

    found = snapshot(tmp_path / "target")
    assert found == snapshot(tmp_path / "source")


@pytest.mark.parametrize("update", [Update.TIME, Update.HASH])
async def test_an_update_sends_what_differs(tmp_path: Path, update: Update) -> None:
    """A second call sends nothing; after a change, the file that was changed."""
    make_tree(tmp_path / "source")
    source, target = tmp_path / "source", tmp_path / "target"

    first = (await copy(source, target, update=update)).result
    again = (await copy(source, target, update=update)).result
    (source / "deep" / "large").write_bytes(LARGE[::-1])
    changed = (await copy(source, target, update=update)).result

    assert (first.skipped, first.bytes) == (0, first.size)
    assert (again.skipped, again.bytes, again.resumed) == (again.files, 0, 0)
    assert (changed.skipped, changed.bytes) == (changed.files - 1, len(LARGE))
    found, expected = snapshot(target), snapshot(source)
    assert found.pop(b"") is not None
    del expected[b""]
    assert found == expected


async def test_an_update_by_hash_sees_what_time_does_not(tmp_path: Path) -> None:
    """Equal size and time, other bytes: only the hash tells. Equal bytes, another time: only the hash skips."""
    source, target = tmp_path / "source", tmp_path / "target"
    for path, data in ((source, b"new"), (target, b"old")):
        path.write_bytes(data)
        os.utime(path, ns=(0, 10**18))

    by_time = (await copy(source, target, update=Update.TIME)).result
    assert (by_time.skipped, by_time.sha256) == (1, None)
    assert target.read_bytes() == b"old"
    by_hash = (await copy(source, target, update=Update.HASH)).result
    assert by_hash.skipped == 0
    assert target.read_bytes() == b"new"
    os.utime(target, ns=(0, 5))
    again = (await copy(source, target, update=Update.HASH)).result
    assert (again.skipped, again.sha256) == (1, hashlib.sha256(b"new").hexdigest())
    assert target.stat().st_mtime_ns == 10**18


async def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    """Both ends report bytes that never exceed the total, and in the end are all; skipped ones count as done."""
    make_tree(tmp_path / "source")
    calls: dict[str, list[tuple[int, int]]] = {"sent": [], "received": []}

    for _ in range(2):
        copied = await copy(
            tmp_path / "source",
            tmp_path / "target",
            update=Update.TIME,
            says_total=True,
            progress=lambda done, total: calls["sent"].append((done, total)),
            receiver_progress=lambda done, total: calls["received"].append((done, total)),
        )
        size = copied.result.size
        for each in calls.values():
            assert each[-1] == (size, size)
            assert all(done <= total == size for done, total in each)
            each.clear()


@posix_only
async def test_special_files_are_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe and a socket in a tree hang nobody: the rest is copied, and the result says what wasn't."""
    monkeypatch.chdir(tmp_path)  # an address has room for 108 bytes
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    os.mkfifo(source / "below" / "pipe")
    (source / "file").write_bytes(SMALL)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("source/socket")

        result = (await copy(source, tmp_path / "target")).result

    assert result.unsupported == 2
    assert sorted(result.unsupported_names) == ["below/pipe", "socket"]
    assert names_below(tmp_path / "target") == ["below", "file"]


async def test_a_sparse_file_stays_sparse(tmp_path: Path) -> None:
    """Of 256 MiB that are nearly all hole, the hole is neither sent nor written."""
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.write(b"begin")
        file.seek(100 * MIB + 4097)
        file.write(b"middle")
        file.truncate(256 * MIB)
    lines = Lines()

    result = (await copy(source, target, lines=lines)).result

    assert result.size == target.stat().st_size == 256 * MIB
    assert lines.forth.sent < MIB
    if hasattr(os, "SEEK_DATA"):
        assert target.stat().st_blocks * 512 < MIB
    with target.open("rb") as file:
        assert file.read(5) == b"begin"
        file.seek(100 * MIB + 4097)
        assert file.read(6) == b"middle"
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    assert result.sha256 == digest.hexdigest()


async def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Both ends together hold a batch each, and what is being read; besides, what is on its way."""
    line = Line(bound=UploadSpec.window, piece=MAX_DATA_BYTES)
    on_its_way = line.bound + line.piece
    sender = BATCH_BYTES + PIECE_BYTES + READ_BYTES + line.piece  # the last: what the line copies
    receiver = BACKLOG_COST + line.piece + PIECE_BYTES  # the last: of a record that isn't whole
    bound = on_its_way + sender + receiver + MIB
    source = tmp_path / "source"
    for size in (16 * MIB, 64 * MIB):
        assert bound < size
        with source.open("wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
        lines = Lines(Line(bound=line.bound, piece=line.piece))
        tracemalloc.start()
        try:
            (await copy(source, tmp_path / f"{size}", lines=lines)).result  # noqa: B018 - raises if it failed
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < bound


def test_what_a_receiver_waits_for_may_be_under_way() -> None:
    """While it writes: a sender that may send no more until it hears of that would leave it waiting."""
    for window in (wire.INITIAL_OUTPUT_BYTES, UploadSpec.window):
        assert window // 2 >= LAZY_BYTES
