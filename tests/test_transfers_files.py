"""One file, read and written: holes, what the system makes up, other people's directories, several disks."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from transfer_world import FailingRoot, Line, Lines, copy, names_below, system_error

from sandd import TransferError
from sandd._core.files.roots import AnyFile
from sandd._core.transfers import partials, syncing
from sandd._core.transfers.ends import failure_bytes, failure_error, tell
from sandd._core.transfers.partials import Holder, Partials, open_partial
from sandd._core.transfers.records import RecordReader, message_bytes
from sandd._core.transfers.sending import send
from sandd._core.transfers.writing import BLOCK, write_sparse
from sandd.wire import KIB, MAX_DATA_BYTES, MIB, FailedRecord, Update

if TYPE_CHECKING:
    from pathlib import Path

LARGE = os.urandom(64 * KIB) * 20

if TYPE_CHECKING:
    from pathlib import Path

# ---- holes --------------------------------------------------------------------------------------

RUNS = st.lists(
    st.tuples(st.sampled_from([0, 7]), st.integers(1, 3 * BLOCK) | st.just(BLOCK)), max_size=8
).map(lambda runs: b"".join(bytes([value]) * count for value, count in runs))


@given(st.lists(st.lists(RUNS, max_size=4), max_size=4), st.integers(0, 2 * BLOCK))
def test_zeros_are_not_written(
    tmp_path_factory: pytest.TempPathFactory, goes: list[list[bytes]], start: int
) -> None:
    """However the bytes come, the file reads as they are."""
    path = tmp_path_factory.getbasetemp() / "sparse"
    data = b"a" * start
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(descriptor, data)
        for parts in goes:
            write_sparse(descriptor, len(data), [memoryview(part) for part in parts])
            data += b"".join(parts)
        os.ftruncate(descriptor, len(data))
        assert path.read_bytes() == data
    finally:
        os.close(descriptor)


async def test_blocks_of_zeros_become_a_hole(tmp_path: Path) -> None:
    """Of a source that isn't sparse, too."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" + bytes(8 * MIB) + b"y")
    lines = Lines(Line(piece=MAX_DATA_BYTES))

    (await copy(source, target, lines=lines)).result  # noqa: B018 - raises if it failed

    assert target.read_bytes() == source.read_bytes()
    if sys.platform == "linux":
        assert target.stat().st_blocks * 512 <= 64 * KIB


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="needs a system that tells where data is")
async def test_a_file_system_that_does_not_tell_its_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then all is data."""
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.seek(MIB)
        file.write(b"end")
    seek = os.lseek

    def refuse(descriptor: int, position: int, whence: int) -> int:
        if whence == os.SEEK_DATA:
            raise system_error(errno.EINVAL)
        return seek(descriptor, position, whence)

    monkeypatch.setattr(os, "lseek", refuse)
    result = (await copy(source, target)).result

    assert result.bytes == MIB + 3
    assert target.read_bytes() == bytes(MIB) + b"end"


async def test_a_sparse_file_goes_on_where_it_was(tmp_path: Path) -> None:
    """Data, hole, data: cut in the second part, it is resumed there."""
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.write(LARGE)
        file.seek(64 * MIB)
        file.write(LARGE * 3)
    lines = Lines()
    lines.forth.cut_after = 4 * MIB
    await copy(source, target, lines=lines)

    result = (await copy(source, target)).result

    assert result.resumed > 66 * MIB  # all that had come
    assert target.read_bytes() == source.read_bytes()


# ---- odd files ----------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_what_the_system_makes_up_for_a_reader(tmp_path: Path) -> None:
    """It claims to have no bytes at all, and is copied as it reads."""
    result = (await copy(b"/proc/version", tmp_path / "target")).result

    assert b"Linux version" in (tmp_path / "target").read_bytes()
    assert result.size > 10


async def test_the_same_file_that_changes_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found to be the same, and written to in that moment: then it is sent."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE)
    target.write_bytes(LARGE)
    read, times = os.read, 0

    def change(descriptor: int, size: int) -> bytes:
        nonlocal times
        data = read(descriptor, size)
        times += size == MIB
        if times == 1 and size == MIB:
            with source.open("ab") as file:
                file.write(b"more")
        return data

    monkeypatch.setattr(os, "read", change)
    result = (await copy(source, target, update=Update.HASH)).result

    assert target.read_bytes() == LARGE + b"more"
    assert (result.skipped, result.bytes, result.size) == (0, len(LARGE) + 4, len(LARGE) + 4)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX modes")
async def test_a_directory_that_nobody_may_write_in_is_filled_again(tmp_path: Path) -> None:
    """It is opened for the time of the transfer, and as closed as its source afterwards."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "closed").mkdir(parents=True)
    (source / "closed" / "file").write_bytes(b"1")
    (source / "closed").chmod(0o555)
    root = FailingRoot()

    for content in (b"1", b"2"):
        (source / "closed").chmod(0o755)
        (source / "closed" / "file").write_bytes(content)
        (source / "closed").chmod(0o555)
        (await copy(source, target, receiver_root=root)).result  # noqa: B018 - raises if it failed
        assert (target / "closed" / "file").read_bytes() == content
        assert stat.S_IMODE((target / "closed").stat().st_mode) == 0o555

    closed = os.fsencode(target / "closed")
    assert [name for name, path in root.calls if path == closed].count("chmod") == 3
    for path in (source, target):
        (path / "closed").chmod(0o755)


