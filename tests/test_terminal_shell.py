"""``sandd shell`` and ``sandd attach`` as a person uses them: at a terminal, with a daemon that is real.

The person's shell is bash in tmux; the daemon's is bash with another prompt. Whatever happens, the terminal is
afterwards as it was before.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest
import trio
from controllers import running_controller
from daemons import open_daemon, running_daemon
from tmux import needs_tmux, running_tmux

from sandd.testing import open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Marker
    from controllers import ControllerProcess
    from daemons import DaemonProcess
    from tmux import Tmux

pytestmark = needs_tmux

SANDD = f"{shlex.quote(sys.executable)} -m sandd"
REMOTE = "bash --norc --noprofile -i"
PROMPT = r"remote> *$"
# Behind what was interrupted. Where its "^C" is shown, and whether, is up to the kernel: that sends the
# signal, throws away what the terminal hadn't shown yet, and then, if it still echoes, shows "^C". By then
# the shell may have its prompt there, and its terminal not echoing.
INTERRUPTED = r"\nremote> *(\^C)?$"
OTHER = "worker-1"


@pytest.fixture(scope="module")
def controller(_own_temporary_directory: None) -> Iterator[ControllerProcess]:
    """For all tests of this module; each has a daemon of its own there."""
    with running_controller() as controller:
        yield controller


@pytest.fixture
def daemon(controller: ControllerProcess, marker: Marker) -> Iterator[DaemonProcess]:
    """The daemon, which may not have dialled in yet."""
    environment = {"PS1": "remote> ", "TEST_WHERE": "remote", "VIMINIT": "set nocompatible"}
    with running_daemon(controller.url, OTHER, env=environment | dict([marker])) as daemon:
        yield daemon


@pytest.fixture
def tmux(tmp_path: Path, controller: ControllerProcess) -> Iterator[Tmux]:
    """A person at a terminal, whose environment names the controller."""
    with running_tmux(tmp_path, env=controller.env) as tmux:
        yield tmux


@pytest.fixture
def before(tmux: Tmux) -> str:
    """The terminal's modes, before anything is done to it."""
    return tmux.run("stty -a")


def check(tmux: Tmux, before: str) -> None:
    """The terminal is as it was, and nobody was shown a traceback."""
    assert "Traceback" not in tmux.screen()
    assert tmux.run("stty -a") == before


def shell(tmux: Tmux, options: str = "", command: str = REMOTE) -> None:
    """Start a session, and wait for the remote prompt."""
    start(tmux, f"shell {OTHER} {options} -- {command}")
    tmux.wait_for(rf"(?m)^{PROMPT}")


def start(tmux: Tmux, arguments: str) -> None:
    """Start ``sandd`` (which waits for a daemon that is starting); its exit code is shown as ``code=N.``"""
    # Not in one piece, or the line that was typed would be taken for what it prints.
    command, _, rest = arguments.partition(" ")
    tmux.type(f"{SANDD} {command} --wait 30 {rest}; echo co''de=$?.", "Enter")


def pid_of_client(tmux: Tmux) -> int:
    """The process that was started from the person's shell."""
    with open(f"/proc/{tmux.ask('pane_pid')}/task/{tmux.ask('pane_pid')}/children") as file:
        (child,) = file.read().split()
    return int(child)


def test_a_shell_with_its_own_exit_code(tmux: Tmux, daemon: DaemonProcess, before: str) -> None:
    """The shell is another machine's; its code is the command's."""
    shell(tmux, f"-e TEST_MORE=more -w {daemon.home}")
    tmux.type("echo $TEST_WHERE, $TEST_MORE, $PWD, $TERM, $(tty | head -c 5)", "Enter")
    tmux.wait_for(f"remote, more, {daemon.home}, [a-z0-9-]+, /dev/")
    tmux.type("exit 42", "Enter")
    tmux.wait_for(r"code=42\.")
    check(tmux, before)


