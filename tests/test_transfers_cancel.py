"""Transfers that are given up at any moment, disks that hang, files that change, programs that are killed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from daemons import daemon_environment
from forked_python import copies
from transfer_world import FailingRoot, Lines, copy, names_below, partials_below

from sandd import TransferError
from sandd._core.files.roots import AnyFile
from sandd._core.transfers import disk_work, reading, syncing, writing
from sandd._core.transfers.partials import Partials
from sandd._core.transfers.receiving import receive
from sandd._core.transfers.sending import send
from sandd.wire import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandd._core.transfers.result import TransferResult

LARGE = os.urandom(64 * KIB) * 20


@pytest.fixture
def no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test with very many transfers doesn't wait for the disk each time."""
    monkeypatch.setattr(syncing, "_syncfs", lambda _descriptor: 0)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


class CancelAt(trio.abc.Instrument):
    """Cancels a scope at one of the steps that all tasks take together."""

    def __init__(self, number: int, scope: trio.CancelScope) -> None:
        self.steps = 0
        self._number = number
        self._scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task goes on."""
        self.steps += 1
        if self.steps == self._number:
            self._scope.cancel()


@pytest.mark.parametrize("who", ["sender", "receiver"])
async def test_cancelled_at_every_step(tmp_path: Path, who: str, no_syncing: None) -> None:
    """Whenever one end is cancelled it leaves at once; each file is old or new, and nothing else is left."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "small").write_bytes(b"new")
    (source / "large").write_bytes(LARGE[: 300 * KIB])
    completed = 0

    for number in itertools.count(1, 3):
        target.mkdir()
        (target / "small").write_bytes(b"old")
        lines = Lines()
        scope = trio.CancelScope()

        async def run_sender(lines: Lines = lines, scope: trio.CancelScope = scope) -> None:
            with scope if who == "sender" else trio.CancelScope():
                await send(lines.sender, AnyFile(), os.fsencode(source), says_total=True)
            lines.forth.close()

        async def run_receiver(lines: Lines = lines, scope: trio.CancelScope = scope) -> None:
            with scope if who == "receiver" else trio.CancelScope():
                await receive(lines.receiver, AnyFile(), os.fsencode(target), partials=Partials())
            lines.back.close()

        cancel = CancelAt(number, scope)
        trio.lowlevel.add_instrument(cancel)
        try:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run_sender)
                    nursery.start_soon(run_receiver)
        except* TransferError:
            pass  # the other end, when this one is gone
        finally:
            trio.lowlevel.remove_instrument(cancel)

        contents = {name: (target / name).read_bytes() for name in names_below(target)}
        if who == "receiver":
            # The other way it is the other end that sees a cut: then what it has may stay.
            assert not partials_below(target)
        assert contents.get("small") in (b"old", b"new")
        assert contents.get("large", LARGE[: 300 * KIB]) == LARGE[: 300 * KIB]
        for name in contents:
            (target / name).unlink()
        target.rmdir()
        if not scope.cancelled_caught:
            completed += 1
            if completed == 3:
                break
    assert number > 50


class HangingRoot(FailingRoot):
    """A disk of which one call hangs, until `go_on` is set."""

    def __init__(self, name: str, part: bytes) -> None:
        super().__init__(self._hang)
        self.go_on = threading.Event()
        self.hangs = threading.Event()
        self._what = name, part

    def _hang(self, _number: int, name: str, path: bytes) -> None:
        if name == self._what[0] and self._what[1] in path and not self.go_on.is_set():
            self.hangs.set()
            self.go_on.wait(10)


