"""`Server`: the controller for synchronous code, with real daemons and from many threads."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from daemons import DaemonProcess, daemon_environment, running_daemon
from forked_python import PythonProcess

import sandd
from sandd import (
    CommandFailed,
    CommandTimeout,
    DaemonNotFound,
    Server,
    SpawnFailed,
)
from sandd.client import ExecOptions, FailedResult, ProcessOptions
from sandd.server import ServerOptions
from sandd.wire import DaemonState, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Marker

WAIT = 30.0
"""Seconds for what should take less than one: the machine may be busy."""
GET_GOING = 2.0
"""Seconds for a command to come to its first words before its time is up: mostly it takes some milliseconds."""

# A shell, its children and a grandchild in a session of its own, none of which minds SIGTERM. It
# prints a line once all are there.
TREE = "trap '' TERM; sleep 60 & setsid sleep 60 & (sleep 60; :) & echo planted; sleep 60; :"
TREE_SIZE = 5

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell and signals")


@pytest.fixture(scope="module")
def server(_own_temporary_directory: None) -> Iterator[Server]:
    """A server that the tests of this module share, as starting daemons is what takes time."""
    with Server(port=0) as server:
        yield server


@pytest.fixture(scope="module")
def daemon(server: Server) -> Iterator[DaemonProcess]:
    """The daemon "worker-1" of the shared server, online."""
    labels = {"env": "prod", "zone": "a"}
    with running_daemon(server.url, "worker-1", labels=labels) as daemon:
        assert server.wait_for_daemon("worker-1", timeout=WAIT)
        yield daemon


@pytest.fixture(scope="module")
def other_daemon(server: Server) -> Iterator[DaemonProcess]:
    """The daemon "worker-2" of the shared server, online."""
    with running_daemon(
        server.url, "worker-2", labels={"env": "test"}, env={"ROLE": "bad"}
    ) as daemon:
        assert server.wait_for_daemon("worker-2", timeout=WAIT)
        yield daemon


def until(condition: Callable[[], bool], seconds: float = WAIT) -> None:
    """Wait until something outside of this process is so."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"not so within {seconds} s"
        time.sleep(0.01)


def server_threads() -> list[threading.Thread]:
    """The trio threads of servers."""
    return [each for each in threading.enumerate() if each.name == "sandd.Server"]


@contextmanager
def in_thread(function: Callable[[], object]) -> Iterator[list[BaseException]]:
    """A thread that runs the function; gone at the end, when the list has what it raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield errors
    thread.join(WAIT)
    assert not thread.is_alive()


# ---- what it promises ---------------------------------------------------------------------------


def test_quick_start_runs_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """The original's first lines work unchanged, but for a free port."""
    before = server_threads()
    # fmt: off
    from sandd import Server
    server = Server("0.0.0.0", 0)  # 8765 in the original
    # fmt: on
    port = server.address.removeprefix("0.0.0.0:")
    with running_daemon(f"ws://127.0.0.1:{port}/ws", "worker-1", labels={"env": "prod"}):
        server.wait_for_daemon("worker-1", timeout=30)
        result = server.exec("worker-1", "hostname")
        print(result.stdout)
        assert capsys.readouterr().out.strip() == socket.gethostname()
        answers = server.broadcast({"env": "prod"}, "echo up")
        assert {name: answer.stdout for name, answer in answers.items()} == {"worker-1": "up\n"}
    server.close()
    assert server_threads() == before


def test_exec_returns_what_the_command_did(server: Server, daemon: DaemonProcess) -> None:
    """Output, exit code, environment, directory and input are those of the command."""
    result = server.exec(
        "worker-1",
        'cat; echo "$GREETING"; pwd; echo oops >&2; exit 3',
        env={"GREETING": "hello"},
        cwd="/",
        input="given\n",
    )

    assert result.stdout == "given\nhello\n/\n"
    assert result.stderr == "oops\n"
    assert (result.exit_code, result.success, result.outcome) == (3, False, Outcome.EXITED)
    assert server.exec("worker-1", ["printf", "%s", "a b"], 10).stdout == "a b"


