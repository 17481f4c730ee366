"""What the author of a policy is told, and what no daemon and no controller takes."""

from __future__ import annotations

import pytest
from attrs import evolve

from sandd._core.policy.linting import Severity, errors, lint
from sandd._core.policy.rules import (
    Address,
    Argument,
    Beneath,
    ExecLock,
    Policy,
    Regex,
    Rule,
)

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


def findings(rule: Rule, lock: ExecLock = ExecLock.REQUIRED) -> list[Severity]:
    """How much what is said about a rule matters, but for the lack of a hash."""
    policy = Policy((evolve(rule, sha256="a" * 64),), exec_lock=lock)
    return [each.severity for each in lint(policy) if each.rule == rule.name]


@pytest.mark.parametrize(
    "exe",
    [
        *(
            "/bin/sh",
            "/bin/bash",
            "/usr/bin/python3.11",
            "/usr/bin/perl",
            "/usr/bin/awk",
            "/bin/busybox",
        ),
        *("/usr/bin/vim.basic", "/usr/bin/less", "/usr/bin/make", "/lib64/ld-linux-x86-64.so.2"),
        *("/usr/bin/node", "/usr/bin/gdb", "/opt/x/ruby3.1", "/usr/bin/sed"),
    ],
)
def test_an_interpreter_has_to_be_meant(exe: str) -> None:
    """No lock holds who does in its own process whatever it is told."""
    assert findings(Rule("r", exe)) == [ERROR]
    assert findings(Rule("r", exe, force=True)) == [NOTE]


@pytest.mark.parametrize(
    "exe",
    [
        "/usr/bin/find",
        "/bin/tar",
        "/usr/bin/env",
        "/usr/bin/git",
        "/usr/bin/xargs",
        "/usr/bin/sudo",
    ],
)
def test_a_launcher_is_held_by_the_lock_alone(exe: str) -> None:
    """Where it may start others, or there is no lock, it has to be meant."""
    assert findings(Rule("r", exe)) == [NOTE]
    assert findings(Rule("r", exe), ExecLock.IF_AVAILABLE) == [WARNING]
    assert findings(Rule("r", exe), ExecLock.OFF) == [ERROR]
    assert findings(Rule("r", exe, may_start=("/bin/cat",))) == [ERROR, NOTE]
    assert findings(Rule("r", exe, force=True), ExecLock.OFF) == [NOTE]


@pytest.mark.parametrize(
    ("rule", "severities"),
    [
        pytest.param(Rule("r", "/bin/cat"), [], id="nothing"),
        pytest.param(
            Rule("r", "/bin/sh", (Argument(Regex("a")),), shell=True), [ERROR], id="shell"
        ),
        pytest.param(Rule("r", "/bin/x", may_start=("/bin/cat",)), [NOTE], id="loader"),
        pytest.param(Rule("r", "/bin/x", may_start=("/bin/sh",)), [ERROR, NOTE], id="starts-shell"),
        pytest.param(Rule("r", "/bin/x", (Argument(Regex("[^-]+")),)), [WARNING], id="any-path"),
        pytest.param(Rule("r", "/bin/x", (Argument(Regex(".+")),)), [WARNING] * 2, id="anything"),
        pytest.param(Rule("r", "/bin/x", (Argument(Regex("-.+")),)), [WARNING], id="options"),
        pytest.param(Rule("r", "/bin/x", (Argument(Regex("[a-z]+")),)), [], id="words"),
        pytest.param(Rule("r", "/bin/x", (Argument(Beneath("/")),)), [WARNING], id="all-paths"),
        pytest.param(Rule("r", "/bin/x", env_allow=("HOME", "CI")), [WARNING], id="home"),
        pytest.param(Rule("r", "/bin/x", env_allow=("*",)), [WARNING], id="all-variables"),
    ],
)
def test_what_a_rule_allows_by_accident_is_said(rule: Rule, severities: list[Severity]) -> None:
    """Only what is surely wrong is an error."""
    assert findings(rule) == severities


def test_what_a_policy_allows_by_accident_is_said() -> None:
    """Writing where programs are, all files, any host; and a lock that is off."""
    rule = Rule("r", "/opt/bin/r", sha256="a" * 64)
    wide = Policy(
        (rule,),
        exec_lock=ExecLock.OFF,
        files_read=("/",),
        files_write=("/opt",),
        connect=(Address("*"),),
    )
    assert [each.severity for each in lint(wide)] == [ERROR, WARNING, WARNING, WARNING]
    assert [each.rule for each in errors(wide)] == [None]
    assert errors(evolve(wide, write_executables=True)) == []
    assert lint(Policy((rule,), files_write=("/work",))) == []


def test_a_rule_without_a_hash_is_noted() -> None:
    """It is no fault: whoever may replace the program is root, or nearly."""
    (finding,) = lint(Policy((Rule("r", "/bin/cat"),)))
    assert (finding.severity, finding.rule) == (NOTE, "r")