def test_the_size_follows_the_window(tmux: Tmux, daemon: DaemonProcess, before: str) -> None:
    """``stty size`` there is that of the window here, from the beginning and after each change."""
    shell(tmux)
    for columns, rows in ((100, 30), (80, 24), (120, 40)):
        tmux.resize(columns, rows)
        tmux.type(
            f"until test \"$(stty size)\" = '{rows} {columns}'; do sleep 0.1; done; echo fits-{rows}",
            "Enter",
        )
        tmux.wait_for(rf"(?m)^fits-{rows}$")
    tmux.type("exit", "Enter")
    tmux.wait_for(r"code=0\.")
    tmux.settle_at(100, 30)
    check(tmux, before)


@pytest.mark.skipif(not os.access("/usr/bin/vi", os.X_OK), reason="vi is not installed")
def test_vi_opens_and_closes(
    tmux: Tmux, daemon: DaemonProcess, before: str, tmp_path: Path
) -> None:
    """A program that takes the whole screen has it, writes what was typed, and gives it back."""
    file = tmp_path / "letter"
    shell(tmux)
    tmux.type(f"vi -u NONE {file}", "Enter")
    tmux.wait_for(r"(?m)^~\n~\n~\n")
    tmux.type("i", "Dear sandd,", "Escape", ":wq", "Enter")
    tmux.wait_for(rf"(?m)^{PROMPT}")
    assert file.read_text() == "Dear sandd,\n"
    assert tmux.ask("alternate_on") == "0"
    tmux.type("exit", "Enter")
    tmux.wait_for(r"code=0\.")
    check(tmux, before)


@pytest.mark.skipif(not os.access("/usr/bin/vi", os.X_OK), reason="vi is not installed")
def test_leaving_in_the_middle_of_vi(
    tmux: Tmux, daemon: DaemonProcess, before: str, marker: Marker
) -> None:
    """``~.`` after Enter: the screen is the person's again, and vi and its shell are gone."""
    shell(tmux)
    tmux.type("vi -u NONE", "Enter")
    tmux.wait_for(r"(?m)^~\n~\n~\n")
    tmux.type("Enter", "~", ".")
    tmux.wait_for(r"left; the session on worker-1 is being ended")
    tmux.wait_for(r"code=125\.")
    assert tmux.ask("alternate_on") == "0"
    assert len(marker.processes()) == 2  # the daemon and its spawner
    check(tmux, before)


def test_escapes_count_at_the_beginning_of_a_line(
    tmux: Tmux, daemon: DaemonProcess, before: str
) -> None:
    """In mid-line they are typed; ``~?`` lists them; ``~~`` is one; ``~.`` leaves."""
    shell(tmux)
    tmux.type("echo a~.b", "Enter")
    tmux.wait_for(r"(?m)^a~\.b$")
    tmux.type("~", "?")
    tmux.wait_for(r"~d +detach")
    tmux.type("~", "~", "root", "C-u", "echo still", "Enter")
    tmux.wait_for(r"(?m)^still$")
    tmux.type("~", ".")
    tmux.wait_for(r"code=125\.")
    check(tmux, before)


def test_detaching_and_coming_back(tmux: Tmux, daemon: DaemonProcess, before: str) -> None:
    """``~d`` tells how to come back; there the scrollback is shown, and questions in it are not answered again."""
    shell(tmux)
    tmux.type(r"variable=kept; printf '\033[c'; read -r -s -d c; seq 100 105", "Enter")
    tmux.wait_for(r"(?m)^105$")
    tmux.type("(sleep 0.5; echo mean''while) &", "Enter")
    tmux.type("Enter", "~", "d")
    job = tmux.wait_for(r"left; the session goes on: sandd attach (worker-1/\S+)\]")[1]
    tmux.wait_for(r"code=0\.")
    check(tmux, before)

    tmux.run("true")  # so that the screen is empty
    start(tmux, f"attach {job[:-4]}")
    tmux.wait_for(r"(?ms)^100$.*^105$.*^(remote> )?meanwhile$")
    tmux.type("Enter", "echo variable=$variable", "Enter")
    tmux.wait_for(r"(?m)^variable=kept$")
    assert "command not found" not in tmux.screen()
    tmux.type("exit 5", "Enter")
    tmux.wait_for(r"code=5\.")
    check(tmux, before)


