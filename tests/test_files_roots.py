"""Which files a peer may reach: without bounds, and beneath the directory of ``--root``, in each way there is."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandd._core.files import beneath
from sandd._core.files.beneath import kernel_walk, walk
from sandd._core.files.confined_roots import ConfinedRoot, open_root
from sandd._core.files.realpath_roots import RealpathRoot
from sandd._core.files.roots import AnyFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandd._core.files.roots import Root

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need privileges there")

NO_OPENAT2 = "this kernel, or what confines this process, has no openat2"
CONFINED = [
    pytest.param("kernel", marks=pytest.mark.skipif(kernel_walk() is None, reason=NO_OPENAT2)),
    "walk",
]


@contextlib.contextmanager
def root_of(kind: str, directory: Path) -> Iterator[Root]:
    """A confined root of one kind."""
    if kind == "realpath":
        yield RealpathRoot(os.fsencode(directory))
        return
    find_directory = kernel_walk() if kind == "kernel" else walk
    assert find_directory is not None
    with ConfinedRoot(os.fsencode(directory), find_directory) as root:
        yield root


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """The directory that paths are confined to; beside it is a file ``secret``."""
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "outer").mkdir()
    directory = tmp_path / "inside"
    directory.mkdir()
    return directory


@pytest.fixture(params=[*CONFINED, "realpath"])
def root(request: pytest.FixtureRequest, inside: Path) -> Iterator[Root]:
    """Each kind of confined root."""
    with root_of(request.param, inside) as root:
        yield root


@pytest.fixture(params=CONFINED)
def tight(request: pytest.FixtureRequest, inside: Path) -> Iterator[Root]:
    """Those that leave nobody a moment to lead them out."""
    with root_of(request.param, inside) as root:
        yield root


def read(root: Root, path: bytes) -> bytes:
    """What is in a file."""
    descriptor = root.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 1000)
    finally:
        os.close(descriptor)


def write(root: Root, path: bytes, data: bytes) -> None:
    """Write a file anew."""
    descriptor = root.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


ANYTHING = r".*"
"""To match an error's text: what is asked about it is asked afterwards."""

CALLS: dict[str, Callable[[Root, bytes], object]] = {
    "open": read,
    "create": lambda root, path: write(root, path, b"new"),
    "create_exclusively": lambda root, path: os.close(
        root.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    ),
    "stat": lambda root, path: root.stat(path),
    "lstat": lambda root, path: root.stat(path, follow_symlinks=False),
    "scan": lambda root, path: list(root.scan(path)),
    "locate": lambda root, path: root.locate(path),
    "readlink": lambda root, path: root.readlink(path),
    "mkdir": lambda root, path: root.mkdir(path),
    "symlink": lambda root, path: root.symlink(b"x", path),
    "rename_from": lambda root, path: root.rename(path, b"elsewhere"),
    "rename_to": lambda root, path: root.rename(b"here", path),
    "link_from": lambda root, path: root.link(path, b"elsewhere"),
    "link_to": lambda root, path: root.link(b"here", path),
    "unlink": lambda root, path: root.unlink(path),
    "rmdir": lambda root, path: root.rmdir(path),
    "chmod": lambda root, path: root.chmod(path, 0o600),
    "utime": lambda root, path: root.utime(path, None),
    "lutime": lambda root, path: root.utime(path, (0, 0), follow_symlinks=False),
}
"""Every method, as a call with one path."""
FOLLOWING = ("open", "create", "stat", "locate", "scan", "chmod", "utime")
"""Those that follow a link at the end of the path."""