async def test_somebody_elses_directory_is_filled_all_the_same(tmp_path: Path) -> None:
    """Its mode isn't ours to change; a file that can't be given its mode is an error."""
    source, target = tmp_path / "source", tmp_path / "target"
    for top in (source, target):
        (top / "theirs").mkdir(parents=True)
    (source / "theirs" / "file").write_bytes(b"x")

    def refuse(_number: int, name: str, path: bytes) -> None:
        if name == "chmod":
            raise system_error(errno.EPERM, path)

    (await copy(source, target, receiver_root=FailingRoot(refuse))).result  # noqa: B018 - raises if it failed
    assert (target / "theirs" / "file").read_bytes() == b"x"
    other = await copy(source, tmp_path / "other", receiver_root=FailingRoot(refuse))
    assert isinstance(other.received, PermissionError)


async def test_a_file_that_may_be_replaced_but_not_read(tmp_path: Path) -> None:
    """With an update by hash it can't be compared, so it is sent."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"data")
    target.write_bytes(b"data")

    def refuse(_number: int, name: str, path: bytes) -> None:
        if name == "open" and path.endswith(b"target"):
            raise system_error(errno.EACCES, path)

    root = FailingRoot(refuse)
    result = (await copy(source, target, update=Update.HASH, receiver_root=root)).result

    assert (result.skipped, result.bytes) == (0, 4)


async def test_a_file_in_the_making_that_somebody_cuts(tmp_path: Path) -> None:
    """Between what the receiver said that it has, and its going on with it: an error, and no hole in the copy."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE)
    status = source.stat()
    name = partials.partial_name("", os.fsencode(target), status.st_size, status.st_mtime_ns)
    partial = tmp_path / os.fsdecode(name)
    for kind in ("cut", "taken"):
        partial.write_bytes(LARGE[:MIB])
        opened = 0

        def meddle(_number: int, called: str, path: bytes, kind: str = kind) -> None:
            nonlocal opened
            if called == "open" and path.endswith(name):
                opened += 1
                if opened == 2 and kind == "cut":
                    os.truncate(partial, 10)
                elif opened == 2:
                    partial.unlink()
                    partial.symlink_to("elsewhere")

        copied = await copy(source, target, receiver_root=FailingRoot(meddle))

        assert isinstance(copied.received, TransferError)
        assert "somebody else" in str(copied.sent)
        assert not target.exists()
        partial.unlink(missing_ok=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows says otherwise whose a file is")
def test_a_new_file_is_ours_whatever_the_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a server gives files to somebody else: what we have just made we may write, and leave no other behind."""
    path = os.fsencode(tmp_path / "partial")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    descriptor = open_partial(AnyFile(), path, create=True)
    assert descriptor is not None
    os.close(descriptor)
    assert open_partial(AnyFile(), path, create=True) is None
    assert names_below(tmp_path) == ["partial"]


# ---- disks --------------------------------------------------------------------------------------


async def test_a_tree_on_several_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is synced, once for its files and once for their names."""
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in ("here", "there"):
        (source / folder).mkdir(parents=True)
        for number in range(20):
            (source / folder / str(number)).write_bytes(b"x")
    real, synced = os.fstat, []

    class Elsewhere:
        """A status on another device."""

        def __init__(self, status: os.stat_result) -> None:
            self._status = status
            self.st_dev = status.st_dev + 1

        def __getattr__(self, name: str) -> object:
            return getattr(self._status, name)

    def fstat(descriptor: int) -> object:
        where = os.readlink(f"/proc/self/fd/{descriptor}")
        return Elsewhere(real(descriptor)) if "target/there" in where else real(descriptor)

    def sync(descriptor: int) -> int:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), target))
        return 0

    monkeypatch.setattr(os, "fstat", fstat)
    monkeypatch.setattr(syncing, "_syncfs", sync)
    (await copy(source, target)).result  # noqa: B018 - raises if it failed

    files = sorted(path.split("/")[0] for path in synced if path.endswith(".part"))
    assert files == ["here", "there"]


