"""`Daemon.path` with a real daemon: its files, as if they were here."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import stat
import sys
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from daemons import open_daemon
from process_tools import read_all, until
from standing_daemon import StandingDaemon, standing_daemon

import sandd
from sandd import ChangeKind, FileKind, RemotePath, TransferError, wire
from sandd.testing import open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="paths and modes are POSIX")

MB = 1_000_000


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share."""
    with standing_daemon() as daemon:
        yield daemon


def names(paths: list[RemotePath]) -> list[str]:
    """The last components, sorted."""
    return sorted(path.name for path in paths)


# ---- the path itself ------------------------------------------------------------------------------


async def test_a_path_is_like_pathlibs(daemon: StandingDaemon) -> None:
    """All that needs no disk is the same, and stays a path of the daemon."""
    async with daemon.worker() as worker:
        path, pure = worker.path("/a/b/c.tar.gz"), PurePosixPath("/a/b/c.tar.gz")
        for name in (
            *("name", "stem", "suffix", "suffixes", "parts", "anchor", "root", "drive"),
            *("parent", "parents", "is_absolute", "as_posix", "__str__", "__bytes__"),
        ):
            mine, theirs = getattr(path, name), getattr(pure, name)
            mine, theirs = (mine(), theirs()) if callable(theirs) else (mine, theirs)
            if name == "parents":
                mine, theirs = [str(each) for each in mine], [str(each) for each in theirs]
            assert (str(mine) if isinstance(mine, RemotePath) else mine) == (
                str(theirs) if name == "parent" else theirs
            ), name
        for made, text in (
            (path / "d", "/a/b/c.tar.gz/d"),
            ("/x" / worker.path("y"), "/x/y"),
            (path / "/d", "/d"),
            (path / worker.path("e"), "/a/b/c.tar.gz/e"),
            (path.joinpath("d", "e"), "/a/b/c.tar.gz/d/e"),
            (path.with_name("x"), "/a/b/x"),
            (path.with_stem("x"), "/a/b/x.gz"),
            (path.with_suffix(".x"), "/a/b/c.tar.x"),
            (path.relative_to("/a"), "b/c.tar.gz"),
            (path.parents[1], "/a"),
            (worker.path(path), "/a/b/c.tar.gz"),
            (worker.path(PurePosixPath("/p")), "/p"),
            (worker.path(b"/\xff"), "/\udcff"),
        ):
            assert (type(made), str(made), made.daemon_id) == (RemotePath, text, "worker-1")
        assert path.is_relative_to(worker.path("/a"))
        assert path.match("*.gz")
        assert bytes(worker.path(b"/\xff")) == b"/\xff"
        with pytest.raises(ValueError, match=r"subpath|not in"):
            path.relative_to("/x")


async def test_paths_are_equal_by_daemon_and_text(daemon: StandingDaemon) -> None:
    """So they can be keys; they are sorted; and nothing on this machine is taken for one."""
    async with daemon.controller() as controller:
        worker = await controller.wait_for_daemon("worker-1")
        one, two = worker.path("/a"), controller.daemon("worker-1").path("/a")
        assert one == two
        assert len({one, two, worker.path("/b")}) == 2
        assert one != PurePosixPath("/a")
        assert sorted([worker.path("/b"), one]) == [one, worker.path("/b")]
        with pytest.raises(TypeError):
            one < "/a"  # type: ignore[operator] # noqa: B015 - that is the point
        with pytest.raises(TypeError):
            open(one)  # type: ignore[call-overload] # noqa: ASYNC230, SIM115 - that is the point
        with pytest.raises(TypeError, match=r"Daemon\.path"):
            RemotePath()
        assert repr(one) == "<sandd.RemotePath worker-1:/a>"


