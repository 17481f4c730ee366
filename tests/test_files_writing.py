"""Writing a file: the old one or the whole new one, at every moment and whatever fails."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sandd._core.files import writing
from sandd._core.files.confined_roots import open_root
from sandd._core.files.reading import BATCH_BYTES, Reading
from sandd._core.files.roots import AnyFile
from sandd._core.files.writing import open_writing
from sandd._core.transfers.partials import Partials
from sandd.wire import WriteMode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import TextIO

    from sandd._core.files.roots import Root

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes and links are POSIX")

REPLACE, EXCLUSIVE, APPEND = WriteMode.REPLACE, WriteMode.EXCLUSIVE, WriteMode.APPEND


@pytest.fixture(params=["any", "confined"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    """All files, and those beneath the test's directory."""
    with open_root(os.fsencode(tmp_path) if request.param == "confined" else None) as root:
        yield root


@pytest.fixture
def here(tmp_path: Path) -> bytes:
    """The test's directory, as a daemon has it."""
    return os.fsencode(tmp_path)


def write(root: Root, path: bytes, how: WriteMode, *pieces: bytes, mode: int = 0o666) -> None:
    """Write a file."""
    with contextlib.closing(open_writing(root, path, how, mode)) as file:
        for piece in pieces:
            file.write(piece)
        info = file.commit()
        assert info.size == os.stat(path).st_size
        assert info.inode == os.stat(path).st_ino


@pytest.mark.parametrize("how", [REPLACE, EXCLUSIVE, APPEND])
def test_a_new_file_has_the_mode_it_was_given(
    root: Root, here: bytes, tmp_path: Path, how: WriteMode
) -> None:
    """Less the umask, as everywhere; nothing else is there afterwards."""
    mask = os.umask(0o027)
    try:
        write(root, here + b"/file", how, b"a", b"b", mode=0o666)
    finally:
        os.umask(mask)
    assert (tmp_path / "file").read_bytes() == b"ab"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_what_will_replace_a_private_file_is_private_from_the_start(
    root: Root, here: bytes, tmp_path: Path
) -> None:
    """Nobody reads the new secret before it has the old one's mode."""
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o600)
    with contextlib.closing(open_writing(root, here + b"/file", REPLACE)) as file:
        (draft,) = set(os.listdir(tmp_path)) - {"file"}
        assert stat.S_IMODE((tmp_path / draft).stat().st_mode) == 0o600
        file.commit()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_links_lead_to_what_is_replaced(root: Root, here: bytes, tmp_path: Path) -> None:
    """Over several of them, also to what isn't there yet; a circle is an error."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "one").symlink_to("deep/two")
    (tmp_path / "deep" / "two").symlink_to("../three")
    write(root, here + b"/one", REPLACE, b"new")
    assert (tmp_path / "three").read_bytes() == b"new"
    assert (tmp_path / "one").is_symlink()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links") as caught:
        open_writing(root, here + b"/loop", REPLACE)
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, here + b"/loop")


def test_no_link_leads_out_of_a_root(here: bytes, tmp_path: Path) -> None:
    """Neither to an old file nor to a new one; nor does a path with ".." in it."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    for name, target in {"a": "../secret", "b": "../new", "c": str(tmp_path / "new")}.items():
        (inside / name).symlink_to(target)
    with open_root(os.fsencode(inside)) as root:
        for path in (b"a", b"b", b"c", b"../new", here + b"/new"):
            for how in (REPLACE, APPEND):
                with pytest.raises(PermissionError, match="--root"):
                    open_writing(root, path, how)
    assert sorted(os.listdir(tmp_path)) == ["inside", "secret"]
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_what_may_not_be_written_is_told_at_once(root: Root, here: bytes, tmp_path: Path) -> None:
    """Before a byte of it was sent."""
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    for path, kind in {
        b"": FileNotFoundError,
        here: IsADirectoryError,
        here + b"/new/": OSError,
        here + b"/.": IsADirectoryError,
        here + b"/no/new": FileNotFoundError,
        here + b"/file/new": NotADirectoryError,
        here + b"/fifo": OSError,
    }.items():
        for how in (REPLACE, APPEND):
            with pytest.raises(kind) as caught:
                open_writing(root, path, how)
            assert caught.value.filename == path
    assert sorted(os.listdir(tmp_path)) == ["fifo", "file"]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may do anything")
def test_a_file_that_may_not_be_written_is_not_replaced(
    root: Root, here: bytes, tmp_path: Path
) -> None:
    """Though its directory would let us."""
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o400)
    with pytest.raises(PermissionError):
        open_writing(root, here + b"/file", REPLACE)


