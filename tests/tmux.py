"""A person at a terminal: tmux, with a server of its own, whose keys are pressed and whose screen is read.

::

    with running_tmux(tmp_path) as tmux:
        tmux.type("echo hello", "Enter")
        tmux.wait_for("hello")

tmux is a terminal that tests can look at: it interprets what programs show, and answers what they ask.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
from attrs import define
from daemons import daemon_environment
from process_tools import is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

TMUX: Final = shutil.which("tmux")
needs_tmux = pytest.mark.skipif(TMUX is None, reason="tmux is not installed")
"""On each test that uses it."""

PROMPT: Final = "local$ "
"""Of the shell that a person starts programs from: bash, for its job control."""
SECONDS: Final = 20.0
"""For something to be on the screen, on a machine that is busy."""


@define(eq=False)
class Tmux:
    """One window, with a shell in it."""

    _socket: Path
    _env: Mapping[str, str]
    _cleared: int = 0

    def type(self, *keys: str) -> None:
        """Press keys, by tmux' names ("Enter", "C-c"); what is no name is typed as it is."""
        self._do("send-keys", "-t", "0", *keys)

    def screen(self) -> str:
        """What is to be seen, with what has scrolled away above it; lines that were wrapped are whole."""
        seen = self._do("capture-pane", "-J", "-p", "-t", "0", "-S", "-500")
        return "\n".join(line.rstrip() for line in seen.rstrip("\n").split("\n"))

    def visible(self) -> str:
        """What is to be seen."""
        return self._do("capture-pane", "-p", "-t", "0").rstrip("\n")

    def ask(self, variable: str) -> str:
        """What tmux knows of the window, such as "cursor_flag" or "alternate_on"."""
        return self._do("display-message", "-p", "-t", "0", f"#{{{variable}}}").strip()

    def resize(self, columns: int, rows: int) -> None:
        """Make the window larger or smaller, as with the mouse. It takes tmux a moment."""
        self._do("resize-window", "-t", "0", "-x", str(columns), "-y", str(rows))

    def wait_for(self, pattern: str, seconds: float = SECONDS) -> re.Match[str]:
        """The first match of a regular expression on the screen, once there is one."""
        return self._wait(pattern, self.screen, seconds)

    def wait_for_prompt(self) -> None:
        """The local shell waits for a command."""
        self._wait(
            rf"\A{re.escape(PROMPT.rstrip())}\Z",
            lambda: self.visible().rpartition("\n")[2].rstrip(),
            SECONDS,
        )

    def run(self, command: str) -> str:
        """What a command of the local shell prints, as soon as its prompt is there again."""
        # What is typed before the shell reads it is shown twice. A prompt alone says nothing: on an empty
        # screen it is there before "clear" has been read, too.
        self._cleared += 1
        self.type(f"clear; echo clear-{self._cleared}", "Enter")
        self._wait(
            rf"\Aclear-{self._cleared}\n{re.escape(PROMPT.rstrip())}\Z", self.visible, SECONDS
        )
        self._do("clear-history", "-t", "0")
        self.type(f"{command}; echo =END=", "Enter")
        # A command that ends in the last column is in one line with what it prints.
        found = self.wait_for(rf"(?s)echo =END=\n?(.*?)=END=\n{re.escape(PROMPT.rstrip())}")
        return found[1]

    def close_window(self) -> None:
        """As with a click on its corner; another one takes its place."""
        old = self.ask("window_id")
        self._do("new-window", "-t", ":1", "bash", "--norc", "--noprofile", "-i")
        self._do("kill-window", "-t", old)

    def is_raw(self) -> bool:
        """Whether the window's terminal gives each key as it is."""
        import termios  # not there on Windows, where these tests are skipped

        return not self.modes()[3] & termios.ICANON

    def modes(self) -> list[Any]:
        """Of the window's terminal, at this moment."""
        import termios

        terminal = os.open(self.ask("pane_tty"), os.O_RDONLY | os.O_NOCTTY)
        try:
            return list(termios.tcgetattr(terminal))
        finally:
            os.close(terminal)

    def settle_at(self, columns: int, rows: int) -> None:
        """At the local prompt: make the window so large, and wait until its programs are told."""
        self.resize(columns, rows)
        self.run(f"until test \"$(stty size)\" = '{rows} {columns}'; do sleep 0.05; done")

    def _wait(self, pattern: str, look: Callable[[], str], seconds: float) -> re.Match[str]:
        give_up, pause = time.monotonic() + seconds, 0.01
        while True:
            seen = look()
            found = re.search(pattern, seen)
            if found is not None:
                return found
            if time.monotonic() > give_up:
                pytest.fail(f"{pattern!r} was not to be seen within {seconds} s:\n{self.screen()}")
            # Each look is a process, which takes its time from the program that is looked at.
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    def _do(self, *arguments: str) -> str:
        return subprocess.run(
            [TMUX or "tmux", "-S", str(self._socket), "-f", os.devnull, *arguments],
            env=self._env,
            check=True,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        ).stdout


@contextlib.contextmanager
def running_tmux(
    directory: Path, *, columns: int = 100, rows: int = 30, env: Mapping[str, str] | None = None
) -> Iterator[Tmux]:
    """A window with bash in it, at its prompt; the server and all it has started are gone at the end."""
    # Without what this machine has set for tmux, shells and editors.
    environment = daemon_environment(env)
    environment = {k: v for k, v in environment.items() if not k.startswith("TMUX")}
    environment |= {"PS1": PROMPT, "SHELL": "/bin/sh", "LC_ALL": "C.UTF-8"}
    environment |= {"HISTFILE": "/dev/null", "BASH_SILENCE_DEPRECATION_WARNING": "1"}
    (directory / "home").mkdir(exist_ok=True)
    environment["HOME"] = str(directory / "home")
    tmux = Tmux(directory / "tmux", environment)
    size = ["-x", str(columns), "-y", str(rows)]
    tmux._do("new-session", "-d", *size, "bash", "--norc", "--noprofile", "-i")
    server = int(tmux._do("display-message", "-p", "#{pid}"))
    try:
        tmux.wait_for(re.escape(PROMPT.rstrip()))
        yield tmux
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            tmux._do("kill-server")
        give_up = time.monotonic() + SECONDS
        while is_alive(server) and time.monotonic() < give_up:
            time.sleep(0.01)