@pytest.mark.parametrize("who", ["sender", "receiver"])
async def test_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """Who is cancelled doesn't wait for it for ever; when it comes back after all, it finds all closed, and tidy."""
    monkeypatch.setattr(disk_work, "GIVE_UP_SECONDS", 0.2)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE)
    root = HangingRoot("open", b"source" if who == "sender" else b".part")
    with trio.move_on_after(20) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: copy(source, target, **{f"{who}_root": root})  # type: ignore[arg-type]
            )
            while not root.hangs.is_set():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught

    root.go_on.set()
    # The leak check sees the descriptors; the file in the making is removed by the thread that comes last.
    with trio.fail_after(20):
        while partials_below(tmp_path) or any(
            thread.name.startswith("Trio thread") and "do" in thread.name
            for thread in threading.enumerate()
        ):
            await trio.sleep(0.01)
    assert names_below(tmp_path) == ["source"]


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="nothing is synced early there")
async def test_a_disk_that_hangs_in_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is with a disk that hangs over bytes it was given early."""
    monkeypatch.setattr(disk_work, "GIVE_UP_SECONDS", 0.2)
    monkeypatch.setattr(syncing, "EARLY_BYTES", MIB)
    hangs, go_on = threading.Event(), threading.Event()

    def hang(_descriptor: int) -> None:
        hangs.set()
        go_on.wait(10)

    monkeypatch.setattr(syncing, "_fdatasync", hang)
    source = tmp_path / "source"
    source.write_bytes(LARGE * 8)
    with trio.move_on_after(20) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy, source, tmp_path / "target")
            while not hangs.is_set():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught

    assert names_below(tmp_path) == ["source"]
    go_on.set()
    # The leak check sees the descriptors: nobody closes one that a thread uses.
    with trio.fail_after(20):
        while any(
            "_sync" in thread.name or "do" in thread.name for thread in threading.enumerate()
        ):
            await trio.sleep(0.01)


async def test_work_that_comes_too_late_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that gets to its work when all was given up leaves it, whoever comes first; what ends it is done."""
    monkeypatch.setattr(disk_work, "GIVE_UP_SECONDS", 0.05)
    disk, began, go_on, done = disk_work.DiskWork(), threading.Event(), threading.Event(), []

    def hang() -> None:
        began.set()
        go_on.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.do, hang)
        while not began.is_set():
            await trio.sleep(0.001)
        nursery.start_soon(disk.do, lambda: done.append("late"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await disk.finish(lambda: done.append("end"))
    assert done == []

    go_on.set()
    with trio.fail_after(20):
        while not done:
            await trio.sleep(0.01)
    await trio.sleep(0.05)
    assert done == ["end"]


# ---- files that change --------------------------------------------------------------------------


def changing(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None], *, times: int) -> None:
    """Have something happen in the middle of each of the first so many readings of a file."""
    read, read_into, count = os.read, reading.read_into, 0

    def tell() -> None:
        nonlocal count
        if count < times:
            count += 1
            change()

    def tell_read(descriptor: int, size: int) -> bytes:
        data = read(descriptor, size)
        if size > 500 and data:
            tell()
        return data

    def tell_read_into(descriptor: int, buffer: memoryview) -> int:
        size = read_into(descriptor, buffer)
        if size:
            tell()
        return size

    monkeypatch.setattr(os, "read", tell_read)
    monkeypatch.setattr(reading, "read_into", tell_read_into)


@pytest.mark.parametrize("size", [1000, len(LARGE)], ids=["small", "large"])
@pytest.mark.parametrize("kind", ["appended", "cut", "written", "replaced"])
async def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, kind: str
) -> None:
    """It is read again: the copy is what the file was at one moment."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE[:size])

    def change() -> None:
        if kind == "appended":
            with source.open("ab") as file:
                file.write(b"more")
        elif kind == "cut":
            os.truncate(source, size // 2)
        elif kind == "written":
            source.write_bytes(LARGE[:size][::-1])
        else:
            other = tmp_path / "other"
            other.write_bytes(b"another")
            other.rename(source)

    changing(monkeypatch, change, times=1)
    result = (await copy(source, target)).result

    expected = LARGE[:size] if kind == "replaced" else source.read_bytes()
    assert target.read_bytes() == expected
    assert result.size == len(expected)


@pytest.mark.parametrize("size", [1000, len(LARGE)], ids=["small", "large"])
async def test_a_file_that_always_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """After three times both ends say so, and there is no copy of a state that never was."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE[:size])

    def change() -> None:
        with source.open("ab") as file:
            file.write(b"more")

    changing(monkeypatch, change, times=100)
    copied = await copy(source, target)

    for each in (copied.sent, copied.received):
        assert isinstance(each, TransferError)
        assert "changed" in str(each)
        assert os.fsencode(each.filename) == os.fsencode(source)  # type: ignore[attr-defined]
    assert names_below(tmp_path) == ["source"]