async def test_a_path_of_another_daemon_is_refused() -> None:
    """A file is not moved from one machine to another by a slip."""
    async with (
        sandd.open_controller(port=0) as controller,
        open_daemon(controller.url, "a"),
        open_daemon(controller.url, "b"),
    ):
        a, b = [await controller.wait_for_daemon(name) for name in "ab"]
        path = a.path("/x")
        assert path != b.path("/x")
        with pytest.raises(ValueError, match="another daemon"):
            await path.rename(b.path("/y"))
        with pytest.raises(ValueError, match="another daemon"):
            path / b.path("y")
        with pytest.raises(ValueError, match="another daemon"):
            b.path(path)


class Away:
    """A daemon of another system, as far as a path needs one."""

    def __init__(self, platform: str) -> None:
        self.id = "far"
        self.info = SimpleNamespace(platform=platform)
        self.asked: list[object] = []

    async def _ask(self, request: object) -> list[object]:
        self.asked.append(request)
        return []


async def test_a_daemon_on_windows_has_windows_paths() -> None:
    """Whatever system this is: drives, either slash, and names that don't differ by their case alone."""
    away = Away("win32")
    path = RemotePath._create(away, "C:\\Users/me")  # type: ignore[arg-type]
    assert str(path / "x.txt") == "C:\\Users\\me\\x.txt"
    assert (path.drive, path.root, path.anchor) == ("C:", "\\", "C:\\")
    assert path.as_posix() == "C:/Users/me"
    assert path == RemotePath._create(away, "c:\\users\\ME")  # type: ignore[arg-type]
    assert await path.glob("a\\*.txt") == []
    await path.rename("D:\\x")
    with pytest.raises(NotImplementedError):
        await path.glob("C:\\*")
    assert away.asked == [
        wire.GlobSpec(b"C:\\Users\\me", b"a/*.txt"),
        wire.RenameSpec(b"C:\\Users\\me", b"D:\\x", replace=False),
    ]


async def test_a_daemon_that_gives_no_answer_breaks_the_rules() -> None:
    """It is said by whom and about what."""
    path = RemotePath._create(Away("linux"), "/x")  # type: ignore[arg-type]
    with pytest.raises(sandd.RemoteProtocolError, match="'far' gave no answer about /x"):
        await path.stat()


# ---- looking --------------------------------------------------------------------------------------


async def test_what_is_told_of_a_file_is_what_is_there(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """By our names, and by those of `os.stat_result`; a link with what it says."""
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "file").chmod(0o640)
    os.utime(tmp_path / "file", ns=(1_000_000_001, -2_000_000_003))
    (tmp_path / "link").symlink_to("file")
    async with daemon.worker() as worker:
        here = worker.path(tmp_path)
        status, wanted = await (here / "link").stat(), (tmp_path / "file").stat()
        for name in (
            *("st_mode", "st_size", "st_mtime", "st_mtime_ns", "st_atime_ns", "st_uid", "st_gid"),
            *("st_nlink", "st_ino", "st_dev", "st_atime"),
        ):
            assert getattr(status, name) == getattr(wanted, name), name
        assert (status.kind, status.size, status.mode) == (FileKind.FILE, 4, 0o640)
        assert status.target is None
        link = await (here / "link").lstat()
        assert (link.kind, link.target) == (FileKind.SYMLINK, "file")
        assert stat.S_ISLNK(link.st_mode)
        assert await (here / "link").readlink() == worker.path("file")
        with pytest.raises(OSError, match="not a symbolic link") as caught:
            await (here / "file").readlink()
        assert caught.value.errno == errno.EINVAL


