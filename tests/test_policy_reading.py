"""A policy file is read as its author meant it, or refused in one line that says where."""

from __future__ import annotations

import pytest

from sandd import ConfigurationError
from sandd._core.policy import reading
from sandd._core.policy.reading import PolicyError, read_policy
from sandd._core.policy.rules import (
    Address,
    Argument,
    Beneath,
    ExecLock,
    Literal,
    Policy,
    Regex,
    Rule,
)

RULE = '[[rule]]\nname = "one"\nexe = "/bin/one"\nargv = []\n'
WHOLE = """
version = 1
default = "deny"
path = "/usr/bin/:/bin"
exec_lock = "required"

[[rule]]
name = "tests"
exe = "/usr//bin/./tests"
sha256 = "%s"
argv = [
    "run",
    { literal = "--" },
    { regex = "[a-z]+", at_least = 0, at_most = 3 },
    { beneath = "/work/", prefix = "--in=" },
]
cwd_beneath = "/work"
env_allow = ["CI", "BUILD_*"]
env = { GIT_CONFIG_NOSYSTEM = "1" }
pty = true
user = "builder"
may_start = ["/usr/bin/cat"]
force = true

[[rule]]
name = "text"
shell = true
argv = [{ regex = "echo [a-z]+" }]

[files]
read = ["/work"]
write = ["/work/out"]
write_executables = true

[ports]
connect = ["localhost:8000-8010", "[::1]:80", "*:*", "unix:/run/x"]
listen = ["127.0.0.1:0"]
""" % ("ab" * 32)  # fmt: skip


def read(text: str) -> Policy:
    """The policy in a file of that text."""
    return read_policy(text.encode(), name="p.toml")


def complaint(text: str) -> str:
    """What is said about a file that can't be used; always one line."""
    with pytest.raises(PolicyError) as caught:
        read(text)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("p.toml")
    return said


def test_all_that_can_be_said_is_read() -> None:
    """Each key has its place, and paths have one way to be written."""
    assert read(WHOLE) == Policy(
        rules=(
            Rule(
                name="tests",
                exe="/usr/bin/tests",
                sha256="ab" * 32,
                argv=(
                    Argument(Literal("run")),
                    Argument(Literal("--")),
                    Argument(Regex("[a-z]+"), 0, 3),
                    Argument(Beneath("/work", "--in=")),
                ),
                cwd_beneath=("/work",),
                env_allow=("CI", "BUILD_*"),
                env={"GIT_CONFIG_NOSYSTEM": "1"},
                pty=True,
                user="builder",
                may_start=("/usr/bin/cat",),
                force=True,
            ),
            Rule(
                name="text",
                exe="/bin/sh",
                argv=(Argument(Regex("echo [a-z]+")),),
                shell=True,
            ),
        ),
        path="/usr/bin:/bin",
        exec_lock=ExecLock.REQUIRED,
        files_read=("/work",),
        files_write=("/work/out",),
        write_executables=True,
        connect=(
            Address("localhost", (8000, 8010)),
            Address("::1", (80, 80)),
            Address("*"),
            Address(path="/run/x"),
        ),
        listen=(Address("127.0.0.1", (0, 0)),),
    )


