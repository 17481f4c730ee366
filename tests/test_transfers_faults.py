"""What goes wrong at either end of a transfer, or between them: nothing hangs, and no file is half of one."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from transfer_world import (
    FailingRoot,
    Killed,
    Lines,
    copy,
    names_below,
    partials_below,
    snapshot,
    system_error,
)

from sandd import TransferError
from sandd._core.files.roots import AnyFile
from sandd._core.transfers import reading, syncing, writing
from sandd._core.transfers.partials import Partials
from sandd.wire import KIB, MIB, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LARGE = os.urandom(64 * KIB) * 20
"""1.25 MiB."""
FIRST_MOMENT = 10**18

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")


@pytest.fixture
def no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test with very many transfers doesn't wait for the disk each time."""
    monkeypatch.setattr(syncing, "_syncfs", lambda _descriptor: 0)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def old_and_new(tmp_path: Path) -> tuple[Path, Path]:
    """A source, and a target that has some of it in an older form."""
    source, target = tmp_path / "source", tmp_path / "target"
    for top in (source, target):
        (top / "below").mkdir(parents=True)
        for name in ("a", "b", "below/large"):
            (top / name).write_bytes(b"old")
    for number in range(3):
        (source / "below" / f"small{number}").write_bytes(b"new" * number)
    (source / "a").write_bytes(b"new a")
    (source / "b").write_bytes(b"new b")
    (source / "below" / "large").write_bytes(LARGE)
    (source / "new").mkdir()
    (source / "new" / "link").symlink_to("/elsewhere")
    for path in sorted(source.rglob("*"), reverse=True):
        os.utime(path, ns=(0, FIRST_MOMENT), follow_symlinks=False)
    return source, target


def assert_old_or_new(source: Path, target: Path) -> None:
    """Each file in the target is what it was, or what it is in the source."""
    for path in target.rglob("*"):
        if ".sandd-" in path.name or path.is_dir() or path.is_symlink():
            continue
        new = (source / path.relative_to(target)).read_bytes()
        assert path.read_bytes() in (new, b"old") if path.name in "ab large" else (new,), path


def assert_equal(source: Path, target: Path) -> None:
    """The target's content is that of the source; its top had been there."""
    found, expected = snapshot(target), snapshot(source)
    del found[b""], expected[b""]
    assert found == expected


# ---- targets that can't be ----------------------------------------------------------------------


def a_directory(path: Path) -> type[Exception]:
    """With something in it."""
    (path / "something").mkdir(parents=True)
    return IsADirectoryError


def a_pipe(path: Path) -> type[Exception]:
    """Nobody reads from it."""
    os.mkfifo(path)
    return OSError


def a_loop(path: Path) -> type[Exception]:
    """A link to itself."""
    path.symlink_to(path.name)
    return OSError


def a_link_to_a_directory(path: Path) -> type[Exception]:
    """Which is followed."""
    path.symlink_to(path.parent)
    return IsADirectoryError