def test_exec_raises_what_went_wrong(server: Server, daemon: DaemonProcess) -> None:
    """Errors are those of `Daemon.run`, raised in the calling thread."""
    with pytest.raises(CommandFailed) as failed:
        server.exec("worker-1", "echo partly; exit 4", check=True)
    assert failed.value.result.exit_code == 4
    with pytest.raises(SpawnFailed, match="ENOENT"):
        server.exec("worker-1", ["/nonexistent/program"])
    with pytest.raises(ValueError, match="the command is empty"):
        server.exec("worker-1", [])


def test_exec_on_an_unknown_daemon_says_not_found(server: Server, daemon: DaemonProcess) -> None:
    """It is a DaemonNotFound, hence a ValueError, and names the daemons there are."""
    with pytest.raises(DaemonNotFound, match=r"'worker-9' not found.*worker-1") as caught:
        server.exec("worker-9", "true")
    assert isinstance(caught.value, ValueError)
    with pytest.raises(DaemonNotFound, match="not found"):
        server.get_daemon("worker-9")


def test_a_time_for_a_transfer_that_makes_no_sense_is_refused(
    server: Server, daemon: DaemonProcess, tmp_path: Path
) -> None:
    """As `exec` does: less than no time is a mistake, and not a time-out."""
    path = str(tmp_path / "file")
    for call in (
        lambda: server.upload_file("worker-1", path, b"", timeout=-1),
        lambda: server.download_file("worker-1", path, timeout=-1),
        lambda: server.upload("worker-1", tmp_path, path, timeout=-1),
    ):
        with pytest.raises(ValueError, match="timeout is -1; it must be a number of seconds"):
            call()
    assert not os.path.exists(path)


@posix_only
def test_exec_timeout_kills_the_whole_remote_tree(
    server: Server, daemon: DaemonProcess, marker: Marker
) -> None:
    """A TimeoutError that has the output so far; nothing that ignored SIGTERM is left."""
    with pytest.raises(TimeoutError) as caught:
        server.exec("worker-1", TREE, timeout=GET_GOING, kill_grace=0.2, env=dict([marker]))

    assert not marker.processes()
    error = caught.value
    assert isinstance(error, CommandTimeout)
    assert error.started
    assert error.result is not None
    assert error.result.stdout == "planted\n"


