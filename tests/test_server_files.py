"""Files, trees and ports by `Server`, from any thread, with a real daemon."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest
import trio
from daemons import daemon_environment, running_daemon
from forked_python import PythonProcess
from peers import free_port

import sandd
from sandd import DaemonNotFound, Server, TransferError
from sandd._core import job_link
from sandd._core.held_block import Hold
from sandd._core.promise import Promise

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemons import DaemonProcess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these paths are POSIX'")
SECONDS: Final = 60.0
"""For what takes one or two: the machine may be busy."""


@pytest.fixture(scope="module")
def server(_own_temporary_directory: None) -> Iterator[Server]:
    """A server that the tests of this module share."""
    with Server(port=0) as server:
        yield server


@pytest.fixture(scope="module")
def daemon(server: Server) -> Iterator[DaemonProcess]:
    """Its daemon "worker-1", online."""
    with running_daemon(server.url, "worker-1") as daemon:
        assert server.wait_for_daemon("worker-1", timeout=SECONDS)
        yield daemon


def until_nobody_listens(port: int) -> None:
    """Wait until connecting there is refused."""
    give_up = time.monotonic() + SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.usefixtures("daemon")
class TestFiles:
    """One file at a time."""

    @pytest.mark.parametrize("size", [0, 5, 3_000_000])
    def test_the_original_quick_start_works(
        self, size: int, server: Server, tmp_path: Path
    ) -> None:
        """``upload_file`` makes a file of bytes, and ``download_file`` gives them back."""
        data, path = os.urandom(size), str(tmp_path / "file")
        result = server.upload_file("worker-1", path, data)
        assert server.download_file("worker-1", path) == data
        assert (tmp_path / "file").read_bytes() == data
        assert (result.bytes, result.size, result.files) == (size, size, 1)
        assert result.sha256 == hashlib.sha256(data).hexdigest()

    @pytest.mark.parametrize("kind", [bytearray, memoryview])
    def test_whatever_holds_bytes_is_content(
        self, kind: type, server: Server, tmp_path: Path
    ) -> None:
        """Not only bytes themselves; one that changes afterwards changes nothing."""
        content = kind(bytearray(b"content"))
        server.upload_file("worker-1", tmp_path / "file", content)
        content[0:1] = b"C"
        assert (tmp_path / "file").read_bytes() == b"content"

    @pytest.mark.parametrize("kind", ["text", "path"])
    def test_a_text_or_path_is_a_file_here(self, kind: str, server: Server, tmp_path: Path) -> None:
        """It is copied, mode and time included; and the same the other way round."""
        source = tmp_path / "source"
        source.write_bytes(b"x" * 1_000_000)
        source.chmod(0o750)
        os.utime(source, (1_000_000_000, 1_000_000_000))
        seen: list[tuple[int, int]] = []
        given = str(source) if kind == "text" else source
        result = server.upload_file(
            "worker-1", tmp_path / "there", given, progress=lambda *numbers: seen.append(numbers)
        )
        assert result.size == 1_000_000
        assert seen[-1] == (1_000_000, 1_000_000)
        back = server.download_file("worker-1", tmp_path / "there", tmp_path / "back")
        assert (back.size, back.sha256) == (result.size, result.sha256)
        for copy in ("there", "back"):
            status = (tmp_path / copy).stat()
            assert (status.st_mode & 0o777, status.st_mtime) == (0o750, 1_000_000_000)

    def test_what_can_not_be_says_why(self, server: Server, tmp_path: Path) -> None:
        """As an OSError that is a TransferError, with the path; and nothing is made."""
        (tmp_path / "directory").mkdir()
        none, directory = str(tmp_path / "none" / "f"), str(tmp_path / "directory")
        with pytest.raises(FileNotFoundError) as missing:
            server.download_file("worker-1", none)
        assert isinstance(missing.value, TransferError)
        assert missing.value.filename == none
        with pytest.raises(FileNotFoundError):
            server.download_file("worker-1", none, tmp_path / "new")
        with pytest.raises(FileNotFoundError):
            server.upload_file("worker-1", none, b"data")
        with pytest.raises(FileNotFoundError):
            server.upload_file("worker-1", tmp_path / "new", none)
        with pytest.raises(IsADirectoryError):
            server.upload_file("worker-1", directory, b"data")
        with pytest.raises(IsADirectoryError):
            server.upload_file("worker-1", tmp_path / "new", directory)
        with pytest.raises(IsADirectoryError):
            server.download_file("worker-1", directory)
        with pytest.raises(IsADirectoryError):
            server.download_file("worker-1", directory, tmp_path / "new")
        assert [path.name for path in tmp_path.iterdir()] == ["directory"]

    def test_an_unknown_daemon_is_not_found(self, server: Server, tmp_path: Path) -> None:
        """As a ValueError, too, at every method."""
        path = tmp_path / "f"
        for call in (
            lambda: server.upload_file("nobody", path, b""),
            lambda: server.download_file("nobody", path),
            lambda: server.download_file("nobody", path, path),
            lambda: server.upload("nobody", path, path),
            lambda: server.download("nobody", path, path),
            lambda: server.forward_port("nobody", 80),
            lambda: server.reverse_port("nobody", 80),
        ):
            with pytest.raises(DaemonNotFound, match="not found"):
                call()

    def test_many_threads_copy_at_once(self, server: Server, tmp_path: Path) -> None:
        """Each has its own file back."""

        def work(number: int) -> bool:
            data = bytes([number]) * (number * 20_011)
            server.upload_file("worker-1", tmp_path / str(number), data)
            return server.download_file("worker-1", tmp_path / str(number)) == data

        with ThreadPoolExecutor(32) as pool:
            assert all(pool.map(work, range(32)))

    def test_trees_are_copied_both_ways(self, server: Server, tmp_path: Path) -> None:
        """With the options that `Daemon.upload` has."""
        (tmp_path / "tree" / "empty").mkdir(parents=True)
        (tmp_path / "tree" / "a.py").write_text("a")
        (tmp_path / "tree" / "b.txt").write_text("b")
        up = server.upload("worker-1", tmp_path / "tree", tmp_path / "there", exclude="*.txt")
        assert (up.files, up.size) == (1, 1)
        down = server.download("worker-1", tmp_path / "there", tmp_path / "back", update=True)
        assert down.files == 1
        names = sorted(str(each.relative_to(tmp_path)) for each in (tmp_path / "back").rglob("*"))
        assert names == ["back/a.py", "back/empty"]
        again = server.download("worker-1", tmp_path / "there", tmp_path / "back", update=True)
        assert again.skipped == 1


def test_a_daemon_that_does_not_answer_costs_the_time_that_was_given(
    server: Server, daemon: DaemonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a TimeoutError and a TransferError, at every method, and soon; and there is no file."""
    monkeypatch.setattr(job_link, "LEAST_MARGIN", 0.2)
    (tmp_path / "f").write_text("f")
    calls = (
        lambda: server.upload_file("worker-1", tmp_path / "new", b"data", timeout=0.1),
        lambda: server.upload_file("worker-1", tmp_path / "new", tmp_path / "f", timeout=0.1),
        lambda: server.download_file("worker-1", tmp_path / "f", timeout=0.1),
        lambda: server.download_file("worker-1", tmp_path / "f", tmp_path / "new", timeout=0.1),
        lambda: server.upload("worker-1", tmp_path / "f", tmp_path / "new", timeout=0.1),
        lambda: server.download("worker-1", tmp_path / "f", tmp_path / "new", timeout=0.1),
    )

    def expect_timeout(call: object) -> None:
        assert callable(call)
        with pytest.raises(TimeoutError, match=r"not done within 0\.1 s") as caught:
            call()
        assert isinstance(caught.value, TransferError)

    daemon.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with ThreadPoolExecutor(len(calls)) as pool:
            list(pool.map(expect_timeout, calls))
        assert time.monotonic() - began < job_link.LEAVE_MARGIN / 2
    finally:
        daemon.signal(signal.SIGCONT)
    assert server.download_file("worker-1", tmp_path / "f", timeout=None) == b"f"
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("daemon")
class TestPorts:
    """Ports for the length of a block."""

    def test_a_port_leads_to_the_daemons_side(self, server: Server, tmp_path: Path) -> None:
        """Any thread may connect; when the block is left nobody listens."""
        (tmp_path / "file").write_bytes(b"content")
        command = [sys.executable, "-um", "http.server", "--bind", "127.0.0.1", "0"]
        with subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as web:
            assert web.stdout is not None
            port = int(web.stdout.readline().split()[5])
            with server.forward_port("worker-1", port) as (host, local_port):
                url = f"http://{host}:{local_port}/file"
                with ThreadPoolExecutor(8) as pool:
                    bodies = pool.map(lambda _: urllib.request.urlopen(url).read(), range(8))
                    assert set(bodies) == {b"content"}
            web.kill()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, local_port))

    def test_a_port_leads_back(self, server: Server) -> None:
        """Who connects on the daemon's side talks to a server in this very program."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with server.reverse_port("worker-1", listener.getsockname()[1]) as (host, port):
                with socket.create_connection((host, port)) as there:
                    here, _ = listener.accept()
                    with here:
                        there.sendall(b"hello")
                        assert here.recv(5) == b"hello"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port))

    def test_what_can_not_be_opened_says_why(self, server: Server) -> None:
        """Here and there; nothing stays open."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(OSError, match="in use"):
                with server.forward_port("worker-1", 80, local_port=port):
                    pytest.fail("it was opened")
            with pytest.raises(TransferError, match="in use"):
                with server.reverse_port("worker-1", 80, remote_port=port):
                    pytest.fail("it was opened")
        assert server.get_stats().jobs == 0

    def test_an_interrupt_before_leaving_has_begun_closes_the_port(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody has told the block yet that it is to be left; it is, all the same."""

        def let_go(*_: object, **_options: object) -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

        port = free_port()
        block = ExitStack()
        block.enter_context(server.forward_port("worker-1", 80, local_port=port))
        monkeypatch.setattr(Hold, "let_go", let_go)
        with pytest.raises(KeyboardInterrupt):
            block.close()
        until_nobody_listens(port)

    def test_an_error_of_the_body_comes_out_as_itself(self, server: Server) -> None:
        """And the port is closed."""
        error = LookupError()
        with pytest.raises(LookupError) as caught:
            with server.forward_port("worker-1", free_port()) as address:
                raise error
        assert caught.value is error
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    @pytest.mark.parametrize("when", ["opening", "leaving"])
    def test_an_interrupt_closes_the_port(
        self, when: str, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Wherever it strikes: at once for the caller, soon in the background."""
        plain = Promise.wait
        left = {"opening": 0, "leaving": 1}[when]

        def wait(promise: Promise[object], seconds: float | None = None) -> bool:
            nonlocal left
            left -= 1
            if left < 0:
                monkeypatch.setattr(Promise, "wait", plain)
                raise KeyboardInterrupt
            return plain(promise, seconds)

        port = free_port()
        block = server.forward_port("worker-1", 80, local_port=port)
        monkeypatch.setattr(Promise, "wait", wait)
        with pytest.raises(KeyboardInterrupt):
            with block:
                pass
        until_nobody_listens(port)


def test_a_server_that_is_closed_closes_its_ports() -> None:
    """Who is in the block leaves it without a word; further calls say that it is closed."""
    with Server(port=0) as server, running_daemon(server.url, "worker-1"):
        assert server.wait_for_daemon("worker-1", timeout=SECONDS)
        with server.forward_port("worker-1", 80) as address:
            server.close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
        with pytest.raises(trio.ClosedResourceError):
            server.upload_file("worker-1", "/tmp/x", b"")


def test_a_daemon_that_dies_ends_what_it_listened_at() -> None:
    """The block can't know before it is left; then it says so."""
    with Server(port=0) as server, running_daemon(server.url, "worker-1") as daemon:
        assert server.wait_for_daemon("worker-1", timeout=SECONDS)
        block = ExitStack()
        block.enter_context(server.reverse_port("worker-1", 80))
        daemon.kill()
        with running_daemon(server.url, "worker-1"):
            give_up = time.monotonic() + SECONDS
            while server.get_stats().jobs:
                assert time.monotonic() < give_up
                time.sleep(0.01)
        with pytest.raises(sandd.DaemonGone):
            block.close()


INTERRUPTED: Final = """
import sys, time
from sandd import Server
server = Server(port=0)
print(server.url, flush=True)
assert server.wait_for_daemon("worker-1", timeout=60)
print("ready", flush=True)
try:
    server.upload_file("worker-1", sys.argv[2], sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", flush=True)
while server.get_stats().jobs: time.sleep(0.01)
print(server.download_file("worker-1", sys.argv[2]).decode(), flush=True)
server.close()
"""


def test_ctrl_c_interrupts_a_copy_at_once_and_leaves_no_part_of_it(tmp_path: Path) -> None:
    """The program goes on with its server; the old file is there, and nothing else."""
    big, target = tmp_path / "big", tmp_path / "there" / "target"
    target.parent.mkdir()
    target.write_text("old")
    piece = os.urandom(1 << 20)
    with big.open("wb") as file:
        for _ in range(400):
            file.write(piece)
    with PythonProcess(
        [sys.executable, "-c", INTERRUPTED, str(big), str(target)],
        env=daemon_environment(),
        any_program=True,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            assert program.stdout is not None
            url = program.stdout.readline().strip()
            with running_daemon(url, "worker-1"):
                assert program.stdout.readline() == "ready\n"
                give_up = time.monotonic() + SECONDS
                while not list(target.parent.glob(".sandd-*")):
                    assert time.monotonic() < give_up
                    time.sleep(0.001)
                program.send_signal(signal.SIGINT)
                assert program.stdout.readline() == "interrupted\n"
                assert program.stdout.readline() == "old\n"
                assert program.wait(SECONDS) == 0
        finally:
            program.kill()
    assert [path.name for path in target.parent.iterdir()] == ["target"]