async def test_what_kind_it_is(daemon: StandingDaemon, tmp_path: Path) -> None:
    """As pathlib tells it: links are followed, and what can't be there is not."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    async with daemon.worker() as worker:
        here = worker.path(tmp_path)
        for name in ("file", "directory", "link", "broken", "loop", "missing", "file/below"):
            for question in ("exists", "is_file", "is_dir", "is_symlink"):
                told = await getattr(here / name, question)()
                assert told == getattr(tmp_path / name, question)(), (name, question)
        assert await (here / "broken").exists(follow_symlinks=False)
        with pytest.raises(OSError, match="too long"):
            await (here / ("x" * 256)).exists()
        with pytest.raises(OSError, match="too long"):
            await (here / ("x/" * 3000)).exists()


async def test_a_directory_is_listed_and_searched(daemon: StandingDaemon, tmp_path: Path) -> None:
    """Names may be any bytes; a thousand of them are as good as one."""
    for name in ("a.py", ".b.py", "d/c.py", "d/e/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / os.fsdecode(b"\xff\n")).write_bytes(b"")
    many = tmp_path / "many"
    many.mkdir()
    for number in range(2000):
        (many / f"{number:04}").write_bytes(b"")
    async with daemon.worker() as worker:
        here = worker.path(tmp_path)
        assert names(await here.iterdir()) == [".b.py", "a.py", "d", "many", "\udcff\n"]
        assert names(await (here / "many").iterdir()) == [f"{number:04}" for number in range(2000)]
        assert names(await here.glob("*.py")) == [".b.py", "a.py"]
        assert names(await here.rglob("*.[pt]*")) == [".b.py", "a.py", "c.py", "f.txt"]
        assert await here.glob("d/**/f.txt") == [here / "d/e/f.txt"]
        assert [here] == [each for each in await here.glob("**") if each == here]
        assert await here.glob("nothing") == []
        for pattern in ("", ".", "./"):
            with pytest.raises(ValueError, match="pattern"):
                await here.glob(pattern)
        for search in (here.glob, here.rglob):
            with pytest.raises(NotImplementedError):
                await search("/etc/*")
        with pytest.raises(NotADirectoryError):
            await (here / "a.py").iterdir()


# ---- changing -------------------------------------------------------------------------------------


async def test_directories_and_names_are_made_changed_and_removed(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Each by the name that it has in `trio.Path`."""
    async with daemon.worker() as worker:
        here = worker.path(tmp_path)
        await (here / "a/b").mkdir(0o700, parents=True)
        await (here / "a/b").mkdir(exist_ok=True)
        assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o700
        await (here / "a/file").touch(0o600)
        assert stat.S_IMODE((tmp_path / "a/file").stat().st_mode) == 0o600
        await (here / "a/file").chmod(0o644)
        assert stat.S_IMODE((tmp_path / "a/file").stat().st_mode) == 0o644
        await (here / "a/file").truncate(3)
        assert (tmp_path / "a/file").read_bytes() == bytes(3)
        with pytest.raises(FileExistsError):
            await (here / "a/file").touch(exist_ok=False)
        await (here / "link").symlink_to("a/file")
        assert os.readlink(tmp_path / "link") == "a/file"
        await (here / "again").symlink_to(here / "a")
        assert os.readlink(tmp_path / "again") == str(tmp_path / "a")
        moved = await (here / "a/file").rename(here / "moved")
        assert moved == here / "moved"
        (tmp_path / "other").write_bytes(b"other")
        assert await (here / "other").replace(str(tmp_path / "moved")) == moved
        assert (tmp_path / "moved").read_bytes() == b"other"
        await moved.unlink()
        await moved.unlink(missing_ok=True)
        await (here / "link").unlink()
        with pytest.raises(OSError, match="not empty"):
            await (here / "a").rmdir()
        await (here / "a/b").rmdir()
        await (here / "a/b/c/d").mkdir(parents=True)
        await (here / "a/link").symlink_to(here)
        await (here / "a").rmtree()
        await (here / "again").unlink()
        assert os.listdir(tmp_path) == []


async def test_a_large_tree_is_removed(daemon: StandingDaemon, tmp_path: Path) -> None:
    """In slices, between which others have their turn."""
    for number in range(60):
        directory = tmp_path / "tree" / str(number % 6) / str(number)
        directory.mkdir(parents=True)
        for count in range(30):
            (directory / str(count)).write_bytes(b"")
    async with daemon.worker() as worker:
        await worker.path(tmp_path / "tree").rmtree()
    assert os.listdir(tmp_path) == []


