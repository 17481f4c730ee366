"""`sandd.aio`: what the trio API does, on asyncio and on anyio's trio, with a real daemon."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import pytest
from aio_world import aio_threads, aio_worker, read_all, read_until, until
from daemons import running_daemon
from standing_daemon import LIMIT, StandingDaemon, standing_daemon

import sandd
from sandd import CommandTimeout, DaemonNotFound, DaemonState, FileKind, JobState, SpawnFailed, aio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Marker
    from daemons import DaemonProcess

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell"),
]


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share."""
    with standing_daemon(labels={"env": "test"}) as daemon:
        yield daemon


# ---- commands -----------------------------------------------------------------------------------


async def test_a_command_runs(daemon: StandingDaemon) -> None:
    """Its result and its errors are those of `sandd`, whatever the loop."""
    async with aio_worker(daemon) as worker:
        result = await worker.run(
            "cat; echo $0; exit 3", input="given\n", env={"X": "1"}, timeout=20
        )
        assert (result.stdout, result.exit_code) == ("given\n/bin/sh\n", 3)
        with pytest.raises(SpawnFailed, match="no-such-program"):
            await worker.run(["no-such-program"])
        with pytest.raises(CommandTimeout) as caught:
            await worker.run("echo begun; sleep 60", timeout=0.5)
        assert caught.value.result is not None
        assert caught.value.result.stdout == "begun\n"
        with pytest.raises(ValueError, match="timeout"):
            await worker.run("true", timeout=-1)


async def test_many_commands_run_at_once(daemon: StandingDaemon) -> None:
    """1,000 calls are under way in one thread, and the loop goes on meanwhile."""
    results: list[sandd.CommandResult] = []
    turns = 0
    async with aio_worker(daemon, within=55) as worker:

        async def run(number: int) -> None:
            results.append(await worker.run(["echo", str(number)]))

        async with anyio.create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(run, number)
            while len(results) < 1000:
                await anyio.sleep(0.01)
                turns += 1
                assert len(aio_threads()) == 1
    assert sorted(int(each.stdout) for each in results) == list(range(1000))
    assert turns > 10


async def test_a_conversation(daemon: StandingDaemon) -> None:
    """Streams are anyio's, and end as its streams do."""
    async with aio_worker(daemon) as worker:
        async with worker.open_process("cat; echo done; echo oops >&2") as process:
            assert isinstance(process.stdin, anyio.abc.ByteSendStream)
            assert isinstance(process.stdout, anyio.abc.ByteReceiveStream)
            for line in (b"one\n", b"two\n"):
                await process.stdin.send(line)
                assert await process.stdout.receive() == line
            assert process.offsets == {"stdout": 8, "stderr": 0}
            await process.stdin.aclose()
            await process.stdin.aclose()
            assert await read_all(process.stdout) == b"done\n"
            with pytest.raises(anyio.EndOfStream):
                await process.stdout.receive()
            assert await process.stderr.receive(2) == b"oo"
            assert process.offsets == {"stdout": 13, "stderr": 2}
            with pytest.raises(ValueError, match="at least 1"):
                await process.stderr.receive(0)
            assert await read_all(process.stderr) == b"ps\n"
            status = await process.wait()
            assert status.success
            assert process.status == status
            assert process.stalls == {}
            assert f"sandd.aio.Process worker-1/{process.job_id} pid={process.pid}" in repr(process)
            with pytest.raises(anyio.ClosedResourceError):
                await process.stdin.send(b"too late")


async def test_streams_that_are_not_there(daemon: StandingDaemon) -> None:
    """Asking for one says why; a stream that was closed says so, and one that broke, with its cause."""
    async with aio_worker(daemon) as worker:
        async with worker.open_process("sleep 60", stdin=False, stderr="merge") as process:
            with pytest.raises(anyio.ClosedResourceError, match="stdin=False"):
                process.stdin  # noqa: B018 - that is the point
            with pytest.raises(anyio.ClosedResourceError, match="merge"):
                process.stderr  # noqa: B018
            assert process.offsets["stderr"] == 0
            await process.stdout.aclose()
            with pytest.raises(anyio.ClosedResourceError, match="closed"):
                await process.stdout.receive()
        async with worker.open_process("exec <&-; sleep 0.1") as process:
            await process.wait()
            with pytest.raises(anyio.BrokenResourceError, match="ended"):
                await process.stdin.send(b"x")


