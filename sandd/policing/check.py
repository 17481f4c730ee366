"""What there is to say about a policy file on this machine, and about one command under it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from attrs import field, frozen

from sandd import wire
from sandd._core._errors import ConfigurationError
from sandd._core.policy.judging import Allowed, Miss, judge
from sandd._core.policy.linting import Finding, Severity, lint
from sandd._core.policy.reading import MAX_POLICY_BYTES, read_policy
from sandd._core.policy.rules import ExecLock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sandd._core.policy.rules import Policy, Rule


@frozen
class Asked:
    """A command as somebody might ask for it."""

    command: Sequence[str]
    cwd: str | None = None
    user: str | None = None
    env: Mapping[str, str] = field(factory=dict)
    shell: bool = False
    """The command is one text, for the shell."""
    pty: bool = False

    def spec(self) -> wire.ProgramSpec:
        """What a client would send."""
        kind: type[wire.CommandSpec] | type[wire.SessionSpec]
        kind = wire.SessionSpec if self.pty else wire.CommandSpec
        return kind(
            argv=tuple(os.fsencode(each) for each in self.command),
            shell=self.shell,
            cwd=None if self.cwd is None else os.fsencode(self.cwd),
            user=self.user,
            env={os.fsencode(k): os.fsencode(v) for k, v in self.env.items()},
        )


@frozen
class Verdict:
    """What becomes of a command."""

    allowed: bool
    rule: str | None
    misses: tuple[Miss, ...] = ()


@frozen
class Report:
    """All there is to say."""

    policy: Policy
    findings: list[Finding]
    verdict: Verdict | None
    """None: no command was asked about."""

    @property
    def is_good(self) -> bool:
        """Nothing is wrong, and the command, if there is one, is allowed."""
        is_allowed = self.verdict is None or self.verdict.allowed
        return is_allowed and not any(each.severity is Severity.ERROR for each in self.findings)


def check(path: Path, asked: Asked | None) -> Report:
    """The report. ConfigurationError, in one line, if the file is no policy."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror}") from error
    policy = read_policy(data, name=str(path))
    findings = [*lint(policy), *_from_disk(path, policy)]
    order = list(Severity)
    findings.sort(key=lambda finding: order.index(finding.severity))
    return Report(policy, findings, None if asked is None else _judge(policy, asked))


def _judge(policy: Policy, asked: Asked) -> Verdict:
    verdict = judge(policy, asked.spec())
    if isinstance(verdict, Allowed):
        return Verdict(True, None if verdict.rule is None else verdict.rule.name)
    return Verdict(False, None, verdict.misses)


def _from_disk(path: Path, policy: Policy) -> Iterator[Finding]:
    if sys.platform == "win32":
        yield Finding(
            Severity.NOTE, "no daemon on Windows can be held to a policy; only a controller"
        )
    else:
        # The other platform can't import these.
        from sandd._core.policy.trust import read_trusted
        from sandd._core.processes import exec_lock

        try:
            read_trusted(str(path), max_bytes=MAX_POLICY_BYTES, option="this file")
        except ConfigurationError as error:
            yield Finding(Severity.WARNING, f"{error}; no daemon of this user would take it")
        missing = exec_lock.unavailable()
        if missing is not None and policy.exec_lock is not ExecLock.OFF:
            yield Finding(Severity.WARNING, f"this machine has no exec lock: {missing}")
        for rule in policy.rules:
            yield from _of_programs(rule)


def _of_programs(rule: Rule) -> Iterator[Finding]:
    if sys.platform == "win32":
        yield from ()
    else:
        # The other platform can't import these.
        from sandd._core.policy.executables import UntrustedError, open_executable, owner_of
        from sandd._core.policy.permits import Permit

        try:
            owner = owner_of(rule.user)
        except OSError as error:
            yield Finding(Severity.WARNING, f"user {rule.user!r}: {error}", rule.name)
            return
        for path, sha256 in ((rule.exe, rule.sha256), *((each, None) for each in rule.may_start)):
            try:
                with Permit() as permit:
                    open_executable(path, owner, sha256=sha256, hold=permit.hold)
            except UntrustedError as error:
                yield Finding(Severity.ERROR, str(error), rule.name)
            except OSError as error:
                yield Finding(Severity.NOTE, f"{path} here: {error.strerror}", rule.name)
