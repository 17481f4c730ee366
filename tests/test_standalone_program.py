"""``sandd controller`` as a program: how it starts, says that it is ready, reloads, and is stopped at any moment."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio
import trio.testing
from controllers import (
    SECONDS,
    ControllerProcess,
    next_line,
    read_ready,
    running_controller,
    start_controller,
)
from daemons import daemon_environment, running_daemon
from forked_python import PythonProcess, hurried, run_python
from proc_files import handles
from process_tools import linux_only, posix_only, until_sync
from tls_peers import pem_of, server_pair, write_pair

import sandd
from sandd._core.controller_options import ControllerOptions
from sandd._core.controller_state import default_state_dir, open_controller_state
from sandd._core.identity.tokens import Token, TokenKind
from sandd._core.tls.authority import new_authority
from sandd.standalone.program import Program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Marker

STARTS: Final = 9 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 5
"""How often a test stops, or reloads, one that starts, each time at another moment."""

pytestmark = posix_only


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """What a reload in this process sets up is put back."""
    root, ours = logging.getLogger(), logging.getLogger("sandd")
    before = root.level, ours.level, [*root.handlers]
    yield
    root.setLevel(before[0])
    ours.setLevel(before[1])
    for handler in [each for each in root.handlers if each not in before[2]]:
        root.removeHandler(handler)


def run_controller(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A controller that ends by itself."""
    return run_python(
        [sys.executable, "-m", "sandd", "controller", *arguments],
        env=daemon_environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@contextlib.contextmanager
def started(
    *arguments: str, home: Path, env: dict[str, str] | None = None, anew: bool = True
) -> Iterator[subprocess.Popen[str]]:
    """One that the test stops by itself; not `anew` where its start does not matter."""
    process = start_controller(*arguments, home=home, env=env, anew=anew)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# ---- it starts ----------------------------------------------------------------------------------


def test_version_and_help() -> None:
    """Both need nothing; the help is this program's own."""
    done = run_controller("--version")
    assert (done.returncode, done.stdout) == (0, f"sandd {sandd.__version__}\n")
    assert "usage: sandd controller" in run_controller("--help").stdout


def test_what_it_says_is_what_one_needs(tmp_path: Path) -> None:
    """On stdout one line for a supervisor; on stderr command lines that work as they stand."""
    (tmp_path / "token").write_text("s3cret")
    with running_controller("--token-file", str(tmp_path / "token")) as controller:
        found = controller.wait_for_log(r"(?m)^  a daemon: +(.*)\n  who is there: +(.*)$")
        daemon_command, operator_command = map(shlex.split, found.groups())
        assert f"a controller at {controller.url}\n" in controller.log
        assert "s3cret" not in controller.log
        assert daemon_command[:2] == ["sandd", "daemon"]
        arguments = daemon_command[4:]  # all but the URL, which is given anyway
        assert daemon_command[2:4] == ["--server-url", controller.url]
        with controller.daemon("worker-1", arguments=arguments):
            assert operator_command[0] == "sandd"
            done = run_python(
                [sys.executable, "-m", *operator_command],
                env=daemon_environment(),
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert "worker-1  online" in done.stdout


def test_a_log_in_json_has_no_other_lines() -> None:
    """What is said for people is in the event `ready` then."""
    with running_controller("--log-format", "json") as controller:
        controller.wait_for_log('"ready"')
        lines = [json.loads(line) for line in controller.log.splitlines()]
        (ready,) = [each for each in lines if each["event"] == "ready"]
        assert ready["url"] == controller.url
        assert ready["operator_command"].startswith("sandd ps --controller ws://127.0.0.1:")
        assert ready["daemon_command"].startswith("sandd daemon --server-url")


def test_commands_find_it_by_themselves(tmp_path: Path) -> None:
    """At the default state directory of its port: with nothing but the URL, which needs no option at 8765."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    state = {"XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "sandd", "controller", "--port", str(port)]
    with PythonProcess(
        command,
        env=daemon_environment(state),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            read_ready(process)
            done = run_python(
                [sys.executable, "-m", "sandd", "ps", "--json"],
                env=daemon_environment(state | {"SANDD_CONTROLLER": f"ws://127.0.0.1:{port}"}),
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        finally:
            process.terminate()
            _, log = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert re.search(rf"who is there: sandd ps --controller ws://127.0.0.1:{port}$", log, re.M)


def test_a_free_port_has_a_state_directory_of_its_own() -> None:
    """Which is gone with it: nobody could find it again."""
    with PythonProcess(
        [sys.executable, "-m", "sandd", "controller", "--port", "0"],
        env=daemon_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            url = read_ready(process)
            line = next_line(process, "who is there", file="stderr")
            path = Path(shlex.split(line)[-1])
            assert (path.name, path.stat().st_mode & 0o777) == ("operator.token", 0o600)
            assert url.removesuffix("/ws") in line
        finally:
            process.terminate()
            process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert not path.parent.exists()


def test_configured_by_a_file_the_environment_and_options(tmp_path: Path) -> None:
    """Each where the one before it says nothing."""
    (tmp_path / "token").write_text("s3cret")
    (tmp_path / "controller.toml").write_text(
        f'host = "::1"\nlog_level = "error"\ntoken_file = "{tmp_path / "token"}"\n'
    )
    env = {
        "SANDD_CONTROLLER_CONFIG": str(tmp_path / "controller.toml"),
        "SANDD_CONTROLLER_LOG_LEVEL": "info",
    }
    with running_controller("--host", "127.0.0.1", env=env) as controller:
        assert controller.url.startswith("ws://127.0.0.1:")
        controller.wait_for_log(" info ")
        with running_daemon(controller.url, "none") as daemon:
            daemon.wait_for_log_sync("refused")
            assert daemon.wait_sync() == 1


def test_nobody_has_to_read_what_it_says(tmp_path: Path) -> None:
    """A supervisor that closes the pipes doesn't end it."""
    process = start_controller(home=tmp_path)
    try:
        assert process.stdout is not None
        process.stdout.close()
        until_sync(lambda: "ready" in (tmp_path / "log").read_text(), within=SECONDS)
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(SECONDS) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


# ---- it can't start -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (["--port", "x"], {}, "--port 'x'"),
        (["--nonsense"], {}, "--nonsense"),
        (["--token-file", "/no/such"], {}, "/no/such"),
        ([], {"SANDD_CONTROLLER_HEARTBEAT": "x"}, "--heartbeat 'x'"),
        (["--config", "/no/such.toml"], {}, "/no/such.toml"),
        (["--heartbeat", "60"], {}, "must be below --dead-after"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_bad_option_is_one_line_and_exit_2(
    arguments: list[str], env: dict[str, str], words: str
) -> None:
    """No traceback, nothing on stdout, nothing started."""
    done = run_controller(*arguments, **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"sandd controller: error: .*\n", done.stderr)
    assert words in done.stderr


@pytest.mark.parametrize("by_state", [False, True], ids=["port", "state-directory"])
def test_who_comes_second_is_told(by_state: bool, tmp_path: Path) -> None:
    """The port, or the state directory, is another's: one line, 125, and the other one goes on."""
    with running_controller() as controller:
        port = controller.url.rpartition(":")[2].removesuffix("/ws")
        state = controller.state_dir if by_state else tmp_path
        port = "0" if by_state else port
        done = run_controller("--port", port, "--state-dir", str(state))
        assert (done.returncode, done.stdout) == (125, "")
        assert re.fullmatch(r"sandd controller: error: .*\n", done.stderr)
        expected = (
            "belongs to another running controller"
            if by_state
            else f"can't listen on 127.0.0.1:{port}: Address already in use"
        )
        assert expected in done.stderr
        assert controller.run_command("ps").returncode == 0


@linux_only
def test_a_second_one_on_the_port_of_the_first_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of a directory that nobody has named."""
    home = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    for name, value in home.items():
        monkeypatch.setenv(name, value)
    with open_controller_state(default_state_dir(4321)):
        done = run_controller("--port", "4321", **home)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        "sandd controller: error: a controller of yours runs on port 4321 already ('sandd ps' shows its "
        "daemons); another one needs another --port\n"
    )


def test_a_host_or_a_directory_that_can_not_be(tmp_path: Path) -> None:
    """One line each."""
    state = ["--state-dir", str(tmp_path)]
    done = run_controller("--host", "no.such.host.invalid", *state)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert "can't listen on no.such.host.invalid:8765" in done.stderr
    done = run_controller("--state-dir", "/dev/null/x", "--port", "0")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert "/dev/null/x" in done.stderr


# ---- it reloads ---------------------------------------------------------------------------------


def may_operate(controller: ControllerProcess, token: Path) -> bool:
    """Whether a command with that token is let in."""
    done = controller.run_command("ps", env={"SANDD_OPERATOR_TOKEN_FILE": str(token)})
    assert done.returncode in (0, 125)
    assert done.returncode == 0 or "refused" in done.stderr
    return done.returncode == 0


def reload(controller: ControllerProcess, event: str = "reloaded") -> None:
    """SIGHUP, and wait until it says what has come of it."""
    count = controller.log.count(event)
    controller.process.send_signal(signal.SIGHUP)
    until_sync(lambda: controller.log.count(event) > count, within=SECONDS)


def test_a_reload_takes_new_tokens(tmp_path: Path) -> None:
    """For daemons and for operators; who is connected stays."""
    daemons, operators = tmp_path / "daemons", tmp_path / "operators"
    daemons.write_text("old")
    operators.write_text("old")
    (tmp_path / "new").write_text("new")
    (tmp_path / "was").write_text("old")
    options = ["--token-file", str(daemons), "--operator-token-file", str(operators)]
    with running_controller(*options) as controller:
        env = {"SANDD_OPERATOR_TOKEN_FILE": str(operators)}
        with (
            running_daemon(
                controller.url, "early", arguments=["--token-file", str(tmp_path / "was")]
            ),
            controller.running_command("ps", "-w", "--json", env=env) as watching,
        ):
            assert json.loads(next_line(watching))["id"] == "early"
            daemons.write_text("new")
            operators.write_text("new")
            assert may_operate(controller, tmp_path / "was")  # not before it is told
            reload(controller)
            assert not may_operate(controller, tmp_path / "was")
            assert may_operate(controller, tmp_path / "new")
            with running_daemon(
                controller.url, "late", arguments=["--token-file", str(tmp_path / "new")]
            ):
                assert json.loads(next_line(watching, "late"))["state"] == "online"
            with running_daemon(
                controller.url, "old", arguments=["--token-file", str(tmp_path / "was")]
            ) as old:
                assert old.wait_sync() == 1
            done = controller.run_command("ps", env=env)
            assert re.search("^early +online", done.stdout, re.M)


def test_the_generated_token_can_be_changed_too() -> None:
    """It is read again from the state directory."""
    with running_controller() as controller:
        path = controller.state_dir / "operator.token"
        assert path.stat().st_mode & 0o777 == 0o600
        old = controller.home / "old"
        old.write_bytes(path.read_bytes())
        path.write_text("another")
        reload(controller)
        assert may_operate(controller, path)
        assert not may_operate(controller, old)


@pytest.mark.parametrize(
    "damage",
    ["empty token", "no token", "token of another kind", "bad file", "bad option"],
)
def test_a_reload_of_what_can_not_be_used_changes_nothing(damage: str, tmp_path: Path) -> None:
    """One line says what is wrong with it; and once that is mended it is taken."""
    token, config = tmp_path / "token", tmp_path / "controller.toml"
    token.write_text("one")
    (tmp_path / "one").write_text("one")
    (tmp_path / "two").write_text("two")
    good = f'operator_token_file = "{token}"\n'
    config.write_text(good)
    with running_controller("--config", str(config)) as controller:
        token.write_text("two")
        match damage:
            case "empty token":
                token.write_text("\n")
            case "no token":
                token.unlink()
            case "token of another kind":
                token.write_text(Token.new(TokenKind.OPERATOR).text)
            case "bad file":
                config.write_text(good + "host = ")
            case "bad option":
                config.write_text(good + 'log_level = "loud"\n')
        reload(controller, "reload_failed")
        failures = [line for line in controller.log.splitlines() if "reload_failed" in line]
        assert len(failures) == 1
        assert " error " in failures[0]
        assert "Traceback" not in controller.log
        assert may_operate(controller, tmp_path / "one")
        token.write_text("two")
        config.write_text(good)
        reload(controller)
        assert may_operate(controller, tmp_path / "two")
        assert not may_operate(controller, tmp_path / "one")


def test_a_reload_of_a_bad_certificate_changes_nothing(tmp_path: Path) -> None:
    """The old one serves on, and the tokens stay as well; a good one is taken."""
    ca = new_authority(time.time())
    pair = write_pair(server_pair(ca), tmp_path)
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(pem_of(ca))
    token = tmp_path / "operators"
    token.write_text("old")
    (tmp_path / "was").write_text("old")
    files = ["--tls-cert", str(pair), "--tls-key", str(pair)]
    with running_controller("--operator-token-file", str(token), *files) as controller:
        env = {"SANDD_OPERATOR_TOKEN_FILE": str(tmp_path / "was"), "SANDD_CA_FILE": str(trusted)}
        assert controller.run_command("ps", env=env).returncode == 0
        pair.write_text("half")
        token.write_text("new")
        reload(controller, "reload_failed")
        assert "certificate_reload_failed" in controller.log
        assert controller.run_command("ps", env=env).returncode == 0
        write_pair(server_pair(ca), tmp_path)
        reload(controller)
        assert controller.run_command("ps", env=env).returncode == 125


def test_commands_on_this_machine_find_the_ca(tmp_path: Path) -> None:
    """As they find the token; what is said to them wins, and so does the environment."""
    home = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    with running_controller("--tls", "auto") as controller:
        directory = tmp_path / "sandd" / f"controller-{controller.port}"
        directory.parent.mkdir()
        directory.symlink_to(controller.state_dir)
        url = f"wss://127.0.0.1:{controller.port}"
        found = home | {
            "SANDD_OPERATOR_TOKEN_FILE": "",
            "SANDD_CA_FILE": "",
            "SANDD_CONTROLLER": url,
        }
        assert controller.run_command("ps", env=found).returncode == 0
        wrong = f"sha256:{'0' * 64}"
        # Time for one answer, on a machine that is busy.
        hurry = hurried(**{"sandd.command_line.connecting.CONNECT_SECONDS": 2.0})
        for arguments, env in ((["--ca-pin", wrong], {}), ([], {"SANDD_CA_PIN": wrong})):
            done = controller.run_command("ps", *arguments, env=found | env | hurry)
            assert done.returncode == 125
            assert "CA pin" in done.stderr
        # By name nobody else's files are looked at: the system's CAs don't know this one.
        controller.ca_file.rename(tmp_path / "elsewhere.pem")
        done = controller.run_command("ps", env=found | hurry)
        assert "verify failed" in done.stderr
        env = found | {"SANDD_CA_PIN": wrong}
        there = ["--ca-file", str(tmp_path / "elsewhere.pem")]
        assert controller.run_command("ps", *there, env=env).returncode == 0


def test_a_reload_changes_the_log_and_names_what_it_can_not_change(tmp_path: Path) -> None:
    """The log's level is another at once; another address needs a new start, and that is said."""
    config = tmp_path / "controller.toml"
    config.write_text('log_level = "info"\n')
    with running_controller("--config", str(config)) as controller:
        config.write_text('log_level = "warning"\nhost = "::1"\ninsecure = true\n')
        reload(controller, "option_needs_restart option=insecure")
        assert "option_needs_restart option=host" in controller.log
        assert "reloaded" not in controller.log  # which is no warning
        assert may_operate(controller, controller.state_dir / "operator.token")


@linux_only
def test_under_nohup_it_reloads_as_well(tmp_path: Path) -> None:
    """Whoever starts it with SIGHUP ignored wants it to live on, and so it does."""
    command = f"trap '' HUP; exec {shlex.quote(sys.executable)} -m sandd controller --port 0"
    with subprocess.Popen(
        ["sh", "-c", command],
        env=daemon_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            read_ready(process)
            process.send_signal(signal.SIGHUP)
            next_line(process, "reloaded", file="stderr")
        finally:
            process.terminate()
            process.communicate(timeout=SECONDS)
    assert process.returncode == 0


# ---- it is stopped ------------------------------------------------------------------------------


@linux_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_stopped_at_any_moment_of_its_start_it_exits_0(
    number: signal.Signals, tmp_path: Path
) -> None:
    """From the moment Python has come to our first lines, through imports and opening, without a traceback."""
    took = None
    for step in range(STARTS):
        with started(home=tmp_path) as process:
            # Not SIGINT's: Python itself has one from the start.
            until_sync(lambda process=process: handles(process.pid, signal.SIGTERM))
            begun = time.monotonic()
            if took is None:  # the first one shows how long a start takes
                read_ready(process)
                took = time.monotonic() - begun
            else:
                time.sleep(
                    took * (step - random.random()) / (STARTS - 2)
                )  # other moments in each run
            process.send_signal(number)
            process.communicate(timeout=SECONDS)
            log = (tmp_path / "log").read_text()
            assert process.returncode == 0, log
            assert "Traceback" not in log


@linux_only
def test_a_reload_at_any_moment_of_the_start_is_no_end(tmp_path: Path) -> None:
    """SIGHUP before there is anything to reload is remembered, and done then."""
    took = None
    for step in range(STARTS):
        (tmp_path / "log").unlink(missing_ok=True)
        with started(home=tmp_path) as process:
            until_sync(lambda process=process: handles(process.pid, signal.SIGHUP))
            begun = time.monotonic()
            if took is not None:
                time.sleep(took * (step - random.random()) / (STARTS - 1))
            process.send_signal(signal.SIGHUP)
            read_ready(process)
            took = time.monotonic() - begun
            until_sync(lambda: " reloaded" in (tmp_path / "log").read_text(), within=SECONDS)
            process.terminate()
            assert process.wait(SECONDS) == 0


async def test_a_reload_while_it_opens_is_done_once_it_is_open(tmp_path: Path) -> None:
    """What it was told may have been read just before it was changed."""
    read: list[str] = []

    def read_again() -> ControllerOptions:
        read.append("again")
        return options

    options = ControllerOptions(port=0, state_dir=tmp_path / "state", log_level="error")
    program = Program(options, read_again)
    put, get = trio.open_memory_channel[int](1)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(program.heed, get)
            await put.send(signal.SIGHUP)
            await trio.testing.wait_all_tasks_blocked()
            assert not read  # there is nothing yet to tell it to
            nursery.start_soon(program.serve)
            while not read:
                await trio.sleep(0.01)
            await put.aclose()
            nursery.cancel_scope.cancel()


@linux_only
def test_stopped_and_reloaded_again_and_again_it_still_exits_0(tmp_path: Path) -> None:
    """An impatient supervisor's second, tenth and hundredth signal change nothing."""
    with started(home=tmp_path) as process:
        read_ready(process)
        while process.poll() is None:
            process.send_signal(random.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
            time.sleep(0.001)
        log = (tmp_path / "log").read_text()
        assert process.returncode == 0, log
        assert "Traceback" not in log


def test_stopped_it_drains_and_what_runs_goes_on(tmp_path: Path, marker: Marker) -> None:
    """Daemons are told to come back, and do so to the next one; a command through it sees its end then."""
    gate = tmp_path / "gate"
    script = f"echo on; until test -e {gate}; do sleep 0.05; done; echo off; exit 4"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (tmp_path / "home").mkdir()
    environment = {
        "SANDD_CONTROLLER": f"ws://127.0.0.1:{port}",
        "SANDD_OPERATOR_TOKEN_FILE": str(tmp_path / "home" / "state" / "operator.token"),
    }
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(started("--port", port, home=tmp_path / "home", anew=False))
        url = read_ready(first)
        daemon = stack.enter_context(running_daemon(url, "w"))
        daemon.wait_for_log_sync("connected")
        command = stack.enter_context(
            PythonProcess(
                [sys.executable, "-m", "sandd", "run", "--", "sh", "-c", script],
                env=daemon_environment(environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(command.kill)
        assert next_line(command) == "w | on\n"
        first.terminate()
        assert first.wait(SECONDS) == 0
        log = (tmp_path / "home" / "log").read_text()
        assert "stopping signal=SIGTERM" in log
        assert log.rstrip().endswith("stopped")
        gate.touch()  # while there is no controller at all
        second = stack.enter_context(started("--port", port, home=tmp_path / "home", anew=False))
        read_ready(second)
        output, errors = command.communicate(timeout=SECONDS)
        assert (command.returncode, output) == (1, "w | off\n")
        assert "sandd: failed (exit 4): w\n" in errors
        second.terminate()
        assert second.wait(SECONDS) == 0
