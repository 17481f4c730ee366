"""What the author of a policy should know about it: what it allows by accident. By its text; no disk is looked at."""

from __future__ import annotations

import enum
import fnmatch
from typing import TYPE_CHECKING, Final

from attrs import frozen

from sandd._core.policy import patterns
from sandd._core.policy.paths import holds_programs
from sandd._core.policy.rules import Beneath, ExecLock, Regex

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandd._core.policy.rules import Policy, Rule

INTERPRETERS: Final = (
    *(
        "sh",
        "bash",
        "dash",
        "ash",
        "zsh",
        "ksh*",
        "mksh",
        "csh",
        "tcsh",
        "fish",
        "rbash",
        "busybox",
        "toybox",
    ),
    *(
        "python*",
        "pypy*",
        "perl*",
        "ruby*",
        "node*",
        "deno",
        "bun",
        "lua*",
        "php*",
        "tclsh*",
        "wish*",
    ),
    *(
        "expect",
        "guile*",
        "java",
        "jshell",
        "dotnet",
        "pwsh*",
        "osascript",
        "Rscript",
        "R",
        "julia",
        "ghci",
    ),
    *(
        "awk",
        "gawk",
        "mawk",
        "nawk",
        "sed",
        "ed",
        "vi",
        "vim*",
        "nvim",
        "view",
        "emacs*",
        "ex",
        "nano",
    ),
    *(
        "less",
        "more",
        "man",
        "gdb",
        "lldb",
        "strace",
        "ltrace",
        "irb",
        "erl",
        "elixir",
        "psql",
        "mysql",
        "sqlite3",
    ),
    *(
        "make",
        "gmake",
        "cmake",
        "ninja",
        "gcc*",
        "g++*",
        "cc",
        "c++",
        "clang*",
        "ld",
        "go",
        "cargo",
        "rustc",
    ),
    *(
        "npm",
        "npx",
        "yarn",
        "pnpm",
        "pip*",
        "pytest*",
        "tox",
        "nox",
        "uv",
        "poetry",
        "gem",
        "bundle",
    ),
    *(
        "apt*",
        "dpkg",
        "dnf",
        "yum",
        "rpm",
        "brew",
        "snap",
        "ld.so",
        "ld-linux*",
        "ld-musl*",
        "m4",
        "dc",
        "bc",
    ),
)
"""Programs that do what a text tells them, within their own process: no lock helps."""
LAUNCHERS: Final = (
    *(
        "env",
        "xargs",
        "find",
        "fd",
        "parallel",
        "nohup",
        "nice",
        "ionice",
        "timeout",
        "time",
        "watch",
        "entr",
    ),
    *(
        "setsid",
        "stdbuf",
        "script",
        "unbuffer",
        "flock",
        "chroot",
        "chrt",
        "taskset",
        "run-parts",
        "rlwrap",
    ),
    *(
        "sudo",
        "su",
        "doas",
        "runuser",
        "setpriv",
        "capsh",
        "nsenter",
        "unshare",
        "bwrap",
        "firejail",
        "pkexec",
    ),
    *(
        "ssh",
        "scp",
        "sftp",
        "rsync",
        "git",
        "hg",
        "svn",
        "tar",
        "bsdtar",
        "cpio",
        "zip",
        "unzip",
        "7z*",
        "rar",
    ),
    *(
        "docker",
        "podman",
        "kubectl",
        "nerdctl",
        "systemd-run",
        "systemctl",
        "at",
        "batch",
        "crontab",
        "screen",
    ),
    *(
        "tmux",
        "start-stop-daemon",
        "socat",
        "nc",
        "ncat",
        "netcat",
        "openssl",
        "tee",
        "split",
        "sort",
        "ftp",
    ),
    *("tcpdump", "wget", "curl", "mail", "mutt", "logrotate", "dmesg", "journalctl", "strings"),
)
"""Programs that start others, or write files, where an option, a file or a setting tells them to."""
_RISKY_VARIABLES: Final = ("HOME", "USER", "TMPDIR", "TEMP", "TMP", "CONFIG*")
"""They lead programs to their settings."""
_OPTIONS: Final = ("--x=y", "-exec", "-x", "--checkpoint-action=exec=x")
_ELSEWHERE: Final = ("../../etc/passwd", "/etc/passwd")


class Severity(enum.StrEnum):
    """How much it matters."""

    ERROR = "error"  # a daemon or controller doesn't take such a policy
    WARNING = "warning"
    NOTE = "note"


