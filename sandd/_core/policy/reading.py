"""From a TOML file to a `Policy`, or one line that says what is wrong and where. Nothing unknown is passed over."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any, Final

from sandd._core._errors import ConfigurationError
from sandd._core.limits import Limits, limits_from
from sandd._core.policy import environment, patterns
from sandd._core.policy.paths import is_readable, parts_of
from sandd._core.policy.rules import (
    DEFAULT_PATH,
    SHELL,
    Address,
    Argument,
    Beneath,
    ExecLock,
    Literal,
    Policy,
    Regex,
    Rule,
)
from sandd.wire import IsolationLevel

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_POLICY_BYTES: Final = 256 * 1024
"""A file with a thousand long rules; beyond it, it is not one that somebody wrote."""
MAX_RULES: Final = 512
"""Each is looked at for each command: 0.2 ms for all."""
MAX_ARGUMENTS: Final = 64
"""Descriptions of arguments in one rule."""
MAX_REPEAT: Final = 1024
"""Arguments in a row that one description may stand for: what a glob in a large directory comes to."""
MAX_ENTRIES: Final = 256
"""In any other list."""
MAX_TEXT: Final = 4096
"""Characters of a path or a literal: a path on Linux."""

_RULE_HEADER: Final = re.compile(r"^[ \t]*\[\[[ \t]*rule[ \t]*\]\]", re.MULTILINE)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?", re.ASCII)
_USER: Final = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,63}", re.ASCII)
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class PolicyError(ConfigurationError):
    """A policy can't be used; the text is one line that says where and why."""


def read_policy(data: bytes, *, name: str) -> Policy:
    """The policy that a file's bytes are; `name` is what to call the file. PolicyError if they are none."""
    if len(data) > MAX_POLICY_BYTES:
        raise PolicyError(f"{name} has {len(data)} bytes; a policy has at most {MAX_POLICY_BYTES}")
    try:
        text = data.decode("utf-8")
        # Python's own reader takes any number of nested brackets, one call for each.
        value = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"{name} is no TOML: {error}") from error
    return _policy(_Table(name, value), text)


class _Table:
    """A table, and where it is; whatever is taken from it is checked, and in the end nothing may be left."""

    def __init__(self, place: str, value: Any) -> None:
        self.place = place
        if not isinstance(value, dict):
            raise PolicyError(f"{place} must be a table, not {value!r:.60}")
        self._value = dict(value)
        self._names: list[str] = []

    def error(self, key: str, why: str) -> PolicyError:
        return PolicyError(f"{self.place}: {key} {why}")

    def has(self, key: str) -> bool:
        return key in self._value

    def take(self, key: str, default: Any = None) -> Any:
        self._names.append(key)
        return self._value.pop(key, default)

    def text(self, key: str) -> str | None:
        value = self.take(key)
        return None if value is None else self._checked_text(key, value)

    def boolean(self, key: str) -> bool:
        value = self.take(key, False)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {value!r:.60}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.take(key, [])
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
            raise self.error(key, f"must be a list of at most {MAX_ENTRIES} texts")
        return tuple(self._checked_text(key, each) for each in entries)

    def absolute(self, key: str, value: str) -> str:
        """The path, in the one way to write it."""
        parts = parts_of(value)
        if parts is None:
            raise self.error(key, f"must be an absolute path without '..', not {value!r:.200}")
        return "/" + "/".join(parts)

    def directories(self, key: str) -> tuple[str, ...]:
        return tuple(self.absolute(key, each) for each in self.texts(key))

    def finish(self) -> None:
        """PolicyError if there is anything that nobody took."""
        for key in self._value:
            known = ", ".join(self._names)
            raise PolicyError(f"{self.place}: there is no {key!r:.60}; known here: {known}")

    def _checked_text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) > MAX_TEXT or not is_readable(value):
            raise self.error(
                key, f"must be a text of at most {MAX_TEXT} characters, not {value!r:.60}"
            )
        return value