@posix_only
def test_exec_ends_in_time_although_the_daemon_cannot_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that was stopped in mid-command delays the answer by a bound, not for ever."""
    monkeypatch.setattr("sandd.client.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("sandd._core.job_link.LEAVE_MARGIN", 0.2)
    with running_daemon(server.url, "worker-3") as daemon:
        assert server.wait_for_daemon("worker-3", timeout=WAIT)
        began = time.monotonic()
        with in_thread(lambda: freeze_once_it_runs(server, daemon)):
            with pytest.raises(CommandTimeout, match="no result from daemon 'worker-3'") as caught:
                server.exec("worker-3", "sleep 60", timeout=GET_GOING, kill_grace=0.1)
        assert time.monotonic() - began < WAIT
        assert caught.value.started is None
        daemon.signal(signal.SIGCONT)


def freeze_once_it_runs(server: Server, daemon: DaemonProcess) -> None:
    """Stop the daemon without ending it, with a command running: its connection stays up."""

    async def runs() -> bool:
        jobs = server.controller._service.link.client.jobs
        return any(job.started for job in jobs if job.daemon_id == daemon.id)

    until(lambda: server.call(runs))
    daemon.signal(signal.SIGSTOP)


@posix_only
def test_64_threads_get_their_own_results(
    server: Server, daemon: DaemonProcess, marker: Marker, tmp_path: Path
) -> None:
    """Any number of threads may use a server at once; the commands run at the same time."""
    count, fifo = 64, tmp_path / "fifo"
    os.mkfifo(fifo)

    def work(number: int) -> str:
        outputs = [
            server.exec("worker-1", f"echo {number}.{turn}; exec cat {fifo}", env=dict([marker]))
            for turn in range(3)
        ]
        assert server.daemon_count() >= 1
        return "".join(each.stdout for each in outputs)

    def let_all_go() -> bool:
        with contextlib.suppress(OSError):  # nobody waits at this moment
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return all(each.done() for each in working)

    with ThreadPoolExecutor(count) as pool:
        working = [pool.submit(work, number) for number in range(count)]
        until(lambda: len(marker.processes()) == count)  # of which none ends by itself
        until(let_all_go)
    assert [each.result() for each in working] == [f"{n}.0\n{n}.1\n{n}.2\n" for n in range(count)]


def test_broadcast_runs_where_the_labels_match(
    server: Server, daemon: DaemonProcess, other_daemon: DaemonProcess
) -> None:
    """All of the labels must be equal; None means everywhere; nowhere is an empty answer."""
    everywhere = server.broadcast(None, "echo here", timeout=WAIT)
    assert list(everywhere) == ["worker-1", "worker-2"]
    assert {each.stdout for each in everywhere.values()} == {"here\n"}
    assert list(server.broadcast({"env": "prod", "zone": "a"}, "true")) == ["worker-1"]
    assert list(server.broadcast({"env": "prod", "zone": "b"}, "true")) == []


def test_broadcast_reads_its_arguments_once_where_it_is_called(
    server: Server, daemon: DaemonProcess, other_daemon: DaemonProcess
) -> None:
    """What the caller changes later changes nothing, and many daemons cost no more than one."""
    readers: list[int] = []

    class Words(list[str]):
        def __iter__(self) -> Iterator[str]:
            readers.append(threading.get_ident())
            return super().__iter__()

    answers = server.broadcast(None, Words(["echo", "here"]))
    assert [each.stdout for each in answers.values()] == ["here\n", "here\n"]
    several, readers = readers, []
    server.broadcast({"env": "prod", "zone": "a"}, Words(["true"]))
    assert several == readers
    assert set(readers) == {threading.get_ident()}


def test_broadcast_failures_are_results_with_exit_code_minus_1(
    server: Server, daemon: DaemonProcess, other_daemon: DaemonProcess
) -> None:
    """One daemon's failure is told in its own entry, with what was printed, and fails no other."""
    answers = server.broadcast(
        None,
        'if [ "$ROLE" = bad ]; then printf begun; printf so >&2; sleep 60; fi; echo well; exit 2',
        timeout=GET_GOING,
        kill_grace=0.1,
    )

    good, bad = answers["worker-1"], answers["worker-2"]
    assert (good.exit_code, good.stdout) == (2, "well\n")
    assert isinstance(bad, FailedResult)
    assert (bad.exit_code, bad.success, bad.signal) == (-1, False, None)
    assert (bad.outcome, bad.stdout) == (Outcome.TIMED_OUT, "begun")
    assert re.fullmatch(r"so\nCommandTimeout: .* within 2.0 s and was killed\n", bad.stderr)
    assert isinstance(bad.error, CommandTimeout)


def test_broadcast_tells_what_could_not_run(
    server: Server, daemon: DaemonProcess, other_daemon: DaemonProcess
) -> None:
    """A program that isn't there is a failure; a bad exit code is none, even with `check`."""
    for answer in server.broadcast(None, ["/nonexistent"]).values():
        assert (answer.exit_code, answer.stdout) == (-1, "")
        assert answer.stderr == "SpawnFailed: [ENOENT] No such file or directory: '/nonexistent'\n"
    for answer in server.broadcast(None, "exit 5", check=True).values():
        assert (answer.exit_code, type(answer)) == (5, sandd.CommandResult)
    with pytest.raises(ValueError, match="the command is empty"):
        server.broadcast(None, "")


