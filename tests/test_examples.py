"""The programs in examples/: each ends by itself, shows what its reader should see, and leaves nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from daemons import daemon_environment
from forked_python import run_python

if TYPE_CHECKING:
    from conftest import Marker

EXAMPLES: Final = Path(__file__).parent.parent / "examples"
SECONDS: Final = 55.0
"""For each: it takes a second or two, or much more on a machine that is busy; a test may take 60."""
MAX_LINES: Final = 75
"""An example that doesn't fit on a screen is a tutorial."""

# The lines each one prints; "..." stands for what differs from run to run.
SHOWN: Final = {
    "agent.py": """
        worker-1 is online, on ...
        exit code 0, output ['1', 'a', '2', 'b']
        success True, output ['8', '9', '10']
        the command did not finish within 2.0 s and was killed; until then it wrote 'begun\\n'
        nothing ran: [ENOENT] No such file or directory: 'no-such-program'
        it ran and failed: exit code 3, 'wrong\\n'
        cancelled; processes left of it: 0
    """,
    "streaming.py": """
        build: parse
        build: compile
        build: link
        build: done
        build: exit code 0
        talk: hello Ada
        talk: hello Grace
        talk: bye
        serve: serving
        serve: stopped
    """,
    "detached.py": """
        first: b'parse\\n'
        second: 'build' is running, held by anybody: False
        second: b'compile\\nlink\\ndone\\n'
        viewer: b'parse\\ncompile\\nlink\\ndone\\n'
        exit code: 0
        jobs left: []
    """,
    "session.py": """
        its size: True
        interrupted: True
        seen by both: True True
        exit code: 3
    """,
    "forwarded_http.py": """
        200: HELLO
        200: 5000000 characters
        asked: b'inside'
        heard: b'from outside'
    """,
    "files.py": """
        uploaded 1 file, 13 bytes
        again: 1 skipped, 0 bytes
        the answer: '42\\n'
        ['answer', 'src']
        downloaded 3 bytes of 3: '43\\n'
        No such file or directory: missing
    """,
    "fleet.py": """
        events: ['db-1 connected', 'web-1 connected', 'web-2 connected']
        prod: ['web-1', 'web-2']
        web-*: ['web-1', 'web-2']
        db-1: I am db-1
        web-1: the command ended with exit code 1: ...
        web-2: I am web-2
        event: web-2 lost
        left: ['db-1', 'web-1']
    """,
    "asyncio_agent.py": """
        commands ... 100% ...
        100 commands on 10 daemons: the squares add up to 328350
        out of time; jobs left: []
    """,
    "connected_agent.py": """
        ready
        exit code 0, output 'hello from /bin/sh\\n'
    """,
    "sync_agent.py": """
        exit code 0, output 'hello\\n'
        squares: [0, 1, 4, 9, 16, 25, 36, 49]
        CommandTimeout: the command did not finish within 0.5 s and was killed
        DaemonNotFound: daemon 'worker-2' not found: known are worker-1
        worker-1 ended with 3
        streamed: b'begun\\n'
        it ended with -9
        here it found the program: True
        the daemon ended with 0
    """,
}


def shown(text: str) -> re.Pattern[str]:
    """What matches the output that `text` describes, line by line."""
    lines = [re.escape(line.strip()).replace(r"\.\.\.", ".*") for line in text.strip().splitlines()]
    return re.compile("\n".join(lines) + "\n")


def test_every_example_is_run_here() -> None:
    """An example that nobody runs is wrong before long."""
    assert sorted(SHOWN) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_example_fits_on_a_screen(name: str) -> None:
    """It is read at one glance."""
    assert len((EXAMPLES / name).read_text("utf-8").splitlines()) < MAX_LINES


@pytest.mark.skipif(sys.platform == "win32", reason="the examples run POSIX' commands")
@pytest.mark.parametrize("name", sorted(SHOWN))
def test_example_shows_what_it_should(name: str, marker: Marker, tmp_path: Path) -> None:
    """It says what it should and nothing else, ends well and leaves no process; warnings are errors."""
    # Its daemons keep their state under the test's directory, not in the user's home.
    env = daemon_environment(dict([marker]) | {"XDG_STATE_HOME": str(tmp_path)})
    ended = run_python(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        env=env,
        any_program=True,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    assert shown(SHOWN[name]).fullmatch(ended.stdout), ended.stdout
