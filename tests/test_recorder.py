"""The recorder: whatever the disk does, the session isn't disturbed, and the file is a recording."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pyte
import pytest
import trio
import trio.testing
from daemons import daemon_environment
from forked_python import copies
from process_tools import linux_only, posix_only, until

from sandd._core import recorder as recorder_module
from sandd._core.asciicast import AsciicastEncoder
from sandd._core.recorder import (
    NOTE_BYTES,
    QUEUE_BYTES,
    Recorder,
    RecordingFile,
    open_recorder,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path


def recording(path: Path, **options: Any) -> AbstractAsyncContextManager[Recorder, bool | None]:
    """A recorder of a small terminal."""
    return open_recorder(path, **{"rows": 24, "cols": 80, "term": "xterm", **options})


def events(path: Path, *, torn: bool = False) -> list[tuple[str, str]]:
    """(code, data) of what is in the file; a last line that isn't whole is an error unless `torn`."""
    *lines, rest = path.read_bytes().split(b"\n")
    assert torn or not rest
    header = json.loads(lines[0])
    assert header["version"] == 3
    return [(code, data) for _, code, data in map(json.loads, lines[1:])]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The events that were logged."""
    return [record.msg["event"] for record in caplog.records if isinstance(record.msg, dict)]


class SlowDisk:
    """Each write waits until it may, as one to a disk that hangs."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.waiting = 0

    def wait(self) -> None:
        """Wait, in the thread."""
        self.waiting += 1
        assert self.open.wait(10)
        self.waiting -= 1


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    """A disk that hangs, behind the header, until `open` is set."""
    disk = SlowDisk()
    write = RecordingFile._append

    def append(self: RecordingFile, lines: bytes) -> None:
        if self._size:
            disk.wait()
        write(self, lines)

    monkeypatch.setattr(RecordingFile, "_append", append)
    yield disk
    disk.open.set()


# ---- what is recorded ----------------------------------------------------------------------------


async def test_a_session_is_recorded(tmp_path: Path) -> None:
    """All of it, in order, in a file of one's own; what isn't asked for isn't there."""
    path = tmp_path / "session.cast"
    async with recording(path, command="sh", title="Demo") as recorder:
        recorder.output(b"caf\xc3")
        recorder.output(b"\xa9")
        recorder.input(b"secret")
        recorder.gap(5, 8)
        recorder.resized(30, 100)
        recorder.ended(0, None)
        recorder.output(b"late")
    assert events(path) == [
        ("o", "caf"),
        ("o", "é"),
        ("m", "3 bytes of output were dropped"),
        ("r", "100x30"),
        ("x", "0"),
    ]
    header = json.loads(path.read_bytes().splitlines()[0])
    assert (header["command"], header["title"]) == ("sh", "Demo")
    assert header["term"] == {"cols": 80, "rows": 24, "type": "xterm"}
    assert recorder.failure is None
    assert repr(recorder) == f"<Recorder {str(path)!r}>"


async def test_input_is_recorded_where_that_was_asked_for(tmp_path: Path) -> None:
    """And a session that wasn't seen to end has no exit status."""
    path = tmp_path / "session.cast"
    async with recording(path, include_input=True) as recorder:
        recorder.input(b"ls\r")
        recorder.output(b"\xe2\x82")
    assert events(path) == [("i", "ls\r"), ("o", "\N{REPLACEMENT CHARACTER}")]