def _policy(top: _Table, text: str) -> Policy:
    version = top.take("version")
    if type(version) is not int or version != 1:
        raise top.error("version", f"must be 1, not {version!r:.60}")
    if top.take("default", "deny") != "deny":
        raise top.error("default", "can only be 'deny': what no rule names is denied")
    lock = top.take("exec_lock", ExecLock.IF_AVAILABLE.value)
    if lock not in list(ExecLock):
        known = ", ".join(repr(each.value) for each in ExecLock)
        raise top.error("exec_lock", f"must be one of {known}, not {lock!r:.60}")
    level = top.take("isolation", IsolationLevel.NONE.value)
    if level not in list(IsolationLevel):
        known = ", ".join(repr(each.value) for each in IsolationLevel)
        raise top.error("isolation", f"must be one of {known}, not {level!r:.60}")
    path = ":".join(
        top.absolute("path", each) for each in (top.text("path") or DEFAULT_PATH).split(":")
    )
    rules = _rules(top, text)
    files = _Table(f"{top.place}, [files]", top.take("files", {}))
    ports = _Table(f"{top.place}, [ports]", top.take("ports", {}))
    policy = Policy(
        rules=rules,
        path=path,
        exec_lock=ExecLock(lock),
        files_read=files.directories("read"),
        files_write=files.directories("write"),
        write_executables=files.boolean("write_executables"),
        connect=_addresses(ports, "connect"),
        listen=_addresses(ports, "listen"),
        isolation=IsolationLevel(level),
        limits=_limits(top),
    )
    for table in (files, ports, top):
        table.finish()
    return policy


def _rules(top: _Table, text: str) -> tuple[Rule, ...]:
    given = top.take("rule", [])
    if not isinstance(given, list) or len(given) > MAX_RULES:
        raise top.error("rule", f"must be at most {MAX_RULES} tables, each headed [[rule]]")
    lines = [text.count("\n", 0, match.end()) + 1 for match in _RULE_HEADER.finditer(text)]
    rules: dict[str, Rule] = {}
    for index, value in enumerate(given):
        # Those of which we can't be sure have no line: an array of inline tables, a header within a text.
        line = f", line {lines[index]}" if len(lines) == len(given) else ""
        rule = _rule(_Table(f"{top.place}{line}, rule {index + 1}", value))
        if rule.name in rules:
            raise PolicyError(f"{top.place}{line}: there are two rules named {rule.name!r}")
        rules[rule.name] = rule
    return tuple(rules.values())


def _rule(table: _Table) -> Rule:
    name = table.text("name")
    if not name:
        raise table.error("name", "is missing")
    table.place += f" ({name!r:.60})"
    shell = table.boolean("shell")
    exe = table.text("exe") or (SHELL if shell else "")
    if not exe:
        raise table.error("exe", "is missing: the absolute path of the program")
    if shell and exe != SHELL:
        raise table.error("exe", f"of a rule with shell = true can only be {SHELL!r}")
    sha256 = table.text("sha256")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise table.error("sha256", "must be 64 digits, 0 to 9 and a to f")
    if not table.has("argv"):
        raise table.error("argv", "is missing; [] is for a program without arguments")
    user = table.text("user")
    if user is not None and not _USER.fullmatch(user):
        raise table.error("user", f"is no name of a user: {user!r:.60}")
    rule = Rule(
        name=name,
        exe=table.absolute("exe", exe),
        argv=_arguments(table),
        sha256=sha256,
        cwd_beneath=table.directories("cwd_beneath"),
        env_allow=_names(table),
        env=_fixed_variables(table),
        shell=shell,
        pty=table.boolean("pty"),
        user=user,
        may_start=table.directories("may_start"),
        force=table.boolean("force"),
        limits=_limits(table),
    )
    table.finish()
    if shell and [(each.at_least, each.at_most) for each in rule.argv] != [(1, 1)]:
        raise table.error("argv", "of a rule with shell = true must describe exactly one text")
    return rule


