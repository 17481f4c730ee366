"""`Daemon.upload` and `Daemon.download` over real daemons: exact copies, cuts, deaths and cancellations.

What the engine itself does with files is in ``test_transfers*.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from daemons import daemon_environment, open_daemon, start_daemon
from forked_python import PythonProcess
from process_tools import until
from proxied_world import world
from standing_daemon import StandingDaemon, reserved_port, standing_daemon

import sandd
from sandd.testing import DOWN, UP

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB: Final = 1024 * 1024
LARGE: Final = 24 * MIB
PROJECT: Final = Path(sandd.__file__).parent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="looks at POSIX modes and links")


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share, where they kill none."""
    with standing_daemon() as daemon:
        yield daemon


def large(path: Path, size: int = LARGE, seed: int = 1) -> str:
    """A file of bytes that nobody can guess; its SHA-256."""
    data = random.Random(seed).randbytes(size)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def everything(path: Path) -> dict[str, Any]:
    """All that a copy has to have, by name."""
    found: dict[str, Any] = {}
    for directory, directories, names in os.walk(path):
        for name in (*directories, *names):
            each = Path(directory, name)
            status = each.lstat()
            mode = 0 if each.is_symlink() else status.st_mode
            content = (
                os.readlink(each)
                if each.is_symlink()
                else None
                if each.is_dir()
                else each.read_bytes()
            )
            found[os.path.relpath(each, path)] = (mode, status.st_mtime_ns, content)
    return found


def partials(directory: Path) -> list[str]:
    """Files in the making."""
    return [each.name for each in directory.rglob(".sandd-*")]


