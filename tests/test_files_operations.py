"""What is asked of files: with and without a root, and as pathlib would do it."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
import stat
import sys
import threading
import time
from typing import TYPE_CHECKING

import hypothesis
import pytest

from sandd._core.files import globbing, operations, removal
from sandd._core.files.confined_roots import open_root
from sandd._core.files.globbing import glob
from sandd._core.files.removal import remove_tree
from sandd._core.files.roots import AnyFile
from sandd.wire import FileKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandd._core.files.roots import Root

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need privileges there")


@pytest.fixture(params=["any", "confined"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    """All files, and those beneath the test's directory."""
    with open_root(os.fsencode(tmp_path) if request.param == "confined" else None) as root:
        yield root


@pytest.fixture
def here(tmp_path: Path) -> bytes:
    """The test's directory, as a daemon has it."""
    return os.fsencode(tmp_path)


# ---- looking --------------------------------------------------------------------------------------


def test_what_is_told_of_a_file_is_what_the_system_tells(
    root: Root, here: bytes, tmp_path: Path
) -> None:
    """All of it, exactly, times to the nanosecond."""
    path = tmp_path / "file"
    path.write_bytes(b"text")
    path.chmod(0o4750)
    os.utime(path, ns=(-1_000_000_007, 2_000_000_003))
    info, status = operations.inspect(root, here + b"/file"), path.stat()
    assert info.kind is FileKind.FILE
    assert (info.size, info.mode, info.links) == (4, 0o4750, 1)
    assert (info.atime_ns, info.mtime_ns) == (-1_000_000_007, 2_000_000_003)
    assert (info.uid, info.gid) == (status.st_uid, status.st_gid)
    assert (info.inode, info.device) == (status.st_ino, status.st_dev)
    assert info.target is None


def test_every_kind_is_told_and_a_link_with_what_it_says(
    root: Root, here: bytes, tmp_path: Path
) -> None:
    """Links in a listing are not followed."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listing = {info.path: info for info in operations.list_directory(root, here)}
    assert {name: info.kind for name, info in listing.items()} == {
        b"file": FileKind.FILE,
        b"directory": FileKind.DIRECTORY,
        b"link": FileKind.SYMLINK,
        b"fifo": FileKind.FIFO,
        b"socket": FileKind.SOCKET,
    }
    assert listing[b"link"].target == b"directory"
    assert operations.inspect(root, here + b"/link").kind is FileKind.DIRECTORY
    link = operations.inspect(root, here + b"/link", follow_symlinks=False)
    assert (link.kind, link.target) == (FileKind.SYMLINK, b"directory")
    assert operations.inspect(AnyFile(), b"/dev/null").kind is FileKind.CHARACTER_DEVICE


def test_a_link_that_is_gone_by_the_time_it_is_read_says_nothing(
    here: bytes, tmp_path: Path
) -> None:
    """And fails nobody."""
    (tmp_path / "link").symlink_to("x")
    status = (tmp_path / "link").lstat()
    (tmp_path / "link").unlink()
    assert operations.read_link(AnyFile(), here + b"/link", status) is None


def test_errors_name_the_path(root: Root, here: bytes, tmp_path: Path) -> None:
    """Whatever fails."""
    path = here + b"/missing"
    for call in (
        lambda: operations.inspect(root, path),
        lambda: list(operations.list_directory(root, path)),
        lambda: operations.remove_file(root, path),
        lambda: operations.truncate(root, path, 1),
        lambda: list(remove_tree(root, path)),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert caught.value.filename == path


# ---- making, changing, removing -------------------------------------------------------------------


def test_directories_are_made_as_pathlib_makes_them(
    root: Root, here: bytes, tmp_path: Path
) -> None:
    """With their parents or without, and whether one may be there already."""
    with pytest.raises(FileNotFoundError):
        operations.make_directory(root, here + b"/a/b/c")
    operations.make_directory(root, here + b"/a/b/c/", 0o700, parents=True)
    assert stat.S_IMODE((tmp_path / "a/b/c").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o777 & ~umask()
    with pytest.raises(FileExistsError):
        operations.make_directory(root, here + b"/a", parents=True)
    operations.make_directory(root, here + b"/a", exist_ok=True)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in (b"/file", b"/dangling"):
        with pytest.raises(FileExistsError):
            operations.make_directory(root, here + name, exist_ok=True)
    with pytest.raises(NotADirectoryError):
        operations.make_directory(root, here + b"/file/x", parents=True)


def umask() -> int:
    """This process'."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_missing_file_may_be_removed_if_that_is_all_right(
    root: Root, here: bytes, tmp_path: Path
) -> None:
    """A link is removed, and never what it leads to."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("file")
    operations.remove_file(root, here + b"/link")
    operations.remove_file(root, here + b"/link", missing_ok=True)
    assert (tmp_path / "file").exists()
    with pytest.raises(FileNotFoundError):
        operations.remove_file(root, here + b"/link")
    with pytest.raises(IsADirectoryError if sys.platform == "linux" else PermissionError):
        operations.remove_file(root, here, missing_ok=True)


def test_touch_makes_a_file_or_makes_it_newer(root: Root, here: bytes, tmp_path: Path) -> None:
    """It never changes what is in it, and doesn't wait for anybody at a FIFO's other end."""
    path = tmp_path / "file"
    operations.touch(root, here + b"/file", 0o600)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"", 0o600)
    path.write_bytes(b"text")
    os.utime(path, (0, 0))
    operations.touch(root, here + b"/file")
    assert path.read_bytes() == b"text"
    assert abs(path.stat().st_mtime - time.time()) < 60
    with pytest.raises(FileExistsError):
        operations.touch(root, here + b"/file", exist_ok=False)
    operations.touch(root, here + b"/other", exist_ok=False)
    os.mkfifo(tmp_path / "fifo")
    os.utime(tmp_path / "fifo", (0, 0))
    operations.touch(root, here + b"/fifo")
    assert (tmp_path / "fifo").stat().st_mtime > 0


def test_only_a_file_is_opened_as_one(root: Root, here: bytes, tmp_path: Path) -> None:
    """A FIFO, a socket, a device or a directory is refused at once, for reading and for writing."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        for name in (b"/fifo", b"/socket", b"/link"):
            with pytest.raises(OSError, match="not a regular file") as caught:
                operations.open_regular(root, here + name, flags)
            assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, here + name)
        with pytest.raises(IsADirectoryError):
            operations.open_regular(root, here, flags)
    with pytest.raises(OSError, match="not a regular file"):
        operations.open_regular(AnyFile(), b"/dev/null", os.O_WRONLY)


