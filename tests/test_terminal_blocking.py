"""`Server.new_session(interactive=True)`: a session at the terminal of a program that doesn't use trio."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from process_tools import until_sync
from standing_daemon import StandingDaemon, standing_daemon
from tmux import needs_tmux, running_tmux

import sandd
from sandd import NoTerminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tmux import Tmux

AGENT = Path(__file__).with_name("interactive_agent.py")


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share."""
    with standing_daemon() as daemon:
        yield daemon


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    """A person at a terminal."""
    with running_tmux(tmp_path) as tmux:
        yield tmux


def start(tmux: Tmux, daemon: StandingDaemon, directory: Path) -> None:
    """Start the agent, and wait for the remote prompt; the terminal's modes are noted before and afterwards."""
    agent = shlex.join([sys.executable, str(AGENT), str(daemon.port)])
    tmux.type(
        f"stty -a > {directory}/before; sh -c 'echo $$ > {directory}/pid; exec {agent}'; "
        f"echo code=$?.; stty -a > {directory}/after",
        "Enter",
    )
    tmux.wait_for(r"remote>")
    assert tmux.is_raw()


def assert_restored(directory: Path) -> None:
    """The terminal is as it was; but for its size, which decides where the lines of stty end, too."""
    until_sync(lambda: (directory / "after").exists() and (directory / "after").read_text())
    before, after = [
        re.sub(r"(rows|columns) \d+;", "", (directory / name).read_text()).split()
        for name in ("before", "after")
    ]
    assert after == before != []


@needs_tmux
def test_the_program_goes_on_when_the_session_has_ended(
    tmux: Tmux, daemon: StandingDaemon, tmp_path: Path
) -> None:
    """With its exit code; sizes and keys reached the remote shell meanwhile."""
    start(tmux, daemon, tmp_path)
    tmux.resize(101, 31)
    tmux.type("until test \"$(stty size)\" = '31 101'; do sleep 0.1; done; echo fi''ts", "Enter")
    tmux.wait_for(r"(?m)^fits$")
    tmux.type("(echo ru''nning; exec sleep 1000)", "Enter")
    tmux.wait_for(r"(?m)^running")
    tmux.type("C-c")
    tmux.wait_for(r"\nremote> *(\^C)?$")  # the echo of that may come behind the prompt, or never
    tmux.type("exit 3", "Enter")
    tmux.wait_for(r"back 3\.")
    tmux.wait_for(r"code=0\.")
    assert_restored(tmp_path)


@needs_tmux
def test_who_leaves_ends_the_session(tmux: Tmux, daemon: StandingDaemon, tmp_path: Path) -> None:
    """By ~. at the beginning of a line; the program goes on."""
    start(tmux, daemon, tmp_path)
    tmux.type("~.")
    tmux.wait_for(r"back -1\.")
    assert_restored(tmp_path)


@needs_tmux
def test_a_signal_that_ends_the_program_finds_the_terminal_put_back(
    tmux: Tmux, daemon: StandingDaemon, tmp_path: Path
) -> None:
    """It ends it all the same."""
    start(tmux, daemon, tmp_path)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    tmux.wait_for(r"code=143\.")
    assert_restored(tmp_path)


def test_without_a_terminal_it_says_so(daemon: StandingDaemon) -> None:
    """Nothing is opened; the same in a thread, where no signal is heard."""
    with sandd.Server(port=daemon.port) as server:
        assert server.wait_for_daemon("worker-1", timeout=20)
        with pytest.raises(NoTerminal, match="is not a terminal"):
            server.new_session("worker-1", interactive=True)
        errors: list[BaseException] = []

        def try_it() -> None:
            with pytest.raises(RuntimeError, match="main thread") as raised:
                server.new_session("worker-1", interactive=True)
            errors.append(raised.value)

        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
        assert len(errors) == 1
        assert server.get_stats().jobs == 0
