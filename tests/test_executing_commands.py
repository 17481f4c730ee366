"""``sandd exec`` as a program: it is to its caller what the command itself would be, run here."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from attrs import frozen
from controllers import running_controller
from daemons import daemon_environment, running_daemon
from forked_python import PythonProcess, run_python
from process_tools import until_sync
from standing_daemon import reserved_port
from tmux import needs_tmux, running_tmux

import sandd
from sandd.testing import open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Marker
    from controllers import ControllerProcess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these programs are POSIX")
SECONDS: Final = 50.0
"""For what takes one or two: the machine may be busy."""


@frozen
class Where:
    """Where commands are run."""

    words: list[str]
    """On the command line: a daemon's id, or ``--local``."""
    env: dict[str, str]
    """Names the controller."""


@pytest.fixture(scope="module")
def controller(_own_temporary_directory: None) -> Iterator[ControllerProcess]:
    """In a process of its own."""
    with running_controller() as controller:
        yield controller


@pytest.fixture(scope="module")
def where(controller: ControllerProcess) -> Iterator[Where]:
    """A daemon, which the tests of this module share."""
    where = Where(["w"], controller.env)
    with running_daemon(controller.url, "w") as daemon:
        assert run(where, "--wait", "30", "--", "true").returncode == 0, daemon.log
        yield where


@pytest.fixture
def here() -> Where:
    """A controller and a daemon of the command's own."""
    return Where(["--local"], {})


def command_line(where: Where, *arguments: str) -> list[str]:
    """Of ``sandd exec``; what stands behind ``--`` in `arguments` is the command."""
    return [sys.executable, "-m", "sandd", "exec", *where.words, *arguments]