@frozen
class Finding:
    """One thing to know."""

    severity: Severity
    text: str
    rule: str | None = None
    """None: it is about the policy."""


def lint(policy: Policy) -> list[Finding]:
    """All there is to know from the text, errors first."""
    findings = [*_about_policy(policy)]
    for rule in policy.rules:
        findings += _about_rule(policy, rule)
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def errors(policy: Policy) -> list[Finding]:
    """Why this policy can't be used."""
    return [each for each in lint(policy) if each.severity is Severity.ERROR]


def is_interpreter(path: str) -> bool:
    """Whether, by its name, it does whatever it is told."""
    return _is_among(path, INTERPRETERS)


def _is_among(path: str, names: tuple[str, ...]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, each) for each in names)


def _about_policy(policy: Policy) -> Iterator[Finding]:
    if policy.exec_lock is ExecLock.OFF and policy.rules:
        yield Finding(
            Severity.WARNING,
            "exec_lock is off: a program may start any other, as git does by a repository's settings",
        )
    for directory in policy.files_write:
        if not policy.write_executables and holds_programs(directory, policy):
            yield Finding(
                Severity.ERROR,
                f"[files] write has {directory}, and there are programs there; name directories that have none, "
                "or write write_executables = true",
            )
    if policy.write_executables and policy.files_write:
        yield Finding(Severity.WARNING, "write_executables: files may replace the programs allowed")
    if "/" in policy.files_read or "/" in policy.files_write:
        yield Finding(Severity.WARNING, "[files] grants all files of the daemon's user")
    if any(each.host == "*" for each in (*policy.connect, *policy.listen)):
        yield Finding(
            Severity.WARNING, "[ports] grants any host: from the daemon's side, all it can reach"
        )


def _about_rule(policy: Policy, rule: Rule) -> Iterator[Finding]:
    def finding(severity: Severity, text: str) -> Finding:
        forced = severity is Severity.ERROR and rule.force
        return Finding(Severity.NOTE if forced else severity, text, rule.name)

    if rule.shell:
        yield finding(
            Severity.ERROR, "shell = true: a shell string may do what its regex didn't think of"
        )
    elif is_interpreter(rule.exe):
        yield finding(
            Severity.ERROR,
            f"{rule.exe} runs whatever it is told; write force = true if that is meant",
        )
    elif _is_among(rule.exe, LAUNCHERS):
        if rule.may_start or policy.exec_lock is ExecLock.OFF:
            severity = Severity.ERROR
        elif policy.exec_lock is ExecLock.IF_AVAILABLE:
            severity = Severity.WARNING
        else:
            severity = Severity.NOTE
        yield finding(
            severity,
            f"{rule.exe} can be made to start other programs, or to write files; exec_lock = 'required' "
            "without may_start prevents the former, force = true says that it is meant",
        )
    for path in rule.may_start:
        if is_interpreter(path):
            yield finding(Severity.ERROR, f"may_start has {path}, which runs whatever it is told")
    if rule.may_start:
        yield finding(
            Severity.NOTE,
            "may_start: the dynamic loader of these programs may be started, too, and it runs any file",
        )
    for index, each in enumerate(rule.argv, 1):
        if isinstance(each.matcher, Regex) and not rule.shell:
            yield from _about_regex(rule, index, each.matcher.pattern)
        if isinstance(each.matcher, Beneath) and each.matcher.directory == "/":
            yield finding(Severity.WARNING, f"argv {index}: any path is beneath /")
    for name in rule.env_allow:
        if (
            any(fnmatch.fnmatchcase(name.rstrip("*"), each) for each in _RISKY_VARIABLES)
            or name == "*"
        ):
            yield finding(Severity.WARNING, f"env_allow has {name}: it may lead to other settings")
    if rule.sha256 is None:
        yield finding(Severity.NOTE, "no sha256: whoever may replace the program is trusted")


def _about_regex(rule: Rule, index: int, pattern: str) -> Iterator[Finding]:
    if any(patterns.matches(pattern, each) for each in _OPTIONS):
        text = f"argv {index}: {pattern!r} fits options, too; begin it with [^-] if none is meant"
        yield Finding(Severity.WARNING, text, rule.name)
    if any(patterns.matches(pattern, each) for each in _ELSEWHERE):
        text = f"argv {index}: {pattern!r} fits paths anywhere; use beneath for paths"
        yield Finding(Severity.WARNING, text, rule.name)