def test_a_file_that_was_opened_blocks_as_files_do(root: Root, here: bytes, tmp_path: Path) -> None:
    """What kept us from waiting at a FIFO is taken back."""
    (tmp_path / "file").write_bytes(b"text")
    descriptor = operations.open_regular(root, here + b"/file", os.O_RDONLY)
    try:
        assert os.get_blocking(descriptor)
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_a_file_is_cut_or_goes_on_with_zeros(root: Root, here: bytes, tmp_path: Path) -> None:
    """To exactly the size asked for."""
    (tmp_path / "file").write_bytes(b"abcdef")
    operations.truncate(root, here + b"/file", 2)
    operations.truncate(root, here + b"/file", 4)
    assert (tmp_path / "file").read_bytes() == b"ab\0\0"
    with pytest.raises(OSError, match=r"large|Invalid") as caught:
        operations.truncate(root, here + b"/file", 2**63 - 1)
    assert caught.value.filename == here + b"/file"


# ---- patterns -------------------------------------------------------------------------------------

TREE = [
    *("a.py", "b.txt", ".hidden", ".git/config", "src/", "src/a.py", "src/deep/", "src/deep/c.py"),
    *("src/deep/er/d.py", "src/a/b/a/b/file", "lib/[x]", "lib/A.PY", "empty/", "x/y/x/y/z"),
]
PATTERNS = [
    *(
        "*",
        "*.py",
        "?.py",
        "[ab].*",
        "[!a].*",
        ".*",
        "**",
        "**/",
        "**/*",
        "**/*.py",
        "src/**",
        "*/",
    ),
    *(
        "src/**/*.py",
        "**/deep/**",
        "**/a/**/b",
        "**/a/**/b/**",
        "**/**/*.py",
        "src/a.py",
        "src/../a.py",
    ),
    *("missing", "missing/*", "a.py/*", "*/*.py", "**/.*", "lib/[[]x]", "lib/*.py", "./src/./*"),
    *("link/*", "link/**", "**/loop/**", "broken", "broken/*", "*/*/", "x/**/x/**/z", "**/y/**/z"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files, directories and links of all sorts."""
    for name in TREE:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(b"")
    (tmp_path / "link").symlink_to("src")
    (tmp_path / "src" / "loop").symlink_to("..")
    (tmp_path / "broken").symlink_to("nowhere")
    return tmp_path


def found(root: Root, path: Path, pattern: str) -> list[str]:
    """The paths that were found, sorted; each once."""
    infos = [info for info in glob(root, os.fsencode(path), pattern.encode()) if info is not None]
    return sorted(os.fsdecode(info.path) for info in infos)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.skipif(sys.version_info < (3, 13), reason="an earlier pathlib has another idea of **")
def test_patterns_mean_what_they_mean_to_pathlib(root: Root, tree: Path, pattern: str) -> None:
    """The same paths; each of them once."""
    wanted = {str(each.relative_to(tree)) for each in tree.glob(pattern)}
    assert found(root, tree, pattern) == sorted(each if each != "." else "" for each in wanted)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.py", ["a.py"]),
        (".*", [".git", ".hidden"]),
        ("src/deep/**", ["src/deep", "src/deep/c.py", "src/deep/er", "src/deep/er/d.py"]),
        ("**/*.py", ["a.py", "src/a.py", "src/deep/c.py", "src/deep/er/d.py"]),
        ("**/a/**/b", ["src/a/b", "src/a/b/a/b"]),
        ("*/", [".git", "empty", "lib", "link", "src", "x"]),
        ("link/*.py", ["link/a.py"]),
        ("link/**/c.py", ["link/deep/c.py"]),
        ("src/../a.py", ["src/../a.py"]),
        ("x/*/../y", ["x/y/../y"]),
        ("**/er/", ["src/deep/er"]),
        ("src/**/", ["src", "src/a", "src/a/b", "src/a/b/a", "src/a/b/a/b", "src/deep", "src/deep/er"]),
        ("a.py/**", []),
        ("broken", ["broken"]),
        ("lib/[[]x]", ["lib/[x]"]),
    ],
)  # fmt: skip
def test_patterns_find(root: Root, tree: Path, pattern: str, wanted: list[str]) -> None:
    """What they say, whatever Python this is."""
    assert found(root, tree, pattern) == wanted


def test_a_link_is_found_and_not_entered(root: Root, tree: Path) -> None:
    """``**`` would go round in circles; what is found is told as a link, with what it says."""
    infos = [info for info in glob(root, os.fsencode(tree), b"**/loop") if info is not None]
    assert [(info.path, info.kind, info.target) for info in infos] == [
        (b"src/loop", FileKind.SYMLINK, b"..")
    ]


@pytest.mark.parametrize("pattern", [b"", b"/", b"/etc/*", b".", b"./"])
def test_a_pattern_that_says_nothing_or_everything_is_refused(
    root: Root, here: bytes, pattern: bytes
) -> None:
    """It is empty, or would begin elsewhere."""
    with pytest.raises(OSError, match="pattern") as caught:
        list(glob(root, here, pattern))
    assert caught.value.errno == errno.EINVAL


def test_what_cannot_be_read_is_passed_over(root: Root, tree: Path) -> None:
    """As in pathlib: the search goes on elsewhere."""

    class Guarded(AnyFile):
        def scan(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
            if path.endswith(b"deep"):
                raise PermissionError(errno.EACCES, "no", path)
            yield from super().scan(path)

    assert found(Guarded(), tree, "**/*.py") == ["a.py", "src/a.py"]
    assert found(root, tree / "missing", "**") == []
    assert found(root, tree / "a.py", "**") == []


def test_names_alone_need_no_permission_to_read(root: Root, tree: Path) -> None:
    """A directory in which names may be looked up, and not listed."""

    class Unlisted(AnyFile):
        def scan(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
            raise PermissionError(errno.EACCES, "no", path)

    assert found(Unlisted(), tree, "src/deep/c.py") == ["src/deep/c.py"]
    assert found(Unlisted(), tree, "src/*") == []


def test_names_that_are_no_text_are_found(root: Root, tmp_path: Path) -> None:
    """A name is any bytes."""
    (tmp_path / os.fsdecode(b"\xff\n.py")).write_bytes(b"")
    assert [info.path for info in glob(root, os.fsencode(tmp_path), b"*.py") if info] == [
        b"\xff\n.py"
    ]
    assert [info.path for info in glob(root, os.fsencode(tmp_path), b"\xff?.*") if info] == [
        b"\xff\n.py"
    ]


def test_a_search_goes_no_deeper_than_its_bound(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever somebody has built there."""
    monkeypatch.setattr(globbing, "MAX_PATH_BYTES", 5)
    (tmp_path / "1/2/3/4").mkdir(parents=True)
    assert found(root, tmp_path, "**") == ["", "1", "1/2", "1/2/3"]


def test_a_search_that_is_left_holds_nothing(root: Root, tree: Path) -> None:
    """Its descriptor goes with it."""
    before = os.listdir("/dev/fd")
    search = glob(root, os.fsencode(tree), b"**/*.py")
    next(search)
    search.close()
    listing = operations.list_directory(root, os.fsencode(tree))
    next(listing)
    listing.close()
    assert os.listdir("/dev/fd") == before


def test_a_pattern_cannot_keep_us(root: Root, tmp_path: Path) -> None:
    """Neither by many stars nor by many double ones."""
    (tmp_path / ("a" * 200)).mkdir()
    deep = tmp_path.joinpath(*"abcdefghij")
    deep.mkdir(parents=True)
    began = time.monotonic()
    assert found(root, tmp_path, "*a" * 100 + "b") == []
    assert found(root, tmp_path, "**/*/" * 30 + "x") == []
    assert time.monotonic() - began < 5


# ---- removing a tree ------------------------------------------------------------------------------


@pytest.fixture(params=["descriptors", "paths"])
def remove(request: pytest.FixtureRequest) -> Callable[[Root, bytes], None]:
    """Both ways of doing it."""
    how = {"descriptors": removal._by_descriptors, "paths": removal._by_paths}[request.param]

    def remove(root: Root, path: bytes) -> None:
        for _ in how(root, path):
            pass

    return remove


def test_a_tree_is_removed_and_nothing_besides(
    remove: Callable[[Root, bytes], None], root: Root, here: bytes, tmp_path: Path
) -> None:
    """Links in it go, what they lead to stays; so does what is beside it."""
    precious = tmp_path / "precious"
    (precious / "deep").mkdir(parents=True)
    (precious / "deep" / "file").write_bytes(b"kept")
    victim = tmp_path / "victim"
    for name in ("a/b/c", "a/d", "e"):
        (victim / name).mkdir(parents=True)
        (victim / name / "file").write_bytes(b"")
    (victim / "a" / "link").symlink_to(precious)
    (victim / "a" / "relative").symlink_to("../../precious")
    os.mkfifo(victim / "e" / "fifo")
    remove(root, here + b"/victim")
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")) == [
        *("precious", "precious/deep", "precious/deep/file"),
    ]


def test_only_a_directory_is_a_tree(
    remove: Callable[[Root, bytes], None], root: Root, here: bytes, tmp_path: Path
) -> None:
    """A link to one is not: nothing is removed then."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    (tmp_path / "file").write_bytes(b"")
    for name in (b"/link", b"/file"):
        with pytest.raises(NotADirectoryError):
            remove(root, here + name)
    with pytest.raises(FileNotFoundError):
        remove(root, here + b"/missing")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_deep_tree_takes_no_more_descriptors(here: bytes, tmp_path: Path) -> None:
    """Nor does its depth matter otherwise: paths in it may be longer than the system takes."""
    deep = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("top", dir_fd=deep)
    for _ in range(600):
        below = os.open("top" if _ == 0 else "x" * 20, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
        os.mkdir("x" * 20, dir_fd=deep)
    os.close(deep)
    most = 0
    for _ in removal._by_descriptors(AnyFile(), here + b"/top"):
        most = max(most, len(os.listdir("/dev/fd")))
    assert most <= len(os.listdir("/dev/fd")) + 2
    assert list(tmp_path.iterdir()) == []


def test_a_removal_that_is_left_holds_nothing(root: Root, here: bytes, tmp_path: Path) -> None:
    """What it has removed is gone, the rest is there."""
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "file").write_bytes(b"")
    before = os.listdir("/dev/fd")
    removing = remove_tree(root, here + b"/tree")
    next(removing)
    removing.close()
    assert os.listdir("/dev/fd") == before
    assert (tmp_path / "tree").exists()


def test_what_cannot_be_removed_is_named(here: bytes, tmp_path: Path) -> None:
    """By its whole path."""
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "b" / "file").write_bytes(b"")
    unlink, rmdir = os.unlink, os.rmdir

    def refuse(name: bytes, **_: object) -> None:
        raise PermissionError(errno.EACCES, "no", name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(PermissionError) as caught:
            list(remove_tree(AnyFile(), here + b"/tree"))
        assert caught.value.filename == here + b"/tree/a/b/file"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        with pytest.raises(PermissionError) as caught:
            list(remove_tree(AnyFile(), here + b"/tree"))
        assert caught.value.filename == here + b"/tree/a/b"
    assert (os.unlink, os.rmdir) == (unlink, rmdir)


def test_a_directory_that_fills_again_is_emptied_again(
    remove: Callable[[Root, bytes], None], root: Root, here: bytes, tmp_path: Path
) -> None:
    """A few times; then its error is told."""
    busy = tmp_path / "tree" / "busy"
    busy.mkdir(parents=True)
    rmdir = os.rmdir
    rounds = []

    def interfere(path: bytes, **options: int) -> None:
        if path.endswith(b"busy") and len(rounds) < limit:
            rounds.append(path)
            (busy / "new").write_bytes(b"")
        rmdir(path, **options)

    limit = 0
    for limit, fails in ((removal.TRIES - 1, False), (100, True)):  # noqa: B007 - `interfere` does
        rounds.clear()
        busy.mkdir(parents=True, exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "rmdir", interfere)
            if fails:
                with pytest.raises(OSError, match="not empty") as caught:
                    remove(root, here + b"/tree")
                assert caught.value.filename == here + b"/tree/busy"
            else:
                remove(root, here + b"/tree")
    assert len(rounds) == removal.TRIES


def test_the_top_that_fills_again_is_emptied_again(
    remove: Callable[[Root, bytes], None], here: bytes, tmp_path: Path
) -> None:
    """As every directory below it."""
    tree = tmp_path / "tree"
    tree.mkdir()

    class Busy(AnyFile):
        count = 3

        def rmdir(self, path: bytes) -> None:
            if self.count:
                self.count -= 1
                (tree / "new").mkdir()
            super().rmdir(path)

    remove(Busy(), here + b"/tree")
    assert list(tmp_path.iterdir()) == []


def test_what_others_remove_meanwhile_is_as_good_as_removed(
    remove: Callable[[Root, bytes], None], root: Root, here: bytes, tmp_path: Path
) -> None:
    """Two who remove the same tree: neither fails but, at most, for the tree itself being gone."""
    errors: list[OSError] = []

    def remove_it() -> None:
        try:
            remove(root, here + b"/tree")
        except OSError as error:
            errors.append(error)

    is_deep = hypothesis.settings.get_current_profile_name() == "deep"
    for _ in range(100 if is_deep else 10):
        for number in range(40):
            directory = tmp_path / "tree" / str(number % 7) / str(number % 3) / str(number)
            directory.mkdir(parents=True)
            (directory / "file").write_bytes(b"")
        errors.clear()
        threads = [threading.Thread(target=remove_it) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [type(error) for error in errors] in ([], [FileNotFoundError])
        assert all(error.filename == here + b"/tree" for error in errors)
        assert not (tmp_path / "tree").exists()


def test_a_directory_swapped_for_a_link_is_not_entered(
    root: Root, here: bytes, tmp_path: Path
) -> None:
    """While somebody exchanges the two again and again; what the link leads to stays whole."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_bytes(b"kept")
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError):
                spot = tmp_path / "tree" / "spot"
                spot.symlink_to(precious)
                spot.rename(tmp_path / "tree" / "away")
                spot.mkdir()
                (spot / "file").write_bytes(b"")

    attacker = threading.Thread(target=swap)
    attacker.start()
    try:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                (tmp_path / "tree").mkdir(exist_ok=True)
                list(remove_tree(root, here + b"/tree"))
            assert (precious / "file").read_bytes() == b"kept"
    finally:
        done.set()
        attacker.join()


