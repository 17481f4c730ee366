"""`Client.open_process`: a running command for synchronous code, on a real daemon."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
import trio
from daemons import running_daemon
from process_tools import PATIENCE, until_sync

import sandd
from sandd import Outcome, Process, Server, ServerOutput
from sandd._core.promise import Promise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")


@pytest.fixture(scope="module")
def server(_own_temporary_directory: None) -> Iterator[Server]:
    """With a daemon, which the tests of this module share."""
    with Server(port=0) as server, running_daemon(server.url, "worker-1"):
        assert server.wait_for_daemon("worker-1", timeout=30)
        yield server


def read_until(output: ServerOutput, text: bytes) -> bytes:
    """What it writes up to that text, which must come."""
    read, end = b"", time.monotonic() + PATIENCE
    while text not in read:
        piece = output.read(timeout=end - time.monotonic())
        assert piece, read
        read += piece
    return read


def test_output_is_there_as_it_comes(server: Server) -> None:
    """Before the command has ended; a loop ends with it, and its status is told."""
    command = "echo begun; read x; echo got $x; exit 3"
    with server.open_process("worker-1", command, stderr="merge") as process:
        assert next(process.stdout) == b"begun\n"
        assert process.exit_code is None
        process.stdin.write("it\n")
        assert list(process.stdout) == [b"got it\n"]
        assert process.stdout.read() == b""
        status = process.wait(timeout=PATIENCE)
        assert status is not None
        assert (status.exit_code, process.exit_code, status.outcome) == (3, 3, Outcome.EXITED)
        assert process.offsets == {"stdout": 13, "stderr": 0}
        assert "<sandd.ServerProcess worker-1/" in repr(process)
    process.close()
    assert server.jobs("worker-1") == []


def test_input_ends_where_it_is_closed(server: Server) -> None:
    """Both outputs are read apart, in threads; what is much flows in both directions at once."""
    much = b"0123456789abcde\n" * 200_000
    errors: list[bytes] = []
    with server.open_process("worker-1", "cat; echo all of it >&2") as process:

        def write() -> None:
            process.stdin.write(much)
            process.stdin.close()

        threads = [
            threading.Thread(target=write),
            threading.Thread(target=lambda: errors.extend(process.stderr)),
        ]
        for thread in threads:
            thread.start()
        assert b"".join(process.stdout) == much
        for thread in threads:
            thread.join(PATIENCE)
        assert b"".join(errors) == b"all of it\n"
        with pytest.raises(trio.ClosedResourceError, match="stdin was closed"):
            process.stdin.write(b"x")
        process.stdin.close()


def test_reading_waits_as_long_as_it_is_told_to(server: Server) -> None:
    """Not at all with 0, and what is there comes then all the same."""
    with server.open_process("worker-1", "echo on; read x; echo got it; read x") as process:
        assert read_until(process.stdout, b"\n") == b"on\n"
        assert process.stdout.read(timeout=0) is None
        began = time.monotonic()
        assert process.stdout.read(timeout=0.2) is None
        assert time.monotonic() - began >= 0.2
        assert process.wait(timeout=0) is None
        process.stdin.write(b"\n")
        assert process.stdout.read(max_bytes=3) == b"got"
        assert read_until(process.stdout, b"\n") == b" it\n"
        for wrong in ("1", True):
            with pytest.raises(TypeError, match="timeout is"):
                process.stdout.read(timeout=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="data is 5; it must be bytes"):
            process.stdin.write(5)  # type: ignore[arg-type]


def test_another_thread_ends_it(server: Server, marker: Marker) -> None:
    """By `close`, which tells who reads; or by a signal, after which reading comes to the end."""
    command = "sleep 60 & setsid sleep 60 & echo planted; sleep 60; :"
    process = server.open_process("worker-1", command, env=dict([marker]))
    read_until(process.stdout, b"planted\n")
    reading = threading.Thread(
        target=pytest.raises, args=(trio.ClosedResourceError, process.stdout.read)
    )
    reading.start()
    until_sync(lambda: process._held._stdout._conflicts.held)
    process.close()
    reading.join(PATIENCE)
    assert not reading.is_alive()
    assert not marker.processes()
    for call in (process.stdout.read, lambda: process.stdin.write(b"x")):
        with pytest.raises(trio.ClosedResourceError):
            call()
    process.stdin.close()

    for end, name in ((Process.terminate, "SIGTERM"), (Process.kill, "SIGKILL")):
        with server.open_process("worker-1", "echo on; exec sleep 60") as process:
            assert next(process.stdout) == b"on\n"
            threading.Timer(0.05, getattr(process, end.__name__)).start()
            assert list(process.stdout) == []
            status = process.wait()
            assert status is not None
            assert status.signal == name


def test_what_is_not_there_says_why(server: Server) -> None:
    """As in the trio API; and what can't be opened leaves nothing."""
    with server.open_process("worker-1", "true", stdin=False, stderr="merge") as process:
        with pytest.raises(trio.ClosedResourceError, match="opened with stdin=False"):
            _ = process.stdin
        with pytest.raises(trio.ClosedResourceError, match="read stdout"):
            _ = process.stderr
    with pytest.raises(sandd.DaemonNotFound, match="not found"):
        server.open_process("worker-9", "true")
    with pytest.raises(sandd.SpawnFailed):
        server.open_process("worker-1", ["/nonexistent/program"])
    with pytest.raises(ValueError, match="stderr is"):
        server.open_process("worker-1", "true", stderr="none")  # type: ignore[arg-type]
    assert server.jobs("worker-1") == []