async def test_files_that_vanish_are_left_out(tmp_path: Path) -> None:
    """Of a tree, what is removed after it was found isn't in the copy, nor counted; the rest is."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "in it").write_bytes(b"x")
    (source / "large").write_bytes(LARGE)
    (source / "small").write_bytes(b"small")
    (source / "stays").write_bytes(LARGE)
    gone: list[bytes] = []

    def remove(_number: int, name: str, path: bytes) -> None:
        last = os.path.basename(path)
        is_one = last in (b"folder", b"large", b"small")
        if name in ("open", "scan") and is_one and last not in gone:
            gone.append(last)
            subprocess.run(["rm", "-r", path], check=True)

    result = (await copy(source, target, sender_root=FailingRoot(remove))).result

    assert sorted(gone) == [b"folder", b"large", b"small"]
    assert names_below(target) == ["folder", "stays"]
    assert (result.files, result.size) == (1, len(LARGE))


async def test_a_file_that_becomes_a_link_is_sent_as_one(tmp_path: Path) -> None:
    """Between finding and opening: what it leads to now is not read."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "file").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"secret")

    def replace(_number: int, name: str, path: bytes) -> None:
        if name == "open" and path.endswith(b"/file") and not (source / "file").is_symlink():
            (source / "file").unlink()
            (source / "file").symlink_to(tmp_path / "secret")

    (await copy(source, target, sender_root=FailingRoot(replace))).result  # noqa: B018 - raises if it failed

    assert (target / "file").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
@pytest.mark.parametrize("size", [1, len(LARGE)], ids=["small", "large"])
async def test_a_file_that_becomes_a_pipe_hangs_nobody(tmp_path: Path, size: int) -> None:
    """Between finding and opening: then it is left out."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "file").write_bytes(LARGE[:size])
    (source / "other").write_bytes(b"x")

    def replace(_number: int, name: str, path: bytes) -> None:
        if name == "open" and path.endswith(b"/file") and (source / "file").is_file():
            (source / "file").unlink()
            os.mkfifo(source / "file")

    with trio.fail_after(20):
        result = (await copy(source, target, sender_root=FailingRoot(replace))).result

    assert (result.files, names_below(target)) == (1, ["other"])


# ---- in which order -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 50])
@pytest.mark.parametrize("has_syncfs", [True, False])
async def test_files_get_their_names_when_they_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, has_syncfs: bool
) -> None:
    """All is written, then all is synced, then come the names, and then the directories are synced."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for number in range(count):
        (source / str(number)).write_bytes(b"x")
    happened: list[str] = []
    root = FailingRoot(
        lambda _number, name, path: happened.append(f"{name} {os.path.basename(path).decode()}")
    )
    synced: list[str] = []

    def sync(descriptor: int) -> int:
        what = os.readlink(f"/proc/self/fd/{descriptor}")
        happened.append("sync directory" if os.path.isdir(what) else "sync")
        synced.append(what)
        return 0

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(syncing, "_syncfs", sync if has_syncfs else None)

    (await copy(source, target, receiver_root=root)).result  # noqa: B018 - raises if it failed

    made = [n for n, each in enumerate(happened) if each.startswith("open .sandd-")]
    syncs = [n for n, each in enumerate(happened) if each == "sync"]
    names = [n for n, each in enumerate(happened) if each.startswith("rename")]
    last = [n for n, each in enumerate(happened) if each == "sync directory"]
    assert len(made) == len(names) == count
    assert max(made) < max(syncs) < min(names)
    assert max(names) < min(last)
    if has_syncfs and count > syncing.ONE_BY_ONE:
        assert len(syncs) == 1
    else:
        assert len({each for each in synced if ".part" in each}) == count
    assert {each for each in synced if each[-6:] == "target"} == {str(target)}