async def test_intervals_are_those_of_the_calls(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """Not those of the writing, which is later."""
    path = tmp_path / "session.cast"
    async with recording(path) as recorder:
        for pause in (0.05, 1.5, 0.002):
            mock_clock.jump(pause)
            recorder.output(b"x")
    intervals = [json.loads(line)[0] for line in path.read_bytes().splitlines()[1:]]
    assert intervals == [0.05, 1.5, 0.002]


async def test_what_came_is_soon_in_the_file(tmp_path: Path) -> None:
    """For someone who looks on; the header at once."""
    path = tmp_path / "session.cast"
    async with recording(path) as recorder:
        assert events(path) == []
        for number in range(2):
            recorder.output(b"%d" % number)
            began = trio.current_time()
            await until(lambda number=number: len(events(path)) == number + 1)
            assert trio.current_time() - began < 0.5 + 10.0  # the ten are the machine's, not ours


async def test_where_nothing_happens_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes together is written at once, and then there is peace."""
    monkeypatch.setattr(recorder_module, "WRITE_AFTER_SECONDS", 0.01)
    written = []
    write = RecordingFile.write

    def counting(self: RecordingFile, notes: list[Callable[[], bytes]]) -> None:
        written.append(len(notes))
        write(self, notes)

    monkeypatch.setattr(RecordingFile, "write", counting)
    async with recording(tmp_path / "session.cast") as recorder:
        recorder.output(b"a" * (QUEUE_BYTES // 2))
        recorder.output(b"b")
        await until(lambda: written)
        await trio.sleep(0.1)
        assert written == [2]
        recorder.output(b"c")
        await until(lambda: len(written) == 2)
    assert written == [2, 1, 1]  # the last is the end's


async def test_a_burst_is_written_before_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a queue doesn't wait for more to come."""
    monkeypatch.setattr(recorder_module, "WRITE_AFTER_SECONDS", 1000.0)
    path = tmp_path / "session.cast"
    async with recording(path) as recorder:
        recorder.output(b"a" * (QUEUE_BYTES // 2))
        await until(lambda: path.stat().st_size > QUEUE_BYTES // 2)


async def test_a_recording_replays(tmp_path: Path) -> None:
    """A terminal that is fed what was recorded of a real program shows what that program drew."""
    path = tmp_path / "session.cast"
    screen = pyte.Screen(80, 24)
    stream = pyte.ByteStream(screen)
    draw = r"""
for row in 2 5 9 20; do printf '\033[%d;%dH\033[3%dm\342\224\202 row %d \033[K' $row $row $((row % 8)) $row; done
printf '\033[Hh\303\251llo\r\n\t%s\033[1;7mreverse' "$(uname)"
"""
    async with recording(path, command="sh") as recorder, trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(trio.run_process, ["/bin/sh", "-c", draw], stdout=subprocess.PIPE)
        )
        while data := await process.stdout.receive_some(5):
            stream.feed(data)
            recorder.output(data)
        recorder.ended(await process.wait(), None)
    replayed = pyte.Screen(80, 24)
    player = pyte.Stream(replayed)
    recorded = events(path)
    for code, data in recorded:
        if code == "o":
            player.feed(data)
    assert "héllo" in screen.display[0]
    assert replayed.display == screen.display
    assert replayed.buffer == screen.buffer
    assert recorded[-1] == ("x", "0")


@pytest.mark.skipif(
    importlib.util.find_spec("asciinema_scene") is None, reason="asciinema-scene is not installed"
)
async def test_another_programs_reader_reads_it(tmp_path: Path) -> None:
    """Frames, times and size as somebody else's code for the format sees them."""
    from asciinema_scene.scenelib.scene_content import SceneContent

    path = tmp_path / "session.cast"
    async with recording(path, include_input=True) as recorder:
        recorder.output("h\N{SNOWMAN}\x1b[1m\r\n".encode())
        await trio.sleep(0.01)
        recorder.input(b"\x03")
        recorder.resized(10, 20)
        recorder.ended(None, 2)
    scene = SceneContent.parse(path)
    assert scene.format_version == 3
    assert (scene.header["width"], scene.header["height"]) == (80, 24)
    *frames, padding = [(frame.tpe, frame.text) for frame in scene.frames]
    assert padding == ("o", "\r\n")  # that reader's own
    assert frames == [
        ("o", "h\N{SNOWMAN}\x1b[1m\r\n"),
        ("i", "\x03"),
        ("r", "20x10"),
        ("x", "130"),
    ]
    assert 0.01 <= scene.duration < 5


async def test_the_bound_ends_the_recording_and_not_the_session(tmp_path: Path) -> None:
    """The file says so and is closed; what comes is forgotten."""
    path = tmp_path / "session.cast"
    async with recording(path, max_bytes=1000) as recorder:
        for _ in range(100):
            recorder.output(b"x" * 50)
        await until(lambda: recorder._stopped)
        recorder.output(b"more")
        recorder.resized(1, 1)
        assert not recorder._notes
        assert recorder._file._file is not None
        assert recorder._file._file.closed
    assert path.stat().st_size <= 1000
    assert events(path)[-1] == ("m", "recording ended: its size limit is reached")
    assert recorder.failure is None


# ---- making the file -----------------------------------------------------------------------------


@posix_only
async def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """Whatever the umask."""
    before = os.umask(0)
    try:
        async with recording(tmp_path / "session.cast"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "session.cast").stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
async def test_nothing_is_overwritten(tmp_path: Path, kind: str) -> None:
    """Nor written through a link; the body isn't entered."""
    path = tmp_path / "session.cast"
    if kind == "file":
        path.write_text("precious")
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
    with pytest.raises(FileExistsError):
        async with recording(path):
            raise AssertionError
    assert os.listdir(tmp_path) == ["session.cast"]
    assert kind != "file" or path.read_text() == "precious"


async def test_a_missing_directory_is_the_callers_error(tmp_path: Path) -> None:
    """As itself, at once."""
    with pytest.raises(FileNotFoundError):
        async with recording(tmp_path / "nowhere" / "session.cast"):
            raise AssertionError
    with pytest.raises(ValueError, match="max_bytes"):
        async with recording(tmp_path / "session.cast", max_bytes=1):
            raise AssertionError
    assert os.listdir(tmp_path) == []


async def test_a_header_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears of it, and finds the name free the next time."""

    def fail(self: RecordingFile, lines: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordingFile, "_append", fail)
    with pytest.raises(OSError, match="No space left"):
        async with recording(tmp_path / "session.cast"):
            raise AssertionError
    assert os.listdir(tmp_path) == []


async def test_cancelled_while_the_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller goes on at once, and the thread, when it comes to that, leaves nothing."""
    disk = SlowDisk()
    write = RecordingFile._append

    def append(self: RecordingFile, lines: bytes) -> None:
        disk.wait()
        write(self, lines)

    monkeypatch.setattr(RecordingFile, "_append", append)
    with trio.move_on_after(5) as scope:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def cancel() -> None:
                await until(lambda: disk.waiting)
                scope.cancel()

            async with recording(tmp_path / "session.cast"):
                raise AssertionError
    assert scope.cancelled_caught
    assert len(os.listdir(tmp_path)) == 1
    disk.open.set()
    await until(lambda: not os.listdir(tmp_path))


# ---- how the block is left -----------------------------------------------------------------------


async def test_the_bodys_exception_leaves_as_itself(tmp_path: Path) -> None:
    """And the file has what came before."""
    path = tmp_path / "session.cast"
    error = KeyError("ours")
    with pytest.raises(KeyError) as caught:  # noqa: PT012 - the block is what is tested
        async with recording(path) as recorder:
            recorder.output(b"before")
            raise error
    assert caught.value is error
    assert events(path) == [("o", "before")]


@pytest.mark.parametrize("delay", [0.0, 0.01], ids=["at once", "later"])
async def test_cancelled_the_file_is_complete(tmp_path: Path, delay: float) -> None:
    """Up to what came, also where the task that writes hadn't begun."""
    path = tmp_path / "session.cast"
    with trio.move_on_after(5) as scope:
        async with recording(path) as recorder:
            recorder.output(b"before")
            if delay:
                await trio.sleep(delay)
            scope.cancel()
            try:
                await trio.sleep_forever()
            finally:
                recorder.ended(None, 15)
    assert scope.cancelled_caught
    assert events(path) == [("o", "before"), ("x", "143")]


@posix_only
def test_ctrl_c_the_file_is_complete(tmp_path: Path) -> None:
    """Up to what came, and KeyboardInterrupt is what leaves."""
    path = tmp_path / "session.cast"

    async def main() -> None:
        async with recording(path) as recorder:
            recorder.output(b"before")
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert events(path) == [("o", "before")]


@posix_only
@pytest.mark.parametrize("method", ["output", "input", "gap", "resized", "ended"])
def test_ctrl_c_in_a_method_loses_no_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """It waits until the note is taken, and then ends the program."""
    path = tmp_path / "session.cast"
    append = Recorder._append

    def append_interrupted(self: Recorder, note: Callable[[], bytes], size: int = 0) -> None:
        signal.raise_signal(signal.SIGINT)
        append(self, note, size)

    async def main() -> None:
        async with recording(path, include_input=True) as recorder:
            with monkeypatch.context() as patch:
                patch.setattr(Recorder, "_append", append_interrupted)
                getattr(recorder, method)(*([b"x"] if method in ("output", "input") else [1, 2]))
            await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert [code for code, _ in events(path)] == [
        {"output": "o", "input": "i", "gap": "m", "resized": "r", "ended": "x"}[method]
    ]


@posix_only
def test_ctrl_c_in_the_task_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It strikes the program's main task, and the recorder's goes on."""
    recorders = []

    def interrupt(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with recording(tmp_path / "session.cast") as recorder:
            recorders.append(recorder)
            recorder._file._file = Broken(recorder._file._file)  # type: ignore[assignment]
            recorder.output(b"x")
            await trio.sleep_forever()

    monkeypatch.setattr(recorder_module.log.__class__, "warning", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert isinstance(recorders[0].failure, OSError)


KILLED = """
import sys, trio
from sandd._core.recorder import open_recorder

async def main():
    async with open_recorder(sys.argv[1], rows=24, cols=80, term="xterm") as recorder:
        while True:
            for number in range(100):
                recorder.output(b"line %d\\r\\n" % number)
            await trio.sleep(0)

trio.run(main)
"""


@posix_only
async def test_a_killed_program_leaves_a_recording(tmp_path: Path) -> None:
    """Each line but the last, which may be torn, is whole."""
    path = tmp_path / "session.cast"
    with copies():
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", KILLED, str(path)], env=daemon_environment()
        )
    try:
        await until(lambda: path.exists() and path.stat().st_size > 500_000, within=30)
    finally:
        process.kill()
        await process.wait()
    recorded = events(path, torn=True)
    assert len(recorded) > 10_000
    assert {code for code, _ in recorded} <= {"o", "m"}


# ---- a disk that is slow -------------------------------------------------------------------------


async def test_a_disk_that_hangs_costs_parts_of_the_recording(
    tmp_path: Path, slow_disk: SlowDisk
) -> None:
    """Memory is bounded, the markers say how much is missing, and the size is the right one behind them."""
    path = tmp_path / "session.cast"
    piece = b"x" * 1000
    async with recording(path, include_input=True) as recorder:
        recorder.output(b"first")
        await until(lambda: slow_disk.waiting)
        for number in range(10_000):
            recorder.output(piece)
            if number % 100 == 99:
                recorder.resized(number, 1)
            assert recorder._noted <= QUEUE_BYTES
        recorder.gap(0, 7)
        recorder.input(b"y" * 1000)
        assert recorder._noted > QUEUE_BYTES - 2 * 1000
        assert len(recorder._notes) < QUEUE_BYTES / 1000
        slow_disk.open.set()
        await until(lambda: recorder._noted == 0)
        recorder.output(b"last")
    recorded = events(path)
    kept = sum(len(data) for code, data in recorded if code == "o") - len("firstlast")
    told = [int(data.split()[0]) for code, data in recorded if code == "m" and "output" in data]
    assert kept > QUEUE_BYTES // 2
    assert kept + sum(told) == 10_000 * 1000 + 7
    assert recorded[-3:] == [
        ("m", "1000 bytes of input were not recorded"),
        ("r", "1x9999"),
        ("o", "last"),
    ]
    assert recorder.failure is None


async def test_tiny_pieces_are_bounded_too(tmp_path: Path, slow_disk: SlowDisk) -> None:
    """What a note costs besides its data counts."""
    path = tmp_path / "session.cast"
    async with recording(path) as recorder:
        for _ in range(2 * QUEUE_BYTES // NOTE_BYTES):
            recorder.output(b"x")
            recorder.resized(1, 1)
            recorder.gap(0, 1)
        assert len(recorder._notes) <= QUEUE_BYTES // NOTE_BYTES
        slow_disk.open.set()


async def test_what_is_missing_at_the_end_is_said(tmp_path: Path, slow_disk: SlowDisk) -> None:
    """Before the exit status, for which there is always room."""
    path = tmp_path / "session.cast"
    async with recording(path) as recorder:
        recorder.output(b"x" * (QUEUE_BYTES - NOTE_BYTES))
        recorder.output(b"y" * 100)
        recorder.ended(1, None)
        slow_disk.open.set()
    assert events(path)[1:] == [("m", "100 bytes of output were not recorded"), ("x", "1")]


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["left", "cancelled"])
async def test_a_disk_that_hangs_at_the_end_is_given_up(
    tmp_path: Path,
    slow_disk: SlowDisk,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_cancelled: bool,
) -> None:
    """Leaving takes a bounded time; the thread closes the file when it comes to that."""
    monkeypatch.setattr(recorder_module, "CLOSE_SECONDS", 0.2)
    path = tmp_path / "session.cast"
    began = trio.current_time()
    with trio.CancelScope() as scope:
        async with recording(path) as recorder:
            recorder.output(b"x")
            if is_cancelled:
                scope.cancel()
    assert 0.2 <= trio.current_time() - began < 20
    assert isinstance(recorder.failure, TimeoutError)
    assert "failed: TimeoutError" in repr(recorder)
    assert messages(caplog) == ["recording_failed"]
    file = recorder._file._file
    assert file is not None
    assert not file.closed
    slow_disk.open.set()
    await until(lambda: file.closed)
    assert events(path) == [("o", "x")]


# ---- a disk that fails ---------------------------------------------------------------------------


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    """The kernel refuses to let any file of ours, pytest's output too, grow beyond it: a real error, after a part."""
    import resource

    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@posix_only
async def test_a_disk_that_takes_a_part_of_a_line(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The session goes on, the file ends with the last line that was whole, and one line in the log says why."""
    path = tmp_path / "session.cast"
    async with recording(path) as recorder:
        for _ in range(100):
            recorder.output(b"x" * 50)
        with small_files(1000):
            await until(lambda: recorder.failure)
        for _ in range(100):
            recorder.output(b"more")
        recorder.resized(1, 1)
        recorder.ended(0, None)
        assert not recorder._notes
    assert isinstance(recorder.failure, OSError)
    assert recorder.failure.errno == errno.EFBIG
    assert 900 < path.stat().st_size < 1000
    assert set(events(path)) == {("o", "x" * 50)}
    assert messages(caplog) == ["recording_failed"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@linux_only
async def test_a_full_file_system(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As above, on one that is really full."""
    path = small_disk / "session.cast"
    async with recording(path) as recorder:
        for _ in range(1000):
            recorder.output(b"x" * 999)
        await until(lambda: recorder.failure)
        recorder.output(b"more")
    assert isinstance(recorder.failure, OSError)
    assert recorder.failure.errno == errno.ENOSPC
    assert 60 <= len(events(path)) <= 65
    assert messages(caplog) == ["recording_failed"]


class Broken:
    """A file that takes five bytes and then no more, and complains when it is closed."""

    def __init__(self, file: Any, *, truncates: bool = True) -> None:
        self.file = file
        self.truncates = truncates
        self.written = 0

    def write(self, data: memoryview) -> int:
        """See `io.FileIO`; so for the others."""
        if self.written:
            raise OSError(errno.EIO, "Input/output error")
        self.written = self.file.write(data[:5])
        return self.written

    def truncate(self, size: int) -> None:
        """Cut it."""
        if not self.truncates:
            raise OSError(errno.EROFS, "Read-only file system")
        self.file.truncate(size)

    def close(self) -> None:
        """Close it, and complain."""
        self.file.close()
        raise OSError(errno.ESTALE, "Stale file handle")

    @property
    def closed(self) -> bool:
        """Whether it was."""
        return self.file.closed


@pytest.mark.parametrize("truncates", [True, False])
async def test_a_broken_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truncates: bool
) -> None:
    """Nothing works any more: not a write, not the cutting back; closing leaves no descriptor."""
    path = tmp_path / "session.cast"

    async with recording(path) as recorder:
        size = path.stat().st_size
        recorder._file._file = Broken(recorder._file._file, truncates=truncates)  # type: ignore[assignment]
        recorder.output(b"x" * 100)
        await until(lambda: recorder.failure)
        assert recorder._file._file.closed
    assert isinstance(recorder.failure, OSError)
    assert recorder.failure.errno == errno.EIO
    assert path.stat().st_size == (size if truncates else size + 5)
    assert events(path, torn=not truncates) == []


async def test_an_error_at_the_close_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some file systems find out only then."""

    def fail(self: RecordingFile) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(RecordingFile, "close", fail)
    async with recording(tmp_path / "session.cast") as recorder:
        recorder.output(b"x")
    assert isinstance(recorder.failure, OSError)
    assert messages(caplog) == ["recording_failed"]
    assert recorder._file._file is not None
    assert recorder._file._file.closed


async def test_a_defect_of_ours_costs_no_more_than_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its traceback, and the session never sees it."""

    def fail(*_: object, **__: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(AsciicastEncoder, "output", fail)
    with caplog.at_level(logging.INFO, "sandd"):
        async with recording(tmp_path / "session.cast") as recorder:
            recorder._file._file = Broken(recorder._file._file)  # type: ignore[assignment]
            recorder.output(b"x")
            await until(lambda: recorder.failure)
            recorder.output(b"x")
    assert isinstance(recorder.failure, ZeroDivisionError)
    assert recorder._file._file.closed
    assert messages(caplog) == ["recorder_crashed"]


async def test_the_methods_cost_no_disk_and_no_wait(tmp_path: Path, slow_disk: SlowDisk) -> None:
    """They return while the disk hangs, without a checkpoint; another task's turn comes as ever."""
    async with recording(tmp_path / "session.cast", include_input=True) as recorder:
        recorder.output(b"x")
        await until(lambda: slow_disk.waiting)
        with trio.testing.assert_no_checkpoints():
            recorder.output(b"x")
            recorder.input(b"x")
            recorder.gap(0, 1)
            recorder.resized(1, 1)
            recorder.ended(0, None)
        with trio.fail_after(20):
            await trio.sleep(0.01)
        assert slow_disk.waiting
        slow_disk.open.set()