async def test_one_task_at_a_time_has_a_stream(daemon: StandingDaemon) -> None:
    """The second one is told, as by all streams of anyio."""
    async with aio_worker(daemon) as worker, worker.open_process("cat") as process:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.stdout.receive)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await process.stdout.receive()
            await process.stdin.send(b"x")


async def test_signals_and_ends(daemon: StandingDaemon, marker: Marker) -> None:
    """A process can be signalled; leaving its block ends its tree."""
    script = "trap 'echo caught' INT; setsid sleep 60 & echo ready; wait; wait; sleep 60"
    async with aio_worker(daemon) as worker:
        async with worker.open_process(script, env=dict([marker]), kill_grace=0.1) as process:
            await read_until(process.stdout, b"ready\n")
            await process.signal("INT")
            await read_until(process.stdout, b"caught\n")
            assert marker.processes()
        assert not marker.processes()
        for end in (aio.Process.terminate, aio.Process.kill):
            async with worker.open_process(["sleep", "60"]) as process:
                await end(process)
                assert not (await process.wait()).success


async def test_a_job_outlives_its_block(daemon: StandingDaemon, anyio_backend_name: str) -> None:
    """It is listed, attached to where somebody stopped reading, killed and forgotten."""
    kept = f"kept-{anyio_backend_name}"
    async with aio_worker(daemon) as worker:
        script = "echo first; read x; echo second; sleep 60"
        async with worker.open_process(script, job_id=kept) as process:
            await read_until(process.stdout, b"first\n")
            await process.detach()
            offsets = process.offsets
        (job,) = await worker.jobs()
        assert (job.job_id, job.state, job.detached) == (kept, JobState.RUNNING, True)
        async with worker.attach_process(kept, since=offsets) as process:
            assert process.offsets == offsets
            await process.stdin.send(b"\n")
            assert await read_until(process.stdout, b"second\n") == b"second\n"
        async with worker.attach_process(kept, read_only=True) as onlooker:
            assert await read_until(onlooker.stdout, b"second\n") == b"first\nsecond\n"
            with pytest.raises(sandd.RequestRefused, match="read_only"):
                await onlooker.terminate()
        await worker.kill(kept, grace=0.1)
        await worker.forget(kept)
        assert await worker.jobs() == []
        with pytest.raises(sandd.JobNotFound):
            async with worker.attach_process(kept):
                pytest.fail("it is there")


async def test_missing_output_is_told_once(daemon: StandingDaemon) -> None:
    """A gap is an error between two pieces, and an offset counts it."""
    script = "head -c 3000000 /dev/zero; echo end"
    async with aio_worker(daemon) as worker:
        async with worker.open_process(script, on_full="drop_oldest") as process:
            await process.wait()
            received = 0
            gaps: list[sandd.OutputGap] = []
            told: list[int] = []
            while True:
                try:
                    received += len(await process.stdout.receive())
                except sandd.OutputGap as gap:
                    gaps.append(gap)
                    told.append(process.offsets["stdout"])
                except anyio.EndOfStream:
                    break
            assert received + sum(gap.end - gap.start for gap in gaps) == 3_000_004
            assert process.offsets["stdout"] == 3_000_004
            assert gaps
            assert told == [gap.end for gap in gaps]


# ---- sessions -----------------------------------------------------------------------------------


