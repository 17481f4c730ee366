"""Programs that people use in terminals, driven through a session the way people drive them.

What they show is compared as a screen, with pyte. Those that are not installed are skipped.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from typing import TYPE_CHECKING, Final

import pytest
import trio
from process_tools import until
from screens import Person, in_foreground
from standing_daemon import StandingDaemon, standing_daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import sandd

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="these programs are POSIX")

ENVIRONMENT: Final = {"PS1": "ready> ", "LESS": "", "LC_ALL": "C.UTF-8", "EXINIT": "", "HOME": "/"}


@pytest.fixture(scope="module")
def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
    """The daemon that the tests of this module share; each leaves it without a job."""
    with standing_daemon() as daemon:
        yield daemon


def needs(program: str) -> pytest.MarkDecorator:
    """Skips a test where the program isn't there."""
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is not installed here"
    )


@contextlib.asynccontextmanager
async def at(
    daemon: StandingDaemon, *command: str, rows: int = 24, cols: int = 80
) -> AsyncIterator[Person]:
    """Somebody in front of the program."""
    async with (
        daemon.worker() as worker,
        worker.open_session(list(command), rows=rows, cols=cols, env=ENVIRONMENT) as session,
        Person.at(session, rows, cols) as person,
    ):
        yield person


async def ends(session: sandd.Session, code: int = 0) -> None:
    """It ends by itself, like that."""
    assert (await session.wait()).exit_code == code


async def press_again_and_again(person: Person, key: str) -> None:
    """Until somebody cancels this."""
    with contextlib.suppress(trio.BrokenResourceError):  # it has ended
        while True:
            await person.types(key)
            await trio.sleep(2)


@needs("bash")
async def test_bash_has_job_control(daemon: StandingDaemon) -> None:
    """Stop, background, foreground, and the number of what runs."""
    async with at(daemon, "bash", "--norc", "--noprofile") as person:
        await person.sees("ready>")
        await person.types("sleep 1000 &\r")
        await person.sees("[1]")
        await person.types("jobs\r")
        await person.sees("Running")
        await person.types("fg\r")
        await until(lambda: in_foreground(person.session.pid) == "sleep")
        await person.types("\x1a")
        await person.sees("Stopped")
        await person.types("kill %1; wait; echo all$((1+1))done\r")
        await person.sees("all2done")
        await person.types("exit 3\r")
        await ends(person.session, 3)


@needs("bash")
async def test_bash_edits_and_remembers_lines(daemon: StandingDaemon) -> None:
    """The arrow keys, the history, and what is redrawn in the line."""
    async with at(daemon, "bash", "--norc", "--noprofile") as person:
        await person.sees("ready>")
        await person.types("echo helo\x1b[D\x1b[Dl\r")
        await person.sees("hello")
        assert "ready> echo hello" in person.lines
        await person.types("\x1b[A\x01: \x05 again\r")
        await person.sees("ready> : echo hello again")


async def test_python_is_interactive(daemon: StandingDaemon) -> None:
    """Prompts, a block, an interrupted loop, the end of input."""
    async with at(daemon, sys.executable, "-q") as person:
        await person.sees(">>>")
        await person.types("6 * 7\r")
        await person.sees("42")
        await person.types("import os, sys, time; sys.stdout.isatty(), sys.stdin.isatty()\r")
        await person.sees("(True, True)")
        # A prompt is drawn anew at each key, by some versions: only what runs says that it does.
        await person.types("while not print('run' 'ning'): time.sleep(1000)\r\r")
        await person.sees("running")
        await person.types("\x03")
        await person.sees("KeyboardInterrupt")
        # exit(5) is 1 by 3.13.0's own prompt, in any terminal.
        await person.types("os._exit(5)\r")
        await ends(person.session, 5)


@needs("less")
async def test_less_pages_and_searches(daemon: StandingDaemon, tmp_path: Path) -> None:
    """The whole screen, and what it shows after each key."""
    text = tmp_path / "text"
    text.write_text("".join(f"line {number}\n" for number in range(1, 1001)))
    async with at(daemon, "less", str(text), rows=10) as person:
        await person.sees("line 9")
        assert person.lines[:9] == [f"line {number}" for number in range(1, 10)]
        await person.types(" ")
        await person.sees("line 18")
        await person.types("/line 500\r")
        await person.sees("line 508")
        assert person.lines[:9] == [f"line {number}" for number in range(500, 509)]
        person.screen.reset()
        await person.resizes(6, 40)
        await person.sees("line 504")  # it throws away what is typed while it paints anew
        await until(lambda: person.lines[5:] == [":"])
        await person.types("G")
        await person.sees("line 1000")
        await until(lambda: person.lines[:5] == [f"line {number}" for number in range(996, 1001)])
        await person.types("q")
        await ends(person.session)


@pytest.mark.parametrize(
    "editor", [pytest.param(each, marks=needs(each), id=each) for each in ("vim", "vi")]
)
async def test_vi_edits_a_file(daemon: StandingDaemon, tmp_path: Path, editor: str) -> None:
    """Insert, undo, save: what was typed is in the file."""
    file = tmp_path / "file"
    async with at(daemon, editor, "-u", "NONE", "-i", "NONE", str(file)) as person:
        await person.sees("file")
        await person.types("ifirst line\rsecond line\x1b")
        await person.sees("second line")
        assert person.lines[0] == "first line"
        assert person.lines[2] == "~"
        await person.types("ddu:wq\r")
        await ends(person.session)
    assert file.read_text() == "first line\nsecond line\n"


@needs("top")
async def test_top_refreshes_and_follows_the_size(daemon: StandingDaemon) -> None:
    """It fills the screen, also when that changes."""
    async with at(daemon, "top", rows=20) as person:
        await person.sees("PID")
        await person.sees("load average")
        await person.resizes(12, 60)
        await person.types(" ")
        await until(lambda: any("PID" in line for line in person.lines[:12]))
        async with trio.open_nursery() as nursery:
            # While it takes note of its new size, it may throw away what was typed.
            nursery.start_soon(press_again_and_again, person, "q")
            await ends(person.session)
            nursery.cancel_scope.cancel()


@needs("htop")
async def test_htop_starts_and_ends(daemon: StandingDaemon) -> None:
    """Colours, mouse, and all."""
    async with at(daemon, "htop") as person:
        await person.sees("PID")
        await person.types("q")
        await ends(person.session)


@needs("tmux")
async def test_tmux_inside_a_session(daemon: StandingDaemon, tmp_path: Path) -> None:
    """A terminal within the terminal: its status line, a split, and the end of both shells."""
    tmux = ("tmux", "-f", "/dev/null", "-S", str(tmp_path / "socket"))
    async with at(daemon, *tmux, "new-session", "sh") as person:
        await person.sees("[0] 0:sh*")
        await person.types("\x02%")
        await person.sees("│")
        await person.types("tput cols\r")
        await person.sees("39")
        await person.types("exit\r")
        await until(lambda: not any("│" in line for line in person.lines))
        await person.types("exit\r")
        await person.sees_end()
        await ends(person.session)
        assert b"[exited]" in person.shown
