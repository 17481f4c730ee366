"""What a daemon does with files when it is asked: in threads, which a disk that hangs keeps for itself."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from scripted import Bytes
from test_requests import Daemon, end_of, give

from sandd import wire
from sandd._core import file_requests, watch_requests
from sandd._core.file_requests import FileRequests
from sandd._core.files.roots import AnyFile
from sandd._core.watch_requests import MAX_PENDING, Noted
from sandd.wire import ChangeKind, FailedCode, JobState, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="paths are POSIX")


class Slow(AnyFile):
    """A disk that hangs whenever it is told to."""

    def __init__(self) -> None:
        self.works = threading.Event()
        self.works.set()
        self.waiting = 0

    def _wait(self) -> None:
        self.waiting += 1
        assert self.works.wait(20)
        self.waiting -= 1

    def stat(self, path: bytes, *, follow_symlinks: bool = True) -> os.stat_result:
        """As in `Root`."""
        self._wait()
        return super().stat(path, follow_symlinks=follow_symlinks)

    def open(self, path: bytes, flags: int, mode: int = 0o666) -> int:
        """As in `Root`."""
        self._wait()
        return super().open(path, flags, mode)

    def scan(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        """As in `Root`."""
        for entry in super().scan(path):
            self._wait()
            yield entry


@contextlib.asynccontextmanager
async def running(root: AnyFile, **options: Any) -> AsyncIterator[Daemon]:
    """A daemon that does requests about files."""
    async with trio.open_nursery() as nursery:
        daemon = Daemon(nursery)
        daemon.requests.offer(FileRequests(root, **options).doers)
        yield daemon
        nursery.cancel_scope.cancel()


async def ended(daemon: Daemon, channel: int) -> wire.Exited | wire.Failed:
    """How it ended, once it has."""
    job = daemon.job(channel)
    while job.state is not JobState.ENDED:
        await trio.sleep(0.005)
    assert job.result is not None
    return job.result


def take_back(daemon: Daemon, channel: int) -> None:
    """Its client wants nothing more of it."""
    job = daemon.job(channel)
    daemon.receive(
        channel, wire.End("d", job.key[1], client=job.key[1].partition(".")[0], tenant="t")
    )


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a thread."""
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.005)


async def test_a_disk_that_hangs_keeps_a_request_and_nobody_else(tmp_path: Path) -> None:
    """It can be taken back at once, and requests about jobs go on; so do those about files while threads are left."""
    root = Slow()
    async with running(root, limiter=trio.CapacityLimiter(2)) as daemon:
        root.works.clear()
        hung = daemon.ask(wire.StatSpec(os.fsencode(tmp_path)))
        await until(lambda: root.waiting == 1)
        made = daemon.ask(wire.MakeDirectorySpec(os.fsencode(tmp_path / "new")))
        assert isinstance(await ended(daemon, made), wire.Exited)
        jobs = daemon.ask(wire.JobsSpec())
        assert isinstance(await ended(daemon, jobs), wire.Exited)
        job = daemon.job(hung)
        take_back(daemon, hung)
        await trio.testing.wait_all_tasks_blocked()
        assert job.state is JobState.ENDED
        root.works.set()
        await until(lambda: root.waiting == 0)


