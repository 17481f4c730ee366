"""Whether a policy allows what is asked for, and by which rule. It looks at texts alone, on either end.

What a disk has to say - links, owners, the program's hash - is the daemon's to look at, behind this: see `gate`.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final

from attrs import frozen

from sandd import wire
from sandd._core.policy import environment, patterns
from sandd._core.policy.paths import as_text, holds_programs, lies_beneath, parts_of, resolve
from sandd._core.policy.rules import Beneath, Literal, Regex

if TYPE_CHECKING:
    from sandd._core.policy.rules import Address, Argument, Policy, Rule

MAX_ARGUMENTS: Final = 4096
"""Of a command. More are denied: what takes so many takes their names from a file."""
MAX_LOOKS: Final = 64 * 1024
"""Pairs of an argument and a description that are looked at for one rule: half a second at worst."""
_TERMINAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]*", re.ASCII)


class Category(enum.StrEnum):
    """What was denied: that much whoever asked is told, and no more."""

    COMMAND = "this command"
    SHELL = "this shell string"
    SESSION = "this session"
    READ = "reading this file"
    WRITE = "writing this file"
    CONNECT = "connecting there"
    LISTEN = "listening there"
    UNKNOWN = "this kind of request"


@frozen
class PathArgument:
    """An argument that was taken for a path, and where that has to be."""

    path: str
    """Absolute, by its text."""
    directory: str


@frozen
class Allowed:
    """It may be done."""

    rule: Rule | None = None
    """None: it is no program, and a grant allows it; or nothing is needed."""
    paths: tuple[PathArgument, ...] = ()


@frozen
class Miss:
    """Why a rule doesn't fit; for who may read the policy."""

    rule: str
    why: str


@frozen
class Denied:
    """It may not."""

    category: Category
    misses: tuple[Miss, ...] = ()


def judge(policy: Policy, spec: wire.Spec) -> Allowed | Denied:
    """What the policy says to this spec. Never `Allowed` unless a rule or a grant names it."""
    match spec:
        case wire.CommandSpec() | wire.SessionSpec():
            return _judge_program(policy, spec)
        case wire.JobsSpec() | wire.StatisticsSpec() | wire.KillSpec() | wire.ForgetSpec():
            return Allowed()  # about what was allowed to run
        case wire.ConnectSpec():
            return _judge_address(policy.connect, spec, Category.CONNECT)
        case wire.ListenSpec():
            return _judge_address(policy.listen, spec, Category.LISTEN)
        case wire.RenameSpec():
            return _judge_files(policy, [spec.path, spec.target], writes=True)
        case (
            wire.StatSpec() | wire.ListSpec() | wire.GlobSpec() | wire.ReadSpec()
            | wire.WatchSpec() | wire.DownloadSpec()
        ):  # fmt: skip
            return _judge_files(policy, [spec.path], writes=False)
        case (
            wire.MakeDirectorySpec() | wire.RemoveSpec() | wire.LinkSpec() | wire.TouchSpec()
            | wire.ChangeSpec() | wire.WriteSpec() | wire.UploadSpec()
        ):  # fmt: skip
            return _judge_files(policy, [spec.path], writes=True)
        case _:
            return Denied(Category.UNKNOWN)


# -- programs


def _judge_program(policy: Policy, spec: wire.ProgramSpec) -> Allowed | Denied:
    misses = []
    for rule in policy.rules:
        fit = _fit(policy, rule, spec)
        if isinstance(fit, Allowed):
            return fit
        misses.append(Miss(rule.name, fit))
    category = Category.SESSION if isinstance(spec, wire.SessionSpec) else Category.COMMAND
    return Denied(Category.SHELL if spec.shell else category, tuple(misses))


def _fit(policy: Policy, rule: Rule, spec: wire.ProgramSpec) -> Allowed | str:
    """That the rule allows it; or the first thing that doesn't fit."""
    if not spec.argv:
        return "a login shell is nobody's program: name one"
    if rule.shell is not spec.shell:
        return "it is about shell strings" if rule.shell else "it allows no shell strings"
    arguments = [as_text(each) for each in spec.argv]
    if not rule.shell:
        if not _is_program(policy, rule, arguments[0]):
            return f"it is about {rule.exe}"
        arguments = arguments[1:]
    if isinstance(spec, wire.SessionSpec):
        if not rule.pty:
            return "it allows no terminal (pty = true would)"
        if not _TERMINAL.fullmatch(spec.term):
            return "the terminal's name is none"
    if spec.user not in (None, rule.user):
        return "it allows another user only" if rule.user else "it names no user to run as"
    cwd = None if spec.cwd is None else as_text(spec.cwd)
    if cwd is not None and not lies_beneath(cwd, rule.cwd_beneath):
        return "the working directory is not beneath one of cwd_beneath"
    for name in spec.env:
        if not environment.may_set(as_text(name), rule.env_allow):
            return f"the variable {as_text(name)!r:.60} is not in env_allow, or never passes"
    if any("\0" in each for each in arguments):
        return "an argument has a null byte"
    paths = _match(rule.argv, arguments, cwd)
    return "argv doesn't fit its arguments" if paths is None else Allowed(rule, tuple(paths))