async def test_this_package_is_the_same_there_and_back(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Modes, times, links and all; the second time nothing is moved, either way."""
    source, there, back = tmp_path / "source", tmp_path / "there", tmp_path / "back"
    shutil.copytree(PROJECT, source, symlinks=True)
    (source / "empty").mkdir(mode=0o700)
    (source / "link").symlink_to("wire.py")
    (source / "dangling").symlink_to("/no/such")
    (source / "none").touch(mode=0o600)
    os.utime(source / "wire.py", ns=(1, 1_234_567_890_123_456_789))
    expected = everything(source)
    async with daemon.worker() as worker:
        up = await worker.upload(source, str(there))
        assert everything(there) == expected
        assert (up.files, up.skipped, up.bytes) == (up.files, 0, up.size)
        down = await worker.download(str(there), back)
        assert everything(back) == expected
        assert (down.files, down.bytes) == (up.files, up.bytes)
        for update in (True, "hash"):
            again = await worker.upload(source, str(there), update=update)
            assert (again.bytes, again.skipped) == (0, up.files)
            again = await worker.download(str(there), back, update=update)
            assert (again.bytes, again.skipped) == (0, up.files)
    assert everything(there) == everything(back) == expected


async def test_one_file_with_its_hash_and_its_progress(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Progress never goes back, and ends at all of it."""
    expected = large(tmp_path / "source", 3 * MIB + 17)
    for way in ("up", "down"):
        said: list[tuple[int, int]] = []
        async with daemon.worker() as worker:
            move = worker.upload if way == "up" else worker.download
            result = await move(
                str(tmp_path / "source"),
                str(tmp_path / way),
                progress=lambda done, total, said=said: said.append((done, total)),
            )
        assert sha256(tmp_path / way) == result.sha256 == expected
        assert (result.bytes, result.size, result.files) == (3 * MIB + 17, 3 * MIB + 17, 1)
        assert said == sorted(said)
        assert said[-1] == (3 * MIB + 17, 3 * MIB + 17)


async def test_patterns_choose_what_is_copied(daemon: StandingDaemon, tmp_path: Path) -> None:
    """As in a .gitignore, either way."""
    for name in ("a.py", "b.txt", "deep/c.py", "build/d.py"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(name)
    async with daemon.worker() as worker:
        await worker.upload(
            tmp_path / "source", str(tmp_path / "up"), include="*.py", exclude=["build/"]
        )
        await worker.download(
            str(tmp_path / "source"), tmp_path / "down", include=["*.py"], exclude="build/"
        )
    for way in ("up", "down"):
        assert sorted(p.name for p in (tmp_path / way).rglob("*") if p.is_file()) == [
            "a.py",
            "c.py",
        ]


@pytest.mark.parametrize("way", ["up", "down"])
async def test_what_cannot_be_copied_is_the_fitting_error(
    daemon: StandingDaemon, tmp_path: Path, way: str
) -> None:
    """Wherever it is met, here or there; nothing is written, and the connection works on."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    cases: list[tuple[str, str, type[OSError] | None]] = [
        ("missing", "copy", FileNotFoundError),
        ("file", "directory", IsADirectoryError),
        ("directory", "file", NotADirectoryError),
        ("file", "missing/copy", FileNotFoundError),
        ("file", "file/copy", NotADirectoryError),
        ("file", "fifo", OSError),
        ("fifo", "copy", OSError),
        ("loop", "copy", OSError),
        ("file", "loop", OSError),
        ("file", "/dev/null", OSError),
    ]
    async with daemon.worker() as worker:
        move = worker.upload if way == "up" else worker.download
        before = sorted(os.listdir(tmp_path))
        for source, target, kind in cases:
            with pytest.raises(sandd.TransferError) as caught:
                await move(str(tmp_path / source), str(tmp_path / target))
            assert kind is None or isinstance(caught.value, kind), (source, target, caught.value)
            assert sorted(os.listdir(tmp_path)) == before
        assert (await worker.run("echo well")).stdout == "well\n"


async def test_arguments_that_mean_nothing(daemon: StandingDaemon, tmp_path: Path) -> None:
    """Are told at once, and nothing is begun."""
    async with daemon.worker() as worker:
        wrong: list[dict[str, Any]] = [{"update": "size"}, {"include": [1]}, {"exclude": 7}]
        for options in wrong:
            with pytest.raises((ValueError, TypeError)):
                await worker.upload(tmp_path, "copy", **options)
        for remote in ("", "nul\0"):
            with pytest.raises(ValueError, match="remote"):
                await worker.download(remote, tmp_path / "copy")
        there: Any = worker.path("there")
        for call in (worker.upload(there, "copy"), worker.download("source", there)):
            with pytest.raises(TypeError, match=r"local is <sandd\.RemotePath .*of this machine"):
                await call
        assert worker._link.job_count == 0


@pytest.mark.parametrize("way", ["up", "down"])
async def test_cuts_at_random_bytes_lose_nothing_and_repeat_little(
    tmp_path: Path, way: str
) -> None:
    """The same bytes, and hardly more of them over the wire than there are."""
    expected = large(tmp_path / "source")
    with trio.fail_after(60):
        async with world() as it:
            direction = DOWN if way == "up" else UP
            it.proxy.cut_at_random(8, direction, within=LARGE * 9 // 10)
            before = it.proxy.passed[direction]
            move = it.worker.upload if way == "up" else it.worker.download
            result = await move(str(tmp_path / "source"), str(tmp_path / "copy"))
            passed = it.proxy.passed[direction] - before
    assert not it.proxy.cuts_ahead
    assert sha256(tmp_path / "copy") == result.sha256 == expected
    assert result.bytes == LARGE
    assert passed < LARGE + 8 * 2 * MIB
    assert not partials(tmp_path)


@pytest.mark.parametrize("way", ["up", "down"])
async def test_cancelled_at_many_moments_it_leaves_nothing(
    daemon: StandingDaemon, tmp_path: Path, way: str
) -> None:
    """No part of a file, on either side, and no job; what was there before is as it was."""
    large(tmp_path / "source", 8 * MIB)
    target = tmp_path / "there" / "copy"
    target.parent.mkdir()
    target.write_text("before")
    async with daemon.worker() as worker:
        move = worker.upload if way == "up" else worker.download
        complete = 0
        for milliseconds in (0, 1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120):
            with trio.move_on_after(milliseconds / 1000) as scope:
                await move(str(tmp_path / "source"), str(target))
            if not scope.cancelled_caught:
                complete += 1
                continue
            assert partials(tmp_path) == []
            if not complete:
                assert target.read_text("latin-1") == "before" or target.stat().st_size == 8 * MIB
            assert worker._link.job_count == 0
        await until(lambda: not list((daemon.process.state_dir / "transfers").glob("*")))


UPLOADER: Final = """
import sys, trio, sandd
async def main():
    async with sandd.open_controller(port=int(sys.argv[1])) as controller:
        worker = await controller.wait_for_daemon("worker-1")
        move = worker.upload if sys.argv[2] == "up" else worker.download
        await move(sys.argv[3], sys.argv[4], progress=lambda done, total: print(done, flush=True))
trio.run(main)
"""


@contextlib.contextmanager
def agent(port: int, way: str, source: Path, target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another program that copies, and says how far it is."""
    command = [sys.executable, "-c", UPLOADER, str(port), way, str(source), str(target)]
    with PythonProcess(
        command,
        env=daemon_environment(),
        any_program=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_progress(process: subprocess.Popen[bytes], done: int) -> None:
    """Until it has moved so many bytes."""
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= done:
            return
    pytest.fail(f"it ended with {process.wait()} before it had moved {done} bytes")


@pytest.mark.parametrize("way", ["up", "down"])
async def test_an_agent_that_was_killed_is_gone_on_for_by_the_next(
    tmp_path: Path, way: str
) -> None:
    """The same call goes on where the dead one was, and takes over from what is left of it."""
    size = 96 * MIB
    expected = large(tmp_path / "source", size)
    with trio.fail_after(90), reserved_port() as port:
        async with open_daemon(f"ws://127.0.0.1:{port}/ws"):
            with agent(port, way, tmp_path / "source", tmp_path / "copy") as first:
                await trio.to_thread.run_sync(wait_for_progress, first, 8 * MIB)
                first.send_signal(signal.SIGKILL)
                first.wait()
            assert not (tmp_path / "copy").exists()
            assert len(partials(tmp_path)) == 1
            async with sandd.open_controller(port=port) as controller:
                worker = await controller.wait_for_daemon("worker-1")
                move = worker.upload if way == "up" else worker.download
                result = await move(str(tmp_path / "source"), str(tmp_path / "copy"))
                assert worker._link.job_count == 0
    assert sha256(tmp_path / "copy") == result.sha256 == expected
    assert result.resumed > 0
    assert result.resumed + result.bytes == size
    assert not partials(tmp_path)


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_daemon_that_was_killed_is_gone_on_with_by_the_next(
    tmp_path: Path, way: str
) -> None:
    """The call fails, says that it may be tried again, and the same call goes on where it was."""
    size = 32 * MIB
    expected = large(tmp_path / "source", size)
    state = ("--state-dir", str(tmp_path / "state"))
    with trio.fail_after(90):
        async with sandd.open_controller(port=0) as controller:
            first = start_daemon(controller.url, arguments=state)
            with first._put_away_at_the_end():
                worker = await controller.wait_for_daemon("worker-1")
                move = worker.upload if way == "up" else worker.download

                def kill_in_the_middle(done: int, _total: int) -> None:
                    if done >= 8 * MIB and first.exit_code is None:
                        first.kill()

                second: list[Any] = []

                async def start_again() -> None:
                    await until(lambda: first.exit_code is not None, within=60)
                    second.append(start_daemon(controller.url, arguments=state))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(start_again)
                    with pytest.raises(sandd.DaemonGone):
                        await move(
                            str(tmp_path / "source"),
                            str(tmp_path / "copy"),
                            progress=kill_in_the_middle,
                        )
            with second[0]._put_away_at_the_end():
                assert not (tmp_path / "copy").exists()
                worker = await controller.wait_for_daemon("worker-1")
                move = worker.upload if way == "up" else worker.download
                result = await move(str(tmp_path / "source"), str(tmp_path / "copy"))
                assert await second[0].stop() == 0
    assert sha256(tmp_path / "copy") == result.sha256 == expected
    assert result.resumed > 0
    assert result.resumed + result.bytes == size
    assert not partials(tmp_path)


async def test_a_source_that_changed_before_a_resume_is_sent_anew(tmp_path: Path) -> None:
    """Never spliced; what the first one left is not there for ever, either."""
    size = 64 * MIB
    large(tmp_path / "source", size)
    with trio.fail_after(90), reserved_port() as port:
        async with open_daemon(f"ws://127.0.0.1:{port}/ws") as process:
            with agent(port, "up", tmp_path / "source", tmp_path / "copy") as first:
                await trio.to_thread.run_sync(wait_for_progress, first, 8 * MIB)
                first.kill()
                first.wait()
            before = os.stat(tmp_path / "source")
            expected = large(tmp_path / "source", size, seed=2)
            # As some tools do, which set the time back: only the bytes tell.
            os.utime(tmp_path / "source", ns=(before.st_atime_ns, before.st_mtime_ns))
            async with sandd.open_controller(port=port) as controller:
                worker = await controller.wait_for_daemon(process.id)
                result = await worker.upload(tmp_path / "source", str(tmp_path / "copy"))
    assert sha256(tmp_path / "copy") == result.sha256 == expected
    assert (result.resumed, result.bytes) == (0, size)
    assert not partials(tmp_path)


async def test_two_transfers_to_one_target_are_one_file(
    daemon: StandingDaemon, tmp_path: Path
) -> None:
    """Whoever is last wins, or the earlier one is told; never a mixture."""
    hashes = {large(tmp_path / "one", 4 * MIB, seed=1), large(tmp_path / "two", 4 * MIB, seed=2)}
    async with daemon.worker() as worker, trio.open_nursery() as nursery:
        for name in ("one", "two", "one", "two"):

            async def move(name: str = name) -> None:
                with contextlib.suppress(sandd.TransferError):
                    await worker.upload(tmp_path / name, str(tmp_path / "copy"))

            nursery.start_soon(move)
    assert sha256(tmp_path / "copy") in hashes
    assert not partials(tmp_path)


async def test_a_transfer_delays_nobody(daemon: StandingDaemon, tmp_path: Path) -> None:
    """Commands beside a large file are answered as soon as ever, about."""
    large(tmp_path / "source", 64 * MIB)
    took: list[float] = []
    async with daemon.worker() as worker, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def move() -> None:
            await worker.upload(tmp_path / "source", str(tmp_path / "copy"))
            nursery.cancel_scope.cancel()

        while True:
            began = time.perf_counter()
            await worker.run("true", check=True)
            took.append(time.perf_counter() - began)
    assert len(took) > 3
    assert sorted(took)[len(took) // 2] < 1.0