@pytest.mark.parametrize("bound", ["SETTLE_FILES", "SETTLE_BYTES"])
async def test_files_get_their_names_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, no_syncing: None
) -> None:
    """Not all at the end: what a power failure costs has a bound."""
    for name in ("SETTLE_FILES", "SETTLE_BYTES", "SETTLE_SECONDS"):
        monkeypatch.setattr(writing, name, 300 if name == bound else 1 << 40)
    source = tmp_path / "source"
    source.mkdir()
    for number in range(2500):
        (source / str(number)).write_bytes(b"x")
    root = FailingRoot()

    (await copy(source, tmp_path / "target", receiver_root=root)).result  # noqa: B018 - raises if it failed

    waiting = most = 0
    for name, path in root.calls:
        waiting += (name == "open" and b".part" in path) - (name == "rename")
        most = max(most, waiting)
    assert waiting == 0
    assert most < 1500  # two batches, of one turn of a thread each, and one that is under way


# ---- killed -------------------------------------------------------------------------------------

RECEIVER = """
import os, sys, trio
from sandd._core.files.roots import AnyFile
from sandd._core.transfers.partials import Partials
from sandd._core.transfers.receiving import receive
from pathlib import Path

class Channel:
    def __init__(self):
        self.incoming, self.outgoing = trio.lowlevel.FdStream(0), trio.lowlevel.FdStream(1)
    async def send(self, *data):
        await self.outgoing.send_all(b"".join(data))
    async def receive(self, at_least=1):
        data = await self.incoming.receive_some(65536)
        return [data] if data else []

async def main():
    partials = Partials(Path(sys.argv[2]))
    partials.purge(AnyFile())
    await receive(Channel(), AnyFile(), os.fsencode(sys.argv[1]), partials=partials)

trio.run(main)
"""


class PipesChannel:
    """A process' pipes, as the sender's channel."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._to, self._from = process.stdin, process.stdout

    async def send(self, *data: bytes) -> None:
        """To its stdin."""
        await self._to.send_all(b"".join(data))

    async def receive(self, at_least: int = 1) -> list[bytes]:
        """From its stdout."""
        data = bytes(await self._from.receive_some(65536))
        return [data] if data else []


@pytest.mark.skipif(sys.platform == "win32", reason="trio has no pipes of a child there")
async def test_a_receiver_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL at any moment: every file is whole or old, and a new receiver goes on and leaves nothing behind."""
    source, target, journal = tmp_path / "source", tmp_path / "target", tmp_path / "journal"
    source.mkdir()
    contents = {f"small{number}": os.urandom(500) for number in range(300)}
    contents |= {f"large{number}": LARGE for number in range(8)}
    for name, data in contents.items():
        (source / name).write_bytes(data)
    target.mkdir()
    (target / "small0").write_bytes(b"old")

    async def run(kill_after: float) -> TransferResult | None:
        """Its result, unless it is killed so long after it began to write."""
        with copies():
            process = await trio.lowlevel.open_process(
                [sys.executable, "-c", RECEIVER, os.fspath(target), os.fspath(journal)],
                env=daemon_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        result = None
        async with trio.open_nursery() as nursery:

            async def kill() -> None:
                while not partials_below(target):
                    await trio.sleep(0.001)
                await trio.sleep(kill_after)
                process.kill()

            nursery.start_soon(kill)
            try:
                result = await send(PipesChannel(process), AnyFile(), os.fsencode(source))
            except (TransferError, trio.BrokenResourceError):
                assert await process.wait() == -signal.SIGKILL
            nursery.cancel_scope.cancel()
        await process.stdin.aclose()  # type: ignore[union-attr]
        await process.stdout.aclose()  # type: ignore[union-attr]
        await process.wait()
        return result

    kills = 0
    for number in itertools.count():
        result = await run(0.01 * 2**number - 0.01)
        for name in names_below(target):
            if ".sandd-" not in name:
                data = (target / name).read_bytes()
                assert data == contents[name] or (name, data) == ("small0", b"old")
        if result is not None:
            break
        kills += 1
    assert kills > 1
    assert {name: (target / name).read_bytes() for name in names_below(target)} == contents
    Partials(journal).purge(AnyFile())
    assert names_below(journal) == []