def everything_below(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Names, modes, times and contents."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
    return found


def refused(call: str, root: Root, path: bytes) -> bool:
    """Whether the call is refused because of where the path leads."""
    with pytest.raises(OSError, match=ANYTHING) as caught:
        CALLS[call](root, path)
    error = caught.value
    assert path in (error.filename, error.filename2)
    return isinstance(error, PermissionError) and error.strerror == "outside the daemon's --root"


def test_paths_keep_their_meaning(root: Root, inside: Path) -> None:
    """A relative path starts at the root; an absolute one lies in it."""
    (inside / "a").mkdir()
    write(root, b"a/file", b"text")
    assert (inside / "a/file").read_bytes() == b"text"
    assert read(root, os.fsencode(inside / "a/file")) == b"text"
    assert read(root, b"a/../a/./file") == b"text"
    for name in (b".", b"./", os.fsencode(inside), os.fsencode(inside) + b"/", b"a/.."):
        assert [entry for entry, _ in root.scan(name)] == [b"a"]
        assert root.stat(name).st_ino == inside.stat().st_ino
        assert root.stat(name, follow_symlinks=False).st_ino == inside.stat().st_ino


@pytest.mark.parametrize("kind", CONFINED)
def test_either_name_of_the_root_will_do(kind: str, tmp_path: Path, inside: Path) -> None:
    """The one it was given, and the one that it has without links."""
    (inside / "file").write_bytes(b"text")
    (tmp_path / "name").symlink_to(inside)
    with root_of(kind, tmp_path / "name") as root:
        assert read(root, os.fsencode(tmp_path / "name" / "file")) == b"text"
        assert read(root, os.fsencode(inside / "file")) == b"text"
        assert refused("open", root, os.fsencode(tmp_path / "secret"))
        assert refused("open", root, os.fsencode(tmp_path / "inside-out" / "file"))


@pytest.mark.parametrize("call", CALLS)
def test_no_path_leads_outside(call: str, root: Root, inside: Path, tmp_path: Path) -> None:
    """Whatever is called: absolute, by "..", or through a link anywhere. Nothing changes out there."""
    (inside / "here").write_bytes(b"here")
    (inside / "deep").mkdir()
    (inside / "absolute").symlink_to(tmp_path)
    (inside / "upwards").symlink_to("..")
    (inside / "deep" / "further").symlink_to("../upwards")
    (inside / "across").symlink_to("deep/../../inside/../outer")
    before = everything_below(tmp_path / "outer"), (tmp_path / "secret").stat()
    for path in (
        *(b"../secret", b"../missing", b"deep/../../secret", b"..", b"../", b"deep/../.."),
        *(os.fsencode(tmp_path / "secret"), b"/etc/passwd", b"/", os.fsencode(tmp_path)),
        *(b"absolute/secret", b"upwards/secret", b"deep/further/secret", b"across/new"),
        *(b"deep/further/../../outer", b"absolute/.", b"upwards/.."),
    ):
        assert refused(call, root, path), path
    assert (everything_below(tmp_path / "outer"), (tmp_path / "secret").stat()) == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["inside", "outer", "secret"]


@pytest.mark.parametrize("call", FOLLOWING)
def test_a_link_at_the_end_is_followed_only_inside(
    call: str, root: Root, inside: Path, tmp_path: Path
) -> None:
    """Also one that leads to what isn't there, which a call that creates would make."""
    for name, target in {
        "absolute": tmp_path / "secret",
        "relative": "../secret",
        "directory": tmp_path,
        "twice": "relative",
        "new": tmp_path / "outer" / "new",
    }.items():
        (inside / name).symlink_to(target)
        assert refused(call, root, name.encode())
    assert list((tmp_path / "outer").iterdir()) == []


def test_links_that_stay_inside_work(root: Root, inside: Path) -> None:
    """In the middle and at the end, up and down, one behind the other, and to what is only made now."""
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "a" / "file").write_bytes(b"text")
    (inside / "down").symlink_to("a/b")
    (inside / "a" / "b" / "up").symlink_to("../file")
    (inside / "chain").symlink_to("down/up")
    (inside / "a" / "new").symlink_to("b/made")
    assert read(root, b"down/up") == b"text"
    assert read(root, b"chain") == b"text"
    assert read(root, b"down/../file") == b"text"
    write(root, b"down/../new", b"made")
    assert (inside / "a" / "b" / "made").read_bytes() == b"made"
    assert root.stat(b"chain").st_ino == (inside / "a" / "file").stat().st_ino
    assert stat.S_ISLNK(root.stat(b"chain", follow_symlinks=False).st_mode)
    assert root.readlink(b"chain") == b"down/up"
    assert {name for name, _ in root.scan(b"down")} == {b"up", b"made"}
    root.chmod(b"chain", 0o640)
    root.utime(b"chain", (1, 2_000_000_003))
    status = (inside / "a" / "file").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o640, 2_000_000_003)