def test_daemons_are_described(server: Server, daemon: DaemonProcess) -> None:
    """What there is to know of a daemon, by id and by labels, and as plain numbers."""
    (summary,) = server.list_daemons({"env": "prod"})
    assert summary == server.get_daemon("worker-1")
    assert summary in server.list_daemons()
    assert server.list_daemons({"env": "none"}) == []
    assert (summary.id, summary.version) == ("worker-1", sandd.__version__)
    assert summary.labels == {"env": "prod", "zone": "a"}
    assert (summary.hostname, summary.platform) == (socket.gethostname(), sys.platform)
    assert summary.arch
    assert summary.state is DaemonState.ONLINE
    assert server.daemon_count() == len(server.list_daemons())
    stats = server.get_stats()
    assert stats.daemons_online == server.daemon_count()
    assert stats.platforms == {sys.platform: stats.daemons_online}


@posix_only
def test_a_daemon_is_busy_while_a_command_runs(
    server: Server, daemon: DaemonProcess, tmp_path: Path
) -> None:
    """Busy from the call until the command has ended."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert not server.get_daemon("worker-1").is_busy
    with in_thread(lambda: server.exec("worker-1", f"cat {fifo}")):
        until(lambda: server.get_daemon("worker-1").is_busy)
        fifo.write_text("")
    assert not server.get_daemon("worker-1").is_busy


def test_wait_for_daemon_tells_whether_it_came(server: Server) -> None:
    """False when the time is over, True as soon as the daemon has dialled in."""
    assert server.wait_for_daemon("worker-4", timeout=0.01) is False
    assert server.wait_for_daemon("worker-4", timeout=0) is False
    answers: list[bool] = []
    with in_thread(lambda: answers.append(server.wait_for_daemon("worker-4", timeout=None))):
        with running_daemon(server.url, "worker-4"):
            until(lambda: bool(answers))
            assert server.wait_for_daemon("worker-4", timeout=0) is True
    assert answers == [True]


def test_call_reaches_the_whole_trio_api(server: Server, daemon: DaemonProcess) -> None:
    """A function with the controller in its own trio thread; what it returns comes back."""

    async def converse(word: bytes) -> bytes:
        worker = server.controller.daemon("worker-1")
        async with worker.open_process(["cat"]) as process:
            await process.stdin.send_all(word)
            return await process.stdout.receive_some()

    assert server.call(converse, b"hello") == b"hello"


def test_blocking_from_within_the_trio_thread_is_an_error(server: Server) -> None:
    """It would wait for itself; the error says what to do instead."""

    async def inside() -> int:
        return server.daemon_count()

    with pytest.raises(RuntimeError, match="await the asynchronous functions"):
        server.call(inside)


def test_other_event_loops_may_use_it(server: Server, daemon: DaemonProcess) -> None:
    """In a coroutine a call blocks that loop, and works; its worker threads are free to call."""

    async def from_asyncio() -> tuple[str, str]:
        blocking = server.exec("worker-1", "echo blocking").stdout
        return blocking, (await asyncio.to_thread(server.exec, "worker-1", "echo beside")).stdout

    async def from_trio() -> tuple[str, str]:
        blocking = server.exec("worker-1", "echo blocking").stdout
        beside = await trio.to_thread.run_sync(server.exec, "worker-1", "echo beside")
        return blocking, beside.stdout

    assert asyncio.run(from_asyncio()) == ("blocking\n", "beside\n")
    assert trio.run(from_trio) == ("blocking\n", "beside\n")


def test_a_file_says_where_it_listens(tmp_path: Path) -> None:
    """Unless an argument does."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = tmp_path / "controller.toml"
        config.write_text(f'host = "127.0.0.1"\nport = {port}\n')
        with pytest.raises(OSError, match=str(port)):
            Server(config=config)
        with Server(port=0, config=config) as server:
            assert not server.address.endswith(f":{port}")


