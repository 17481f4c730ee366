"""`Server.new_session`: a terminal for synchronous code, on a real daemon."""

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
from sandd import DaemonNotFound, Outcome, Server, ServerSession, Session, SpawnFailed
from sandd._core.promise import Promise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Marker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these programs are POSIX")


@pytest.fixture(scope="module")
def server(_own_temporary_directory: None) -> Iterator[Server]:
    """With a daemon, which the tests of this module share."""
    with Server(port=0) as server, running_daemon(server.url, "worker-1"):
        assert server.wait_for_daemon("worker-1", timeout=30)
        yield server


def read_until(session: ServerSession, text: bytes, within: float = PATIENCE) -> bytes:
    """What it shows up to that text, which must come."""
    shown, end = b"", time.monotonic() + within
    while text not in shown:
        chunk = session.read(timeout=end - time.monotonic())
        assert chunk, shown
        shown += chunk
    return shown


def test_the_original_quick_start_works(server: Server) -> None:
    """A session is written to and read from; None is a time-out, b"" the end."""
    session = server.new_session(
        "worker-1", rows=24, cols=80, term="xterm-256color", interactive=False
    )
    session.write(b"echo he''llo\n")
    read_until(session, b"hello")
    session.write("stty size; read x\n")
    read_until(session, b"24 80")
    session.resize(10, 20)
    assert session.exit_code is None
    session.write(b"\n exit 3\n")
    while session.read(timeout=PATIENCE):
        pass
    assert session.read(timeout=PATIENCE) == b""
    assert session.wait(timeout=PATIENCE) is not None
    assert session.exit_code == 3
    session.close()
    session.close()


def test_reading_waits_as_long_as_it_is_told_to(server: Server) -> None:
    """Not at all with 0, and what is there comes then all the same."""
    with server.new_session(
        "worker-1", command="stty -echo; echo silent; read x; echo got $x; read x"
    ) as session:
        read_until(session, b"silent\r\n")
        began = time.monotonic()
        assert session.read(timeout=0) is None
        assert session.read(timeout=0.2) is None
        assert time.monotonic() - began >= 0.2
        session.write(b"it\n")
        assert session.read(max_bytes=3) == b"got"
        assert read_until(session, b"\r\n") == b" it\r\n"  # perhaps in pieces
        assert session.read(timeout=0) is None
        assert session.wait(timeout=0.05) is None
    assert session.wait() is not None
    assert session.exit_code == -1  # the hang-up


def test_closing_ends_the_tree(server: Server, marker: Marker) -> None:
    """So does closing the server, and leaving the block by an exception."""
    script = "trap '' HUP; setsid sleep 60 & echo on; sleep 60; :"
    opened = []

    def fail_inside() -> None:
        with server.new_session(
            "worker-1", command=script, env=dict([marker]), kill_grace=0.2
        ) as session:
            opened.append(session)
            read_until(session, b"on\r\n")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail_inside()
    (session,) = opened
    assert not marker.processes()
    status = session.wait()
    assert status is not None
    assert status.outcome is Outcome.CANCELLED
    with Server(port=0) as other, running_daemon(other.url, "worker-2"):
        assert other.wait_for_daemon("worker-2", timeout=30)
        session = other.new_session("worker-2", command=script, env=dict([marker]), kill_grace=0.2)
        read_until(session, b"on\r\n")
        waiting = threading.Thread(
            target=pytest.raises, args=(trio.ClosedResourceError, session.read)
        )
        waiting.start()
        other.close()
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
        assert not marker.processes()
        session.close()
        with pytest.raises(trio.ClosedResourceError):
            session.write(b"x")


def test_closing_tells_who_reads(server: Server) -> None:
    """It was closed, and not lost."""
    session = server.new_session("worker-1", command=["cat"])
    reading = threading.Thread(target=pytest.raises, args=(trio.ClosedResourceError, session.read))
    reading.start()
    until_sync(lambda: session._held._output._conflicts.held)
    session.close()
    reading.join(PATIENCE)
    assert not reading.is_alive()
    with pytest.raises(trio.ClosedResourceError):
        session.read(timeout=0)


def test_what_cannot_be_opened_says_why(server: Server) -> None:
    """As for any call; nothing is left."""
    with pytest.raises(DaemonNotFound, match="not found"):
        server.new_session("worker-9")
    with pytest.raises(SpawnFailed):
        server.new_session("worker-1", command=["/nonexistent/program"])
    with pytest.raises(ValueError, match="rows"):
        server.new_session("worker-1", rows=0)
    with pytest.raises(TypeError, match="rows is"):
        server.new_session("worker-1", ["bash"])  # type: ignore[arg-type]
    assert server.call(jobs, server) == []


async def jobs(server: Server) -> list[sandd.JobInfo]:
    """Those of its daemon."""
    return await server.controller.daemon("worker-1").jobs()