@posix_only
@pytest.mark.parametrize("make", [a_directory, a_pipe, a_loop, a_link_to_a_directory])
@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("update", [Update.NONE, Update.HASH])
async def test_a_target_that_is_no_file(
    tmp_path: Path, make: Callable[[Path], type[Exception]], data: bytes, update: Update
) -> None:
    """Both ends raise the same typed error; nothing is written, and what was there is as it was."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    expected = make(target)
    before = names_below(tmp_path)

    copied = await copy(source, target, update=update)

    assert isinstance(copied.received, expected)
    assert isinstance(copied.sent, expected)
    assert isinstance(copied.sent, TransferError)
    assert copied.sent.errno == copied.received.errno  # type: ignore[attr-defined]
    assert os.fsencode(copied.sent.filename) == os.fsencode(copied.received.filename)  # type: ignore[attr-defined]
    assert names_below(tmp_path) == before


@posix_only
async def test_a_device_is_not_written_to(tmp_path: Path) -> None:
    """Not even the one that takes everything."""
    source = tmp_path / "source"
    source.write_bytes(b"data")

    copied = await copy(source, Path("/dev/null"))

    assert isinstance(copied.received, OSError)
    assert copied.received.errno == errno.EOPNOTSUPP
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("kind", ["small", "large", "tree"])
async def test_a_target_whose_directory_is_missing(tmp_path: Path, kind: str) -> None:
    """It isn't made: who mistyped a path finds out, and what it is that isn't there."""
    source = tmp_path / "source"
    if kind == "tree":
        source.mkdir()
    else:
        source.write_bytes(b"data" if kind == "small" else LARGE)

    copied = await copy(source, tmp_path / "no" / "target")

    assert isinstance(copied.received, FileNotFoundError)
    assert copied.received.filename == os.fsencode(tmp_path / "no" / "target")
    assert (
        copied.received.strerror == f"there is no directory {str(tmp_path / 'no')!r} to make it in"
    )
    assert isinstance(copied.sent, FileNotFoundError)
    assert copied.sent.strerror == copied.received.strerror
    assert names_below(tmp_path) == (["source"])


async def test_a_file_is_no_target_for_a_tree(tmp_path: Path) -> None:
    """It stays."""
    (tmp_path / "source").mkdir()
    (tmp_path / "target").write_bytes(b"mine")

    copied = await copy(tmp_path / "source", tmp_path / "target")

    assert isinstance(copied.received, NotADirectoryError)
    assert (tmp_path / "target").read_bytes() == b"mine"


async def test_a_file_is_not_named_as_a_directory(tmp_path: Path) -> None:
    """With a slash behind it there can only be a directory."""
    (tmp_path / "source").write_bytes(b"data")

    copied = await copy(tmp_path / "source", os.fsencode(tmp_path / "target") + b"/")

    assert isinstance(copied.received, IsADirectoryError)
    assert names_below(tmp_path) == ["source"]


async def test_a_link_is_followed_to_its_target(tmp_path: Path) -> None:
    """It stays a link; what it leads to is replaced, or made, there."""
    (tmp_path / "source").write_bytes(b"data")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "second").symlink_to("elsewhere/file")
    (tmp_path / "target").symlink_to(tmp_path / "second")

    for _ in range(2):
        (await copy(tmp_path / "source", tmp_path / "target")).result  # noqa: B018 - raises if it failed

    assert (tmp_path / "target").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_bytes() == b"data"
    assert not (tmp_path / "elsewhere" / "file").is_symlink()


# ---- sources that can't be ----------------------------------------------------------------------


@posix_only
@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda path: None, errno.ENOENT),
        (os.mkfifo, errno.EOPNOTSUPP),
        (lambda path: path.symlink_to(path.name), errno.ELOOP),
        (lambda path: path.symlink_to("/dev/zero"), errno.EOPNOTSUPP),
    ],
    ids=["missing", "pipe", "loop", "device"],
)
async def test_a_source_that_is_no_file(
    tmp_path: Path, make: Callable[[Path], None], number: int
) -> None:
    """Both ends hear it at once, and nothing is made at the other one."""
    make(tmp_path / "source")
    before = names_below(tmp_path)

    copied = await copy(tmp_path / "source", tmp_path / "target", says_total=True)

    for each in (copied.sent, copied.received):
        assert isinstance(each, OSError)
        assert each.errno == number
        assert os.fsencode(each.filename) == os.fsencode(tmp_path / "source")
    assert isinstance(copied.received, TransferError)
    assert names_below(tmp_path) == before


# ---- disks that fail ----------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux" or libc.mount(b"tmpfs", os.fsencode(where), b"tmpfs", 0, b"size=4m"):
        pytest.skip("mounting a file system needs Linux and its administrator")
    yield where
    assert libc.umount(os.fsencode(where)) == 0


@pytest.mark.parametrize("is_tree", [False, True], ids=["file", "tree"])
async def test_a_full_disk(tmp_path: Path, tiny_disk: Path, is_tree: bool) -> None:
    """Both ends say so, what was there is as it was, and the disk is as empty as before."""
    source, target = tmp_path / "source", tiny_disk / "target"
    if is_tree:
        source.mkdir()
        for number in range(40):
            (source / str(number)).write_bytes(os.urandom(200 * KIB))
        target.mkdir()
        (target / "0").write_bytes(b"old")
    else:
        source.write_bytes(os.urandom(MIB) * 30)
        target.write_bytes(b"old")
    lines = Lines()

    copied = await copy(source, target, lines=lines)

    for each in (copied.sent, copied.received):
        assert isinstance(each, OSError)
        assert each.errno == errno.ENOSPC
        assert os.fsencode(each.filename).startswith(os.fsencode(target))
    assert not partials_below(tiny_disk)
    assert lines.forth.sent < 12 * MIB  # the sender stopped when it heard of it
    if not is_tree:
        assert target.read_bytes() == b"old"
    assert_old_or_new(source, target) if is_tree else None


@pytest.mark.parametrize("name", ["open", "rename", "mkdir", "symlink", "utime"])
async def test_a_disk_that_fails_at_any_call(tmp_path: Path, name: str, no_syncing: None) -> None:
    """EIO at each call of one kind, in turn: both ends say so, files are old or new, nothing else is left."""
    source, target = old_and_new(tmp_path)
    dry = FailingRoot()
    (await copy(source, tmp_path / "dry", receiver_root=dry)).result  # noqa: B018 - raises if it failed
    times = sum(called == name for called, _ in dry.calls)
    assert times

    for number in range(1, times + 1):
        seen = 0

        def fail(_number: int, called: str, path: bytes, at: int = number) -> None:
            nonlocal seen
            seen += called == name
            if called == name and seen == at:
                raise system_error(errno.EIO, path)

        copied = await copy(source, target, receiver_root=FailingRoot(fail))

        if seen >= number and isinstance(copied.received, OSError):
            assert copied.received.errno == errno.EIO
            assert isinstance(copied.sent, TransferError)
            assert copied.sent.errno == errno.EIO  # type: ignore[attr-defined]
            assert b".sandd-" not in os.fsencode(copied.received.filename)
        assert not partials_below(target)
        assert_old_or_new(source, target)
    (await copy(source, target)).result  # noqa: B018 - raises if it failed
    assert_equal(source, target)


async def test_a_disk_that_fails_while_a_large_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver hears it after what had been read, and keeps nothing of it."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE * 4)
    read_into, count = reading.read_into, 0

    def fail(descriptor: int, buffer: memoryview) -> int:
        nonlocal count
        count += 1
        if count == 3:
            raise system_error(errno.EIO)
        return read_into(descriptor, buffer)

    monkeypatch.setattr(reading, "read_into", fail)
    copied = await copy(source, target)

    for each in (copied.sent, copied.received):
        assert isinstance(each, OSError)
        assert each.errno == errno.EIO
        assert os.fsencode(each.filename) == os.fsencode(source)
    assert names_below(tmp_path) == ["source"]


needs_fdatasync = pytest.mark.skipif(
    not hasattr(os, "fdatasync"), reason="without fdatasync(2) nothing is synced early"
)


@needs_fdatasync
async def test_the_disk_takes_a_large_file_while_more_of_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is synced again and again before all is written, and once more before it has its name."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE * 8)
    happened: list[str] = []

    def sync(name: str, descriptor: int) -> None:
        happened.append(name)
        sizes.append(os.fstat(descriptor).st_size)

    sizes: list[int] = []
    monkeypatch.setattr(syncing, "EARLY_BYTES", MIB)
    monkeypatch.setattr(syncing, "_fdatasync", lambda each: sync("early", each))
    monkeypatch.setattr(os, "fsync", lambda each: sync("whole", each))
    root = FailingRoot(lambda _number, name, _path: happened.append(name))

    (await copy(source, target, receiver_root=root)).result  # noqa: B018 - raises if it failed

    assert happened.count("early") >= 2
    assert 0 < sizes[0] < source.stat().st_size
    last = len(happened) - 1 - happened[::-1].index("early")
    assert last < happened.index("whole") < happened.index("rename")
    assert target.read_bytes() == source.read_bytes()


@needs_fdatasync
@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
async def test_a_disk_that_fails_while_more_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, size: int
) -> None:
    """The system tells it once, and not to the sync at the end: the file doesn't get its name all the same."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE * size)
    target.write_bytes(b"old")

    def fail(_descriptor: int) -> None:
        monkeypatch.setattr(syncing, "_fdatasync", lambda _descriptor: None)
        raise system_error(number)

    monkeypatch.setattr(syncing, "EARLY_BYTES", 4 * MIB)
    monkeypatch.setattr(syncing, "_fdatasync", fail)
    copied = await copy(source, target)

    if number == errno.EIO:
        for each in (copied.sent, copied.received):
            assert isinstance(each, OSError)
            assert each.errno == number
            assert os.fsencode(each.filename) == os.fsencode(target)
        assert target.read_bytes() == b"old"
        assert names_below(tmp_path) == ["source", "target"]
    else:  # a file system that doesn't know how
        copied.result  # noqa: B018 - raises if it failed
        assert target.read_bytes() == source.read_bytes()