def test_a_program_that_runs_can_be_replaced(root: Root, here: bytes, tmp_path: Path) -> None:
    """It goes on with the old file; to write into that is refused by the system."""
    shutil.copy(shutil.which("sleep") or "", tmp_path / "program")
    process = subprocess.Popen([tmp_path / "program", "60"])
    try:
        write(root, here + b"/program", REPLACE, b"new")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "program").read_bytes() == b"new"
    assert os.access(tmp_path / "program", os.X_OK)


class Failing(AnyFile):
    """Its calls fail as they are told to."""

    def __init__(self, **errors: int) -> None:
        self.errors = errors

    def link(self, source: bytes, target: bytes) -> None:
        """As in `Root`."""
        self._fail("link", source)
        super().link(source, target)

    def rename(self, source: bytes, target: bytes) -> None:
        """As in `Root`."""
        self._fail("rename", source)
        super().rename(source, target)

    def _fail(self, name: str, path: bytes) -> None:
        if name in self.errors:
            raise OSError(self.errors[name], os.strerror(self.errors[name]), path)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_a_new_file_is_claimed_without_hard_links(here: bytes, tmp_path: Path, number: int) -> None:
    """On file systems that have none; who comes second is refused as ever."""
    root = Failing(link=number)
    write(root, here + b"/file", EXCLUSIVE, b"mine", mode=0o640)
    assert (tmp_path / "file").read_bytes() == b"mine"
    with contextlib.closing(open_writing(root, here + b"/other", EXCLUSIVE)) as file:
        (tmp_path / "other").write_bytes(b"theirs")
        with pytest.raises(FileExistsError) as caught:
            file.commit()
        assert caught.value.filename == here + b"/other"
    assert (tmp_path / "other").read_bytes() == b"theirs"
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


@pytest.mark.parametrize("call", ["link", "rename"])
def test_a_commit_that_fails_leaves_nothing(here: bytes, tmp_path: Path, call: str) -> None:
    """The error names what was asked for."""
    root = Failing(**{call: errno.EIO})
    how = EXCLUSIVE if call == "link" else REPLACE
    with contextlib.closing(open_writing(root, here + b"/file", how)) as file:
        file.write(b"new")
        with pytest.raises(OSError, match="error") as caught:
            file.commit()
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, here + b"/file")
        assert caught.value.filename2 is None
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fails_is_told_and_leaves_nothing(
    root: Root, here: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is written, or when it is to be safe there."""
    (tmp_path / "file").write_bytes(b"old")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call, step in (("write", "write"), ("fsync", "commit")):
        for how in (REPLACE, APPEND):
            with contextlib.closing(open_writing(root, here + b"/file", how)) as file:
                with monkeypatch.context() as patch:
                    patch.setattr(os, call, fail)
                    with pytest.raises(OSError, match="space") as caught:
                        file.write(b"new") if step == "write" else file.commit()
                if how is REPLACE or step == "write":
                    assert caught.value.filename == here + b"/file"
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_system_that_cannot_sync_is_written_all_the_same(
    root: Root, here: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some have nothing to sync to, and say EINVAL."""

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fail)
    write(root, here + b"/file", REPLACE, b"new")
    write(root, here + b"/file", APPEND, b"er")
    assert (tmp_path / "file").read_bytes() == b"newer"