async def test_a_disk_that_cannot_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What wasn't written, though it seemed so, is found out before any file gets its name."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for number in range(10):
        (source / str(number)).write_bytes(b"x")
    monkeypatch.setattr(syncing, "_syncfs", lambda _descriptor: -1)
    monkeypatch.setattr(syncing.ctypes, "get_errno", lambda: errno.EIO)

    copied = await copy(source, target)

    assert isinstance(copied.received, OSError)
    assert copied.received.errno == errno.EIO
    assert isinstance(copied.sent, TransferError)
    assert names_below(target) == []


# ---- one end tells the other --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(errno.ENOENT, "no such file", b"/x\xff"), FileNotFoundError),
        (PermissionError(errno.EACCES, "no", "/x\udcff"), PermissionError),
        (OSError("something without a number"), TransferError),
        (TransferError("something else"), TransferError),
        (OSError(errno.ENOSPC, "x" * 10_000), OSError),
    ],
)
def test_failures_survive_the_wire(error: Exception, kind: type[Exception]) -> None:
    """As a TransferError that is also what it was there, with the same path."""
    (record,) = RecordReader().feed(failure_bytes(error))
    assert isinstance(record, FailedRecord)

    here = failure_error(record)

    assert isinstance(here, TransferError)
    assert isinstance(here, kind)
    if getattr(error, "filename", None):
        assert os.fsencode(here.filename) == b"/x\xff"  # type: ignore[attr-defined]


async def test_a_failure_without_words(autojump_clock: trio.testing.MockClock) -> None:
    """Says at least that there was one."""
    assert "failed" in str(failure_error(FailedRecord()))


class Deaf:
    """A channel that takes nothing more, while there is something to be heard on it."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    async def send(self, _data: bytes, /) -> None:
        """It fails."""
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError

    async def receive(self) -> list[bytes]:
        """It works, a little later."""
        await trio.sleep(1)
        return [self._said]


async def test_the_reason_counts_more_than_the_broken_line(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Who can't send any more looks first whether the other end has said why."""
    (tmp_path / "source").write_bytes(b"x")
    said = message_bytes(FailedRecord("ENOSPC", "no room", b"/there"))

    with pytest.raises(TransferError, match="no room"):
        await send(Deaf(said), AnyFile(), os.fsencode(tmp_path / "source"))
    with pytest.raises(trio.BrokenResourceError):
        await tell(Deaf(b""), b"x")


async def test_an_error_of_a_line_is_a_cut(tmp_path: Path) -> None:
    """Whatever a channel raises comes out as itself, and what has come is kept."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE * 4)
    lines = Lines()
    received = lines.forth.receive
    count = 0

    async def fail(at_least: int = 1) -> bytes:
        nonlocal count
        count += 1
        if count > 35:
            raise trio.BrokenResourceError
        return await received(at_least)

    lines.forth.receive = fail  # type: ignore[method-assign]
    copied = await copy(source, target, lines=lines)

    assert isinstance(copied.received, trio.BrokenResourceError)
    assert len(names_below(tmp_path)) == 2
    assert (await copy(source, target)).result.resumed > 0


async def test_an_error_of_progress_comes_out(tmp_path: Path) -> None:
    """As itself, at the end that it belongs to; nothing is left."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE)

    def fail(_done: int, _total: int) -> None:
        raise ZeroDivisionError

    for options in ({"progress": fail}, {"receiver_progress": fail}):
        copied = await copy(source, target, **options)  # type: ignore[arg-type]
        failed = copied.sent if "progress" in options else copied.received
        assert isinstance(failed, ZeroDivisionError)
        target.unlink(missing_ok=True)


