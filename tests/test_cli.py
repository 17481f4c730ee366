"""The `sandd` command, as a process of its own: what it prints, how it ends, and what it leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from daemons import daemon_environment
from forked_python import PythonProcess, run_python

import sandd
from sandd.demo.steps import STEPS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Marker

DEMO_SECONDS = 50.0
"""For what takes five on an idle machine."""

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="sends real signals")


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m sandd`` to its end."""
    return run_python(
        [sys.executable, "-m", "sandd", *arguments],
        env=daemon_environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
    )


@contextmanager
def started(*arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """``python -m sandd`` (or with "-c" a program) as it runs; nothing of it stays."""
    program = arguments if arguments[0] == "-c" else ("-m", "sandd", *arguments)
    process = PythonProcess(
        [sys.executable, *program],
        env=daemon_environment(env),
        any_program=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The line of its output that has the text."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return line
    pytest.fail(f"it never printed {text!r}:\n{seen}")


def test_version() -> None:
    """``--version`` names the program and the package's version."""
    done = run("--version")

    assert (done.returncode, done.stdout) == (0, f"sandd {sandd.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param([], "usage: sandd", id="nothing"),
        pytest.param(["dmeo"], "invalid choice: 'dmeo' (choose from", id="unknown-command"),
        pytest.param(["--vers"], "error", id="abbreviated-option"),
        pytest.param(["demo", "now"], "unrecognized arguments: now", id="argument-too-many"),
        pytest.param(["daemon"], "sandd daemon: error: no controller to dial", id="daemon-no-url"),
        pytest.param(
            ["shell"], "sandd shell: error: it takes a DAEMON, or --local", id="shell-of-whom"
        ),
        pytest.param(
            ["shell", "w", "ls"],
            "sandd shell: error: 'ls' is no option: put -- before CMD",
            id="shell-no-dashes",
        ),
        pytest.param(["shell", "--local", "--detach"], "shell: error: --local", id="shell-local"),
        pytest.param(["attach", "w/"], "argument JOB: 'w/' names no job", id="attach-nothing"),
        pytest.param(
            ["attach", "w/1", "--read-only", "--takeover"], "--takeover: who only", id="attach-both"
        ),
        pytest.param(["shell", "w", "-e", "K", "--", "-e"], "'K' is not K=V", id="shell-variable"),
        pytest.param(["shell", "w", "--wait", "x"], "'x' is no number of", id="shell-wait"),
        pytest.param(["attach"], "the following arguments are required: JOB", id="attach-to-what"),
        pytest.param(["cp"], "the following arguments are required: SRC ... DST", id="cp-what"),
        pytest.param(["forward", "w"], "arguments are required: TARGET", id="forward-what"),
        pytest.param(["ps", "-l", "x"], "'x' is not K=V", id="ps-label"),
        pytest.param(["jobs", "--timeout", "x"], "no number of seconds", id="jobs-timeout"),
        pytest.param(["cp", "--bogus", "a", "w:"], "usage: sandd cp [options]", id="cp-option"),
        pytest.param(["run"], "which command?", id="run-what"),
        pytest.param(
            ["run", "ls"], "sandd run: error: 'ls' is no option: put --", id="run-no-dashes"
        ),
        pytest.param(["run", "--timeout", "0", "--", "x"], "0 is no time", id="run-no-time"),
        pytest.param(["run", "--bogus", "--", "x"], "usage: sandd run [options]", id="run-option"),
        pytest.param(["kill", "-s", "BOGUS", "J"], "'BOGUS'", id="kill-signal"),
        pytest.param(
            ["policy", "check", "f", "ls"],
            "sandd policy check: error: 'ls' is no option: put --",
            id="policy-no-dashes",
        ),
        pytest.param(["kill", ""], "argument JOB: '' names no job", id="kill-nothing"),
        pytest.param(["logs", "w/"], "argument JOB: 'w/' names no job", id="logs-nothing"),
        pytest.param(["ps", "--controller", "x"], "--controller: 'x' is no URL", id="no-url"),
        pytest.param(["run", "--concurrency", "0", "--", "x"], "'0' is no number", id="run-0"),
        pytest.param(["kill"], "the following arguments are required: JOB", id="kill-what"),
        pytest.param(["completion", "csh"], "invalid choice: 'csh'", id="completion-csh"),
        pytest.param(["controller", "--port", "x"], "--port 'x' is no", id="controller-port"),
        pytest.param(["daemon", "--lable", "a=b"], "unrecognized arguments", id="daemon-option"),
    ],
)
def test_bad_use_is_explained(arguments: list[str], complaint: str) -> None:
    """Exit code 2, and what is wrong with it on stderr, without a traceback."""
    done = run(*arguments)

    assert done.returncode == 2
    assert done.stdout == ""
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_the_commands() -> None:
    """Each command is there with a line on what it is for, and has help of its own."""
    overview = run("--help")
    assert overview.returncode == 0
    assert "demo" in overview.stdout
    assert "show everything in one go" in overview.stdout
    assert "leaves nothing behind" in run("demo", "--help").stdout
    assert "usage: sandd daemon" in run("daemon", "--help").stdout
    shell = run("shell", "--help").stdout
    assert "usage: sandd shell [options] DAEMON | --local [-- CMD ...]" in shell
    assert "~.  leaves" in shell
    assert "128+N" in shell
    assert "--takeover" in run("attach", "--help").stdout
    assert "sandd cp [options] SRC [SRC ...] DST" in run("cp", "--help").stdout
    assert "8080:127.0.0.1:80" in run("forward", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param(["shell", "w"], "stdin is not a terminal", id="no-terminal"),
        pytest.param(["attach", "w/1"], "stdin is not a terminal", id="attach-no-terminal"),
    ],
)
def test_sessions_that_can_not_be_are_explained(arguments: list[str], complaint: str) -> None:
    """One line and exit code 125, before anybody is listened for."""
    done = run(*arguments)

    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("sandd: ")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_commands_import_only_what_they_need() -> None:
    """Neither the controller, nor trio, nor rich is loaded to answer ``--version``."""
    program = (
        "import sys, sandd.cli\n"
        "try: sandd.cli.main(['--version'])\n"
        "except SystemExit: print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=daemon_environment(), capture_output=True, text=True
    )

    loaded = set(done.stdout.split())
    assert "argparse" in loaded
    assert not {"trio", "rich", "attrs", "sandd.controller", "sandd.daemon"} & loaded