@pytest.mark.parametrize("kind", ["read", "write", "list"])
async def test_what_a_hanging_disk_gives_late_is_let_go_of(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that opened it closes it when it comes back, though nobody waits any more."""
    monkeypatch.setattr("sandd._core.transfers.disk_work.GIVE_UP_SECONDS", 0.05)
    (tmp_path / "file").write_bytes(bytes(100))
    path = os.fsencode(tmp_path / "file")
    spec = {
        "read": wire.ReadSpec(path),
        "write": wire.WriteSpec(path),
        "list": wire.ListSpec(os.fsencode(tmp_path)),
    }[kind]
    root = Slow()
    before = os.listdir("/dev/fd")
    async with running(root) as daemon:
        root.works.clear()
        channel = daemon.ask(spec)
        await until(lambda: root.waiting == 1)
        job = daemon.job(channel)
        take_back(daemon, channel)
        await until(lambda: job.state is JobState.ENDED)
        root.works.set()
        await until(lambda: root.waiting == 0)
        await until(lambda: len(os.listdir("/dev/fd")) <= len(before))
        await until(lambda: os.listdir(tmp_path) == ["file"])


async def test_a_small_file_is_written_in_one_go(tmp_path: Path) -> None:
    """Its bytes came with the request: one hop into a thread, and one answer."""
    async with running(AnyFile()) as daemon:
        channel = daemon.ask(wire.WriteSpec(os.fsencode(tmp_path / "file")))
        give(daemon, channel, 0, b"text", final=True)
        assert isinstance(await ended(daemon, channel), wire.Exited)
        (info,) = answers(daemon, channel)
        assert isinstance(info, wire.FileInfo)
        assert (info.kind, info.size) == (wire.FileKind.FILE, 4)
        assert (tmp_path / "file").read_bytes() == b"text"


async def test_what_comes_later_is_waited_for(tmp_path: Path) -> None:
    """The client hears that the file is open; without an end of input nothing is changed."""
    (tmp_path / "file").write_bytes(b"old")
    async with running(AnyFile()) as daemon:
        channel = daemon.ask(wire.WriteSpec(os.fsencode(tmp_path / "file")))
        log = daemon.job(channel).sends[Stream.OUTPUT]
        await until(lambda: log.end > 0)
        give(daemon, channel, 0, b"ne")
        await trio.testing.wait_all_tasks_blocked()
        assert (tmp_path / "file").read_bytes() == b"old"
        give(daemon, channel, 2, b"w", final=True)
        assert isinstance(await ended(daemon, channel), wire.Exited)
        assert [type(each) for each in answers(daemon, channel)] == [wire.FileInfo] * 2
        assert (tmp_path / "file").read_bytes() == b"new"
        channel = daemon.ask(wire.WriteSpec(os.fsencode(tmp_path / "file")))
        give(daemon, channel, 0, b"newer")
        await until(lambda: len(os.listdir(tmp_path)) == 2)
        take_back(daemon, channel)
        await until(lambda: os.listdir(tmp_path) == ["file"])
        assert (tmp_path / "file").read_bytes() == b"new"


def answers(daemon: Daemon, channel: int) -> list[wire.Answer | wire.Unknown]:
    """All that it put out."""
    said = [each.body for each in daemon.heard(channel) if isinstance(each, Bytes)]
    return list(wire.decode_answers(b"".join(said)))


async def test_many_answers_come_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a search that finds nothing looks up from time to time whether anybody still waits."""
    monkeypatch.setattr(file_requests, "BATCH_ANSWERS", 3)
    for number in range(10):
        (tmp_path / str(number)).mkdir()
    async with running(AnyFile()) as daemon:
        channel = daemon.ask(wire.ListSpec(os.fsencode(tmp_path)))
        assert isinstance(await ended(daemon, channel), wire.Exited)
        assert len(answers(daemon, channel)) == 10
        monkeypatch.setattr(file_requests, "BATCH_SECONDS", 0.0)
        channel = daemon.ask(wire.GlobSpec(os.fsencode(tmp_path), b"nothing*"))
        assert isinstance(await ended(daemon, channel), wire.Exited)
        assert answers(daemon, channel) == []


async def test_a_null_byte_is_in_no_path(tmp_path: Path) -> None:
    """Whatever is asked: some of Python's calls raise ValueError for it."""
    path, bad = os.fsencode(tmp_path), b"a\0b"
    async with running(AnyFile()) as daemon:
        for spec in (
            wire.StatSpec(bad),
            wire.ReadSpec(bad),
            wire.GlobSpec(path, bad),
            wire.RenameSpec(path, bad),
            wire.LinkSpec(path, bad),
        ):
            failed = await ended(daemon, daemon.ask(spec))
            assert isinstance(failed, wire.Failed)
            assert (failed.code, failed.symbol) == (FailedCode.SYSTEM, "EINVAL")
            assert failed.filename == bad


# ---- watching -------------------------------------------------------------------------------------


async def test_what_happens_to_a_file_is_told_once() -> None:
    """The newest; but one that is new is new, whatever was written to it since."""
    noted = Noted()
    noted.note([(ChangeKind.ADDED, b"a"), (ChangeKind.MODIFIED, b"b")])
    noted.note([(ChangeKind.MODIFIED, b"a"), (ChangeKind.REMOVED, b"b")])
    assert await noted.take() == [
        wire.FileChange(ChangeKind.ADDED, b"a"),
        wire.FileChange(ChangeKind.REMOVED, b"b"),
    ]
    noted.note([])
    with pytest.raises(trio.TooSlowError), trio.fail_after(0.01):
        await noted.take()


async def test_what_is_too_much_is_missed_and_said_so() -> None:
    """What happens afterwards is told again; memory is bounded."""
    noted = Noted()
    for number in range(3 * MAX_PENDING + 10):
        noted.note([(ChangeKind.ADDED, str(number).encode())])
        assert len(noted._changes) <= MAX_PENDING
    told = await noted.take()
    assert told[0] == wire.FileChange(ChangeKind.MISSED)
    assert told[-1] == wire.FileChange(ChangeKind.ADDED, str(3 * MAX_PENDING + 9).encode())


class Notify:
    """watchfiles' watcher, as a test has it: it sees what it is told."""

    current: Notify

    def __init__(self, paths: list[str], *options: object) -> None:
        if not os.path.exists(paths[0]):
            raise FileNotFoundError(errno.ENOENT, "gone", paths[0])
        self.paths = paths
        self.options = options
        self.seen: list[set[tuple[int, str]]] = []
        self.is_closed = False
        Notify.current = self

    def __enter__(self) -> Notify:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed = True

    def watch(self, _debounce: int, _step: int, _timeout: int, stop: threading.Event) -> Any:
        """What it was told to see, or that it is to stop."""
        while not self.seen:
            if stop.wait(0.01):
                return "stop"
        return self.seen.pop(0) or "timeout"


@pytest.fixture
def notify(monkeypatch: pytest.MonkeyPatch) -> type[Notify]:
    """In place of watchfiles."""
    module = type(sys)("watchfiles._rust_notify")
    module.RustNotify = Notify  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "watchfiles", type(sys)("watchfiles"))
    monkeypatch.setitem(sys.modules, "watchfiles._rust_notify", module)
    return Notify


