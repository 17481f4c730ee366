"""Processes that are forked from one that has imported sandd: they are what a start would have made of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from daemons import daemon_environment
from forked_python import PythonProcess, run_python
from process_tools import linux_only, until_sync

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = [sys.executable, "-m", "sandd", "--version"]
CONTROLLER = [sys.executable, "-m", "sandd", "controller", "--port", "0"]

pytestmark = [
    linux_only,
    pytest.mark.skipif(
        "COVERAGE_PROCESS_CONFIG" in os.environ or os.environ.get("SANDD_TESTS_FORK") == "0",
        reason="nothing is forked in this run",
    ),
]


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The pids of those that were forked in the test."""
    run_python(VERSION, env=daemon_environment(), timeout=60, capture_output=True)
    source = PythonProcess.source
    assert source is not None
    if not source.works:
        pytest.skip("this system lets nothing be forked for somebody else")
    pids: list[int] = []
    fork = source.fork
    monkeypatch.setattr(source, "fork", lambda *given: pids.append(fork(*given)) or pids[-1])
    return pids


def test_it_is_a_child_of_ours_in_every_respect(forks: list[int], tmp_path: Path) -> None:
    """Its parent, session, directory, command line, environment and descriptors; and it ends by a signal."""
    env = daemon_environment({"COLOUR": "blue", "SANDD_CONTROLLER_STATE_DIR": str(tmp_path / "s")})
    with PythonProcess(
        CONTROLLER,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"ready ")
            assert forks == [process.pid]
            seen = Path(f"/proc/{process.pid}")
            assert f"PPid:\t{os.getpid()}\n" in (seen / "status").read_text()
            assert os.getsid(process.pid) == process.pid
            assert (seen / "cwd").readlink() == tmp_path
            words = (seen / "cmdline").read_bytes().split(b"\0")
            assert [os.fsdecode(word) for word in words] == [*CONTROLLER, ""]
            variables = (seen / "environ").read_bytes().split(b"\0")[:-1]
            assert dict(os.fsdecode(each).split("=", 1) for each in variables) == env
            assert PythonProcess.source is not None
            source = Path(f"/proc/{PythonProcess.source.process.pid}/fd")
            theirs = {os.readlink(each) for each in source.iterdir()}
            links = {os.readlink(each) for each in (seen / "fd").iterdir()}
            assert not {each for each in links & theirs if each.startswith("socket")}
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("arguments", "code", "stdout", "stderr"),
    [
        pytest.param(["--version"], 0, "sandd ", "", id="all-well"),
        pytest.param(["no-such"], 2, "", "invalid choice", id="bad-use"),
    ],
)
def test_it_ends_as_it_would_have(
    arguments: list[str], code: int, stdout: str, stderr: str, forks: list[int]
) -> None:
    """With the same exit code and words as one that was started."""
    command = [sys.executable, "-m", "sandd", *arguments]
    done = run_python(command, env=daemon_environment(), timeout=60, capture_output=True, text=True)
    started = subprocess.run(command, env=daemon_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, started.stdout, started.stderr)
    assert done.stdout.startswith(stdout)
    assert stderr in done.stderr
    assert len(forks) == 1


def test_a_full_disk_is_noticed_at_the_end(forks: list[int]) -> None:
    """What is written last is not lost without a word."""
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "sandd.daemon", "--version"]
        done = run_python(
            command, env=daemon_environment(), timeout=60, stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode != 0
    assert b"No space left on device" in done.stderr
    assert len(forks) == 1


@pytest.mark.parametrize(
    ("command", "more", "settings"),
    [
        pytest.param(VERSION, {"PYTHONHASHSEED": "7"}, {}, id="another-python"),
        pytest.param(VERSION, {"LC_ALL": "de_DE"}, {}, id="another-locale"),
        pytest.param(VERSION, {}, {"preexec_fn": lambda: None}, id="something-in-between"),
        pytest.param([sys.executable, "-c", "pass"], {}, {}, id="another-program"),
    ],
)
def test_what_a_copy_can_not_be_is_started(
    command: list[str], more: dict[str, str], settings: dict[str, object], forks: list[int]
) -> None:
    """It runs all the same."""
    done = run_python(
        command, env=daemon_environment(more), timeout=60, stdout=subprocess.DEVNULL, **settings
    )
    assert done.returncode == 0
    assert not forks


STARTING_ANOTHER = """
import subprocess, sys, warnings

print(__name__, sys.argv, sys.path[0])
try:
    warnings.warn("all is well")
except UserWarning:
    print("warned")
child = "import os, sys; print(os.getppid(), os.isatty(0), 'sandd.wire' in sys.modules)"
with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True) as process:
    print(process.stdout.read(), end="")
sys.exit(3)
"""


@pytest.mark.parametrize("kind", ["-m", "-c", "script"])
def test_any_program_is_run_as_by_python(kind: str, forks: list[int], tmp_path: Path) -> None:
    """With its arguments, path and warnings; what it starts is its child, and a copy where it is one itself."""
    script = tmp_path / "another_program.py"
    script.write_text(STARTING_ANOTHER)
    what = {"-m": ["-m", script.stem], "-c": ["-c", STARTING_ANOTHER], "script": [str(script)]}
    command = [sys.executable, "-W", "error", *what[kind], "one", "-two"]

    def run(*, any_program: bool) -> tuple[list[str], list[str], str]:
        with PythonProcess(
            command,
            env=daemon_environment(),
            any_program=any_program,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            output, errors = process.communicate(timeout=60)
        assert process.returncode == 3, errors
        *lines, last = output.splitlines()
        parent, *rest = last.split()
        assert int(parent) == process.pid
        return lines, rest, errors

    lines, rest, errors = run(any_program=False)
    assert not forks
    assert rest == ["False", "False"]
    assert run(any_program=True) == (lines, ["False", "True"], errors)
    assert len(forks) == 1


def test_a_copy_that_may_start_others_ends_as_a_whole(forks: list[int]) -> None:
    """What its own copies are forked from keeps nothing of what it has open, and ends when it is killed."""
    command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(1000)"]
    with PythonProcess(
        command, env=daemon_environment(), any_program=True, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            assert forks == [process.pid]
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            (source,) = map(int, children.read_text().split())
        finally:
            process.kill()
        assert process.stdout.read() == b""
    until_sync(lambda: not Path(f"/proc/{source}").exists())