def test_a_directory_that_becomes_a_link_at_the_last_moment_is_removed_as_one(
    root: Root, here: bytes, tmp_path: Path
) -> None:
    """Between the look at it and the way into it."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"kept")
    (tmp_path / "tree" / "spot").mkdir(parents=True)
    removing = remove_tree(root, here + b"/tree")
    next(removing)  # it was seen
    (tmp_path / "tree" / "spot").rmdir()
    (tmp_path / "tree" / "spot").symlink_to("../precious")
    list(removing)
    assert (tmp_path / "precious" / "file").read_bytes() == b"kept"
    assert not (tmp_path / "tree").exists()


def test_a_directory_that_is_moved_while_it_is_emptied_leads_nowhere(
    here: bytes, tmp_path: Path
) -> None:
    """What is above it by then is not where we came from, and stays."""
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "b" / "file").write_bytes(b"")
    (tmp_path / "else" / "keep").mkdir(parents=True)
    removing = remove_tree(AnyFile(), here + b"/tree")
    while (tmp_path / "tree" / "a" / "b" / "file").exists():
        next(removing)
    (tmp_path / "tree" / "a" / "b").rename(tmp_path / "else" / "b")
    with pytest.raises(OSError, match="moved") as caught:
        list(removing)
    assert caught.value.errno == errno.ESTALE
    assert sorted(pathlib.Path(tmp_path / "else").iterdir()) == [
        tmp_path / "else" / "b",
        tmp_path / "else" / "keep",
    ]


def test_what_is_gone_at_the_last_moment_is_as_good_as_removed(
    here: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the removal: a file, a directory, a link in its place, a directory that was emptied."""
    rmdir = os.rmdir
    for name in ("file", "directory", "linked", "emptied"):
        tree = tmp_path / "tree"
        (tree / "deep" / "below").mkdir(parents=True)
        (tree / "spot").write_bytes(b"") if name == "file" else (tree / "spot").mkdir()
        calls = {"file": "unlink", "directory": "open", "linked": "open", "emptied": "rmdir"}
        real = getattr(os, calls[name])

        def interfere(
            path: bytes, *args: int, name: str = name, real: object = real, **options: int
        ) -> object:
            spot = tmp_path / "tree" / "spot"
            if path == b"spot" and os.path.lexists(spot):
                spot.unlink() if spot.is_file() else rmdir(spot)
                if name == "linked":
                    spot.symlink_to(tmp_path)
            return real(path, *args, **options)  # type: ignore[operator]

        removing = remove_tree(AnyFile(), here + b"/tree")
        with monkeypatch.context() as patch:
            patch.setattr(os, calls[name], interfere)
            list(removing)
        assert os.listdir(tmp_path) == []