async def test_a_session(daemon: StandingDaemon, tmp_path: Path, anyio_backend_name: str) -> None:
    """A terminal is a byte stream, with a size and an end."""
    pair = f"pair-{anyio_backend_name}"
    cast = tmp_path / "cast"
    async with aio_worker(daemon) as worker:
        async with worker.open_session(
            "stty -echo; echo on; cat; stty size", rows=5, cols=9, record=cast
        ) as session:
            assert isinstance(session, anyio.abc.ByteStream)
            await read_until(session, b"on\r\n")
            await session.send(b"typed\n")
            await read_until(session, b"typed\r\n")
            assert session.offset == 11
            await session.resize(7, 11)
            await session.send_eof()
            assert b"7 11" in await read_all(session)
            assert (await session.wait()).exit_code == 0
            assert session.recording_failure is None
        assert "typed" in cast.read_text()
        async with worker.open_session(["cat"], detach=True, job_id=pair) as session:
            await session.send(b"x\n")
            await read_until(session, b"x\r\nx\r\n")
            await session.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await session.receive()
        async with worker.attach_session(pair) as session:
            assert await read_until(session, b"x\r\nx\r\n") == b"x\r\nx\r\n"
            await session.signal("INT")
            assert (await session.wait()).signal == "SIGINT"
        await worker.forget(pair)


# ---- files --------------------------------------------------------------------------------------


async def test_paths(daemon: StandingDaemon, tmp_path: Path) -> None:
    """All that `RemotePath` has, with paths of the same kind wherever it gives one."""
    async with aio_worker(daemon) as worker:
        here = worker.path(tmp_path)
        assert isinstance(here, aio.RemotePath)
        assert (str(here), here.daemon_id, here.name) == (str(tmp_path), "worker-1", tmp_path.name)
        assert here == worker.path(str(tmp_path)) == worker.path(here)
        assert {type(each) for each in (here.parent, here / "x", *here.parents)} == {aio.RemotePath}
        file = here / "dir" / "file"
        assert file.relative_to(here) == worker.path("dir/file")
        await file.parent.mkdir()
        assert await file.write_text("hello") == 5
        assert await file.write_bytes(b"hello") == 5
        assert await file.append_bytes(b" you") == 4
        assert await file.read_text() == "hello you"
        assert await file.read_bytes(offset=1, length=3) == b"ell"
        await file.truncate(5)
        await file.chmod(0o600)
        assert ((await file.stat()).size, (await file.stat()).mode & 0o777) == (5, 0o600)
        assert (await file.is_file(), await file.is_dir(), await file.exists()) == (
            True,
            False,
            True,
        )
        link = here / "link"
        await link.symlink_to(file)
        assert await link.is_symlink()
        assert (await link.lstat()).kind is FileKind.SYMLINK
        assert await link.readlink() == file
        assert sorted(await here.iterdir()) == [here / "dir", link]
        assert await here.glob("d*/f*") == await here.rglob("file") == [file]
        assert {type(each) for each in await here.iterdir()} == {aio.RemotePath}
        await (here / "empty").touch()
        assert await (here / "empty").rename(here / "other") == here / "other"
        assert await (here / "other").replace(str(file)) == file
        assert await file.read_bytes() == b""
        await link.unlink()
        with pytest.raises(sandd.TransferError) as caught:
            await link.unlink()
        assert isinstance(caught.value, FileNotFoundError)
        with pytest.raises(OSError, match="not empty"):
            await (here / "dir").rmdir()
        await (here / "dir").rmtree()
        assert await here.iterdir() == []
        assert repr(here) == f"<sandd.RemotePath worker-1:{tmp_path}>"
        with pytest.raises(TypeError, match=r"Daemon\.path"):
            aio.RemotePath()


async def test_open_files(daemon: StandingDaemon, tmp_path: Path) -> None:
    """A file is written by a stream as a whole or not at all, and read by one."""
    async with aio_worker(daemon) as worker:
        file = worker.path(tmp_path / "file")
        async with file.open_write() as writer:
            assert isinstance(writer, anyio.abc.ByteSendStream)
            await writer.send(b"line 1\n")
            await writer.send(b"line 2\n")
            assert not await file.exists()
            assert repr(writer) == f"<sandd.aio.FileWriter worker-1:{file}>"
        async with file.open_read(offset=7) as reader:
            assert isinstance(reader, anyio.abc.ByteReceiveStream)
            assert await read_all(reader) == b"line 2\n"
            assert repr(reader) == f"<sandd.aio.FileReader worker-1:{file}>"
        error = KeyError("mine")
        with pytest.raises(KeyError) as caught:
            async with file.open_write() as writer:
                await fail_after_sending(writer, error)
        assert caught.value is error
        writer = await file.open_write(append=True)
        await writer.send(b"line 3\n")
        await writer.aclose()
        await writer.abandon()
        with pytest.raises(anyio.ClosedResourceError):
            await writer.send(b"x")
        assert await file.read_text() == "line 1\nline 2\nline 3\n"
        reader = await file.open_read()
        await reader.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await reader.receive()
        with pytest.raises(FileExistsError):
            await file.open_write(exclusive=True)
        with pytest.raises(ValueError, match="append and exclusive"):
            file.open_write(exclusive=True, append=True)