async def test_what_is_seen_is_told_by_its_path_from_there(
    notify: type[Notify], tmp_path: Path
) -> None:
    """First of all what is watched; then each change; until it is taken back, when the watcher goes, too."""
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    async with running(AnyFile()) as daemon:
        channel = daemon.ask(wire.WatchSpec(os.fsencode(tmp_path / "link"), recursive=False))
        log = daemon.job(channel).sends[Stream.OUTPUT]
        await until(lambda: log.end > 0)
        watcher = notify.current
        assert watcher.paths == [str(tmp_path / "real")]
        assert watcher.options == (False, False, 300, False, True)
        end = log.end
        watcher.seen.append(set())
        watcher.seen.append({(1, str(tmp_path / "real/deep/new")), (3, str(tmp_path / "real"))})
        await until(lambda: log.end > end)
        first, *told = answers(daemon, channel)
        assert isinstance(first, wire.FileInfo)
        assert first.kind is wire.FileKind.DIRECTORY
        assert told == [
            wire.FileChange(ChangeKind.ADDED, b"deep/new"),
            wire.FileChange(ChangeKind.REMOVED, b""),
        ]
        take_back(daemon, channel)
        await until(lambda: watcher.is_closed)


async def test_what_lies_outside_the_root_is_not_told(notify: type[Notify], tmp_path: Path) -> None:
    """The watcher follows links, and the client may not."""
    from sandd._core.files.confined_roots import open_root

    (tmp_path / "outer").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path / "outer")
    with open_root(os.fsencode(tmp_path / "root")) as root:
        async with running(root) as daemon:  # type: ignore[arg-type]
            channel = daemon.ask(wire.WatchSpec(b"."))
            log = daemon.job(channel).sends[Stream.OUTPUT]
            await until(lambda: log.end > 0)
            end = log.end
            notify.current.seen.append(
                {(1, str(tmp_path / "root/out/secret")), (1, str(tmp_path / "root/shown"))}
            )
            await until(lambda: log.end > end)
            assert answers(daemon, channel)[1:] == [wire.FileChange(ChangeKind.ADDED, b"shown")]
            failed = await ended(daemon, daemon.ask(wire.WatchSpec(b"../outer")))
            assert isinstance(failed, wire.Failed)
            assert failed.symbol == "EACCES"


async def test_who_reads_slowly_is_told_that_something_was_missed(
    notify: type[Notify], tmp_path: Path
) -> None:
    """And nobody waits for it: what is seen is taken from the watcher all the time."""
    async with running(AnyFile()) as daemon:
        channel = daemon.ask(wire.WatchSpec(os.fsencode(tmp_path)), credit=0)
        job = daemon.job(channel)
        await until(lambda: job.sends[Stream.OUTPUT].end > 0)
        watcher = notify.current
        for _ in range(20):
            watcher.seen.append(
                {(1, str(tmp_path / f"{os.urandom(100).hex()}")) for _ in range(900)}
            )
        await until(lambda: not watcher.seen)
        await until(lambda: job.room(Stream.OUTPUT) < 400)
        said: list[Any] = []
        window = wire.Window((wire.StreamWindow(Stream.OUTPUT, 0, 100_000_000),))
        daemon.receive(channel, window)
        body = b""
        reader = wire.AnswerReader()
        while wire.FileChange(ChangeKind.MISSED) not in said:
            for each in daemon.heard(channel):
                if isinstance(each, Bytes):
                    body += each.body
                    said += reader.feed(each.body)
            window = wire.StreamWindow(Stream.OUTPUT, len(body), 100_000_000)
            daemon.receive(channel, wire.Window((window,)))
            await trio.sleep(0.01)
        assert len(said) < 20 * 900


async def test_without_watchfiles_it_is_declined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what there is to do about it."""
    monkeypatch.setitem(sys.modules, "watchfiles._rust_notify", None)
    async with running(AnyFile()) as daemon:
        channel = daemon.ask(wire.WatchSpec(os.fsencode(tmp_path)))
        await ended(daemon, channel)
        failed = end_of(daemon.heard(channel))
        assert failed.code is FailedCode.DECLINED
        assert "trio-sandd[watch]" in failed.message
    assert watch_requests.MAX_PENDING == MAX_PENDING
