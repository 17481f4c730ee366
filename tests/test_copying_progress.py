"""The bar of ``sandd cp``, on a terminal that isn't one."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from daemons import daemon_environment
from forked_python import run_python
from process_tools import until

from sandd.copying import progress
from sandd.copying.progress import showing_progress

if TYPE_CHECKING:
    from pathlib import Path


class Terminal(io.StringIO):
    """Shows what is written to it, and says that it can; may be stopped, as by Ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.goes_on.set()

    def isatty(self) -> bool:
        """It is one."""
        return True

    def write(self, text: str) -> int:
        """Take it, unless it is stopped."""
        self.goes_on.wait()
        return super().write(text)

    @property
    def shown(self) -> str:
        """All that was written, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.getvalue())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """With room for everything."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


async def test_the_bar_says_how_far_it_is(terminal: Terminal) -> None:
    """What, how much of how much, how fast, and how long it will take yet; at the end all of it."""
    async with showing_progress("a[b]", terminal) as note:
        note(0, 4 << 20)
        for step in range(1, 200):
            note(step << 13, 4 << 20)
            await trio.sleep(0.01)
            if re.search(
                r"a\[b\] \S+ \d\.\d/4\.0 MiB \d+.* [MkK]?i?B/s 0:0\d:\d\d", terminal.shown
            ):
                break
        else:
            pytest.fail(terminal.shown)
        note(4 << 20, 4 << 20)
    assert "4.0/4.0 MiB" in terminal.shown
    assert terminal.shown.endswith("\n")


async def test_the_cursor_is_never_hidden(terminal: Terminal) -> None:
    """Whoever is killed could not bring it back."""
    async with showing_progress("f", terminal):
        await until(lambda: "f" in terminal.getvalue())
    assert "\x1b[?25" not in terminal.getvalue()


async def test_a_name_can_not_drive_the_terminal(terminal: Terminal) -> None:
    """Nor can it be taken for markup."""
    async with showing_progress("\x1b[2J[red]f", terminal):
        pass
    assert "\x1b[2J" not in terminal.getvalue()
    assert r"\x1b[2J[red]f" in terminal.shown


async def test_a_terminal_that_is_stopped_stops_nothing(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy goes on, and ends, while the terminal takes nothing."""
    monkeypatch.setattr(progress, "LAST_DRAW_SECONDS", 0.1)
    try:
        with trio.fail_after(30):
            async with showing_progress("f", terminal) as note:
                terminal.goes_on.clear()
                for step in range(50):
                    note(step, 50)
                    await trio.sleep(0.01)
    finally:
        terminal.goes_on.set()


async def test_cancelling_leaves_the_bar_as_it_was(terminal: Terminal) -> None:
    """On a line of its own, so that what follows is not written into it."""
    with trio.CancelScope() as scope:
        async with showing_progress("f", terminal) as note:
            note(1 << 20, 2 << 20)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert "1.0/2.0 MiB" in terminal.shown
    assert terminal.shown.endswith("\n")


async def test_an_error_of_the_body_comes_out_as_itself(terminal: Terminal) -> None:
    """In no group, and with nothing around it."""
    error = LookupError()
    with pytest.raises(LookupError) as caught:
        async with showing_progress("f", terminal):
            raise error
    assert caught.value is error


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pty")
@pytest.mark.parametrize("quiet", [False, True], ids=["shown", "quiet"])
def test_it_is_shown_where_stderr_is_a_terminal(quiet: bool, tmp_path: Path) -> None:
    """And nothing of it is on stdout, which has the JSON alone; with -q nothing is anywhere."""
    (tmp_path / "f").write_bytes(bytes(100_000))
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "sandd", "cp", "--local", "--json", *(["-q"] if quiet else [])]
    done = run_python(
        [*command, str(tmp_path / "f"), f"w:{tmp_path}/g"],
        env=daemon_environment({"TERM": "xterm", "COLUMNS": "120"}),
        stdout=subprocess.PIPE,
        stderr=slave,
        timeout=60,
    )
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 65536):
            shown += piece
    except OSError:  # the end, on Linux
        pass
    os.close(master)
    assert done.returncode == 0
    assert done.stdout.startswith(b'{"source": ')
    assert done.stdout.count(b"\n") == 1
    assert (b"97.7" in shown and b"KiB" in shown) is not quiet
    assert bool(shown) is not quiet