def _limits(table: _Table) -> Limits:
    given = table.take("limits", {})
    if not isinstance(given, dict):
        raise table.error(
            "limits", "must be a table, such as {memory_bytes = '1G', processes = 100}"
        )
    try:
        return limits_from(given, place=f"{table.place}: limits")
    except ValueError as error:
        raise PolicyError(str(error)) from error


def _arguments(table: _Table) -> tuple[Argument, ...]:
    given = table.take("argv")
    if not isinstance(given, list) or len(given) > MAX_ARGUMENTS:
        raise table.error("argv", f"must be a list of at most {MAX_ARGUMENTS} descriptions")
    return tuple(_argument(table, f"argv {index}", each) for index, each in enumerate(given, 1))


def _argument(table: _Table, key: str, value: Any) -> Argument:
    if isinstance(value, str):
        return Argument(Literal(table._checked_text(key, value)))
    if not isinstance(value, dict):
        raise table.error(
            key, "must be a text, or a table such as {regex = ...} or {beneath = ...}"
        )
    each = _Table(f"{table.place}, {key}", value)
    kinds = [kind for kind in ("literal", "regex", "beneath") if each.has(kind)]
    if len(kinds) != 1:
        raise table.error(key, "needs exactly one of literal, regex and beneath")
    matcher = _matcher(each)
    counts = [each.take("at_least", 1), each.take("at_most", 1)]
    if not all(type(count) is int for count in counts):
        raise table.error(key, "needs whole numbers for at_least and at_most")
    least, most = counts
    if not (0 <= least <= most and 1 <= most <= MAX_REPEAT):
        raise table.error(
            key, f"needs 0 <= at_least <= at_most <= {MAX_REPEAT}, not {least} and {most}"
        )
    each.finish()
    return Argument(matcher, least, most)


def _matcher(table: _Table) -> Literal | Regex | Beneath:
    literal, regex, beneath = table.text("literal"), table.text("regex"), table.text("beneath")
    if literal is not None:
        return Literal(literal)
    if beneath is not None:
        return Beneath(table.absolute("beneath", beneath), table.text("prefix") or "")
    assert regex is not None
    try:
        patterns.check(regex)
    except patterns.UnsafePatternError as error:
        raise table.error("regex", f"can't be used: {error}") from error
    return Regex(regex)


def _names(table: _Table) -> tuple[str, ...]:
    from_client = table.texts("env_allow")
    for name in from_client:
        if not _NAME.fullmatch(name):
            raise table.error("env_allow", f"has {name!r:.60}, which is no name of a variable")
        if environment.is_barred(name.rstrip("*")):
            raise table.error("env_allow", f"has {name!r:.60}, which never passes; set it by env")
    return from_client


def _fixed_variables(table: _Table) -> Mapping[str, str]:
    given = table.take("env", {})
    if not isinstance(given, dict) or len(given) > MAX_ENTRIES:
        raise table.error("env", f"must be a table of at most {MAX_ENTRIES} variables")
    for name, value in given.items():
        if not _NAME.fullmatch(name) or name.endswith("*"):
            raise table.error("env", f"has {name!r:.60}, which is no name of a variable")
        table._checked_text(f"env.{name}", value)
    return dict(given)


def _addresses(table: _Table, key: str) -> tuple[Address, ...]:
    return tuple(_address(table, key, each) for each in table.texts(key))


def _address(table: _Table, key: str, text: str) -> Address:
    if text.startswith("unix:"):
        return Address(path=table.absolute(key, text.removeprefix("unix:")))
    host, _, ports = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]").lower()
    match = _PORTS.fullmatch(ports)
    if host and ports == "*":
        return Address(host)
    if host and match is not None:
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last <= 65535:
            return Address(host, (first, last))
    raise table.error(
        key, f"has {text!r:.60}; write HOST:PORT, HOST:FIRST-LAST, HOST:* or unix:/PATH"
    )