async def test_small_files_are_written_while_the_disk_takes_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is slow to sync holds up nobody, and no file gets its name before it is on the disk."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for number in range(2000):
        (source / str(number)).write_bytes(b"x")
    happened: list[str] = []
    while_syncing: list[int] = []

    def sync(_descriptor: int) -> int:
        before = len(happened)
        happened.append("sync")
        until = time.monotonic() + (0 if while_syncing else 60)
        while happened[before:].count("open") < 300 and time.monotonic() < until:
            time.sleep(0.02)
        while_syncing.append(happened[before:].count("open"))
        happened.append("synced")
        return 0

    monkeypatch.setattr(writing, "SETTLE_FILES", 300)
    monkeypatch.setattr(syncing, "_syncfs", sync)
    root = FailingRoot(
        lambda _number, name, path: happened.append(name) if b".part" in path else None
    )

    (await copy(source, target, receiver_root=root)).result  # noqa: B018 - raises if it failed

    assert while_syncing[0] >= 300
    names = synced = made = safe = 0
    for what in happened:
        match what:
            case "open":
                made += 1
            case "sync":
                synced = made
            case "synced":
                safe = synced
            case "rename":
                names += 1
                assert names <= safe
    assert names == made == 2000


@pytest.mark.parametrize("count", [2000, 700])
async def test_a_disk_that_fails_to_take_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Whether more is written meanwhile or not: both ends say so, and none of these files gets its name."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for number in range(count):
        (source / str(number)).write_bytes(b"x")

    def fail(_descriptor: int) -> int:
        raise system_error(errno.EIO)

    monkeypatch.setattr(writing, "SETTLE_FILES", 300)
    monkeypatch.setattr(syncing, "_syncfs", fail)
    copied = await copy(source, target)

    for each in (copied.sent, copied.received):
        assert isinstance(each, OSError)
        assert each.errno == errno.EIO
    assert names_below(target) == []