def test_the_options_are_those_of_the_trio_api() -> None:
    """Whatever `open_controller` and `Daemon.run` can do can be asked for here."""
    ours = {"host", "port"} | ServerOptions.__annotations__.keys()
    assert ours == inspect.signature(sandd.open_controller).parameters.keys()
    ours = inspect.signature(Server.exec).parameters.keys() - {"daemon_id", "options"}
    theirs = inspect.signature(sandd.Daemon.run).parameters.keys()
    assert ours | ExecOptions.__annotations__.keys() == theirs
    ours = inspect.signature(Server.open_process).parameters.keys() - {"daemon_id", "options"}
    theirs = inspect.signature(sandd.Daemon.open_process).parameters.keys()
    assert ours | ProcessOptions.__annotations__.keys() == theirs


# ---- the end ------------------------------------------------------------------------------------


def test_a_bind_error_is_raised_by_the_constructor() -> None:
    """An address in use is an OSError at once, and leaves no thread."""
    before = server_threads()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match=r"(?i)address already in use|10048"):
            Server("127.0.0.1", taken.getsockname()[1])
    assert server_threads() == before


def test_an_option_that_makes_no_sense_is_raised_by_the_constructor() -> None:
    """So is everything else that `open_controller` refuses."""
    with pytest.raises(sandd.ConfigurationError, match="token is empty"):
        Server(port=0, token="")


@posix_only
def test_close_during_calls_ends_them_all(marker: Marker) -> None:
    """Every caller learns of it at once, the remote trees are killed, and no thread is left."""
    before = server_threads()
    with Server(port=0) as server, running_daemon(server.url) as daemon:
        assert server.wait_for_daemon("worker-1", timeout=WAIT)
        ended: list[float] = []

        def call() -> None:
            with pytest.raises(trio.ClosedResourceError, match=r"sandd\.Server was closed"):
                server.exec("worker-1", TREE, kill_grace=1.0, env=dict([marker]))
            ended.append(time.monotonic())

        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(call) for _ in range(8)]
            until(lambda: len(marker.processes()) >= 8 * TREE_SIZE)
            server.close()
            closed = time.monotonic()
            for each in calls:
                each.result(WAIT)
        assert max(ended) < closed  # which waits for the trees
        assert not marker.processes()
        assert server_threads() == before
        server.close()
        with pytest.raises(trio.ClosedResourceError):
            server.exec("worker-1", "true")
        daemon.wait_for_log_sync("controller_left")


def test_leaving_the_block_closes_and_lets_errors_out() -> None:
    """The body's exception comes out as itself, and the port is free again."""
    error = LookupError()
    with pytest.raises(LookupError) as caught:
        with Server(port=0) as server:
            raise error
    assert caught.value is error
    host, _, port = server.address.partition(":")
    with Server(host, int(port)) as again:
        assert again.address == server.address
    assert repr(server) == f"<sandd.Server {server.address}, closed>"


def test_a_server_nobody_refers_to_is_closed() -> None:
    """It says so by a ResourceWarning, and its thread ends."""
    before = server_threads()
    servers = [Server(port=0)]
    with pytest.warns(ResourceWarning, match=r"unclosed <sandd\.Server"):
        servers.clear()
    until(lambda: server_threads() == before)


# ---- Ctrl-C and exit, in a process of their own -------------------------------------------------


