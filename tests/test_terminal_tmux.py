"""This machine's terminal, as a person has it: raw while a session is held, and as it was afterwards.

Under tmux and from bash, with a session that is made up (`mirror`): what is tested is what becomes of the terminal.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tmux import needs_tmux, running_tmux

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tmux import Tmux

pytestmark = needs_tmux

MIRROR = shlex.join([sys.executable, str(Path(__file__).with_name("mirror.py"))])
FLAGS = f"{shlex.quote(sys.executable)} -c " + shlex.quote(
    "import fcntl; print('flags', *(fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (0, 1, 2)))"
)


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    """A person at a terminal."""
    with running_tmux(tmp_path) as tmux:
        yield tmux


def start(tmux: Tmux, directory: Path, text: str = "") -> int:
    """Start the mirror, and wait until it has the terminal; returns its process id."""
    noted = directory / "pid"
    # In a script: bash itself puts the terminal back for whoever doesn't. What it is left as is noted.
    mirror = f"{MIRROR} {noted} {shlex.quote(text)}; echo code=$?."
    tmux.type(f"({mirror}; {state(directory / 'after')})", "Enter")
    tmux.wait_for(r"ready \d+x\d+")
    assert tmux.is_raw()
    return int(noted.read_text())


def state(file: Path) -> str:
    """The command that writes the terminal's modes, and the flags of what is open on it, to a file."""
    return f"(stty -a; {FLAGS}) > {file}"


@pytest.fixture
def before(tmux: Tmux, tmp_path: Path) -> str:
    """The terminal's modes and flags, before anything is done to it."""
    tmux.run(state(tmp_path / "before"))
    return (tmp_path / "before").read_text()


def check(tmux: Tmux, before: str, directory: Path) -> None:
    """The terminal was left as it was, before the shell had it again."""
    tmux.run("true")
    assert (directory / "after").read_text() == before


def test_every_key_is_a_byte_and_the_end_puts_the_terminal_back(
    tmux: Tmux, before: str, tmp_path: Path
) -> None:
    """Ctrl-C, Ctrl-Z, Ctrl-S, Ctrl-\\ and Enter are for the session; afterwards modes and flags are as before."""
    start(tmux, tmp_path)
    tmux.type("a", "C-c", "C-z", "C-s", "C-q", "C-\\", "C-d", "C-v", "Enter", "ä")
    tmux.wait_for("<61><03><1a><13><11><1c><04><16><0d><c3><a4>")
    tmux.type("q")
    tmux.wait_for(r"\[exited\]\ncode=7\.")
    check(tmux, before, tmp_path)


def test_leaving_puts_the_terminal_back(tmux: Tmux, before: str, tmp_path: Path) -> None:
    """``~.`` at the beginning of a line."""
    start(tmux, tmp_path)
    tmux.type("x", "~", ".")
    tmux.wait_for("<78><7e><2e>")
    tmux.type("Enter", "~", ".")
    tmux.wait_for(r"\[left\]\ncode=0\.")
    check(tmux, before, tmp_path)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
        (signal.SIGINT, 130),
        (signal.SIGQUIT, 131),
    ],
)
def test_signals_put_the_terminal_back(
    number: signal.Signals, code: int, tmux: Tmux, before: str, tmp_path: Path
) -> None:
    """Whoever is told to end ends in good order, and without a word."""
    pid = start(tmux, tmp_path)
    os.kill(pid, number)
    tmux.wait_for(rf"code={code}\.")
    assert "Traceback" not in tmux.screen()
    check(tmux, before, tmp_path)


def test_the_shell_gets_the_terminal_while_we_are_stopped(
    tmux: Tmux, before: str, tmp_path: Path
) -> None:
    """``~^Z`` stops us with the terminal as it was; ``fg`` makes it raw again, and tells the size."""
    start(tmux, tmp_path)
    tmux.type("~", "C-z")
    tmux.wait_for_prompt()
    assert "Stopped" in tmux.screen()
    tmux.resize(90, 20)
    tmux.type("fg", "Enter")
    tmux.wait_for("ready 20x90")
    tmux.type("C-c")
    tmux.wait_for("<03>")
    tmux.resize(100, 30)
    tmux.wait_for(r"(?s)ready 30x100\n.*ready 20x90\n.*ready 30x100")
    tmux.type("q")
    tmux.wait_for(r"\[exited\]")
    check(tmux, before, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGSTOP])