# ---- who has what -------------------------------------------------------------------------------


async def test_a_holder_that_does_not_let_go(autojump_clock: trio.testing.MockClock) -> None:
    """After a while the newer one does without: it must not hang with the other."""
    claims, asked = Partials(), []
    stuck, other = Holder(lambda: asked.append("stuck")), Holder(lambda: None)
    assert await claims.claim(b"path", stuck)

    assert not await claims.claim(b"path", other)
    assert asked == ["stuck"]
    claims.release_all(stuck)
    assert await claims.claim(b"path", other)
    assert not await claims.claim(b"path", other)  # not twice, or it would write one file as two
    claims.release(b"elsewhere", other)
    claims.release(b"path", other)
    assert await claims.claim(b"path", stuck)


def test_a_purge_that_fails_tries_again(tmp_path: Path) -> None:
    """A journal stays as long as something that it names does."""
    journals = Partials(tmp_path / "journals")
    journals.purge(AnyFile())  # there is none
    journal = journals.open_journal()
    left = tmp_path / ".sandd-12.part"
    left.write_bytes(b"x")
    journal.note(b"f", os.fsencode(left))
    journal.note(b"d", os.fsencode(tmp_path / "never made"))
    journal.close(keep=True)
    journals.purge(AnyFile())  # it is in use
    journals.closed_journal(journal)
    calls = 0

    def fail(_number: int, _name: str, path: bytes) -> None:
        nonlocal calls
        calls += 1
        raise system_error(errno.EIO, path)

    journals.purge(FailingRoot(fail))  # type: ignore[arg-type]
    assert calls
    assert left.exists()
    assert len(names_below(tmp_path / "journals")) == 1
    os.unlink(left)
    journals.purge(AnyFile())
    assert names_below(tmp_path / "journals") == []


@pytest.mark.parametrize("is_tree", [True, False], ids=["tree", "file"])
async def test_a_directory_that_may_be_written_and_not_read(tmp_path: Path, is_tree: bool) -> None:
    """As a letter box: nobody can sync it, and what was put into it is there all the same."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "d").mkdir(parents=True)
    (source / "f").write_bytes(b"x")

    def fail(_number: int, name: str, path: bytes) -> None:
        if name == "open" and os.path.isdir(path):
            raise system_error(errno.EACCES, path)

    origin = source if is_tree else source / "f"
    (await copy(origin, target, receiver_root=FailingRoot(fail))).result  # noqa: B018 - raises if it failed

    assert (target / "f" if is_tree else target).read_bytes() == b"x"


def test_a_journal_that_lost_its_end_names_nothing_else(tmp_path: Path) -> None:
    """A power failure may leave the beginning of a path, which may be that of another file."""
    folder = tmp_path / "journals"
    folder.mkdir()
    precious = tmp_path / "precious"
    precious.write_bytes(b"x")
    for name, entry in (
        ("1", b"f" + os.fsencode(precious)),
        ("2", b"f%b\0" % os.fsencode(precious)),
    ):
        (folder / f"{name}.journal").write_bytes(entry)

    for path in (precious, *folder.iterdir()):
        os.utime(path, ns=(0, 0))
    journals = Partials(folder)
    with pytest.MonkeyPatch.context() as patch:
        later = time.time() + 25 * 3600
        patch.setattr(partials.time, "time", lambda: later)
        journals.purge(AnyFile())

    assert precious.exists()
    assert names_below(folder) == []


def test_a_journal_forgets_what_it_noted_long_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no memory; that something is noted twice does no harm."""
    monkeypatch.setattr(partials, "_NOTED", 3)
    journals = Partials(tmp_path)
    journal = journals.open_journal()
    for number in (*range(5), 0, 4):
        journal.note(b"d", b"/no/such/place%d" % number)
    journal.close(keep=True)
    journals.closed_journal(journal)

    (path,) = tmp_path.iterdir()
    assert path.read_bytes().count(b"\0") == 6
    journals.purge(AnyFile())
    assert names_below(tmp_path) == []
