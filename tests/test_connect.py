"""`sandd.connect`: a controller that runs elsewhere, for synchronous code; and what any `Client` has."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import trio
from daemons import running_daemon
from process_tools import until_sync

import sandd
from sandd import JobState, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these commands are POSIX shell")

TOKEN = "an operator's"


@pytest.fixture(scope="module")
def server(_own_temporary_directory: None) -> Iterator[Server]:
    """A controller with a daemon, which lets operators in; the tests of this module share it."""
    with Server(port=0, operator_token=TOKEN) as server, running_daemon(server.url, "worker-1"):
        assert server.wait_for_daemon("worker-1", timeout=30)
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[sandd.Client]:
    """Connected to it; afterwards its thread is gone."""
    with sandd.connect(server.url, token=TOKEN) as client:
        yield client
    assert "sandd.Client" not in [each.name for each in threading.enumerate()]


def test_it_does_what_a_server_does(client: sandd.Client, server: Server, tmp_path: Path) -> None:
    """Commands, sessions, files, ports, numbers: the same methods, and the same results."""
    assert repr(client) == f"<sandd.Client {server.address}>"
    assert (client.url, client.address) == (server.url, server.address)
    assert client.wait_for_daemon("worker-1", timeout=0)
    assert [each.id for each in client.list_daemons()] == ["worker-1"]
    assert client.get_daemon("worker-1").is_busy is False
    assert (client.daemon_count(), client.get_stats().daemons_online) == (1, 1)
    assert client.exec("worker-1", "echo hello").stdout == "hello\n"
    assert client.broadcast(None, "exit 3")["worker-1"].exit_code == 3
    with client.new_session("worker-1", command=["cat"]) as session:
        session.write("typed\n")
        assert (session.read(timeout=10) or b"").startswith(b"typed")
    client.upload_file("worker-1", tmp_path / "file", b"content")
    assert client.download_file("worker-1", tmp_path / "file") == b"content"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with client.forward_port("worker-1", listener.getsockname()[1]) as address:
            with socket.create_connection(address), listener.accept()[0]:
                pass
    with pytest.raises(sandd.DaemonNotFound, match="known are worker-1"):
        client.exec("worker-2", "true")


def test_what_keeps_it_out_says_why(server: Server) -> None:
    """A wrong token, none at all, nobody there, no URL; and no thread is left."""
    for token in ("another", None):
        with pytest.raises(sandd.AuthenticationFailed):
            sandd.connect(server.url, token=token)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(sandd.ControllerUnreachable):
            sandd.connect(
                f"ws://127.0.0.1:{silent.getsockname()[1]}", token=TOKEN, connect_timeout=0.2
            )
    with pytest.raises(sandd.ConfigurationError):
        sandd.connect("http://elsewhere", token=TOKEN)
    with pytest.raises(TypeError, match="connect"):
        sandd.Client()
    assert "sandd.Client" not in [each.name for each in threading.enumerate()]


def test_jobs_are_listed_killed_and_forgotten(client: sandd.Client, server: Server) -> None:
    """Whoever holds them: those of another program's, too."""
    session = server.new_session("worker-1", command=["cat"], job_id="theirs")
    (job,) = client.jobs("worker-1")
    assert (job.job_id, job.state, job.owned) == ("theirs", JobState.RUNNING, True)
    client.kill("worker-1", "theirs", signal="KILL", grace=0.1)
    assert session.wait(timeout=10) is not None
    client.forget("worker-1", "theirs")
    assert client.jobs("worker-1") == []
    session.close()
    with pytest.raises(sandd.JobNotFound):
        client.kill("worker-1", "theirs")


def test_leaving_ends_its_own_jobs_only(server: Server, marker: Marker) -> None:
    """What other programs run goes on, and the daemons stay."""
    theirs = server.new_session("worker-1", command=["cat"])
    with sandd.connect(server.url, token=TOKEN) as client:
        client.new_session("worker-1", command="sleep 60; :", env=dict([marker]))
        until_sync(lambda: bool(marker.processes()))
    assert not marker.processes()
    assert theirs.exit_code is None
    theirs.close()
    with pytest.raises(trio.ClosedResourceError, match=r"sandd\.Client was closed"):
        client.exec("worker-1", "true")


def test_64_threads_share_it(client: sandd.Client) -> None:
    """Each gets its own result."""
    with ThreadPoolExecutor(64) as pool:
        results = pool.map(lambda n: client.exec("worker-1", ["echo", str(n)]).stdout, range(128))
        assert [int(each) for each in results] == list(range(128))


def test_ctrl_c_interrupts_a_call_at_once(client: sandd.Client, marker: Marker) -> None:
    """And what it ran is killed while the program goes on."""

    def interrupt() -> None:
        until_sync(lambda: len(marker.processes()) > 0)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        client.exec("worker-1", "sleep 60; :", env=dict([marker]))
    interrupter.join()
    assert time.monotonic() - began < 20
    until_sync(lambda: not marker.processes())
    assert client.exec("worker-1", "true").success


def test_closing_meets_calls_of_other_threads(server: Server, marker: Marker) -> None:
    """They are told, and nothing hangs."""
    client = sandd.connect(server.url, token=TOKEN)
    with ThreadPoolExecutor() as pool:
        calls = [
            pool.submit(client.exec, "worker-1", "sleep 60; :", env=dict([marker]))
            for _ in range(8)
        ]
        until_sync(lambda: len(marker.processes()) >= 8)
        client.close()
        for call in calls:
            with pytest.raises(trio.ClosedResourceError):
                call.result()
    assert not marker.processes()


def test_a_token_that_is_not_taken_any_more_is_told_as_such() -> None:
    """Calls fail with the error that the trio API's block ends with; so does closing."""
    with Server(port=0, operator_token=TOKEN) as host:
        port = int(host.address.rpartition(":")[2])
        client = sandd.connect(host.url, token=TOKEN)
    with Server(port=port, operator_token="another"):
        with pytest.raises(sandd.AuthenticationFailed):
            client.wait_for_daemon("worker-1", timeout=60)
        with pytest.raises(sandd.AuthenticationFailed):
            client.close()