def test_without_descriptors_trees_are_removed_by_paths(
    here: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows; one that is gone by the time it is looked at is as good as removed."""
    monkeypatch.setattr(os, "supports_dir_fd", set())
    (tmp_path / "tree" / "a").mkdir(parents=True)
    list(remove_tree(AnyFile(), here + b"/tree"))
    assert os.listdir(tmp_path) == []

    class Gone(AnyFile):
        def scan(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
            """It is gone by the time it is looked at."""
            os.rmdir(path)
            yield from super().scan(path)

    (tmp_path / "tree").mkdir()
    list(remove_tree(Gone(), here + b"/tree"))
    with pytest.raises(FileNotFoundError):
        list(remove_tree(Gone(), here + b"/tree"))


def test_a_file_that_becomes_a_directory_is_removed_as_one(here: bytes, tmp_path: Path) -> None:
    """Between the look at it and its removal."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "spot").write_bytes(b"")
    unlink = os.unlink

    def swap(name: bytes, **options: int) -> None:
        if name == b"spot" and (tmp_path / "tree" / "spot").is_file():
            (tmp_path / "tree" / "spot").unlink()
            (tmp_path / "tree" / "spot" / "deep").mkdir(parents=True)
        unlink(name, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", swap)
        list(remove_tree(AnyFile(), here + b"/tree"))
    assert not (tmp_path / "tree").exists()