def test_a_directory_that_is_not_there(tmux: Tmux, daemon: DaemonProcess) -> None:
    """It is not taken for a program that isn't there."""
    start(tmux, f"shell {OTHER} -w /no/such/directory")
    tmux.wait_for(
        r"sandd: -w /no/such/directory: it can't be the working directory: .*\ncode=125\."
    )


def test_a_session_is_recorded(
    tmux: Tmux, daemon: DaemonProcess, before: str, tmp_path: Path
) -> None:
    """What was shown is in the file, what was typed is not; and a file that is there is left alone."""
    file = tmp_path / "session.cast"
    shell(tmux, f"--record {file}")
    tmux.type("stty -echo; echo sh''own", "Enter")
    tmux.wait_for(r"(?m)^shown$")
    tmux.type("echo secret-$((6*7)) > /dev/null", "Enter", "exit", "Enter")
    tmux.wait_for(r"code=0\.")
    recorded = file.read_text()
    assert '"version":3' in recorded.replace(" ", "")
    assert "shown" in recorded
    assert "secret" not in recorded
    tmux.run("true")
    start(tmux, f"shell {OTHER} --record {file}")
    tmux.wait_for(rf"sandd: --record {file}: File exists\ncode=125\.")
    assert file.read_text() == recorded
    check(tmux, before)


def test_a_client_that_was_killed(tmux: Tmux, daemon: DaemonProcess, before: str) -> None:
    """Nothing can be put back then, but the session goes on, and is found by what there is of its id."""
    shell(tmux)
    tmux.type("variable=kept; trap : INT", "Enter")
    tmux.wait_for(rf"(?m)INT\n{PROMPT}")
    os.kill(pid_of_client(tmux), signal.SIGKILL)
    tmux.wait_for(r"code=137\.")
    tmux.run("stty sane")
    start(tmux, f"attach {OTHER}/x")
    job = tmux.wait_for(r"these there are:\n  worker-1/(\S+)  running, ")[1]
    tmux.run("true")
    start(tmux, f"attach {job}")
    tmux.wait_for(rf"(?m)INT\n{PROMPT}")
    tmux.type("Enter", "echo variable=$variable", "Enter")
    tmux.wait_for(r"(?m)^variable=kept$")
    tmux.type("Enter", "~", ".")
    tmux.wait_for(r"left; the session on worker-1 is being ended")
    tmux.wait_for(r"code=125\.")


def test_a_flood_keeps_nobody(
    tmux: Tmux, daemon: DaemonProcess, before: str, marker: Marker
) -> None:
    """With more output than any terminal can show, Ctrl-C ends the program there, and ``~.`` leaves."""
    shell(tmux)
    tmux.type("yes flood", "Enter")
    tmux.wait_for(r"(?m)^flood$")
    tmux.type("C-c")
    tmux.wait_for(INTERRUPTED)
    tmux.type("yes again", "Enter")
    tmux.wait_for(r"(?m)^again$")
    tmux.type("Enter", "~", ".")
    tmux.wait_for(r"code=125\.")
    assert len(marker.processes()) == 2  # the daemon and its spawner
    check(tmux, before)


def test_looking_on_and_taking_over(tmux: Tmux, daemon: DaemonProcess, before: str) -> None:
    """Who looks on sees and can't type; a detached session goes on when it is left."""
    shell(tmux, "--detach")
    tmux.type("echo sh''own", "Enter")
    tmux.wait_for(r"(?m)^shown$")
    tmux.type("~", ".")
    job = tmux.wait_for(r"left; the session goes on: sandd attach (worker-1/\S+)\]")[1]
    tmux.wait_for(r"code=0\.")
    tmux.run("true")
    start(tmux, f"attach --read-only {job}")
    tmux.wait_for(r"(?s)you look on.*shown\n")
    tmux.type("exit", "Enter", "~", ".")
    tmux.wait_for(r"left; the session goes on")
    tmux.wait_for(r"code=0\.")
    tmux.run("true")
    start(tmux, f"attach --takeover {job}")
    tmux.wait_for(rf"(?ms)^shown$.*^{PROMPT}")
    tmux.type("kill -KILL $$", "Enter")
    tmux.wait_for(r"code=137\.")
    check(tmux, before)