@posix_only
def test_daemon_is_the_daemon_program(tmp_path: Path) -> None:
    """``sandd daemon`` takes the daemon's options, runs it, and ends as it does."""
    url = "ws://127.0.0.1:9/ws"  # the discard port: nobody listens
    with started("daemon", "-s", url, "--state-dir", str(tmp_path)) as process:
        assert process.stderr is not None
        lines = iter(process.stderr)
        assert any("dial_failed" in line for line in lines)
        process.send_signal(signal.SIGTERM)
        assert any("stopped" in line for line in lines)
        assert process.wait(20) == 0


# ---- sandd demo ---------------------------------------------------------------------------------


def test_demo_shows_every_step_and_that_it_held(marker: Marker) -> None:
    """Exit code 0, plain text where there is no terminal, and nothing of it is left."""
    done = run("demo", **dict([marker]))

    assert not marker.processes()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "FAILED" not in done.stdout
    assert "\x1b" not in done.stdout
    for number, title in enumerate(STEPS, start=1):
        assert f"\n{number}. {title}\n" in done.stdout
        assert re.search(rf"^ok  {title} +\d+\.\d  \w", done.stdout, re.MULTILINE)
    assert done.stdout.count("event: resumed") == 4
    assert "0 left" in done.stdout


ONE_STEP = """
import sys
import sandd.cli, sandd.demo

wanted = int(sys.argv[1])
for number, title in enumerate(list(sandd.demo.STEPS), start=1):
    if number != wanted:
        del sandd.demo.STEPS[title]
sys.exit(sandd.cli.main(["demo"]))
"""


@posix_only
@pytest.mark.parametrize(
    ("step", "moment"),
    [
        pytest.param(1, f"sandd {sandd.__version__}", id="at-the-start"),
        pytest.param(1, "to 1999: 303 primes", id="with-commands-running"),
        pytest.param(3, "4 of its processes found", id="with-a-tree-that-ignores-SIGTERM"),
        pytest.param(4, "event: away", id="with-the-connection-cut"),
    ],
)
def test_ctrl_c_ends_the_demo_and_leaves_nothing(step: int, moment: str, marker: Marker) -> None:
    """Exit code 130, no traceback; no process, and (by the leak check) no file."""
    with started("-c", ONE_STEP, str(step), **dict([marker])) as process:
        read_until(process, moment)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=DEMO_SECONDS)

    assert not marker.processes()
    assert (process.returncode, errors) == (130, "")
    assert "Interrupted" in output


@posix_only
def test_a_second_ctrl_c_does_not_wait_for_the_daemon(marker: Marker) -> None:
    """Even a daemon that can't end by itself any more doesn't keep the demo from ending."""
    with started("demo", **dict([marker])) as process:
        started_line = read_until(process, "has dialled in")
        read_until(process, "primes")
        found = re.search(r"process (\d+)", started_line)
        assert found is not None
        os.kill(int(found[1]), signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)

    assert (process.returncode, errors) == (130, "")


@posix_only
def test_demo_ends_when_nobody_reads_on(marker: Marker) -> None:
    """As in ``sandd demo | head``: in good order and without a word."""
    with started("demo", **dict([marker])) as process:
        read_until(process, "primes")
        assert process.stdout is not None
        process.stdout.close()
        process.wait(DEMO_SECONDS)
        assert process.stderr is not None
        assert process.stderr.read() == ""

    assert not marker.processes()
    assert process.returncode == 128 + signal.SIGPIPE


SABOTAGED = """
import sys
import sandd.demo, sandd.demo.stage
from sandd.demo.steps import check

async def lie(stage):
    check(False, "two and two are five")

async def tell_the_truth(stage):
    return (await stage.worker.run("echo still here", check=True)).stdout.strip()

sandd.demo.STEPS.clear()
sandd.demo.STEPS.update({"A lie": lie, "The truth": tell_the_truth})
"""


@pytest.mark.parametrize(
    ("sabotage", "expected"),
    [
        pytest.param(
            "",
            ["FAILED: not so: two and two are five", "ok: still here", "FAILED  A lie"],
            id="a-claim-that-does-not-hold",
        ),
        pytest.param(
            "sandd.demo.stage.DAEMON_ID = 'not/an id'",
            ["FAILED: the daemon did not dial in.", "not/an id", "FAILED  The start"],
            id="a-daemon-that-does-not-start",
        ),
    ],
)
def test_demo_says_what_failed(sabotage: str, expected: list[str]) -> None:
    """Exit code 1, the reason at its step and in the summary; the other steps go on."""
    program = f"{SABOTAGED}\n{sabotage}\nsys.exit(sandd.demo.run_demo())"
    done = run_python(
        [sys.executable, "-c", program],
        env=daemon_environment(),
        any_program=True,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
    )

    assert (done.returncode, done.stderr) == (1, "")
    for text in expected:
        assert text in done.stdout