def run(where: Where, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """``sandd exec`` to its end; without anything on stdin unless said otherwise."""
    given = {"stdin": subprocess.DEVNULL} if "input" not in options else {}
    return run_python(
        command_line(where, *arguments),
        env=daemon_environment(where.env),
        timeout=SECONDS,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | given | options,
    )


@contextmanager
def running(
    where: Where, *arguments: str, marker: Marker | None = None, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """``sandd exec`` as it runs; the command there is marked."""
    marked = [] if marker is None else ["-e", f"{marker.name}={marker.value}"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with PythonProcess(
        command_line(where, *marked, *arguments),
        env=daemon_environment(where.env),
        **pipes | options,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # its daemon, if it has one, is to end with it
                try:
                    process.wait(10)
                finally:
                    process.kill()


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    """The next one on stdout."""
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        pytest.param(["--", "sh", "-c", "exit 0"], 0, b"", id="success"),
        pytest.param(["--", "sh", "-c", "exit 7"], 7, b"", id="its-own"),
        pytest.param(["sh", "-c", "exit 7"], 7, b"", id="without-dashes"),
        pytest.param(["--shell", "--", "exit 7"], 7, b"", id="in-a-shell"),
        pytest.param(["--", "exit 7"], 127, b"'exit 7'", id="in-no-shell"),
        pytest.param(["--", "sh", "-c", "kill -TERM $$"], 143, b"", id="killed"),
        pytest.param(["--", "/no/such"], 127, b"'/no/such'", id="not-found"),
        pytest.param(["--", "/etc/passwd"], 126, b"'/etc/passwd'", id="not-executable"),
        pytest.param(
            ["-w", "/no/such", "--", "ls"],
            125,
            b"-w /no/such: it can't be the working",
            id="no-directory",
        ),
        pytest.param(
            ["--timeout", "0.2", "--", "sleep", "60"],
            124,
            b"it ran for 0.2 s (--timeout)",
            id="late",
        ),
        pytest.param(
            ["--idle-timeout", "0.2", "--", "sleep", "60"],
            124,
            b"nothing for 0.2 s (--idle-timeout)",
            id="silent",
        ),
        pytest.param(["-t", "--", "ls"], 125, b"stdin is not a terminal", id="no-terminal"),
    ],
)
def test_exit_codes(where: Where, arguments: list[str], code: int, told: bytes) -> None:
    """The command's own, or one that says what became of it; and a line where its caller must wonder."""
    done = run(where, *arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    assert told in done.stderr
    assert done.stderr.count(b"\n") == bool(told)


def test_a_command_is_run_as_it_is(where: Where, tmp_path: Path) -> None:
    """Its words are no shell's business; directory and variables are what was said."""
    done = run(where, "--", "printf", "<%s>", "$HOME", "*", "a  b", "", "-e", "--")
    assert done.stdout == b"<$HOME><*><a  b><><-e><-->"
    given = ["-w", str(tmp_path), "-e", "A=1 2", "-e", "B=x=y"]
    done = run(where, *given, "--", "sh", "-c", 'echo "$PWD,$A,$B"')
    assert done.stdout.decode() == f"{tmp_path},1 2,x=y\n"
    done = run(where, "--shell", "--", "echo", "$((1+2))", "|", "tr", "3", "4")
    assert done.stdout == b"4\n"


def test_bytes_are_neither_changed_nor_mixed(where: Where, tmp_path: Path) -> None:
    """Any bytes, megabytes of them, on both outputs at once."""
    (tmp_path / "out").write_bytes(bytes(range(256)) * 12_000)
    (tmp_path / "err").write_bytes(bytes(reversed(range(256))) * 12_000)
    done = run(where, "-w", str(tmp_path), "--shell", "--", "cat err >&2 & cat out; wait")
    assert done.stdout == (tmp_path / "out").read_bytes()
    assert done.stderr == (tmp_path / "err").read_bytes()


def test_output_comes_when_it_is_written(where: Where) -> None:
    """Not at the end; and what is typed is there at once, too."""
    with running(where, "-i", "--", "sh", "-c", "echo first; read -r word; echo $word") as process:
        assert line_of(process) == b"first\n"
        assert process.stdin is not None
        process.stdin.write(b"second\n")
        process.stdin.flush()
        assert line_of(process) == b"second\n"
        assert process.wait(SECONDS) == 0


def test_the_end_of_input_is_the_command_s(where: Where) -> None:
    """All of it arrives, then its end; and what the command writes after that comes back."""
    content = os.urandom(3_000_000)
    done = run(where, "-i", "--", "sh", "-c", "cat; echo end; exit 4", input=content)
    assert (done.returncode, done.stderr) == (4, b"")
    assert done.stdout == content + b"end\n"


@pytest.mark.parametrize("written", [0, 30_000_000], ids=["nothing", "too-much"])
def test_input_that_is_not_read_keeps_nobody(where: Where, written: int) -> None:
    """The command ends, and so do we, with stdin open, and whatever there still is in it."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as ours, os.fdopen(write, "wb") as theirs:
        writer = None
        if written:
            writer = subprocess.Popen(
                ["head", "-c", str(written), "/dev/zero"], stdout=theirs, stderr=subprocess.DEVNULL
            )
        done = run(where, "-i", "--", "sh", "-c", "exit 3", stdin=ours)
    assert (done.returncode, done.stderr) == (3, b"")
    if writer is not None:
        writer.wait(SECONDS)


def test_without_i_input_is_left_to_others(where: Where) -> None:
    """The command reads end of file; the next program gets all there is."""
    line = shlex.join(command_line(where, "--", "sh", "-c", "cat; echo nothing"))
    done = subprocess.run(
        ["sh", "-c", f"{line}; cat"],
        env=daemon_environment(where.env),
        input=b"for others",
        capture_output=True,
        timeout=SECONDS,
    )
    assert (done.stdout, done.stderr) == (b"nothing\nfor others", b"")


@pytest.mark.parametrize("source", ["file", "/dev/null"])
def test_input_that_never_blocks(where: Where, source: str, tmp_path: Path) -> None:
    """A file, and nothing at all: no system can say when there is more."""
    content = b"" if source == "/dev/null" else b"content"
    if content:
        source = str(tmp_path / source)
        (tmp_path / "file").write_bytes(content)
    with open(source, "rb") as file:
        done = run(where, "-i", "--", "cat", stdin=file)
    assert (done.returncode, done.stdout, done.stderr) == (0, content, b"")


def test_a_daemon_of_its_own(here: Where, marker: Marker) -> None:
    """With ``--local`` nothing else is needed, and nothing of it stays."""
    marked = ["-e", f"{marker.name}={marker.value}"]
    done = run(here, *marked, "--", "sh", "-c", "sleep 1000 & echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert not marker.processes()


async def test_a_cut_changes_nothing(
    where: Where, controller: ControllerProcess, tmp_path: Path
) -> None:
    """The connection to the controller breaks again and again: every byte comes through, once, and the exit code."""
    script = f"for n in 1 2 3 4 5 6; do seq $n 3000; until [ -e {tmp_path}/$n ]; do sleep 0.02; done; done; exit 9"
    async with open_fault_proxy(controller.port) as proxy, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def cut_again_and_again() -> None:
            for number in range(1, 7):
                await proxy.wait_accepted(number)
                await trio.sleep(0.35)
                (tmp_path / str(number)).touch()
                proxy.cut()

        env = daemon_environment(where.env | {"SANDD_CONTROLLER": proxy.url})
        line = command_line(where, "--", "sh", "-c", script)
        done = await trio.run_process(
            line, env=env, capture_stdout=True, capture_stderr=True, check=False
        )
        nursery.cancel_scope.cancel()
    assert proxy.accepted >= 6
    # A busy machine takes so long to connect that it is told.
    told = done.stderr.replace(b"[w is away; waiting for it]\n[w is back]\n", b"")
    assert (done.returncode, told) == (9, b"")
    expected = "".join(f"{m}\n" for n in range(1, 7) for m in range(n, 3001))
    assert done.stdout.decode() == expected


def test_a_controller_that_is_started_anew(tmp_path: Path) -> None:
    """The command goes on meanwhile, and so does what runs it from here."""
    fifo, home = tmp_path / "fifo", tmp_path / "home"
    os.mkfifo(fifo)
    home.mkdir()
    script = f"echo first; read -r word < {fifo}; echo $word; exit 9"
    with reserved_port() as port, ExitStack() as stack:
        with running_controller("--port", str(port), home=home) as controller:
            where = Where(["--wait", "30", "w"], controller.env)
            stack.enter_context(running_daemon(controller.url, "w"))
            process = stack.enter_context(running(where, "--", "sh", "-c", script))
            assert line_of(process) == b"first\n"
        fifo.write_text("second\n")
        assert process.poll() is None
        with running_controller("--port", str(port), home=home):
            output, told = process.communicate(timeout=SECONDS)
            assert (output, process.returncode) == (b"second\n", 9)
            # That it takes long is told, and nothing else.
            assert b"sandd:" not in told


def test_what_is_begun_and_left(where: Where, tmp_path: Path) -> None:
    """Its name is printed, and it goes on, to be held by somebody else."""
    fifo, result = tmp_path / "fifo", tmp_path / "result"
    os.mkfifo(fifo)
    script = f"echo said; read -r word < {fifo}; echo $word > {result}"
    done = run(where, "--detach", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.fullmatch(rb"w/[0-9a-f]+\.\d+\n", done.stdout)
    token = Path(where.env["SANDD_OPERATOR_TOKEN_FILE"]).read_bytes()

    async def look() -> sandd.JobInfo:
        async with sandd.connect_controller(
            where.env["SANDD_CONTROLLER"], token=token
        ) as controller:
            jobs = {f"w/{job.job_id}\n": job for job in await controller.daemon("w").jobs()}
            return jobs[done.stdout.decode()]

    job = trio.run(look)
    assert (job.state, job.detached, job.owned) == (sandd.JobState.RUNNING, True, False)
    fifo.write_text("written\n")
    until_sync(lambda: result.exists() and result.read_text() == "written\n")
    assert run(where, "--detach", "--", "/no/such").returncode == 127


# ---- before its time ----------------------------------------------------------------------------

READY = "echo ready; while :; do sleep 0.05; done"


def test_the_first_ctrl_c_is_the_command_s(where: Where, marker: Marker) -> None:
    """It may have something to say about it; its exit code is what counts."""
    script = f'trap "echo bye; exit 5" INT; {READY}'
    with running(where, "--", "sh", "-c", script, marker=marker) as process:
        assert line_of(process) == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SECONDS) == (b"bye\n", b"")
    assert process.returncode == 5
    assert not marker.processes()


def test_ctrl_c_ends_what_doesn_t_mind_it(where: Where, marker: Marker) -> None:
    """As a shell has it: 130."""
    with running(where, "--", "sh", "-c", READY, marker=marker) as process:
        assert line_of(process) == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SECONDS) == (b"", b"")
    assert process.returncode == 130
    assert not marker.processes()


def test_the_second_ctrl_c_ends_it_all(where: Where, marker: Marker) -> None:
    """What ignores the first one, and all that it has started, wherever that hides."""
    script = f'trap "" INT; setsid sleep 1000 & {READY}'
    with running(where, "--", "sh", "-c", script, marker=marker) as process:
        assert line_of(process) == b"ready\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)  # whatever it would do, it would have done by now
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SECONDS) == (b"", b"")
    assert process.returncode == 130
    assert not marker.processes()


def test_a_reader_that_is_stuck_keeps_nobody(where: Where, marker: Marker) -> None:
    """The command is gone by the first Ctrl-C, with output that nobody takes; the second one gives that up."""
    with running(where, "--", "sh", "-c", "echo ready; exec yes", marker=marker) as process:
        assert line_of(process) == b"ready\n"
        process.send_signal(signal.SIGINT)
        until_sync(lambda: not marker.processes())
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_other_signals_end_it_at_once(
    where: Where, number: signal.Signals, code: int, marker: Marker
) -> None:
    """With its whole tree."""
    with running(where, "--", "sh", "-c", f"sleep 1000 & {READY}", marker=marker) as process:
        assert line_of(process) == b"ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=SECONDS) == (b"", b"")
    assert process.returncode == code
    assert not marker.processes()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_nobody_reads_on(where: Where, stream: str, marker: Marker) -> None:
    """As in ``sandd exec w yes | head``: the command is ended, and nobody is told anything."""
    script = "yes" if stream == "stdout" else "echo; yes >&2"
    with running(where, "--", "sh", "-c", script, marker=marker) as process:
        line_of(process)
        read = getattr(process, stream)
        read.close()
        if stream == "stdout":
            assert process.stderr is not None
            assert process.stderr.read() == b""
        assert process.wait(SECONDS) == 128 + signal.SIGPIPE
    assert not marker.processes()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="it is Linux'")
def test_output_that_can_not_be_written(where: Where, marker: Marker) -> None:
    """It is told, and the command doesn't go on for nothing."""
    marked = ["-e", f"{marker.name}={marker.value}"]
    with open("/dev/full", "wb") as full:
        done = run(where, *marked, "--", "yes", stdout=full)
    assert (done.returncode, done.stderr) == (125, b"sandd: stdout: No space left on device\n")
    assert not marker.processes()


def test_streams_that_were_closed_before(where: Where) -> None:
    """What has no descriptor is empty, or goes nowhere, and to no other descriptor of ours."""
    line = shlex.join(command_line(where, "-i", "--", "sh", "-c", "cat; echo y >&2; exit 6"))
    done = subprocess.run(
        ["sh", "-c", f"exec {line} <&- >&- 2>&-"],
        env=daemon_environment(where.env),
        timeout=SECONDS,
    )
    assert done.returncode == 6


# ---- at a terminal ------------------------------------------------------------------------------


@needs_tmux
def test_a_terminal_there(where: Where, tmp_path: Path) -> None:
    """With ``-t`` the command has one, of this one's size; keys are its own; the exit code, too."""
    with running_tmux(tmp_path, env=where.env) as tmux:
        before = tmux.run("stty -a")
        script = "tty; stty size; trap 'echo interrupted; exit 8' INT; while :; do sleep 0.1; done"
        line = shlex.join(command_line(where, "-t", "--", "sh", "-c", script))
        tmux.type(f"{line}; echo co''de=$?.", "Enter")
        tmux.wait_for(r"(?m)^/dev/\S+\n30 100$")
        tmux.type("C-c")
        tmux.wait_for(r"(?s)interrupted.*code=8\.")
        assert tmux.run("stty -a") == before


@needs_tmux
def test_at_a_terminal_without_one_there(where: Where, tmp_path: Path) -> None:
    """Without ``-t`` nothing changes at this one: lines are edited here, and Ctrl-C is a signal."""
    with running_tmux(tmp_path, env=where.env) as tmux:
        script = 'trap "echo bye; exit 9" INT; tty; cat; echo end; while :; do sleep 0.1; done'
        line = shlex.join(command_line(where, "-i", "--", "sh", "-c", script))
        tmux.type(f"{line}; echo co''de=$?.", "Enter")
        tmux.wait_for("not a tty")
        assert not tmux.is_raw()
        tmux.type("hellp", "BSpace", "o", "Enter")
        tmux.wait_for(r"(?m)^hello\nhello$")
        tmux.type("C-d")
        tmux.wait_for(r"(?m)^end$")
        tmux.type("C-c")
        assert re.search(r"\^C", tmux.wait_for(r"(?s)\^C.*bye.*code=9\.")[0])