# ---- killed -------------------------------------------------------------------------------------


async def test_killed_at_every_step(tmp_path: Path, no_syncing: None) -> None:
    """Wherever a receiver stops for ever, each file is old or new, and the next call makes all of it right.

    What it left besides is in its journal, and is removed by whoever comes after it.
    """
    source, target = old_and_new(tmp_path)
    dry = FailingRoot()
    (await copy(source, tmp_path / "dry", receiver_root=dry)).result  # noqa: B018 - raises if it failed

    for step in range(1, len(dry.calls) + 1):
        journal = tmp_path / f"journal{step}"
        work = tmp_path / f"work{step}"
        work.mkdir()
        shutil.copytree(target, work / "target")

        def fail(number: int, _name: str, _path: bytes, at: int = step) -> None:
            if number >= at:
                raise Killed

        copied = await copy(
            source,
            work / "target",
            receiver_root=FailingRoot(fail),
            partials=Partials(journal),
        )
        if (
            step < len(dry.calls) - 4
        ):  # the target was new in the dry run: there are a few calls less
            assert isinstance(copied.received, Killed)
        assert_old_or_new(source, work / "target")
        after = Partials(journal)
        after.purge(AnyFile())
        again = (await copy(source, work / "target", partials=after)).result
        assert_equal(source, work / "target")
        after.purge(AnyFile())
        assert not partials_below(work)
        assert again.files == 6


@pytest.mark.parametrize(("number", "is_told"), [(errno.EIO, True), (errno.EINVAL, False)])
def test_a_directory_that_can_not_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_told: bool
) -> None:
    """A disk that fails is an error; a file system that doesn't know how is none."""

    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    if is_told:
        with pytest.raises(OSError, match=os.strerror(number)):
            syncing.sync_folders(AnyFile(), [os.fsencode(tmp_path)])
    else:
        syncing.sync_folders(AnyFile(), [os.fsencode(tmp_path)])
