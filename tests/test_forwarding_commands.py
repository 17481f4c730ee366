"""``sandd forward`` as a program: with a real daemon and real peers on both sides."""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import sys
import threading
import urllib.request
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final

import pytest
from controllers import running_controller
from daemons import running_command, running_daemon
from peers import free_port

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Marker
    from controllers import ControllerProcess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these programs are POSIX")
SECONDS: Final = 60.0
"""For what takes one or two: the machine may be busy."""


@pytest.fixture(scope="module")
def controller(_own_temporary_directory: None) -> Iterator[ControllerProcess]:
    """In a process of its own; without any daemon, to begin with."""
    with running_controller() as controller:
        yield controller


def said(process: subprocess.Popen[str]) -> str:
    """The next line on stdout."""
    assert process.stdout is not None
    return process.stdout.readline()


def complained(process: subprocess.Popen[str], text: str) -> str:
    """The line on stderr that has the text."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    pytest.fail(f"it never said {text!r}")


@contextmanager
def web_server(directory: Path) -> Iterator[int]:
    """An HTTP server for what is there; its port."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nobody wants to know."""

    handler = functools.partial(Handler, directory=os.fspath(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def fetch(host: str, port: str, path: str) -> bytes:
    """What an HTTP server there has."""
    with urllib.request.urlopen(f"http://{host}:{port}/{path}", timeout=SECONDS) as response:
        body: bytes = response.read()
        return body


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_http_through_a_port(
    reverse: bool, number: signal.Signals, code: int, tmp_path: Path, marker: Marker
) -> None:
    """It says where it listens, and leads there until a signal comes; then nothing of it is left."""
    content = bytes(range(256)) * 8192
    (tmp_path / "file").write_bytes(content)
    with web_server(tmp_path) as port:
        flag = ["-R"] if reverse else []
        target = f"127.0.0.1:{port}"
        with running_command(
            "forward", "--local", *flag, "w", target, env=dict([marker])
        ) as process:
            line = said(process)
            here, there = ("w:", "") if reverse else ("", "w:")
            found = re.fullmatch(rf"{here}127\.0\.0\.1:(\d+) -> {there}{target}\n", line)
            assert found, line
            assert fetch("127.0.0.1", found[1], "file") == content
            process.send_signal(number)
            assert process.communicate(timeout=SECONDS) == ("", "")
        assert process.returncode == code
        assert not marker.processes()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(found[1])))


def test_several_ports_and_unix_sockets(tmp_path: Path) -> None:
    """Each target has its line, in order; a socket's path is gone with the command."""
    path = tmp_path / "socket"
    with web_server(tmp_path) as port:
        with running_command(
            "forward", "--local", "w", f"unix:{path}:127.0.0.1:{port}", f"0:unix:{path}"
        ) as process:
            assert said(process) == f"unix:{path} -> w:127.0.0.1:{port}\n"
            found = re.fullmatch(rf"127\.0\.0\.1:(\d+) -> w:unix:{path}\n", said(process))
            assert found
            # Through both, one behind the other.
            assert b"Directory listing" in fetch("127.0.0.1", found[1], "")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=SECONDS)
    assert not path.exists()


def test_connections_that_fail_are_told() -> None:
    """Which and why, on stderr; the others go on."""
    nobody = free_port()
    with running_command("forward", "--local", "w", f"127.0.0.1:{nobody}") as process:
        port = int(said(process).split()[0].rpartition(":")[2])
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                with pytest.raises(ConnectionResetError):
                    connection.recv(1)
            line = complained(process, "broke")
            assert line.startswith(f"sandd: a connection to 127.0.0.1:{nobody} broke: ")
            assert "refused" in line
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)


def test_a_daemon_that_was_started_anew_is_forwarded_to_again(
    tmp_path: Path, controller: ControllerProcess
) -> None:
    """At the same port; the person is told that it went, and that it is back."""
    with web_server(tmp_path) as web:
        with running_command(
            "forward", "--wait", "30", "w", f"127.0.0.1:{web}", env=controller.env
        ) as process:
            with running_daemon(controller.url, "w"):
                where, _, port = said(process).split()[0].partition(":")
                assert b"Directory listing" in fetch(where, port, "")
            complained(process, "[w has ended")
            with running_daemon(controller.url, "w"):
                complained(process, "[w is back]")
                until_listening(int(port))
                assert b"Directory listing" in fetch(where, port, "")
                process.send_signal(signal.SIGINT)
                output, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (130, "")


def until_listening(port: int) -> None:
    """Wait until somebody listens there."""
    for _ in range(int(SECONDS / 0.05)):
        with socket.socket() as probe:
            probe.settimeout(0.05)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
    pytest.fail("nobody listens")


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        pytest.param(["w"], 2, "arguments are required: TARGET", id="no-target"),
        pytest.param(["w", "db"], 2, "'db' has no port behind 'db': HOST:PORT", id="no-port"),
        pytest.param(["w", "80"], 125, "no daemon 'w'", id="no-such-daemon"),
        pytest.param(
            ["--local", "w", "{taken}:80"], 125, "can't listen on 127.0.0.1:{taken}: ", id="taken"
        ),
        pytest.param(
            ["--local", "-R", "w", "{taken}:80"],
            125,
            "can't listen on w:127.0.0.1:{taken}: Address already in use; leave the port out",
            id="taken-there",
        ),
    ],
)
def test_exit_codes(
    arguments: list[str], code: int, complaint: str, controller: ControllerProcess
) -> None:
    """2 for use that means nothing, 125 for all else, each with its reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = [each.replace("{taken}", port) for each in arguments]
        with running_command("forward", *arguments, env=controller.env) as process:
            output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (code, "")
    assert complaint.replace("{taken}", port) in errors
    assert "Traceback" not in errors
