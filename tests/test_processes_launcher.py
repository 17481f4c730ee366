"""Programs in terminals, started in each of the ways there are: what they find, and how a start fails."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trio
from process_tools import fork_among_threads, linux_only, read_all, read_line, root_only
from trusted_files import trusted_directory

if sys.platform == "win32":
    pytest.skip("POSIX terminals", allow_module_level=True)

from sandd._core.processes import forked_launch, launcher
from sandd._core.processes.launcher import launch
from sandd._core.processes.spawner_messages import Spawn
from sandd._core.processes.terminals import open_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandd._core.processes.terminals import PosixTerminal

pytestmark = linux_only  # where the way for macOS works as well

NOBODY = (65534, 65534, (65534,))
WAYS = [
    pytest.param("spawn", id="posix_spawn"),
    pytest.param("fork", id="as-on-macos"),
    pytest.param("user", id="another-user", marks=root_only),
]


class Launcher:
    """Starts programs in terminals, in one of the ways."""

    def __init__(self, way: str) -> None:
        self.identity = NOBODY if way == "user" else None

    def start(
        self, *argv: str, cwd: Path | None = None, path: str | None = None
    ) -> tuple[int, PosixTerminal]:
        """The pid, and our end of its terminal; if it fails nothing is left open."""
        terminal, slave = open_terminal((24, 80))
        try:
            request = Spawn(
                job=1,
                argv=tuple(map(os.fsencode, argv)),
                env={},
                marker=b"m",
                cwd=None if cwd is None else os.fsencode(cwd),
                identity=self.identity,
                stdin=True,
                merge_stderr=False,
                terminal=True,
                base=None,
            )
            env = {b"PATH": os.fsencode(path or os.environ["PATH"])}
            return launch(request, env, [slave]), terminal
        except BaseException:
            terminal.close()
            raise
        finally:
            os.close(slave)

    async def run(self, *argv: str, cwd: Path | None = None, path: str | None = None) -> Shown:
        """Run it to its end."""
        pid, terminal = self.start(*argv, cwd=cwd, path=path)
        data, code = await see_through(pid, terminal)
        return Shown(pid, code, data.decode().splitlines())


async def see_through(pid: int, terminal: PosixTerminal) -> tuple[bytes, int]:
    """What it shows from now on, and its exit code; the terminal is closed."""
    shown: list[bytes] = []

    async def read() -> None:
        shown.append(await read_all(terminal.output))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            _, status = await trio.to_thread.run_sync(os.waitpid, pid, 0)
            terminal.process_exited()
    terminal.close()
    return shown[0], os.waitstatus_to_exitcode(status)


class Shown(NamedTuple):
    """What a program came to."""

    pid: int
    code: int
    lines: list[str]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    """Each of them."""
    fork = partial(forked_launch.launch_forked, fork=fork_among_threads)
    monkeypatch.setattr(launcher, "launch_forked", fork)
    monkeypatch.setattr(launcher, "_SPAWN_OPENS_TOO_EARLY", request.param == "fork")
    return Launcher(request.param)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may look at, with a program that tells its name, and what is none."""
    # The tests' own is below one that only we may enter.
    outside = trusted_directory() if os.geteuid() == 0 else tempfile.TemporaryDirectory()
    with outside as name:
        place = Path(name).resolve()
        place.chmod(0o755)
        (place / "program").write_text('#!/bin/sh\necho "$0 in $(pwd -P)"\n')
        (place / "program").chmod(0o755)
        (place / "not-executable").write_text("#!/bin/sh\n")
        (place / "directory").mkdir()
        yield place


async def test_it_leads_a_session_in_the_foreground_of_its_own_terminal(way: Launcher) -> None:
    """All three descriptors are the terminal, it is the controlling one, and our end of it is not there."""
    script = """
        tty
        stty size
        test -t 0 && test -t 1 && test -t 2 && echo all three
        echo heard >/dev/tty
        ls -l /proc/$$/fd | grep -c ptmx
        id -u
        exec ps -o pid=,pgid=,sid=,tpgid=,tty= -p $$
    """
    shown = await way.run("sh", "-c", script)
    assert shown.code == 0
    tty, size, three, heard, ours, user, ids = shown.lines
    assert tty.startswith("/dev/pts/")
    assert (size, three, heard, ours) == ("24 80", "all three", "heard", "0")
    assert user == str(os.geteuid() if way.identity is None else NOBODY[0])
    assert ids.split() == [str(shown.pid)] * 4 + [tty.removeprefix("/dev/")]


async def test_what_is_typed_interrupts_it(way: Launcher) -> None:
    """Ctrl-C reaches the foreground of the terminal, by its default."""
    pid, terminal = way.start("sh", "-c", "echo ready; exec sleep 1000")
    with trio.fail_after(10):
        assert await read_line(terminal.output) == b"ready\r"
        await terminal.input.send_all(b"\x03")
    _, code = await see_through(pid, terminal)
    assert code == -signal.SIGINT


async def test_arguments_arrive_as_they_are(way: Launcher) -> None:
    """A shell on the way reads none of them."""
    odd = ["$HOME", "a b", '"', "'", "", "*", "-c", "\\n", ";id"]
    shown = await way.run("printf", "<%s>", *odd)
    assert shown.lines == ["".join(f"<{word}>" for word in odd)]


async def test_it_runs_in_the_directory_asked_for(way: Launcher, place: Path) -> None:
    """And programs are looked for from there, by their path and in PATH."""
    assert (await way.run("pwd", "-P", cwd=place)).lines == [str(place)]
    expected = [f"./program in {place}"]
    assert (await way.run("./program", cwd=place)).lines == expected
    (line,) = (await way.run("program", cwd=place, path=".:/usr/bin:/bin")).lines
    assert line.endswith(f"program in {place}")
    inner = f"../program in {place}/directory"
    assert (await way.run("../program", cwd=place / "directory")).lines == [inner]


@pytest.mark.parametrize(
    ("program", "number"),
    [
        ("no-such-program-anywhere", errno.ENOENT),
        ("{place}/no-such", errno.ENOENT),
        ("{place}/not-executable", errno.EACCES),
        ("not-executable", errno.EACCES),
        ("{place}/directory", errno.EACCES),
        ("./no-such", errno.ENOENT),
    ],
)
async def test_what_is_no_program_is_a_typed_error(
    way: Launcher, place: Path, program: str, number: int
) -> None:
    """By its name; nothing ran, and nothing is left."""
    name = program.format(place=place)
    with pytest.raises(OSError, match=name) as caught:
        way.start(name, cwd=place, path=f"/usr/bin:{place}")
    assert (caught.value.errno, caught.value.filename) == (number, name)


@pytest.mark.parametrize("program", ["pwd", "./program"])
@pytest.mark.parametrize(
    ("directory", "number"), [("no-such", errno.ENOENT), ("program", errno.ENOTDIR)]
)
async def test_a_bad_directory_is_a_typed_error(
    way: Launcher, place: Path, program: str, directory: str, number: int
) -> None:
    """By its name, whatever the program is."""
    with pytest.raises(OSError, match=directory) as caught:
        way.start(program, cwd=place / directory)
    assert caught.value.errno == number
    assert os.fsdecode(caught.value.filename) == str(place / directory)