def test_a_job_that_is_not_there_is_explained(
    tmux: Tmux, daemon: DaemonProcess, before: str
) -> None:
    """With the sessions there are, each in a form that ``attach`` takes."""
    start(tmux, f"attach {OTHER}/nothing")
    tmux.wait_for(
        r"sandd: there is no session 'nothing' on worker-1, and no other session there either\n"
    )
    tmux.wait_for(r"code=125\.")
    tmux.run("true")
    shell(tmux, "--detach")
    tmux.type("~", ".")
    job = tmux.wait_for(r"sandd attach (worker-1/\S+)\]")[1]
    tmux.wait_for(r"code=0\.")
    tmux.run("true")
    start(tmux, "attach nothing")
    tmux.wait_for(
        rf"no session 'nothing' on worker-1; these there are:\n  {job}  running, .*: bash --norc"
    )
    tmux.wait_for(r"code=125\.")
    check(tmux, before)


def test_ctrl_c_is_for_the_remote_program(tmux: Tmux, daemon: DaemonProcess, before: str) -> None:
    """It ends the ``sleep`` there; the session, and the program here, go on."""
    shell(tmux)
    tmux.type("echo sleep''ing; sleep 1000", "Enter")
    tmux.wait_for(r"(?m)^sleeping$")
    tmux.type("C-c")
    tmux.wait_for(INTERRUPTED)
    tmux.type("echo interrupted=$?", "Enter")
    tmux.wait_for(r"(?m)^interrupted=130$")
    tmux.type("exit", "Enter")
    tmux.wait_for(r"code=0\.")
    check(tmux, before)


def test_ctrl_c_while_nobody_is_there(tmux: Tmux, before: str) -> None:
    """Before the daemon has dialled in it ends the waiting, and is no error of anybody's."""
    start(tmux, "shell nobody")
    tmux.wait_for(r"\[waiting for the daemon 'nobody'\]")
    tmux.type("C-c")
    tmux.wait_for(r"code=130\.")
    check(tmux, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_session_too(
    number: signal.Signals,
    code: int,
    tmux: Tmux,
    daemon: DaemonProcess,
    before: str,
    marker: Marker,
) -> None:
    """The terminal is put back, and what ran there is gone."""
    shell(tmux)
    tmux.type("sleep 1000 & echo started", "Enter")
    tmux.wait_for(r"(?m)^started$")
    os.kill(pid_of_client(tmux), number)
    tmux.wait_for(rf"code={code}\.")
    assert len(marker.processes()) == 2  # the daemon and its spawner
    check(tmux, before)


def test_further_signals_wait_for_nothing(tmux: Tmux, daemon: DaemonProcess, before: str) -> None:
    """A daemon that doesn't answer keeps nobody's terminal, and after a few signals nobody's time."""
    shell(tmux)
    client = pid_of_client(tmux)
    assert tmux.is_raw()
    daemon.signal(signal.SIGSTOP)
    try:
        os.kill(client, signal.SIGTERM)
        give_up = time.monotonic() + 8
        while tmux.is_raw():  # bash isn't back yet: it is we who have put it back
            assert time.monotonic() < give_up
        assert "code=" not in tmux.screen()
        with contextlib.suppress(ProcessLookupError):  # it needed less of them
            for _ in range(3):
                time.sleep(0.3)  # or they would be taken for one
                os.kill(client, signal.SIGTERM)
        tmux.wait_for(r"code=143\.", seconds=9)
    finally:
        daemon.signal(signal.SIGCONT)
    check(tmux, before)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        pytest.param("/no/such/program", 127, id="not-found"),
        pytest.param("/etc/passwd", 126, id="not-executable"),
        pytest.param("sh -c 'kill -TERM $$'", 143, id="signal"),
        pytest.param("sh -c 'exit 3'", 3, id="code"),
    ],
)
def test_exit_codes_are_a_shell_s(
    command: str, code: int, tmux: Tmux, daemon: DaemonProcess
) -> None:
    """The command's own, 128 and the signal, 126 and 127."""
    start(tmux, f"shell {OTHER} -- {command}")
    tmux.wait_for(rf"code={code}\.")
    assert "Traceback" not in tmux.screen()


