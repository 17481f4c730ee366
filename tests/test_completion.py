"""Tab: bash itself is asked, as when the key is pressed."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from controllers import running_controller
from daemons import daemon_environment
from forked_python import run_python
from tmux import needs_tmux, running_tmux

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("bash") is None, reason="these shells are POSIX'"
)

PRESS_TAB = r"""
eval "$0"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
read -ra COMP_WORDS <<< "$1"
_python_argcomplete sandd "${COMP_WORDS[-1]}" 2>/dev/null
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which `sandd` is this checkout's."""
    script = tmp_path / "bin" / "sandd"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m sandd "$@"\n')
    script.chmod(0o755)
    return f"{script.parent}{os.pathsep}{os.environ['PATH']}"


@functools.cache
def program_for(shell: str) -> str:
    """What a shell is to evaluate."""
    done = run_python(
        [sys.executable, "-m", "sandd", "completion", shell],
        env=daemon_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    text: str = done.stdout
    return text


def complete(typed: str, path: str, **env: str) -> list[str]:
    """What bash has to offer after this line."""
    done = subprocess.run(
        ["bash", "-c", PRESS_TAB, program_for("bash"), typed],
        env=daemon_environment(env | {"PATH": path}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sandd f", ["forget", "forward"]),
        ("sandd ps --w", ["--watch"]),
        ("sandd run --conc", ["--concurrency"]),
        ("sandd daemon --server", ["--server-url"]),
        ("sandd controller --oper", ["--operator-token-file"]),
        ("sandd completion ", ["bash", "zsh", "fish"]),
        ("sandd ps --match ", []),
        ("sandd top --sort me", ["memory"]),
    ],
)
def test_what_may_come_next(typed: str, offered: list[str], path: str) -> None:
    """Commands, options of each, the daemon's and the controller's too, and values where there are few."""
    assert sorted(complete(typed, path)) == sorted(offered)


def test_files_where_a_file_is_meant(path: str, tmp_path: Path) -> None:
    """Behind --token-file, say; directories only where it must be one."""
    (tmp_path / "token").write_text("x")
    (tmp_path / "today").mkdir()
    files = complete(f"sandd ps --token-file {tmp_path}/to", path)
    assert sorted(os.path.basename(each.rstrip("/")) for each in files) == ["today", "token"]
    directories = complete(f"sandd controller --state-dir {tmp_path}/to", path)
    assert [os.path.basename(each.rstrip("/")) for each in directories] == ["today"]


def test_without_a_controller_nothing_is_offered(path: str) -> None:
    """And nothing is said: somebody has only pressed a key."""
    assert complete("sandd jobs ", path, SANDD_CONTROLLER="ws://127.0.0.1:9") == []


def test_daemons_and_jobs_are_those_of_the_controller(path: str) -> None:
    """Wherever one is meant, also where the controller is named in the line itself."""
    with running_controller() as controller, controller.daemon("w-1"), controller.daemon("w-2"):
        done = controller.run_command("exec", "--detach", "w-2", "--", "true")
        job = done.stdout.strip()
        assert sorted(complete("sandd jobs ", path, **controller.env)) == ["w-1", "w-2"]
        assert complete("sandd shell w-2", path, **controller.env) == ["w-2"]
        assert complete("sandd logs ", path, **controller.env) == [job]
        assert complete(f"sandd kill {job[:6]}", path, **controller.env) == [job]
        token = controller.env["SANDD_OPERATOR_TOKEN_FILE"]
        url = controller.url.removeprefix("ws:").removesuffix("/ws")
        typed = f"sandd exec --controller 'ws:{url}' --token-file {token} w-"
        assert sorted(complete(typed, path)) == ["w-1", "w-2"]


@needs_tmux
def test_a_person_presses_tab(path: str, tmp_path: Path) -> None:
    """In an interactive bash, after the line that the help shows."""
    with running_tmux(tmp_path, env={"PATH": path}) as tmux:
        tmux.run("source <(sandd completion bash)")
        tmux.type("sandd forw", "Tab")
        tmux.wait_for("sandd forward")
        tmux.type("-", "-", "rev", "Tab")
        tmux.wait_for("sandd forward --reverse")
        tmux.type("C-u")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_program(shell: str) -> None:
    """It names the command; where the shell is here, it takes it."""
    program = program_for(shell)
    assert "sandd" in program
    if shutil.which(shell) is not None:
        checked = subprocess.run([shell, "-n"], input=program, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")