def test_what_acts_on_a_name_leaves_what_a_link_leads_to(root: Root, inside: Path) -> None:
    """To remove, move or make a link is no way out, whatever it says."""
    root.symlink(b"../secret", b"link")
    root.rename(b"link", b"moved")
    assert root.readlink(b"moved") == b"../secret"
    root.utime(b"moved", (0, 1_000_000_000), follow_symlinks=False)
    assert (inside / "moved").lstat().st_mtime_ns == 1_000_000_000
    root.unlink(b"moved")
    assert list(inside.iterdir()) == []
    assert (inside.parent / "secret").read_bytes() == b"secret"


def test_an_open_that_must_create_follows_nothing(root: Root, inside: Path) -> None:
    """As everywhere: O_EXCL and O_NOFOLLOW are about the name itself."""
    (inside / "link").symlink_to("missing")
    with pytest.raises(FileExistsError):
        root.open(b"link", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with pytest.raises(OSError, match="symbolic links") as caught:
        root.open(b"link", os.O_RDONLY | os.O_NOFOLLOW)
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("call", CALLS)
def test_no_descriptor_stays_open(call: str, root: Root, inside: Path) -> None:
    """However a call ends; the leak check of every test looks at the same, this one at each call by itself."""
    (inside / "file").write_bytes(b"")
    (inside / "directory").mkdir()
    (inside / "loop").symlink_to("loop")
    (inside / "here").write_bytes(b"")
    before = os.listdir("/dev/fd")
    for path in (b"file", b"directory", b"missing", b"file/x", b"loop", b"loop/x", b"../x", b""):
        with contextlib.suppress(OSError):
            CALLS[call](root, path)
    assert os.listdir("/dev/fd") == before


@pytest.mark.parametrize("call", CALLS)
def test_errors_are_the_systems_own(
    call: str, root: Root, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as without a root, by type and number, with the path that was asked for."""
    monkeypatch.chdir(inside)
    (inside / "file").write_bytes(b"")
    (inside / "here").write_bytes(b"")
    (inside / "loop").symlink_to("pool")
    (inside / "pool").symlink_to("loop")
    for path in (b"missing/x", b"file/x", b"loop/x", b"x" * 256, b"x" * 256 + b"/x"):
        with pytest.raises(OSError, match=ANYTHING) as caught:
            CALLS[call](root, path)
        with pytest.raises(OSError, match=ANYTHING) as wanted:
            CALLS[call](AnyFile(), path)
        assert caught.value.errno == wanted.value.errno, path
        assert type(caught.value) is type(wanted.value)
        assert path in (caught.value.filename, caught.value.filename2)
    with pytest.raises(FileNotFoundError):
        CALLS[call](root, b"")
    with pytest.raises(ValueError, match="null"):
        CALLS[call](root, b"a\0b")


@pytest.mark.parametrize("call", FOLLOWING)
def test_links_in_a_circle_end(call: str, root: Root, inside: Path) -> None:
    """With ELOOP, and so does a path of more than forty of them; forty are few enough."""
    (inside / "file").write_bytes(b"")
    (inside / "0").symlink_to("file" if call != "scan" else ".")
    for number in range(1, 60):
        (inside / str(number)).symlink_to(str(number - 1))
    (inside / "loop").symlink_to("../inside/loop")
    (inside / "self").symlink_to("self/x")
    CALLS[call](root, b"38")
    many = [] if isinstance(root, RealpathRoot) else [b"59"]  # it resolves any number itself
    for path in (*many, b"self"):
        with pytest.raises(OSError, match="symbolic links") as caught:
            CALLS[call](root, path)
        assert caught.value.errno == errno.ELOOP


def test_links_lead_through_no_name_of_their_own_root(tight: Root, inside: Path) -> None:
    """A link that goes out and comes back in is one that goes out."""
    (inside / "file").write_bytes(b"")
    (inside / "back").symlink_to("../inside/file")
    (inside / "named").symlink_to(inside / "file")
    assert refused("open", tight, b"back")
    assert refused("open", tight, b"named")


def test_what_a_directory_is_called_by_its_own_names_stays(root: Root, inside: Path) -> None:
    """Nobody removes or moves the root, or a directory by the names "." and ".."."""
    (inside / "a" / "b").mkdir(parents=True)
    for path in (b".", b"./", os.fsencode(inside), b"a/.", b"a/b/..", b"a/b/../.."):
        for call in (
            "unlink",
            "rmdir",
            "rename_from",
            "rename_to",
            "link_from",
            "link_to",
            "mkdir",
            "symlink",
        ):
            with pytest.raises(OSError, match=ANYTHING):
                CALLS[call](root, path)
    assert (inside / "a" / "b").is_dir()


def test_a_closing_slash_means_a_directory(tight: Root, inside: Path) -> None:
    """As in the system: a link there is followed, a file is none."""
    (inside / "file").write_bytes(b"")
    (inside / "directory").mkdir()
    (inside / "link").symlink_to("directory")
    (inside / "out").symlink_to("..")
    assert stat.S_ISDIR(tight.stat(b"link/", follow_symlinks=False).st_mode)
    assert refused("lstat", tight, b"out/")
    for call in ("open", "stat", "lstat", "unlink"):
        with pytest.raises(NotADirectoryError):
            CALLS[call](tight, b"file/")
    tight.mkdir(b"new/")
    tight.rmdir(b"new/")
    assert sorted(each.name for each in inside.iterdir()) == ["directory", "file", "link", "out"]


def test_names_may_be_anything(root: Root, inside: Path) -> None:
    """Newlines, bytes that are no UTF-8, all 255 bytes, a drive's or a device's name."""
    for name in (b"a\nb", b"\xff\xfe", b"x" * 255, b"-", b"~", b"c:", b"...", b"a\\b", b" "):
        write(root, name, name)
        assert read(root, name) == name
    assert len(list(root.scan(b"."))) == 9


@pytest.mark.parametrize("kind", CONFINED)
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_magic_links_of_proc_are_refused(kind: str) -> None:
    """They lead anywhere, whatever they say; a root with a /proc in it is one that somebody built a system in."""
    with root_of(kind, Path("/proc")) as root:
        for path in (b"self/root/etc/passwd", b"self/cwd/x", b"self/root", b"thread-self/root/etc"):
            assert refused("stat", root, path), path
        assert refused("open", root, b"self/exe")
        with Path("/etc/passwd").open("rb") as file:
            assert refused("open", root, f"self/fd/{file.fileno()}".encode())
        reader, writer = os.pipe()
        try:
            with pytest.raises(FileNotFoundError):  # it says "pipe:[123]", which is no name there
                root.open(f"self/fd/{reader}".encode(), os.O_RDONLY)
        finally:
            os.close(reader)
            os.close(writer)
        assert read(root, b"self/comm")


@pytest.mark.parametrize("kind", CONFINED)
def test_a_directory_swapped_for_a_link_leads_nowhere(
    kind: str, inside: Path, tmp_path: Path
) -> None:
    """While somebody exchanges a directory for a link out, again and again, no call ever reaches what is there."""
    outer = tmp_path / "outer"
    (outer / "file").write_bytes(b"outer")
    (inside / "real").mkdir()
    (inside / "real" / "file").write_bytes(b"inner")
    (inside / "door").symlink_to(outer)
    done = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        names = ("real", "door", "spot")
        real, door, spot = (inside / name for name in names)
        while not done.is_set():
            for other in (real, door):
                os.rename(other, spot)
                os.rename(spot, other)
                swaps += 1

    attacker = threading.Thread(target=swap)
    before = everything_below(outer)
    attacker.start()
    results = {"inner": 0, "refused": 0, "other": 0}
    try:
        with root_of(kind, inside) as root:
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                for call in (
                    lambda: write(root, b"spot/file", b"inner"),
                    lambda: write(root, b"spot/new", b"inner"),
                    lambda: root.chmod(b"spot/file", 0o600),
                    lambda: root.unlink(b"spot/new"),
                    lambda: root.rename(b"spot/file", b"spot/file"),
                    lambda: root.utime(b"spot/file", (0, 0)),
                ):
                    try:
                        call()
                        results["inner"] += 1
                    except PermissionError:
                        results["refused"] += 1
                    except OSError:
                        results["other"] += 1
    finally:
        done.set()
        attacker.join()
    assert everything_below(outer) == before
    assert min(results.values()) > 0, (results, swaps)  # the race was run, and every way


@pytest.mark.parametrize("kind", CONFINED)
def test_a_file_swapped_for_a_link_leads_nowhere(kind: str, inside: Path, tmp_path: Path) -> None:
    """The same at the end of a path, where a link is looked at first and the file opened then."""
    victim = tmp_path / "secret"
    victim.chmod(0o644)
    (inside / "file").write_bytes(b"")
    (inside / "link").symlink_to(victim)
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for other in ("file", "link"):
                os.rename(inside / other, inside / "spot")
                os.rename(inside / "spot", inside / other)

    attacker = threading.Thread(target=swap)
    before = victim.stat()
    attacker.start()
    written = 0
    try:
        with root_of(kind, inside) as root:
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                for call in (
                    lambda: os.close(root.open(b"spot", os.O_WRONLY | os.O_TRUNC)),
                    lambda: root.chmod(b"spot", 0o600),
                    lambda: root.utime(b"spot", (0, 0)),
                    lambda: root.stat(b"spot").st_size == 0 or pytest.fail("it was followed"),
                ):
                    with contextlib.suppress(OSError):
                        call()
                        written += 1
    finally:
        done.set()
        attacker.join()
    after = victim.stat()
    assert (after.st_mode, after.st_size, after.st_mtime_ns) == (
        *(before.st_mode, before.st_size, before.st_mtime_ns),
    )
    assert written


def test_a_link_that_comes_in_between_is_looked_at(
    tight: Root, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was a file when it was looked at, and is a link when it is opened, is looked at again."""
    (inside / "target").write_bytes(b"text")
    (inside / "link").symlink_to("target")
    looks = []

    def look(directory: int, name: bytes) -> bytes | None:
        looks.append(name)
        return None if len(looks) == 1 else beneath.link_at(directory, name)

    monkeypatch.setattr("sandd._core.files.confined_roots.link_at", look)
    assert read(tight, b"link") == b"text"
    looks.clear()
    assert tight.stat(b"link").st_size == 4
    looks.clear()
    tight.chmod(b"link", 0o600)
    assert stat.S_IMODE((inside / "target").stat().st_mode) == 0o600


@pytest.mark.parametrize("call", FOLLOWING)
def test_a_link_out_that_comes_in_between_is_not_followed(
    call: str, tight: Root, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was a file when it was looked at, and leads out when it is opened: at that very moment, not by chance."""
    secret = inside.parent / "secret"
    os.utime(secret, (0, 0))
    before = secret.stat()
    (inside / "spot").write_bytes(b"")

    def look(directory: int, name: bytes) -> bytes | None:
        link = beneath.link_at(directory, name)
        if link is None and name == b"spot":
            (inside / "spot").unlink()
            (inside / "spot").symlink_to(secret)
        return link

    monkeypatch.setattr("sandd._core.files.confined_roots.link_at", look)
    with contextlib.suppress(PermissionError, NotADirectoryError):
        assert CALLS[call](tight, b"spot") is None  # it has set the times of the link itself
        assert call == "utime"
    after = secret.stat()
    assert (after.st_mode, after.st_mtime, after.st_size) == (
        *(before.st_mode, before.st_mtime, before.st_size),
    )


def test_the_walk_climbs_only_to_where_it_came_from(inside: Path, tmp_path: Path) -> None:
    """A directory that is moved out while the walk is in it: what is above it then is no part of the root."""
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "a" / "b" / "trap").symlink_to("../../secret-or-not")
    real = os.readlink

    def readlink(name: bytes, *, dir_fd: int) -> bytes:
        os.rename(inside / "a" / "b", tmp_path / "outer" / "b")
        return real(name, dir_fd=dir_fd)

    with root_of("walk", inside) as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "readlink", readlink)
        with pytest.raises(PermissionError, match="outside"):
            root.scan(b"a/b/trap/x").__next__()


def test_a_kernel_that_gives_up_leaves_it_to_the_walk(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody keeps renaming, it may say EAGAIN to any path with ".." in it."""
    (inside / "a").mkdir()
    walked = []
    monkeypatch.setattr(beneath, "walk", lambda root, path: walked.append(path) or walk(root, path))
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EAGAIN)
    find_directory = kernel_walk()
    if find_directory is None:
        pytest.skip(NO_OPENAT2)
    with ConfinedRoot(os.fsencode(inside), find_directory) as root:
        with pytest.raises(FileNotFoundError):
            root.stat(b"missing/x")
    assert walked == [b"missing"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_a_system_that_forbids_openat2_gets_the_walk(
    number: int, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older kernel has it not, and what confines containers may know it not; one look shows."""

    class Libc:
        def __init__(self, *_: object, **__: object) -> None:
            self.syscall = self

        def __new__(cls, *args: object, **kwargs: object) -> Libc:
            return super().__new__(cls)

        def __call__(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(beneath.sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", Libc)
    monkeypatch.setattr("ctypes.get_errno", lambda: number)
    assert kernel_walk.__wrapped__() is None
    monkeypatch.setattr("sandd._core.files.confined_roots.kernel_walk", lambda: None)
    with open_root(os.fsencode(inside)) as root:
        write(root, b"file", b"text")
        assert refused("open", root, b"../secret")
    assert (inside / "file").read_bytes() == b"text"


def test_no_root_is_any_file(inside: Path) -> None:
    """Without ``--root`` a daemon's files are what its user may reach."""
    with open_root(None) as root:
        assert read(root, os.fsencode(inside / ".." / "secret")) == b"secret"


def test_a_root_that_is_none_is_an_error(tmp_path: Path) -> None:
    """A daemon that was given a wrong directory doesn't start."""
    (tmp_path / "file").write_bytes(b"")
    for make in (open_root, lambda path: contextlib.nullcontext(RealpathRoot(path))):
        with pytest.raises(FileNotFoundError), make(os.fsencode(tmp_path / "missing")):
            pass
        with pytest.raises(NotADirectoryError), make(os.fsencode(tmp_path / "file")):
            pass


@pytest.mark.parametrize("kind", CONFINED)
def test_a_closed_root_finds_nothing(kind: str, inside: Path) -> None:
    """Not even by chance, where its descriptor is another's by now; to close it twice is no error."""
    with root_of(kind, inside) as root:
        root.close()
        with pytest.raises(OSError, match="descriptor"):
            root.stat(b"x/y")
        root.close()


def test_what_vanishes_while_it_is_listed_is_left_out(
    tight: Root, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes go on meanwhile."""
    for name in ("a", "b"):
        (inside / name).write_bytes(b"")
    entries = tight.scan(b".")
    first, _ = next(entries)
    for name in ("a", "b"):
        (inside / name).unlink()
    assert first in (b"a", b"b")
    assert list(entries) == []


def test_a_mode_can_be_changed_without_proc(
    tight: Root, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may have none."""
    (inside / "file").write_bytes(b"")
    chmod = os.chmod

    def without_proc(path: str | int, mode: int, **options: object) -> None:
        if isinstance(path, str):
            raise FileNotFoundError(errno.ENOENT, "no /proc")
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", without_proc)
    tight.chmod(b"file", 0o604)
    assert stat.S_IMODE((inside / "file").stat().st_mode) == 0o604


def test_without_descriptors_of_anything_a_mode_is_changed_by_name(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS, which can do so without following a link."""
    asked: list[tuple[object, ...]] = []

    def chmod(name: bytes, mode: int, *, dir_fd: int, follow_symlinks: bool) -> None:
        asked.append((name, mode, os.fstat(dir_fd).st_ino, follow_symlinks))

    monkeypatch.setattr("sandd._core.files.confined_roots._O_PATH", None)
    monkeypatch.setattr(os, "chmod", chmod)
    (inside / "a").mkdir()
    (inside / "a" / "file").write_bytes(b"")
    (inside / "link").symlink_to("a/file")
    with root_of("walk", inside) as root:
        root.chmod(b"link", 0o600)
    assert asked == [(b"file", 0o600, (inside / "a").stat().st_ino, False)]


def test_a_directory_that_is_swapped_for_a_link_while_it_is_located(
    tight: Root, inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told by name may lead elsewhere by then; what is seen to do so is refused."""
    (inside / "spot").mkdir()
    assert tight.locate(b"spot") == os.fsencode(inside / "spot")
    stat = tight.stat

    def swap(path: bytes) -> os.stat_result:
        status = stat(path)
        (inside / "spot").rmdir()
        (inside / "spot").symlink_to(tmp_path / "outer")
        return status

    monkeypatch.setattr(tight, "stat", swap)
    assert refused("locate", tight, b"spot")


def test_a_move_to_another_file_system_is_told_as_such(
    tight: Root, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EXDEV of a rename is the system's own, and means that; it is never taken for the way out, nor the other way."""

    def replace(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "replace", replace)
    (inside / "a").write_bytes(b"")
    with pytest.raises(OSError, match="cross-device") as caught:
        tight.rename(b"a", b"b")
    assert caught.value.errno == errno.EXDEV
    assert (caught.value.filename, caught.value.filename2) == (b"a", b"b")