async def test_an_outage_is_told_and_nothing_typed_is_lost(
    tmux: Tmux, controller: ControllerProcess, before: str
) -> None:
    """One line when it has gone away, one when it is back; what was typed meanwhile arrives, once."""

    async def see(pattern: str) -> None:
        await trio.to_thread.run_sync(tmux.wait_for, pattern)

    environment = {"PS1": "remote> "}
    async with (
        open_fault_proxy(controller.port) as proxy,
        open_daemon(proxy.url, OTHER, env=environment),
    ):
        start(tmux, f"shell {OTHER} -- {REMOTE}")
        await see(rf"(?m)^{PROMPT}")
        proxy.refuse()
        await see(
            r"\[worker-1 is away; if it lives, the session goes on. What you type is kept. ~. leaves\]"
        )
        tmux.type("echo ty''ped; exit 6", "Enter")
        proxy.accept()
        await see(r"\[worker-1 is back\]")
        await see(r"(?ms)^typed$.*code=6\.")
        screen = tmux.screen()
    assert screen.count("worker-1 is away") == screen.count("worker-1 is back") == 1
    assert screen.count("\ntyped\n") == 1
    check(tmux, before)


async def test_leaving_during_an_outage_waits_for_nobody(
    tmux: Tmux, controller: ControllerProcess, before: str
) -> None:
    """``~.`` is at once, and says where the session can be found."""
    async with open_fault_proxy(controller.port) as proxy, open_daemon(proxy.url, OTHER):
        start(tmux, f"shell {OTHER} -- {REMOTE}")
        await trio.to_thread.run_sync(tmux.wait_for, r"bash-\S*[$#] *$")
        proxy.refuse()
        await trio.to_thread.run_sync(tmux.wait_for, r"\[worker-1 is away")
        tmux.type("Enter", "~", ".")
        await trio.to_thread.run_sync(
            tmux.wait_for, r"(?s)left while worker-1 was away.*sandd attach worker-1/.*code=125\."
        )
    check(tmux, before)


def test_a_daemon_of_its_own(tmux: Tmux, before: str, marker: Marker) -> None:
    """``--local`` needs nothing else; the daemon is gone afterwards, and ``~d`` says why it can't be."""
    tmux.run(f"export {marker.name}={marker.value} PS9='remote> '")
    start(tmux, f"shell here --local -e 'PS1=remote> ' -- {REMOTE}")
    tmux.wait_for(rf"(?m)^{PROMPT}")
    tmux.type("Enter", "~", "d")
    tmux.wait_for("this daemon ends with this command")
    tmux.type("Enter", "exit 9", "Enter")
    tmux.wait_for(r"code=9\.")
    check(tmux, before)
    tmux.type("exit", "Enter")


def test_a_daemon_of_its_own_that_ends(tmux: Tmux, before: str, marker: Marker) -> None:
    """Nobody would start it again: it is an error, with what it said last."""
    tmux.run(f"export {marker.name}={marker.value}")
    start(tmux, f"shell here --local -e 'PS1=remote> ' -- {REMOTE}")
    tmux.wait_for(rf"(?m)^{PROMPT}")
    (daemon,) = [
        entry.pid for entry in marker.processes() if "sandd.daemon --server-url" in entry.describe()
    ]
    os.kill(daemon, signal.SIGKILL)
    tmux.wait_for(r"(?s)sandd: the daemon has ended, with -9. Its last words:.*code=125\.")
    check(tmux, before)
    tmux.type("exit", "Enter")