async def fail_after_sending(writer: aio.FileWriter, error: Exception) -> None:
    """Send something, and raise the error."""
    await writer.send(b"nothing of this")
    raise error


async def test_watching(daemon: StandingDaemon, tmp_path: Path) -> None:
    """What happens to files comes as an iterator, with paths that can be used."""
    pytest.importorskip("watchfiles")
    async with aio_worker(daemon) as worker, worker.path(tmp_path).watch() as changes:
        (tmp_path / "new").write_text("x")
        async for change in changes:
            assert isinstance(change, aio.FileChange)
            if change.path == worker.path(tmp_path / "new"):
                assert await change.path.read_text() == "x"
                break


async def test_copying(daemon: StandingDaemon, tmp_path: Path) -> None:
    """Files and trees, with progress heard in the caller's own loop, in the end all of it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_bytes(bytes(3_000_000))
    heard: list[tuple[int, int]] = []
    here = threading.get_ident()

    def progress(done: int, total: int) -> None:
        assert threading.get_ident() == here
        heard.append((done, total))

    async with aio_worker(daemon) as worker:
        there = worker.path(tmp_path / "there")
        result = await worker.upload(tmp_path / "here", there, progress=progress)
        assert (result.files, result.bytes) == (1, 3_000_000)
        assert heard[-1] == (3_000_000, 3_000_000)
        result = await worker.download(there / "file", tmp_path / "back", update="hash")
        assert (tmp_path / "back").read_bytes() == bytes(3_000_000)
        with pytest.raises(FileNotFoundError):
            await worker.download("/nonexistent", tmp_path / "nothing")
        with pytest.raises(ValueError, match="update"):
            await worker.upload(tmp_path / "here", there, update="what")  # type: ignore[arg-type]


async def test_what_progress_raises_ends_the_copy(daemon: StandingDaemon, tmp_path: Path) -> None:
    """It comes out as itself, and nothing is left of the copy."""
    (tmp_path / "file").write_bytes(bytes(3_000_000))

    def progress(_done: int, _total: int) -> None:
        raise KeyError("enough")

    async with aio_worker(daemon) as worker:
        with pytest.raises(KeyError, match="enough"):
            await worker.upload(tmp_path / "file", tmp_path / "copy", progress=progress)
        with pytest.raises(KeyError, match="enough"):
            await worker.download(tmp_path / "file", tmp_path / "copy", progress=progress)
        assert (await worker.run("true")).success


# ---- ports --------------------------------------------------------------------------------------


async def test_connections(daemon: StandingDaemon, tmp_path: Path) -> None:
    """A stream from the daemon's side, with an end in either direction."""

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream):
                await stream.send((await stream.receive()).upper())
                await stream.receive()
            await stream.send(b"bye")

    listeners = [
        await anyio.create_tcp_listener(local_host="127.0.0.1"),
        await anyio.create_unix_listener(tmp_path / "socket"),
    ]
    async with (
        aio_worker(daemon) as worker,
        listeners[0],
        listeners[1],
        anyio.create_task_group() as tasks,
    ):
        for listener in listeners:
            tasks.start_soon(listener.serve, answer)
        port = listeners[0].extra(anyio.abc.SocketAttribute.local_port)
        for stream in (
            await worker.open_tcp_stream("127.0.0.1", port),
            await worker.open_unix_stream(tmp_path / "socket"),
        ):
            assert isinstance(stream, anyio.abc.ByteStream)
            assert "sandd.aio.RemoteStream worker-1/" in repr(stream)
            async with stream:
                await stream.send(b"hello")
                assert await stream.receive() == b"HELLO"
                await stream.send_eof()
                assert await read_all(stream) == b"bye"
            with pytest.raises(anyio.ClosedResourceError):
                await stream.send_eof()
        with pytest.raises(ConnectionRefusedError):
            await worker.open_tcp_stream("127.0.0.1", free_port())
        tasks.cancel_scope.cancel()