def test_a_policy_without_rules_is_one() -> None:
    """It denies everything."""
    assert read("version = 1") == Policy()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        pytest.param("", "version must be 1", id="no-version"),
        pytest.param("version = 2", "version must be 1", id="later-version"),
        pytest.param("version = true", "version must be 1", id="a-true-version"),
        pytest.param("version = 1\nx = 1", "there is no 'x'", id="unknown-key"),
        pytest.param('version = 1\ndefault = "allow"', "can only be 'deny'", id="default"),
        pytest.param('version = 1\nexec_lock = "on"', "must be one of 'required'", id="lock"),
        pytest.param('version = 1\nisolation = "jail"', "must be one of 'none'", id="isolation"),
        pytest.param("version = 1\nlimits = 3", "must be a table", id="limits"),
        pytest.param("version = 1\nlimits = {speed = 3}", "no limit 'speed'", id="unknown-limit"),
        pytest.param("version = 1\nlimits = {memory = 3}", "1 MiB or more", id="limit"),
        pytest.param('version = 1\npath = "bin"', "an absolute path", id="relative-path"),
        pytest.param("version = 1\n[files]\nexecute = []", "[files]: there is no", id="files"),
        pytest.param('version = 1\n[files]\nread = ["a"]', "absolute path", id="relative-grant"),
        pytest.param('version = 1\n[files]\nread = ["/a/../b"]', "without '..'", id="dots"),
        pytest.param('version = 1\n[ports]\nconnect = ["a"]', "write HOST:PORT", id="no-port"),
        pytest.param('version = 1\n[ports]\nlisten = ["a:7-3"]', "write HOST:PORT", id="range"),
        pytest.param('version = 1\n[ports]\nlisten = ["a:70000"]', "write HOST:PORT", id="port"),
        pytest.param("version = 1\nrule = 3", "at most 512 tables", id="no-rules"),
        pytest.param("version = [", "is no TOML", id="no-toml"),
        pytest.param("version = 1\n" + RULE + RULE, "two rules named 'one'", id="twice"),
    ],
)
def test_what_is_wrong_with_a_policy_is_said(text: str, part: str) -> None:
    """Unknown keys included: a word that is misspelt must not open anything."""
    assert part in complaint(text)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        pytest.param("shel = true", "there is no 'shel'", id="unknown"),
        pytest.param('shell = "yes"', "must be true or false", id="boolean"),
        pytest.param("sha256 = 'AB'", "64 digits", id="hash"),
        pytest.param("user = '-x'", "no name of a user", id="user"),
        pytest.param("cwd_beneath = 3", "list of at most", id="list"),
        pytest.param("env_allow = ['A-B']", "no name of a variable", id="variable"),
        pytest.param("env_allow = ['LD_PRELOAD']", "never passes", id="barred"),
        pytest.param("env_allow = ['PYTHON*']", "never passes", id="barred-glob"),
        pytest.param("env = {A = 3}", "must be a text", id="value"),
        pytest.param("may_start = ['cat']", "an absolute path", id="may-start"),
        pytest.param("shell = true", "can only be '/bin/sh'", id="another-shell"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said_with_its_place(line: str, part: str) -> None:
    """The line, the number and the name of the rule."""
    said = complaint("version = 1\n\n" + RULE + line)
    assert said.startswith("p.toml, line 3, rule 1 ('one'): ")
    assert part in said


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        pytest.param('"x"', "must be a list", id="text"),
        pytest.param("[3]", "argv 1 must be a text, or a table", id="number"),
        pytest.param("['a', {}]", "argv 2 needs exactly one of", id="nothing"),
        pytest.param('[{regex = "a", beneath = "/b"}]', "needs exactly one of", id="both"),
        pytest.param('[{regex = "a", often = 3}]', "there is no 'often'", id="unknown"),
        pytest.param('[{regex = "a", at_least = 2}]', "0 <= at_least <= at_most", id="counts"),
        pytest.param('[{regex = "a", at_most = true}]', "whole numbers", id="boolean"),
        pytest.param('[{regex = "(a+)+"}]', "a repeat within a repeat", id="regex"),
        pytest.param('[{regex = "("}]', "it is no regex", id="broken-regex"),
        pytest.param('[{beneath = "b"}]', "an absolute path", id="relative"),
    ],
)
def test_what_is_wrong_with_an_argument_is_said(argv: str, part: str) -> None:
    """With which of them it is."""
    rule = f'[[rule]]\nname = "one"\nexe = "/bin/one"\nargv = {argv}\n'
    assert part in complaint("version = 1\n" + rule)


def test_a_rule_names_what_it_needs() -> None:
    """A name, a program and its arguments are never guessed."""
    assert "name is missing" in complaint("version = 1\n[[rule]]")
    assert "exe is missing" in complaint("version = 1\n[[rule]]\nname = 'a'")
    assert "argv is missing" in complaint("version = 1\n[[rule]]\nname = 'a'\nexe = '/a'")


def test_a_file_has_a_bound() -> None:
    """A policy that nobody can have read is none."""
    assert "at most" in complaint("version = 1\n" + "#" * reading.MAX_POLICY_BYTES)
    assert "is no TOML" in complaint("version = 1\nx = " + "[" * 100_000)
    assert issubclass(PolicyError, ConfigurationError)