def test_a_write_goes_on_where_the_system_stopped(
    root: Root, here: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take less than it was given, and give less than it was asked for."""
    real_write, real_read = os.write, os.read
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:3]))
    monkeypatch.setattr(os, "read", lambda descriptor, size: real_read(descriptor, min(size, 3)))
    write(root, here + b"/file", REPLACE, b"abcdefgh")
    with contextlib.closing(Reading(root, here + b"/file", 1, None)) as reading:
        assert reading.next_batch() == (b"bcdefgh", True)


def test_it_is_on_the_disk_before_it_takes_the_name_and_the_name_is_then(
    root: Root, here: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order: contents, rename, directory; so a crash leaves one file or the other."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append("directory" if is_directory else "contents")
        fsync(descriptor)

    def record_replace(*paths: bytes, **options: int) -> None:
        done.append("rename")
        replace(*paths, **options)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write(root, here + b"/file", REPLACE, b"new")
    assert done == ["contents", "rename", "directory"]


def test_a_process_that_is_killed_anywhere_leaves_the_old_file_or_the_new_one(
    tmp_path: Path,
) -> None:
    """At each system call in turn; what is left beside it has a name by which it is found and removed."""
    program = """
import os, signal, sys
from sandd._core.files import writing
from sandd._core.files.roots import AnyFile
from sandd._core.transfers.partials import Partials
from sandd.wire import WriteMode
from pathlib import Path
def counted(call):
    def do(*args, **options):
        global count
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return do
def write():
    for name in ("open", "write", "fsync", "fchmod", "fchown", "close", "replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    journal = Partials(Path(sys.argv[1])).open_journal()
    file = writing.open_writing(AnyFile(), target.encode(), WriteMode.REPLACE, 0o666, journal)
    file.write(b"n" * 1000)
    file.write(b"n" * 1000)
    file.commit()
    file.close()
# A copy of this process for each: all are the same, and all but one have nothing to import.
while line := sys.stdin.readline():
    number, target = line.split()
    count = int(number)
    pid = os.fork()
    if pid == 0:
        write()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
    journals = tmp_path / "journals"
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", program, journals], text=True, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ends = write_and_be_killed(process.stdin, process.stdout, tmp_path, journals)
    assert ends == {b"old", b"n" * 2000}


def write_and_be_killed(
    requests: TextIO, exit_codes: TextIO, tmp_path: Path, journals: Path
) -> set[bytes]:
    """What the files held in the end, one for each system call."""
    ends = set()
    for count in range(1, 40):
        target = tmp_path / str(count)
        target.write_bytes(b"old")
        print(count, target, file=requests, flush=True)
        exit_code = int(exit_codes.readline())
        content = target.read_bytes()
        assert content in (b"old", b"n" * 2000), count
        ends.add(content)
        left = [name for name in os.listdir(tmp_path) if name.startswith(".")]
        assert all(name.startswith(".sandd-") and name.endswith(".part") for name in left)
        # Whoever comes next removes it: it knows where to look.
        Partials(journals).purge(AnyFile())
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")], (count, left)
        assert not journals.exists() or not os.listdir(journals)
        if exit_code == 0:
            return ends
        assert exit_code == -signal.SIGKILL
    pytest.fail("it never came to its end")


def test_only_a_directory_that_may_be_read_is_synced(
    here: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One may be written and not read; the file is there all the same."""

    class Unreadable(AnyFile):
        def open(self, path: bytes, flags: int, mode: int = 0o666) -> int:
            if flags & os.O_DIRECTORY:
                raise PermissionError(errno.EACCES, "no", path)
            return super().open(path, flags, mode)

    write(Unreadable(), here + b"/file", REPLACE, b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_an_owner_that_may_not_be_given_is_not(
    root: Root, here: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only root may give files away; the mode is kept nevertheless."""

    def refuse(*_: int) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(writing.os, "fchown", refuse)
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o604)
    write(root, here + b"/file", REPLACE, b"new")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o604


def test_an_exclusive_file_is_refused_where_there_is_anything(
    root: Root, here: bytes, tmp_path: Path
) -> None:
    """A link that leads nowhere, too."""
    (tmp_path / "link").symlink_to("nowhere")
    for path in (here, here + b"/link"):
        with pytest.raises(OSError, match=r"exists|directory"):
            open_writing(root, path, EXCLUSIVE)


# ---- reading --------------------------------------------------------------------------------------


def test_a_range_is_read_in_batches(root: Root, here: bytes, tmp_path: Path) -> None:
    """None is larger than its bound, and the last one says so; then it is closed already."""
    data = os.urandom(2 * BATCH_BYTES + 5)
    (tmp_path / "file").write_bytes(data)
    before = os.listdir("/dev/fd")
    for offset, length in ((0, None), (7, None), (0, BATCH_BYTES), (3, 10), (len(data), 1), (0, 0)):
        reading = Reading(root, here + b"/file", offset, length)
        batches, is_all = [], False
        while not is_all:
            batch, is_all = reading.next_batch()
            assert len(batch) <= BATCH_BYTES
            batches.append(batch)
        end = None if length is None else offset + length
        assert b"".join(batches) == data[offset:end]
        assert os.listdir("/dev/fd") == before
        reading.close()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_file_without_a_size_is_read(here: bytes) -> None:
    """Those of /proc say 0."""
    with contextlib.closing(Reading(AnyFile(), b"/proc/self/status", 0, None)) as reading:
        data, is_all = reading.next_batch()
    assert data.startswith(b"Name:")
    assert is_all


def test_a_disk_that_cannot_be_read_is_told(
    root: Root, here: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the path; an offset that is none, too."""
    (tmp_path / "file").write_bytes(b"text")

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with contextlib.closing(Reading(root, here + b"/file", 0, None)) as reading:
        with monkeypatch.context() as patch:
            patch.setattr(os, "read", fail)
            with pytest.raises(OSError, match="error") as caught:
                reading.next_batch()
    assert caught.value.filename == here + b"/file"
    with pytest.raises(OSError, match="Invalid"):
        Reading(root, here + b"/file", -1, None)