ERRORS: dict[str, tuple[type[OSError], Callable[[RemotePath], Awaitable[object]]]] = {
    "missing": (FileNotFoundError, lambda here: (here / "missing").read_bytes()),
    "a directory": (IsADirectoryError, lambda here: here.read_bytes()),
    "written directory": (IsADirectoryError, lambda here: here.write_bytes(b"")),
    "no directory": (NotADirectoryError, lambda here: (here / "file/x").write_bytes(b"")),
    "there already": (FileExistsError, lambda here: (here / "file").mkdir()),
    "no parent": (FileNotFoundError, lambda here: (here / "no/file").write_bytes(bytes(MB))),
    "fifo": (OSError, lambda here: (here / "fifo").read_bytes()),
    "written fifo": (OSError, lambda here: (here / "fifo").write_bytes(b"")),
    "appended fifo": (OSError, lambda here: (here / "fifo").append_bytes(b"")),
    "socket": (OSError, lambda here: (here / "socket").read_bytes()),
    "loop": (OSError, lambda here: (here / "loop").read_bytes()),
    "written loop": (OSError, lambda here: (here / "loop").write_bytes(b"")),
    "null": (OSError, lambda here: (here / "a\0b").stat()),
    "unlink": (FileNotFoundError, lambda here: (here / "missing").unlink()),
    "rmtree": (NotADirectoryError, lambda here: (here / "file").rmtree()),
    "rename": (FileNotFoundError, lambda here: (here / "missing").rename("/x")),
}


@pytest.mark.parametrize("name", ERRORS)
async def test_an_error_is_pythons_own_and_ours(
    daemon: StandingDaemon, tmp_path: Path, name: str
) -> None:
    """A TransferError and the OSError that pathlib would raise, with the path; the connection works on."""
    (tmp_path / "file").write_bytes(b"as it was")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    kind, call = ERRORS[name]
    async with daemon.worker() as worker:
        with trio.fail_after(10), pytest.raises(TransferError) as caught:
            await call(worker.path(tmp_path))
        assert isinstance(caught.value, kind)
        assert str(tmp_path) in str(caught.value.filename)
        assert await (worker.path(tmp_path) / "file").read_bytes() == b"as it was"
    assert len(os.listdir(tmp_path)) == 4


# ---- reading and writing --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 1_048_576, 3_000_001])
async def test_what_is_written_is_read(daemon: StandingDaemon, tmp_path: Path, size: int) -> None:
    """Whole, of any size, and any part of it."""
    data = random.Random(size).randbytes(size)
    async with daemon.worker() as worker:
        path = worker.path(tmp_path) / "file"
        assert await path.write_bytes(data) == size
        assert (tmp_path / "file").read_bytes() == data
        assert await path.read_bytes() == data
        for offset, length in ((0, 0), (1, 10), (size // 2, None), (size, 5), (size + 10, None)):
            end = None if length is None else offset + length
            assert await path.read_bytes(offset=offset, length=length) == data[offset:end]
        assert await path.append_bytes(memoryview(data)[:1000]) == min(size, 1000)
        assert (tmp_path / "file").read_bytes() == data + data[:1000]
    assert os.listdir(tmp_path) == ["file"]


async def test_text_is_exact(daemon: StandingDaemon, tmp_path: Path) -> None:
    """In any encoding, with the newlines it has."""
    async with daemon.worker() as worker:
        path = worker.path(tmp_path) / "file"
        assert await path.write_text("grüße\r\n\n") == 8
        assert (tmp_path / "file").read_bytes() == "grüße\r\n\n".encode()
        assert await path.read_text() == "grüße\r\n\n"
        await path.write_text("grüße", "latin-1")
        assert await path.read_text("latin-1") == "grüße"
        with pytest.raises(UnicodeDecodeError):
            await path.read_text()
        assert await path.read_text(errors="replace") == "gr\ufffd\ufffde"
        with pytest.raises(UnicodeEncodeError):
            await path.write_text("€", "latin-1")
        assert await path.read_text("latin-1") == "grüße"


async def test_a_new_file_takes_after_the_old_one(daemon: StandingDaemon, tmp_path: Path) -> None:
    """Its mode, and its owner where the daemon may; a link stays one, and what it leads to is replaced."""
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o4750)
    (tmp_path / "link").symlink_to("file")
    if os.geteuid() == 0:
        os.chown(tmp_path / "file", 1234, 2345)
        (tmp_path / "file").chmod(0o4750)
    before = (tmp_path / "file").stat()
    async with daemon.worker() as worker:
        await (worker.path(tmp_path) / "link").write_bytes(b"new")
    after = (tmp_path / "file").stat()
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        *(before.st_mode, before.st_uid, before.st_gid),
    )
    assert after.st_ino != before.st_ino


