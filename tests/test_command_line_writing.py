"""What becomes of commands whose stdout takes nothing: full, closed, or read by nobody."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest
from attrs import frozen
from controllers import (
    SECONDS,
    ControllerProcess,
    Sink,
    full_disk,
    run_into,
    running_controller,
    unread_pipe,
)
from daemons import daemon_environment

from sandd._core import own_output
from sandd.command_line import stopping

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these programs are POSIX")
FULL: Final = (125, "sandd: stdout: No space left on device\n")
CLOSED: Final = (125, "sandd: stdout is closed\n")
UNREAD: Final = (128 + signal.SIGPIPE, "")
SAID: Final = "hello from the job"
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="it is Linux'")


@frozen
class World:
    """A controller with a daemon, and an ended job there."""

    controller: ControllerProcess
    job: str

    @property
    def env(self) -> dict[str, str]:
        """Of the commands; what Python prints is buffered, as it is for most people."""
        return daemon_environment(self.controller.env | {"PYTHONUNBUFFERED": ""})

    def words(self, command: str) -> list[str]:
        """Of ``sandd``, where JOB and HERE stand for what there is."""
        here = str(self.controller.home)
        return [word.replace("HERE", here).replace("JOB", self.job) for word in command.split()]

    def run(self, command: str, how: str) -> tuple[int, str]:
        """Its exit code and its stderr, in a shell where its stdout is redirected so."""
        line = shlex.join([sys.executable, "-m", "sandd", *self.words(command)])
        done = subprocess.run(
            ["bash", "-c", f"{line} {how}"],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.stdout == ""
        return done.returncode, done.stderr

    def run_into(self, stdout: Sink, command: str, **env: str) -> tuple[int, str]:
        """As `run`, without a shell: sooner."""
        return run_into(stdout, *self.words(command), env=self.controller.env | env)


@pytest.fixture(scope="module")
def world(_own_temporary_directory: None) -> Iterator[World]:
    """The tests of this module share it."""
    with running_controller() as controller, controller.daemon("w"):
        done = controller.run_command("exec", "--detach", "w", "--", "echo", *SAID.split())
        assert (done.returncode, done.stderr) == (0, "")
        (controller.home / "file").write_text("content")
        job = done.stdout.strip()
        assert controller.run_command("logs", "-f", job).stdout == f"{SAID}\n"
        yield World(controller, job)


@needs_full
@pytest.mark.parametrize(
    "command",
    [
        pytest.param("ps", id="ps"),
        pytest.param("ps --watch", id="ps-watch"),
        pytest.param("jobs --json", id="jobs"),
        pytest.param("logs JOB", id="logs"),
        pytest.param("cp --json w:HERE/file HERE/copy", id="cp"),
        pytest.param("forward w 127.0.0.1:1", id="forward"),
        pytest.param("completion bash", id="completion"),
        pytest.param("--help", id="help"),
    ],
)
def test_a_full_disk_is_one_line(world: World, command: str) -> None:
    """Which says of what, and the exit code is that of a failure of ours."""
    assert world.run_into(full_disk, command) == FULL


@needs_full
@pytest.mark.parametrize("command", ["--help", "--version", "ps --help", "ps"])
def test_a_full_disk_is_told_without_a_buffer(world: World, command: str) -> None:
    """As images and services like to have it: what fails does so when it is written, and not again at the end."""
    assert world.run_into(full_disk, command, PYTHONUNBUFFERED="1") == FULL
    assert world.run_into(unread_pipe, command, PYTHONUNBUFFERED="1") == UNREAD


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("program", "named"),
    [("controller", "sandd"), ("daemon", "sandd daemon: error")],
    ids=["controller", "daemon"],
)
def test_a_full_disk_is_told_by_programs(program: str, named: str, unbuffered: str) -> None:
    """Of their help and version; they were to do nothing else."""
    env = {"PYTHONUNBUFFERED": unbuffered}
    for option in ("--help", "--version"):
        code, said = run_into(full_disk, program, option, env=env)
        assert (code, said) == (FULL[0], f"{named}: stdout: No space left on device\n")
        assert run_into(unread_pipe, program, option, env=env) == UNREAD


@needs_full
def test_a_command_that_runs_is_ended_where_the_disk_is_full(world: World) -> None:
    """On each daemon: nobody will see what it does."""
    assert world.run_into(full_disk, "run -- yes") == FULL


@pytest.mark.parametrize("command", ["ps", "logs JOB", "run -- echo x", "exec w -- echo x"])
def test_a_stdout_that_was_closed_is_one_line(world: World, command: str) -> None:
    """Output that nobody will ever see is no success."""
    assert world.run(command, ">&-") == CLOSED


def test_a_stdout_that_was_closed_harms_nobody_who_needs_none(world: World) -> None:
    """As for any command; and what stderr can't take is nobody's business."""
    assert world.run("exec w -- true", ">&-") == (0, "")
    assert world.run("exec --shell w -- exit 6", "2>&-") == (6, "")
    assert world.run("exec nobody -- true", "2>&-") == (125, "")


@pytest.mark.parametrize("command", ["ps", "logs JOB", "completion bash", "--help"])
def test_a_reader_that_has_gone_is_told_nothing(world: World, command: str) -> None:
    """As of a program that SIGPIPE has ended, and as ``sandd exec`` has it."""
    assert world.run_into(unread_pipe, command) == UNREAD


@needs_full
def test_the_name_of_a_job_is_not_lost(world: World) -> None:
    """It has been begun: whoever can't be told on stdout is told on stderr, or would begin it again."""
    code, told = world.run_into(full_disk, "exec --detach w -- true")
    begun = {f"w/{each['id']}" for each in world.controller.objects("jobs", "--json")} - {world.job}
    (name,) = begun
    assert (code, told) == (
        125,
        f"sandd: the job is {name}, and has been begun\nsandd: stdout: No space left on device\n",
    )
    code, told = world.run_into(full_disk, f"forget {name}")
    assert code == 125
    assert told == "sandd: stdout: No space left on device\n"
    left = {f"w/{each['id']}" for each in world.controller.objects("jobs", "--json")}
    assert left == {world.job}


def test_what_is_written_is_whole(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Bytes as they are, on either."""
    data = bytes(range(256)) * 1000
    own_output.write("stdout", data)
    own_output.write("stderr", b"beside")
    assert capfdbinary.readouterr() == (data, b"beside")


def test_failures_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told of a reader that has gone, nor on a stderr that is closed."""
    reading, writing_end = os.pipe()
    os.close(reading)
    with os.fdopen(writing_end, "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with pytest.raises(own_output.ReaderGone):
            own_output.write("stdout", b"x")
        monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(own_output.CantWrite, match="stdout is closed"):
        own_output.write("stdout", b"x")
    monkeypatch.setattr(sys, "stderr", None)
    own_output.write("stderr", b"x")
    assert stopping.fail("nobody is told", 7) == 7