def test_a_detached_one_goes_on(server: Server) -> None:
    """And is found again, by its id."""
    with server.new_session("worker-1", command=["cat"], job_id="cat") as session:
        session.write(b"kept\n")
        read_until(session, b"kept\r\nkept\r\n")
        session.detach()
        assert (session.job_id, session.offset) == ("cat", 12)
        assert session.pid > 0
        assert "ServerSession worker-1/cat" in repr(session)
    (job,) = server.call(jobs, server)
    assert (job.state.value, job.owned) == ("running", False)
    with server.attach_session("worker-1", "cat", read_only=True) as onlooker:
        read_until(onlooker, b"kept\r\nkept\r\n")
    with server.attach_session("worker-1", "cat", since=12) as again:
        again.write("more\n")
        assert read_until(again, b"more\r\nmore\r\n") == b"more\r\nmore\r\n"
    with pytest.raises(sandd.JobNotFound):
        server.attach_session("worker-1", "no such job")

    async def end() -> None:
        await server.controller.daemon("worker-1").forget("cat")

    server.call(end)


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
            session.read()

    def type_and_wait(promise: Promise[object]) -> None:
        session.write(b"typed\n")
        assert plain(promise, 10.0)

    with server.new_session("worker-1", command="stty -echo; echo on; exec cat") as session:
        read_until(session, b"on\r\n")
        session.write(b"first\n")
        assert read_until(session, b"\n") == b"first\r\n"
        before = session.offset
        interrupt(type_and_wait)
        until_sync(lambda: session._reading.kept.size)
        assert session.offset == before
        with pytest.raises(ValueError, match="at least 1"):
            session.read(max_bytes=0)
        assert session.read(max_bytes=3, timeout=0) == b"typ"
        assert session.read(timeout=0) == b"ed\r\n"
        assert session.offset == before + 7
        assert session.read(timeout=0) is None
        for _ in range(30):  # the one that was interrupted may be there still
            interrupt(lambda _: until_sync(lambda: session._held._output._conflicts.held))
            session.write(b"typed\n")
            assert read_until(session, b"\n") == b"typed\r\n"
        interrupt(type_and_wait)
    with pytest.raises(trio.ClosedResourceError):
        session.read(timeout=0)


@pytest.mark.parametrize("detach", [False, True])
def test_interrupted_before_anybody_has_it_a_session_is_as_it_was(
    server: Server, marker: Marker, monkeypatch: pytest.MonkeyPatch, detach: bool
) -> None:
    """A new one isn't there, detached or not, for nobody knows of it; one that is attached to goes on."""
    plain = Promise.wait

    def interrupt_when_open(promise: Promise[object], seconds: float | None = None) -> bool:
        plain(promise, seconds)
        if not isinstance(promise._value, Session):
            return True
        monkeypatch.setattr(Promise, "wait", plain)
        raise KeyboardInterrupt

    def holding() -> list[str]:
        return [job.state.value for job in server.call(jobs, server) if job.owned]

    monkeypatch.setattr(Promise, "wait", interrupt_when_open)
    with pytest.raises(KeyboardInterrupt):
        server.new_session("worker-1", command=["cat"], env=dict([marker]), detach=detach)
    until_sync(lambda: not server.call(jobs, server))
    assert not marker.processes()
    job_id = f"known-{detach}"
    with server.new_session("worker-1", command=["cat"], job_id=job_id, detach=detach) as session:
        monkeypatch.setattr(Promise, "wait", interrupt_when_open)
        with pytest.raises(KeyboardInterrupt):
            server.attach_session("worker-1", job_id, takeover=True)
        until_sync(lambda: not holding())
        assert session.exit_code is None
        assert [job.state.value for job in server.call(jobs, server)] == ["running"]

    async def forget() -> None:
        await server.controller.daemon("worker-1").forget(job_id)

    server.call(forget)


def test_who_reads_at_once_takes_turns(server: Server) -> None:
    """So do those who write; nothing is received twice."""
    shown: list[bytes | None] = []
    with server.new_session("worker-1", command="stty -echo; echo on; exec cat") as session:
        read_until(session, b"on\r\n")
        readers = [
            threading.Thread(target=lambda: shown.append(session.read(timeout=10, max_bytes=1)))
            for _ in range(8)
        ]
        for reader in readers:
            reader.start()
        session.write(b"abcdef\n")
        for reader in readers:
            reader.join(10)
    assert sorted(each or b"" for each in shown) == sorted(bytes([each]) for each in b"abcdef\r\n")


def test_what_was_not_read_when_it_was_closed_is_shown_to_the_next(server: Server) -> None:
    """Of a session that goes on: closing it reads nothing, so `offset` says where to go on."""
    script = "stty -echo; echo on; read x; echo read; read x; echo unread; read x"
    with server.new_session("worker-1", command=script, job_id="left") as session:
        read_until(session, b"on\r\n")
        session.write(b"\n")
        read_until(session, b"read\r\n")
        session.detach()
        session.write(b"\n")
        until_sync(lambda: session._held.is_readable)
    with server.attach_session("worker-1", "left", since=session.offset) as again:
        assert read_until(again, b"\r\n") == b"unread\r\n"

    async def end() -> None:
        await server.controller.daemon("worker-1").forget("left")

    server.call(end)


def test_signals_and_recordings(server: Server, tmp_path: Path) -> None:
    """What else the trio API has."""
    with server.new_session(
        "worker-1", command=["sleep", "60"], record=tmp_path / "cast"
    ) as session:
        session.signal("INT")
        status = session.wait(timeout=PATIENCE)
        assert status is not None
        assert status.signal == "SIGINT"
    assert '"x","130"' in (tmp_path / "cast").read_text()


def test_many_threads_each_with_a_session(server: Server, marker: Marker) -> None:
    """They don't get into each other's way, and leave nothing."""
    failures: list[BaseException] = []

    def talk(number: int) -> None:
        try:
            with server.new_session("worker-1", command=["sh"], env=dict([marker])) as session:
                session.write(f"echo $(({number} + 1000))\n")
                # Wherever it stands: what is typed early may be shown before the shell's prompt is.
                read_until(session, f"{number + 1000}\r".encode(), within=30)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert not marker.processes()