def test_a_stop_from_outside_gives_raw_mode_again(
    number: signal.Signals, tmux: Tmux, before: str, tmp_path: Path
) -> None:
    """Also one that can't be seen coming; what the shell makes of the terminal meanwhile is undone."""
    pid = start(tmux, tmp_path)
    os.killpg(os.getpgid(pid), number)
    tmux.wait_for_prompt()
    tmux.type("stty echo icanon", "Enter", "fg", "Enter")
    tmux.wait_for(r"(?s)ready.*fg.*ready \d+x\d+")
    tmux.type("C-c", "C-z")
    tmux.wait_for("<03><1a>")
    tmux.type("q")
    tmux.wait_for(r"\[exited\]")
    check(tmux, before, tmp_path)


def test_who_is_stopped_and_ended_leaves_the_shell_s_terminal_alone(
    tmux: Tmux, before: str, tmp_path: Path
) -> None:
    """In the background the terminal is the shell's: it is not changed under its hands."""
    pid = start(tmux, tmp_path)
    group = os.getpgid(pid)
    os.killpg(group, signal.SIGSTOP)
    tmux.wait_for_prompt()
    while not tmux.is_raw():  # bash reads keys itself
        time.sleep(0.01)
    modes = tmux.modes()
    os.kill(pid, signal.SIGTERM)
    os.killpg(group, signal.SIGCONT)
    tmux.wait_for(r"code=143\.")
    assert tmux.modes() == modes


def test_a_start_in_the_background_waits_for_the_foreground(
    tmux: Tmux, before: str, tmp_path: Path
) -> None:
    """As with any program that wants the terminal; ``fg`` gives it to us."""
    tmux.type(f"{MIRROR} {tmp_path / 'pid'} '' &", "Enter")
    tmux.wait_for(r"\[1\] \d+")
    while "Stopped" not in tmux.screen():
        tmux.type("Enter")
        time.sleep(0.1)
    tmux.type("fg", "Enter")
    tmux.wait_for(r"ready \d+x\d+")
    tmux.type("C-c")
    tmux.wait_for("<03>")
    tmux.type("q")
    tmux.wait_for(r"\[exited\]")


def test_a_closed_window_ends_it_in_good_order(tmux: Tmux, before: str, tmp_path: Path) -> None:
    """SIGHUP, SIGCONT and the end of the input come at once, and nothing that is done to a terminal works."""
    errors, code = tmp_path / "errors", tmp_path / "code"
    mirror = f"{MIRROR} {tmp_path / 'pid'} '\\x1b[?1049h' 2>{errors}; echo $? >{code}"
    tmux.type(f"bash -c {shlex.quote(f'trap : HUP; {mirror}.new; mv {code}.new {code}')}", "Enter")
    tmux.wait_for(r"ready \d+x\d+")
    tmux.close_window()
    give_up = time.monotonic() + 20
    while not code.exists():
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert code.read_text() == "129\n"
    assert errors.read_text() in ("", "[hung up]\n")


def test_the_size_follows_the_window(tmux: Tmux, tmp_path: Path) -> None:
    """Each change is told."""
    start(tmux, tmp_path)
    for rows, columns in ((20, 70), (40, 120), (24, 80)):
        tmux.resize(columns, rows)
        tmux.wait_for(f"ready {rows}x{columns}")
    tmux.type("q")
    tmux.wait_for(r"\[exited\]")


def test_modes_that_were_left_on_are_undone(tmux: Tmux, before: str, tmp_path: Path) -> None:
    """The person's screen is back, with a cursor, and the mouse types nothing."""
    start(tmux, tmp_path, r"\x1b[?1049h\x1b[?25l\x1b[?1000;1006h\x1b[?2004h\x1b=")
    assert [tmux.ask(name) for name in ("alternate_on", "cursor_flag", "mouse_any_flag")] == [
        *("1", "0", "1")
    ]
    tmux.type("~", ".")
    tmux.wait_for(r"\[left\]\ncode=0\.")
    assert [tmux.ask(name) for name in ("alternate_on", "cursor_flag", "mouse_any_flag")] == [
        *("0", "1", "0")
    ]
    check(tmux, before, tmp_path)
