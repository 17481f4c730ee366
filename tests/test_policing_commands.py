"""``sandd policy check``: what it says, for people and programs, and by its exit code."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from sandd.cli import main

if TYPE_CHECKING:
    from pathlib import Path

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="programs that are there")
GOOD = """version = 1
exec_lock = "off"
[[rule]]
name = "words"
exe = "/bin/echo"
argv = [{ regex = "[a-z]+", at_least = 0, at_most = 9 }]
cwd_beneath = "/work"
env_allow = ["CI"]
pty = true
[[rule]]
name = "text"
shell = true
argv = [{ regex = "echo [a-z]+" }]
force = true
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A file with a policy that is fine."""
    path = tmp_path / "p.toml"
    path.write_text(GOOD)
    return path


def check(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
    """The exit code, the lines on stdout, and what is on stderr."""
    code = main(["policy", "check", *map(str, arguments)])
    said = capfd.readouterr()
    return code, said.out.splitlines(), said.err


@posix_only
def test_a_policy_is_described(policy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its hash, and what there is to know."""
    code, lines, _ = check(capfd, policy)
    assert code == 0
    assert lines[0].endswith(": 2 rules, exec_lock off")
    assert all(line.startswith(("warning: ", "note: ")) for line in lines[1:])


@posix_only
@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        pytest.param(["--", "echo", "hi"], "words", id="name"),
        pytest.param(["-w", "/work/x", "-e", "CI=1", "--", "/bin/echo"], "words", id="options"),
        pytest.param(["--pty", "--", "echo", "hi"], "words", id="terminal"),
        pytest.param(["--shell", "--", "echo hi"], "text", id="shell"),
        pytest.param(["--", "echo", "-n"], None, id="argument"),
        pytest.param(["-u", "root", "--", "echo"], None, id="user"),
        pytest.param(["-w", "/", "--", "echo"], None, id="directory"),
        pytest.param(["-e", "LD_PRELOAD=x", "--", "echo"], None, id="variable"),
        pytest.param(["--shell", "--", "echo hi; id"], None, id="shell-denied"),
        pytest.param(["--shell", "--pty", "--", "echo hi"], None, id="shell-terminal"),
    ],
)
def test_a_command_is_explained(
    arguments: list[str], rule: str | None, policy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By which rule it is allowed, or why by none; and no command is run."""
    code, lines, _ = check(capfd, policy, *arguments)
    if rule is None:
        assert code == 1
        assert lines[-3] == "denied: no rule allows it"
        assert [line.split(":")[0] for line in lines[-2:]] == ["  rule 'words'", "  rule 'text'"]
    else:
        assert (code, lines[-1]) == (0, f"allowed by rule {rule!r}")


@posix_only
def test_programs_get_json(policy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One object, with the same."""
    code, (line,), _ = check(capfd, policy, "--json", "--", "echo", "1")
    report: dict[str, Any] = json.loads(line)
    assert code == 1
    assert report.keys() == {"hash", "findings", "allowed", "rule", "misses"}
    assert len(report["hash"]) == 12
    assert (report["allowed"], report["rule"]) == (False, None)
    assert [miss["rule"] for miss in report["misses"]] == ["words", "text"]
    _, (line,), _ = check(capfd, policy, "--json")
    assert json.loads(line)["allowed"] is None


@posix_only
def test_what_is_wrong_on_the_disk_is_found(
    policy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A hash that isn't the program's, a program in a directory of everybody, one that is missing; a loose file."""
    program = policy.parent / "mine"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o777)
    policy.write_text(
        GOOD
        + f"[[rule]]\nname = 'loose'\nexe = '{program}'\nargv = []\n"
        + f"[[rule]]\nname = 'hash'\nexe = '/bin/cat'\nargv = []\nsha256 = '{'0' * 64}'\n"
        + "[[rule]]\nname = 'missing'\nexe = '/bin/there-is-none'\nargv = []\n"
        + "[[rule]]\nname = 'user'\nexe = '/bin/cat'\nargv = []\nuser = 'nobody-there'\n"
    )
    policy.chmod(0o666)
    code, lines, _ = check(capfd, policy)
    assert code == 1
    assert "may be changed by who runs it" in find(lines, "error: rule 'loose'")
    assert "does not have the sha256" in find(lines, "error: rule 'hash'")
    assert "No such file" in find(lines, "note: rule 'missing': /bin")
    assert "no such user" in find(lines, "warning: rule 'user'")
    assert "may be written by everybody" in find(lines, "warning: this file")


def find(lines: list[str], beginning: str) -> str:
    """The line that begins so."""
    (line,) = [line for line in lines if line.startswith(beginning)]
    return line


@pytest.mark.parametrize(
    ("text", "part"),
    [
        pytest.param("version = 3", "version must be 1", id="version"),
        pytest.param("version = 1\n\x1b[2J = 1", "is no TOML", id="escape"),
        pytest.param(None, "can't read", id="missing"),
    ],
)
def test_what_is_no_policy_is_said_in_one_line(
    text: str | None, part: str, policy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """That can do nothing to a terminal; and the exit code is another."""
    policy.unlink() if text is None else policy.write_text(text)
    code, lines, said = check(capfd, policy)
    assert (code, lines) == (2, [])
    assert part in said
    assert said.count("\n") == 1
    assert "\x1b" not in said


def test_a_shell_string_is_one_text(policy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two would be something else than what a client can ask for."""
    assert check(capfd, policy, "--shell", "--", "echo", "hi")[0] == 2
    assert check(capfd, policy, "--shell")[0] == 2
