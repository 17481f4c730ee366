"""What a line of ``sandd exec`` means: which part of it is the command, and what it is refused for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sandd import cli
from sandd.command_line.remote_command import split
from sandd.executing import options as executing

if TYPE_CHECKING:
    import argparse


@pytest.mark.parametrize(
    ("line", "ours", "command"),
    [
        pytest.param("exec w -- ls -l", "exec w", "ls -l", id="dashes"),
        pytest.param("exec w -i -- ls -- x", "exec w -i", "ls -- x", id="the-first-dashes"),
        pytest.param("exec w ls", "exec w", "ls", id="no-dashes"),
        pytest.param("exec w ls -i", "exec w", "ls -i", id="options-of-the-command"),
        pytest.param("exec -i -e A=1 w ls -l", "exec -i -e A=1 w", "ls -l", id="options-first"),
        pytest.param("exec --timeout=3 w a b", "exec --timeout=3 w", "a b", id="option-equals"),
        pytest.param("exec --local ls -l", "exec --local", "ls -l", id="local"),
        pytest.param("exec w -i ls", "exec w -i ls", None, id="whose-option-is-it"),
        pytest.param("exec --what w ls", "exec --what w ls", None, id="no-such-option"),
        pytest.param("exec --timeout x w ls", "exec --timeout x w ls", None, id="bad-value"),
        pytest.param("exec w", "exec w", None, id="no-command"),
        pytest.param("exec w --", "exec w", None, id="empty-command"),
        pytest.param("exec --help", "exec --help", None, id="help"),
        pytest.param("shell w -- ls -- -l", "shell w", "ls -- -l", id="shell"),
        pytest.param("shell w ls", "shell w ls", None, id="shell-wants-dashes"),
        pytest.param("cp a -- w:b", "cp a -- w:b", None, id="no-command-of-theirs"),
        pytest.param("", "", None, id="nothing"),
    ],
)
def test_where_the_command_begins(line: str, ours: str, command: str | None) -> None:
    """Behind the first ``--``; without it behind DAEMON, unless an option stands there."""
    given, found = split(line.split())
    assert (given, found) == (ours.split(), None if command is None else command.split())


def parse(line: str) -> argparse.Namespace:
    """What the command is run with."""
    options = cli.parse([word if word != "EMPTY" else "" for word in line.split()])
    executing._check(options)
    return options


def test_what_follows_from_the_line() -> None:
    """A command is its words, or one line for a shell; whose daemon it is."""
    options = parse("exec -t -e A=1 -e B=x=y -w /src -u me w -- ls -l")
    assert (options.daemon, options.remote_command) == ("w", ["ls", "-l"])
    assert (options.env, options.cwd, options.user) == ([("A", "1"), ("B", "x=y")], "/src", "me")
    assert (options.terminal, options.interactive, options.wait) == (True, False, None)
    options = parse("exec --local --shell --wait 3 -- ls | wc")
    assert (options.daemon, options.remote_command, options.wait) == ("local", "ls | wc", 3.0)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        pytest.param("exec", "it takes a DAEMON, or --local", id="nothing"),
        pytest.param("exec w", "it takes a command", id="no-command"),
        pytest.param("exec --local", "it takes a command", id="local-no-command"),
        pytest.param("exec --local w -- ls", "leave 'w' out", id="two-daemons"),
        pytest.param(
            "exec w git log -- f", "'git' is no option: put -- before CMD", id="dashes-late"
        ),
        pytest.param("exec w -i ls", "'ls' is no option: put -- before CMD", id="whose-option"),
        pytest.param("exec -i --detach w ls", "--detach and -i", id="detached-input"),
        pytest.param("exec -t --detach w ls", "--detach and -t", id="detached-terminal"),
        pytest.param("exec --local --detach ls", "--detach and --local", id="detached-local"),
        pytest.param("exec -t --timeout 3 w ls", "-t has no time-outs", id="terminal-time-out"),
        pytest.param("exec --timeout soon w ls", "'soon' is no number of seconds", id="no-time"),
        pytest.param("exec --timeout 0 w ls", "0 is no time at all; without", id="time-0"),
        pytest.param("exec --idle-timeout 0 w ls", "0 is no time at all", id="idle-time-0"),
        pytest.param("exec w -- EMPTY", "CMD is empty", id="empty"),
        pytest.param("exec --shell w -- EMPTY", "CMD is empty", id="empty-line"),
        pytest.param("exec --bogus w -- ls", "usage: sandd exec [options]", id="option"),
        pytest.param("exec -e A w ls", "'A' is not K=V", id="no-variable"),
    ],
)
def test_what_means_nothing_is_refused(
    line: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 2, and a line that says what to do."""
    with pytest.raises(SystemExit) as raised:
        parse(line)
    assert raised.value.code == 2
    assert complaint in capsys.readouterr().err