def _is_program(policy: Policy, rule: Rule, name: str) -> bool:
    if "/" in name:
        return name == rule.exe
    return any(
        rule.exe == f"{directory.rstrip('/')}/{name}" for directory in policy.path.split(":")
    )


def _match(
    descriptions: tuple[Argument, ...], arguments: list[str], cwd: str | None
) -> list[PathArgument] | None:
    """The paths among the arguments, if the descriptions fit them all, one after the other; else None.

    Each pair of a description and an argument is looked at once at most: it can't be made to take long.
    """
    if len(arguments) > MAX_ARGUMENTS or len(arguments) * len(descriptions) > MAX_LOOKS:
        return None
    is_long = sum(map(len, arguments)) > patterns.MAX_SUBJECTS
    if is_long and any(isinstance(each.matcher, Regex) for each in descriptions):
        return None
    # How many arguments the descriptions so far may stand for, and from where the last of them began.
    steps: list[dict[int, int]] = [{0: 0}]
    for description in descriptions:
        steps.append(_advance(description, arguments, cwd, steps[-1]))
    end = len(arguments)
    if end not in steps[-1]:
        return None
    paths: list[PathArgument] = []
    for description, step in zip(reversed(descriptions), reversed(steps), strict=False):
        begin = step[end]
        for argument in arguments[begin:end]:
            paths += _fits(description, argument, cwd) or ()
        end = begin
    return paths


def _advance(
    description: Argument, arguments: list[str], cwd: str | None, begins: dict[int, int]
) -> dict[int, int]:
    """Where it may end, of each of the places where it may begin, which rise; and from which of them."""
    ends: dict[int, int] = {}
    fitting = (
        filled
    ) = -1  # all from the latest beginning up to `fitting` fit; `ends` is complete up to `filled`
    for begin in begins:
        fitting = max(fitting, begin)
        limit = min(begin + description.at_most, len(arguments))
        while fitting < limit and _fits(description, arguments[fitting], cwd) is not None:
            fitting += 1
        for end in range(max(begin + description.at_least, filled + 1), min(fitting, limit) + 1):
            ends[end] = begin
            filled = end
    return ends


def _fits(description: Argument, argument: str, cwd: str | None) -> list[PathArgument] | None:
    """None if it doesn't; else what of it is a path."""
    match description.matcher:
        case Literal(text):
            return [] if argument == text else None
        case Beneath(directory, prefix):
            if not argument.startswith(prefix):
                return None
            path = resolve(argument[len(prefix) :], cwd)
            if path is None or not lies_beneath(path, (directory,)):
                return None
            return [PathArgument(path, directory)]
        case regex:
            return [] if patterns.matches(regex.pattern, argument) else None


# -- files and ports


def _judge_files(policy: Policy, paths: list[bytes], *, writes: bool) -> Allowed | Denied:
    granted = policy.files_write if writes else (*policy.files_read, *policy.files_write)
    category = Category.WRITE if writes else Category.READ
    for path in map(as_text, paths):
        if not lies_beneath(path, granted):
            return Denied(category)
        if writes and not policy.write_executables and holds_programs(path, policy):
            return Denied(category)
    return Allowed()


def _judge_address(
    granted: tuple[Address, ...], spec: wire.ConnectSpec | wire.ListenSpec, category: Category
) -> Allowed | Denied:
    return Allowed() if any(_reaches(each, spec) for each in granted) else Denied(category)


def _reaches(granted: Address, spec: wire.ConnectSpec | wire.ListenSpec) -> bool:
    if spec.path:
        path = as_text(spec.path)
        return bool(granted.path) and lies_beneath(path, (granted.path,)) and bool(parts_of(path))
    host = spec.host.lower()
    first, last = granted.ports
    return granted.host in ("*", host) and bool(host) and first <= spec.port <= last