async def test_ports(daemon: StandingDaemon) -> None:
    """From here to there, and from there to here."""

    async def answer(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(b"hello")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with aio_worker(daemon) as worker, listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        for block in (worker.forward_port(port), worker.reverse_port(port)):
            async with block as (host, bound):
                async with await anyio.connect_tcp(host, bound) as stream:
                    assert await stream.receive() == b"hello"
            with pytest.raises(OSError, match=r"connection attempts failed|refused"):
                await anyio.connect_tcp(host, bound)
        tasks.cancel_scope.cancel()


def free_port() -> int:
    """One that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# ---- the controller -----------------------------------------------------------------------------


async def test_what_the_controller_knows() -> None:
    """Daemons by id, labels and glob; what happens to them; numbers; one command on all."""
    with anyio.fail_after(LIMIT):
        async with sandd.aio.open_controller(port=0) as controller:
            assert controller.daemons() == []
            assert controller.url == f"ws://{controller.address}/ws"
            assert "sandd.aio.Controller" in repr(controller)
            with pytest.raises(DaemonNotFound, match="none is connected"):
                controller.daemon("worker-1")
            async with controller.open_events() as events:
                with running_daemon(controller.url, "worker-1", labels={"env": "test"}) as process:
                    worker = await controller.wait_for_daemon("worker-1")
                    assert worker.state is DaemonState.ONLINE
                    assert (worker.id, worker.info.labels) == ("worker-1", {"env": "test"})
                    assert repr(worker) == "<sandd.aio.Daemon 'worker-1' online>"
                    assert [each.id for each in controller.daemons({"env": "test"})] == ["worker-1"]
                    assert controller.daemons(match="web-*") == []
                    answers = await controller.broadcast("echo up", labels={"env": "test"})
                    answer = answers["worker-1"]
                    assert isinstance(answer, sandd.CommandResult)
                    assert answer.stdout == "up\n"
                    assert controller.statistics().daemons_online == 1
                    process.terminate()
                    kinds = [(await anext(events)).kind, (await anext(events)).kind]
                    assert kinds == ["connected", "lost"]
                    await until(lambda: worker.state is DaemonState.GONE)
                    with pytest.raises(sandd.DaemonGone):
                        await worker.run("true")


async def test_what_prevents_a_controller_is_raised() -> None:
    """As itself, and no thread is left."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="in use"):
            async with sandd.aio.open_controller(port=taken.getsockname()[1]):
                pytest.fail("it was opened")
    with pytest.raises(sandd.ConfigurationError, match="token"):
        async with sandd.aio.open_controller(port=0, token=""):
            pytest.fail("it was opened")
    assert aio_threads() == []


async def test_an_error_of_the_body_comes_out_as_itself() -> None:
    """Not in a group, and the controller is closed."""
    error = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        async with sandd.aio.open_controller(port=0):
            raise error
    assert caught.value is error
    assert aio_threads() == []


async def test_a_daemon_that_is_gone_ends_what_it_listened_at() -> None:
    """The body that waits for connections is cancelled, and the block says why."""
    with anyio.fail_after(LIMIT):
        async with sandd.aio.open_controller(port=0) as controller:
            with running_daemon(controller.url) as process:
                worker = await controller.wait_for_daemon("worker-1")
                with pytest.raises(sandd.DaemonGone):
                    await listen_until_told(worker, process)


async def listen_until_told(worker: aio.Daemon, process: DaemonProcess) -> None:
    """Have the daemon listen, end it, and wait for whatever comes of that."""
    async with worker.reverse_port(80):
        process.terminate()
        await anyio.sleep_forever()