async def test_a_stream_is_read_piece_by_piece(daemon: StandingDaemon, tmp_path: Path) -> None:
    """As much at a time as is asked for, from where it was asked for; then b"", as often as one likes."""
    data = random.Random(1).randbytes(2 * MB)
    (tmp_path / "file").write_bytes(data)
    async with daemon.worker() as worker:
        path = worker.path(tmp_path) / "file"
        digest = hashlib.sha256()
        async with path.open_read(offset=10) as stream:
            assert repr(stream) == f"<sandd.FileReader worker-1:{path}>"
            first = await stream.receive_some(7)
            assert first == data[10:17]
            digest.update(first)
            async for chunk in stream:
                digest.update(chunk)
            assert await stream.receive_some() == b""
            with pytest.raises(ValueError, match="at least 1"):
                await stream.receive_some(0)
        assert digest.digest() == hashlib.sha256(data[10:]).digest()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        stream = await path.open_read(length=5)
        assert await stream.receive_some() == data[:5]
        await stream.aclose()
        await stream.aclose()
        assert "closed" in repr(stream)
        for options in ({"offset": -1}, {"length": -1}):
            with pytest.raises(ValueError, match="negative"):
                path.open_read(**options)


async def test_a_file_that_is_left_unread_costs_nothing(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Leaving the block in the middle lets go of it at once, there and here."""
    (tmp_path / "file").write_bytes(bytes(20 * MB))
    async with daemon.worker() as worker:
        for _ in range(5):
            async with worker.path(tmp_path / "file").open_read() as stream:
                await stream.receive_some()
        await until(lambda: open_files_below(daemon, tmp_path) == [])


def open_files_below(daemon: StandingDaemon, directory: Path) -> list[str]:
    """Files that the daemon has open there."""
    found = []
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith(str(directory)):
            found.append(target)
    return found


async def test_a_written_stream_is_there_when_it_is_closed(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Not before, and then at once and whole; with or without a block."""
    (tmp_path / "file").write_bytes(b"old")
    async with daemon.worker() as worker:
        path = worker.path(tmp_path) / "file"
        async with path.open_write() as stream:
            assert repr(stream) == f"<sandd.FileWriter worker-1:{path}>"
            await stream.wait_send_all_might_not_block()
            await stream.send_all(b"new ")
            await stream.send_all(bytes(3 * MB))
            assert (tmp_path / "file").read_bytes() == b"old"
        assert (tmp_path / "file").read_bytes() == b"new " + bytes(3 * MB)
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await stream.wait_send_all_might_not_block()
        await stream.aclose()
        stream = await path.open_write()
        await stream.send_all(b"newer")
        await stream.aclose()
        assert (tmp_path / "file").read_bytes() == b"newer"
        async with await path.open_write() as stream:
            await stream.send_all(b"newest")
            assert "closed" not in repr(stream)
        assert "closed" in repr(stream)
        assert (tmp_path / "file").read_bytes() == b"newest"
    assert os.listdir(tmp_path) == ["file"]


async def test_an_exception_leaves_the_file_as_it_was(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """However the stream was come by; nothing is left beside it either, when the block has been left."""
    (tmp_path / "file").write_bytes(b"old")
    async with daemon.worker() as worker:
        path = worker.path(tmp_path) / "file"
        with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
            async with path.open_write() as stream:
                await stream.send_all(b"new")
                raise KeyError
        assert os.listdir(tmp_path) == ["file"]
        with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
            async with await path.open_write() as stream:
                await stream.send_all(bytes(5 * MB))
                raise KeyError
        assert os.listdir(tmp_path) == ["file"]
        stream = await path.open_write()
        await stream.send_all(b"new")
        assert len(os.listdir(tmp_path)) == 2
        await stream.abandon()
        await stream.abandon()
        await stream.aclose()
        assert os.listdir(tmp_path) == ["file"]
        with trio.move_on_after(0.05) as scope:
            async with path.open_write() as stream:
                await stream.send_all(b"new")
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert os.listdir(tmp_path) == ["file"]
        assert (tmp_path / "file").read_bytes() == b"old"


async def test_a_stream_that_nobody_closes_changes_nothing(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Not even at the end of the controller."""
    (tmp_path / "file").write_bytes(b"old")
    async with daemon.worker() as worker:
        stream = await (worker.path(tmp_path) / "file").open_write()
        await stream.send_all(b"new")
    await until(lambda: os.listdir(tmp_path) == ["file"])
    assert (tmp_path / "file").read_bytes() == b"old"
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"x")


async def test_what_is_appended_is_there_as_it_comes(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """And stays."""
    (tmp_path / "log").write_bytes(b"one ")
    async with daemon.worker() as worker:
        path = worker.path(tmp_path) / "log"
        with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
            async with path.open_write(append=True) as stream:
                await stream.send_all(b"two ")
                await until(lambda: (tmp_path / "log").read_bytes() == b"one two ")
                raise KeyError
        async with path.open_write(append=True) as stream:
            await stream.send_all(b"three")
        await (worker.path(tmp_path) / "new").append_bytes(b"new")
    assert (tmp_path / "log").read_bytes() == b"one two three"
    assert (tmp_path / "new").read_bytes() == b"new"


async def test_an_exclusive_file_is_nobody_elses(daemon: StandingDaemon, tmp_path: Path) -> None:
    """It must not be there, neither when it is begun nor when it is done."""
    async with daemon.worker() as worker:
        here = worker.path(tmp_path)
        async with (here / "file").open_write(exclusive=True, mode=0o600) as stream:
            await stream.send_all(b"mine")
        assert (tmp_path / "file").read_bytes() == b"mine"
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
        with pytest.raises(FileExistsError):
            await (here / "file").open_write(exclusive=True)
        stream = await (here / "other").open_write(exclusive=True)
        await stream.send_all(b"mine")
        (tmp_path / "other").write_bytes(b"theirs")
        with pytest.raises(FileExistsError) as caught:
            await stream.aclose()
        assert caught.value.filename == str(tmp_path / "other")
        assert (tmp_path / "other").read_bytes() == b"theirs"
        (tmp_path / "dangling").symlink_to("nowhere")
        with pytest.raises(FileExistsError):
            await (here / "dangling").open_write(exclusive=True)
        with pytest.raises(ValueError, match="exclusive"):
            (here / "x").open_write(append=True, exclusive=True)
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file", "other"]


async def test_a_full_disk_is_an_error_and_leaves_the_file(tmp_path: Path) -> None:
    """In the middle of what is written, and the room is there again for others."""
    (tmp_path / "file").write_bytes(b"old")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(limit)
    ours = Path(sandd.__file__).parent.parent
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ours)])}
    async with (
        sandd.open_controller(port=0) as controller,
        open_daemon(controller.url, env=env),
    ):
        worker = await controller.wait_for_daemon("worker-1")
        path = worker.path(tmp_path) / "file"
        with pytest.raises(TransferError) as caught:
            await path.write_bytes(bytes(4 * MB))
        assert isinstance(caught.value, OSError)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        with pytest.raises(TransferError):  # noqa: PT012 - the block is what is tested
            async with path.open_write() as stream:
                while True:
                    await stream.send_all(bytes(MB))
        assert sorted(os.listdir(tmp_path)) == ["file", "site"]
        assert await path.read_bytes() == b"old"


async def test_one_task_at_a_time(daemon: StandingDaemon, tmp_path: Path) -> None:
    """As on every stream of trio's; and who waits learns that another one closed it."""
    (tmp_path / "file").write_bytes(bytes(MB))
    async with daemon.worker() as worker:
        path = worker.path(tmp_path) / "file"
        async with path.open_write(append=True) as stream:
            errors: list[type[BaseException]] = []

            async def send() -> None:
                try:
                    await stream.send_all(bytes(50 * MB))
                except (trio.BusyResourceError, trio.ClosedResourceError) as error:
                    errors.append(type(error))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                nursery.start_soon(send)
                await until(lambda: bool(errors))
                assert errors == [trio.BusyResourceError]
                await stream.abandon()
            assert errors == [trio.BusyResourceError, trio.ClosedResourceError]


# ---- cuts, and the ends of things -----------------------------------------------------------------


async def test_cuts_change_nothing(tmp_path: Path) -> None:
    """Every byte is read and written once, whatever happens to the connection."""
    data = random.Random(2).randbytes(3 * MB)
    async with (
        sandd.open_controller(port=0) as controller,
        open_fault_proxy(controller.address) as proxy,
        open_daemon(proxy.url),
        trio.open_nursery() as nursery,
    ):
        worker = await controller.wait_for_daemon("worker-1")
        path = worker.path(tmp_path) / "file"
        cuts = 0

        @nursery.start_soon
        async def cut() -> None:
            nonlocal cuts
            while cuts < 12:
                await trio.sleep(0.2)
                cuts += proxy.cut()

        while cuts < 12:
            await path.write_bytes(data)
            assert await path.read_bytes() == data
            await path.append_bytes(b"tail")
            assert await path.read_bytes(offset=len(data)) == b"tail"
    assert os.listdir(tmp_path) == ["file"]


async def test_a_daemon_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """Who reads and writes there learns that it is gone."""
    (tmp_path / "file").write_bytes(b"old")
    async with sandd.open_controller(port=0) as controller:
        async with open_daemon(controller.url) as process:
            worker = await controller.wait_for_daemon("worker-1")
            writer = await (worker.path(tmp_path) / "file").open_write()
            await writer.send_all(bytes(MB))
            reader = await (worker.path(tmp_path) / "file").open_read()
            process.kill()
            async with open_daemon(controller.url):
                with pytest.raises(sandd.DaemonGone):
                    await writer.aclose()
                assert await reader.receive_some() == b"old"  # it had come
                with pytest.raises(sandd.DaemonGone):
                    await worker.path("/").stat()
    assert (tmp_path / "file").read_bytes() == b"old"


async def test_the_end_of_the_controller_ends_what_is_open(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Whoever waits there is told."""
    (tmp_path / "file").write_bytes(bytes(20 * MB))
    async with daemon.worker() as worker:
        reader = await worker.path(tmp_path / "file").open_read()
    with pytest.raises(trio.ClosedResourceError):
        await read_all(reader)
    with pytest.raises(trio.ClosedResourceError):
        await worker.path(tmp_path).stat()


# ---- a root ---------------------------------------------------------------------------------------


async def test_a_daemons_root_keeps_everything_in(tmp_path: Path) -> None:
    """No path leads out, relative ones start there, and what is inside works as ever."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "out").symlink_to("..")
    (root / "proc").symlink_to("/proc/self/root")
    async with (
        sandd.open_controller(port=0) as controller,
        open_daemon(controller.url, arguments=["--root", str(root)]),
    ):
        worker = await controller.wait_for_daemon("worker-1")
        await worker.path("file").write_bytes(b"text")
        assert await worker.path(root / "file").read_bytes() == b"text"
        assert names(await worker.path(".").iterdir()) == ["file", "out", "proc"]
        for path in (
            *("../secret", str(tmp_path / "secret"), "out/secret", "/etc/passwd"),
            *(f"proc{tmp_path}/secret", "/proc/self/root/etc/passwd"),
        ):
            for call in (
                worker.path(path).stat,
                worker.path(path).read_bytes,
                worker.path(path).unlink,
                lambda path=path: worker.path(path).write_bytes(b"x"),
                lambda path=path: worker.download(worker.path(path), tmp_path / "copy"),
                lambda path=path: worker.upload(root / "file", path),
            ):
                with pytest.raises(PermissionError, match="--root"):
                    await call()
        await worker.path("tree").mkdir()
        await worker.path("tree").rmtree()
        # What a Unix socket's path leads to could not be told in time.
        with pytest.raises(sandd.RequestRefused, match="--root"):
            await worker.open_unix_stream(str(root / "socket"))
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert sorted(os.listdir(tmp_path)) == ["root", "secret"]


# ---- watching -------------------------------------------------------------------------------------


async def test_without_watchfiles_watching_is_refused(tmp_path: Path) -> None:
    """It says what to install, and where."""
    (tmp_path / "watchfiles.py").write_text("raise ImportError")
    ours = Path(sandd.__file__).parent.parent
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ours)])}
    async with (
        sandd.open_controller(port=0) as controller,
        open_daemon(controller.url, env=env),
    ):
        worker = await controller.wait_for_daemon("worker-1")
        with pytest.raises(sandd.RequestRefused, match=r"trio-sandd\[watch\]"):
            async with worker.path(tmp_path).watch():
                pass