class Program:
    """A Python program that prints lines; the first is its server's URL."""

    def __init__(self, source: str, *, anew: bool) -> None:
        self._process = PythonProcess(
            [sys.executable, "-c", source],
            env=daemon_environment(),
            any_program=not anew,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = self.line()

    def line(self) -> str:
        """Its next line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def interrupt(self) -> None:
        """As a Ctrl-C in its terminal would."""
        self._process.send_signal(signal.SIGINT)

    def ended(self, seconds: float) -> tuple[int, str]:
        """Exit code and stderr, if it ends in time."""
        _, errors = self._process.communicate(timeout=seconds)
        return self._process.returncode, errors

    def put_away(self) -> None:
        """Let nothing of it stay."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def program(*lines: str, anew: bool = False) -> Iterator[Program]:
    """A program that opens a server and waits for "worker-1"; the lines are what it does then.

    `anew` where what the interpreter does at its exit matters.
    """
    before = ["import sys, threading, time", "from sandd import Server", "server = Server(port=0)"]
    before += ["sys.stdout.reconfigure(line_buffering=True)", "print(server.url)"]
    before += [f"assert server.wait_for_daemon('worker-1', timeout={WAIT})"]
    running = Program("\n".join([*before, *lines]), anew=anew)
    try:
        yield running
    finally:
        running.put_away()


def remote(marker: Marker, kill_grace: float) -> str:
    """The call that a program makes: a tree of processes that don't mind SIGTERM."""
    options = f"kill_grace={kill_grace}, env={dict([marker])!r}"
    return f"server.exec('worker-1', {TREE!r}, {options})"


@posix_only
def test_ctrl_c_interrupts_a_call_at_once_and_kills_the_remote_tree(marker: Marker) -> None:
    """KeyboardInterrupt comes before the tree is dead, the tree dies, and the server works on."""
    lines = (
        "try:",
        f"    {remote(marker, 0.5)}",
        "except KeyboardInterrupt:",
        "    print(f'interrupted with {server.get_stats().jobs} job')",
        "print(server.exec('worker-1', 'echo it works on').stdout.strip())",
        "threading.Event().wait()",
    )
    with program(*lines) as child, running_daemon(child.url) as daemon:
        until(lambda: len(marker.processes()) >= TREE_SIZE)
        daemon.signal(signal.SIGSTOP)  # so the tree can't be dead before we look
        child.interrupt()
        assert child.line() == "interrupted with 1 job"
        daemon.signal(signal.SIGCONT)
        assert child.line() == "it works on"
        until(lambda: not marker.processes())
        child.interrupt()
        code, errors = child.ended(WAIT)
        assert code == -signal.SIGINT
        assert errors.count("Traceback") == 1, errors


@posix_only
def test_a_second_ctrl_c_ends_the_program(marker: Marker) -> None:
    """The first closes the server, which sees the tree dead; the second doesn't wait for that."""
    lines = ("with server:", f"    {remote(marker, 0.5)}")
    with program(*lines, anew=True) as child, running_daemon(child.url) as daemon:
        until(lambda: len(marker.processes()) >= TREE_SIZE)
        daemon.signal(signal.SIGSTOP)  # so the tree can't be dead before we look
        child.interrupt()
        with pytest.raises(subprocess.TimeoutExpired):
            child.ended(0.2)
        child.interrupt()
        code, errors = child.ended(WAIT)
        assert len(marker.processes()) >= TREE_SIZE
        daemon.signal(signal.SIGCONT)
        assert code == -signal.SIGINT
        assert "Exception ignored" not in errors
        assert "Fatal" not in errors
        until(lambda: not marker.processes())


@posix_only
def test_exit_does_not_hang_where_close_was_forgotten(marker: Marker) -> None:
    """The program ends with a call under way; the daemon is told, and the tree dies."""
    lines = (
        f"call = lambda: {remote(marker, 0.2)}",
        "threading.Thread(target=call, daemon=True).start()",
        "while server.get_stats().jobs == 0: time.sleep(0.01)",
        "print('running')",
    )
    with program(*lines, anew=True) as child, running_daemon(child.url) as daemon:
        assert child.line() == "running"
        code, errors = child.ended(WAIT)
        assert code == 0, errors
        assert "Exception ignored" not in errors
        daemon.wait_for_log_sync("controller_left")
        until(lambda: not marker.processes())