def test_a_detached_one_goes_on(server: Server) -> None:
    """And is found again by its id, at the byte where it was left, whatever came without being read."""
    script = "echo one; read x; echo two; read x; exit 4"
    with server.open_process("worker-1", script, job_id="left", detach=True) as process:
        assert process.stdout.read(max_bytes=2) == b"on"
        process.stdin.write(b"\n")
        until_sync(lambda: process._held._stdout.is_ready)
    assert process.offsets == {"stdout": 2, "stderr": 0}
    with pytest.raises(trio.ClosedResourceError):
        process.stdin.write(b"lost")
    with server.attach_process("worker-1", "left", read_only=True) as onlooker:
        assert read_until(onlooker.stdout, b"two\n") == b"one\ntwo\n"
        with pytest.raises(trio.ClosedResourceError, match="read_only"):
            _ = onlooker.stdin
        with pytest.raises(sandd.RequestRefused, match="read_only"):
            onlooker.kill()
    with server.attach_process("worker-1", "left", since=process.offsets) as again:
        assert read_until(again.stdout, b"two\n") == b"e\ntwo\n"
        again.stdin.write(b"\n")
        assert list(again.stdout) == []
        assert again.exit_code == 4
    server.forget("worker-1", "left")


def test_missing_output_is_told_and_reading_goes_on(server: Server) -> None:
    """An iterator, too, is none the worse for it."""
    script = "head -c 3000000 /dev/zero; echo end"
    with server.open_process("worker-1", script, on_full="drop_oldest") as process:
        status = process.wait(timeout=PATIENCE)
        assert status is not None
        read = gaps = 0
        last = b""
        while True:
            try:
                for piece in process.stdout:
                    read, last = read + len(piece), piece
                break
            except sandd.OutputGap as gap:
                gaps += gap.end - gap.start
        assert gaps > 0
        assert read + gaps == 3_000_004
        assert last.endswith(b"end\n")


def test_interrupting_a_read_loses_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it comes before there is something, or when that was received but is not yet returned."""
    plain = Promise.wait

    def interrupt(when: Callable[[Promise[object]], None]) -> None:
        """Ctrl-C strikes in the next read, once `when` has returned."""

        def wait(promise: Promise[object], seconds: float | None = None) -> bool:
            monkeypatch.setattr(Promise, "wait", plain)
            when(promise)
            raise KeyboardInterrupt

        monkeypatch.setattr(Promise, "wait", wait)
        with pytest.raises(KeyboardInterrupt):
            process.stdout.read()

    def write_and_wait(promise: Promise[object]) -> None:
        process.stdin.write(b"typed\n")
        assert plain(promise, 10.0)

    with server.open_process("worker-1", "cat") as process:
        interrupt(write_and_wait)
        until_sync(lambda: process.stdout._reading.kept.size)
        assert process.offsets["stdout"] == 0
        assert process.stdout.read(timeout=0) == b"typed\n"
        for _ in range(20):  # the one that was interrupted may be there still
            interrupt(lambda _: until_sync(lambda: process._held._stdout._conflicts.held))
            process.stdin.write(b"more\n")
            assert read_until(process.stdout, b"\n") == b"more\n"


@pytest.mark.parametrize("detach", [False, True])
def test_interrupted_before_anybody_has_it_there_is_none(
    server: Server, marker: Marker, monkeypatch: pytest.MonkeyPatch, detach: bool
) -> None:
    """Detached or not, for nobody knows of it."""
    plain = Promise.wait

    def interrupt_when_open(promise: Promise[object], seconds: float | None = None) -> bool:
        plain(promise, seconds)
        if not isinstance(promise._value, Process):
            return True
        monkeypatch.setattr(Promise, "wait", plain)
        raise KeyboardInterrupt

    monkeypatch.setattr(Promise, "wait", interrupt_when_open)
    with pytest.raises(KeyboardInterrupt):
        server.open_process("worker-1", ["sleep", "60"], env=dict([marker]), detach=detach)
    until_sync(lambda: not server.jobs("worker-1"))
    assert not marker.processes()


def test_closing_the_server_ends_it(marker: Marker) -> None:
    """Who reads at that moment is told, and nothing is left."""
    with Server(port=0) as server, running_daemon(server.url, "worker-1"):
        assert server.wait_for_daemon("worker-1", timeout=30)
        process = server.open_process("worker-1", ["sleep", "60"], env=dict([marker]))
        reading = threading.Thread(
            target=pytest.raises, args=(trio.ClosedResourceError, process.stdout.read)
        )
        reading.start()
        until_sync(lambda: process._held._stdout._conflicts.held)
        server.close()
        reading.join(PATIENCE)
        assert not reading.is_alive()
        assert not marker.processes()
        process.close()