async def test_what_happens_below_a_directory_is_told(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """From the moment the block is entered; until it is left, and then nothing of it is there."""
    pytest.importorskip("watchfiles")
    (tmp_path / "old").write_bytes(b"")
    async with daemon.worker() as worker:
        here = worker.path(tmp_path)
        with trio.fail_after(20):
            async with here.watch() as changes:
                assert aiter(changes) is changes
                (tmp_path / "new").write_bytes(b"text")
                change = await anext(changes)
                assert change == sandd.FileChange(ChangeKind.ADDED, here / "new")
                (tmp_path / "old").write_bytes(b"text")
                async for change in changes:
                    if change.path == here / "old":
                        break
                assert change.kind is ChangeKind.MODIFIED
                (tmp_path / "deep").mkdir()
                (tmp_path / "deep" / "file").write_bytes(b"")
                async for change in changes:
                    if change.path == here / "deep":
                        break
                (tmp_path / "old").unlink()
                async for change in changes:
                    if change == sandd.FileChange(ChangeKind.REMOVED, here / "old"):
                        break
                with trio.move_on_after(0.3):
                    async for change in changes:
                        assert change.path.is_relative_to(here)
            with pytest.raises(trio.ClosedResourceError):
                await anext(changes)
            with pytest.raises(FileNotFoundError):
                async with (here / "missing").watch():
                    pass
            await until(lambda: inotify_descriptors(daemon) == 0)


async def test_what_is_in_a_new_directory_is_told_with_it(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Also what was there before anybody could watch that directory."""
    pytest.importorskip("watchfiles")
    expected = {
        f"{n}{below}" for n in range(100) for below in ("", "/deep", "/deep/er", "/deep/file")
    }
    async with daemon.worker() as worker:
        here = worker.path(tmp_path)
        async with here.watch() as changes:
            for n in range(100):
                (tmp_path / f"{n}" / "deep" / "er").mkdir(parents=True)
                (tmp_path / f"{n}" / "deep" / "file").write_bytes(b"")
            with trio.fail_after(20):
                async for change in changes:
                    assert change.kind is not ChangeKind.MISSED
                    expected.discard(str(change.path.relative_to(here)))
                    if not expected:
                        break


def inotify_descriptors(daemon: StandingDaemon) -> int:
    """How many the daemon has."""
    found = 0
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        try:
            found += "inotify" in os.readlink(entry)
        except OSError:
            continue
    return found
