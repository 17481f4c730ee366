"""What a policy allows is what one of its rules, or grants, names: and nothing that only looks like it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from attrs import evolve

from sandd import wire
from sandd._core.policy.judging import Allowed, Category, Denied, PathArgument, judge
from sandd._core.policy.refusing import judge_attach, judge_spec
from sandd._core.policy.rules import Address, Argument, Beneath, Literal, Policy, Regex, Rule
from sandd.wire import RefusedCode

GIT = Rule(
    "status",
    "/usr/bin/git",
    (
        Argument(Literal("status")),
        Argument(Regex("--[a-z]+"), 0, 2),
        Argument(Beneath("/work"), 0, 8),
    ),
    cwd_beneath=("/work",),
    env_allow=("CI", "LC_*", "*"),
)
POLICY = Policy((GIT, Rule("top", "/usr/bin/top", pty=True, user="nobody")))


def command(*argv: str, **options: Any) -> wire.CommandSpec:
    """A command as a client sends it."""
    return wire.CommandSpec(tuple(each.encode() for each in argv), **options)


def is_allowed(spec: wire.Spec, policy: Policy = POLICY) -> bool:
    """Whether the policy allows it."""
    return isinstance(judge(policy, spec), Allowed)


# ---- programs -----------------------------------------------------------------------------------


def test_a_command_that_fits_a_rule_is_allowed_by_it() -> None:
    """By its path, or by a name that the policy's PATH leads there; and its paths are told."""
    assert judge(POLICY, command("/usr/bin/git", "status")) == Allowed(GIT)
    assert judge(POLICY, command("git", "status", "--short", "a", "/work/b", cwd=b"/work/r")) == (
        Allowed(GIT, (PathArgument("/work/r/a", "/work"), PathArgument("/work/b", "/work")))
    )


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(command("git"), id="too-few"),
        pytest.param(command("git", "push"), id="another"),
        pytest.param(command("git", "status", "--short=x"), id="regex-in-part"),
        pytest.param(command("git", "status", "--a\n"), id="newline"),
        pytest.param(command("git", "-c", "core.fsmonitor=x", "status"), id="before"),
        pytest.param(command("git", "status", "--a", "--b", "--c"), id="too-many"),
        pytest.param(command("./git", "status"), id="relative"),
        pytest.param(command("/usr/local/bin/git", "status"), id="another-git"),
        pytest.param(command("/usr/bin/../bin/git", "status"), id="dots-in-program"),
        pytest.param(command("/proc/self/root/usr/bin/git", "status"), id="proc-in-program"),
        pytest.param(command("/usr/bin//git", "status"), id="slashes"),
        pytest.param(command("git", "status", "a"), id="relative-path-nowhere"),
        pytest.param(command("git", "status", "../a", cwd=b"/work/r"), id="dots"),
        pytest.param(command("git", "status", "/work/../etc/passwd"), id="absolute-dots"),
        pytest.param(command("git", "status", "/workshop"), id="a-longer-name"),
        pytest.param(command("git", "status", "/proc/self/root/work"), id="proc"),
        pytest.param(command("git", "status", "-x", cwd=b"/work"), id="an-option"),
        pytest.param(command("git", "status", "", cwd=b"/work"), id="empty"),
        pytest.param(command("git", "status", "/work/a\0b"), id="null"),
        pytest.param(command("git", "status", cwd=b"/"), id="cwd"),
        pytest.param(command("git", "status", cwd=b"/work/.."), id="cwd-dots"),
        pytest.param(command("git", "status", cwd=b"work"), id="cwd-relative"),
        pytest.param(command("git", "status", cwd=b""), id="cwd-empty"),
        pytest.param(command("git", "status", user="root"), id="user"),
        pytest.param(command("git", "status", user=""), id="no-user"),
        pytest.param(command("git", "status", env={b"LD_PRELOAD": b"x"}), id="preload"),
        pytest.param(command("git", "status", env={b"PATH": b"/tmp"}), id="path"),
        pytest.param(command("git", "status", env={b"GIT_CONFIG_COUNT": b"1"}), id="git-config"),
        pytest.param(command("git status", shell=True), id="shell"),
        pytest.param(command("sh", "-c", "git status"), id="a-shell"),
        pytest.param(wire.SessionSpec((b"git", b"status")), id="terminal"),
        pytest.param(wire.SessionSpec(), id="login-shell"),
        pytest.param(command("top", user="root"), id="as-another"),
        pytest.param(command("top", env={b"CI": b"1"}), id="env-without-leave"),
        pytest.param(wire.SessionSpec((b"top",), term="../../tmp/evil"), id="terminfo"),
        pytest.param(command("git", "status", *["--a"] * 5000), id="thousands"),
    ],
)
def test_what_no_rule_names_is_denied(spec: wire.Spec) -> None:
    """However near it comes; and each rule says why it isn't meant."""
    verdict = judge(POLICY, spec)
    assert isinstance(verdict, Denied)
    assert [miss.rule for miss in verdict.misses] == ["status", "top"]
    assert all(miss.why for miss in verdict.misses)


def test_what_is_denied_has_a_kind_and_no_reason() -> None:
    """A shell string, a session or a command."""
    assert judge(POLICY, command("ls", shell=True)).category is Category.SHELL  # type: ignore[union-attr]
    assert judge(POLICY, wire.SessionSpec()).category is Category.SESSION  # type: ignore[union-attr]
    assert judge(POLICY, command("ls")).category is Category.COMMAND  # type: ignore[union-attr]


def test_a_rule_may_grant_more() -> None:
    """Variables by name, a terminal, its user, and shell strings that fit as a whole."""
    assert is_allowed(command("git", "status", env={b"CI": b"1", b"LC_ALL": b"C"}))
    assert is_allowed(wire.SessionSpec((b"top",), user="nobody"))
    assert is_allowed(command("/usr/bin/top", user="nobody"))
    shell = Rule("text", "/bin/sh", (Argument(Regex("echo [a-z]+")),), shell=True)
    policy = Policy((shell,))
    assert is_allowed(command("echo hello", shell=True), policy)
    assert not is_allowed(command("echo hello; id", shell=True), policy)
    assert not is_allowed(command("/bin/sh", "echo hello"), policy)
    assert not is_allowed(wire.SessionSpec((b"echo hello",), shell=True), policy)


def test_descriptions_may_share_arguments_out_in_any_way() -> None:
    """The first that takes as much as it can doesn't keep the next from what it needs."""
    letters = (Argument(Regex("[a-z]"), 0, 3), Argument(Literal("x")), Argument(Regex("."), 1, 2))
    policy = Policy((Rule("r", "/bin/r", letters),))
    for argv in ("xa", "axb", "xxx", "abcxyz", "abxx", "xxxxx"):
        assert is_allowed(command("/bin/r", *argv), policy), argv
    for argv in ("x", "a", "abcdx", "abcdxe", "xabc1", ""):
        assert not is_allowed(command("/bin/r", *argv), policy), argv


def test_the_longest_command_is_judged_in_no_time() -> None:
    """The most arguments, for the most descriptions that fit them all."""
    many = tuple(Argument(Regex("[a-z]*"), 0, 1024) for _ in range(64))
    policy = Policy((Rule("r", "/bin/r", (*many, Argument(Literal("1")))),))
    for count, size in ((4096, 32), (1000, 131), (128, 1024)):
        began = time.process_time()
        assert not is_allowed(command("/bin/r", *["a" * size] * count), policy)
        assert time.process_time() - began < 5


# ---- files and ports ----------------------------------------------------------------------------


def test_files_are_reached_where_they_are_granted() -> None:
    """Reading where one may read or write, writing where one may write; by absolute paths without dots."""
    policy = Policy(files_read=("/in",), files_write=("/out",))
    for spec in (wire.ReadSpec(b"/in/a"), wire.StatSpec(b"/out"), wire.DownloadSpec(b"/in")):
        assert is_allowed(spec, policy)
    for spec in (wire.WriteSpec(b"/out/a"), wire.UploadSpec(b"/out/b"), wire.TouchSpec(b"/out/x")):
        assert is_allowed(spec, policy)
    for spec in (
        *(wire.ReadSpec(b"/etc/passwd"), wire.ReadSpec(b"/in/../etc"), wire.ReadSpec(b"in/a")),
        *(wire.ReadSpec(b"/inside"), wire.ReadSpec(b""), wire.GlobSpec(b"/", b"*")),
    ):
        assert judge(policy, spec) == Denied(Category.READ)
    for spec in (
        *(wire.WriteSpec(b"/in/a"), wire.UploadSpec(b"/in"), wire.LinkSpec(b"/in/l", b"/out")),
        *(wire.RenameSpec(b"/out/a", b"/in/a"), wire.RenameSpec(b"/in/a", b"/out/a")),
        *(wire.ChangeSpec(b"/in/a", mode=0o777), wire.RemoveSpec(b"/", wire.Removal.TREE)),
    ):
        assert judge(policy, spec) == Denied(Category.WRITE)


def test_nothing_is_written_where_programs_are() -> None:
    """Nor where a directory of them is moved away; unless the policy grants that, too."""
    policy = Policy((Rule("r", "/opt/tools/bin/r"),), path="/usr/bin", files_write=("/",))
    assert is_allowed(wire.WriteSpec(b"/home/a"), policy)
    for path in (b"/usr/bin/git", b"/opt/tools/bin/x", b"/opt/tools", b"/opt"):
        assert not is_allowed(wire.WriteSpec(path), policy)
        assert not is_allowed(wire.RenameSpec(b"/home/a", path), policy)
        assert is_allowed(wire.WriteSpec(path), evolve(policy, write_executables=True))


def test_ports_are_reached_where_they_are_granted() -> None:
    """By host as it is written and port, or by the path of a socket."""
    policy = Policy(
        connect=(Address("db", (5432, 5433)), Address(path="/run/app")),
        listen=(Address("127.0.0.1", (0, 0)),),
    )
    assert is_allowed(wire.ConnectSpec("DB", 5433), policy)
    assert is_allowed(wire.ConnectSpec("", path=b"/run/app/a.sock"), policy)
    assert is_allowed(wire.ListenSpec("127.0.0.1"), policy)
    for spec in (
        *(wire.ConnectSpec("db", 22), wire.ConnectSpec("169.254.169.254", 80)),
        *(wire.ConnectSpec("", path=b"/run/app/../docker.sock"), wire.ConnectSpec("127.0.0.1", 0)),
    ):
        assert judge(policy, spec) == Denied(Category.CONNECT)
    for listen in (wire.ListenSpec("0.0.0.0"), wire.ListenSpec("127.0.0.1", 80)):
        assert judge(policy, listen) == Denied(Category.LISTEN)
    assert is_allowed(wire.ConnectSpec("x", 1), Policy(connect=(Address("*"),)))
    assert not is_allowed(wire.ConnectSpec("", path=b"/x"), Policy(connect=(Address("*"),)))


def test_every_kind_of_job_has_a_judge() -> None:
    """One that is added to the protocol is denied until somebody has thought of it."""
    needs_nothing = {wire.JobsSpec, wire.StatisticsSpec, wire.KillSpec, wire.ForgetSpec}
    for kind in wire.SPEC_KINDS.values():
        verdict = judge(Policy(), _example(kind))
        assert isinstance(verdict, Allowed) is (kind in needs_nothing), kind
        if isinstance(verdict, Denied):
            assert verdict.category is not Category.UNKNOWN, kind


def _example(kind: Any) -> wire.Spec:
    given = {"path": b"/x", "target": b"/y", "pattern": b"*", "job_id": "j", "host": "h"}
    given |= {"argv": (b"x",), "what": wire.Removal.FILE}
    return kind(
        **{k: v for k, v in given.items() if k in kind.__annotations__ and (k, kind) not in _NOT}
    )


_NOT = {("path", wire.ConnectSpec), ("path", wire.ListenSpec)}


# ---- what is said about it ----------------------------------------------------------------------


def test_a_refusal_names_the_hash_and_nothing_of_the_policy() -> None:
    """So that who asked can tell which policy it was, and learns nothing to get around it."""
    refused = judge_spec(POLICY, command("git", "push"))
    assert refused == wire.Refused(
        RefusedCode.POLICY_DENIED,
        f"policy {POLICY.hash} does not allow this command",
        policy_hash=POLICY.hash,
    )
    assert judge_spec(POLICY, command("git", "status")) is None


def attach(spec: wire.Spec | None, **options: Any) -> wire.Attach:
    """What a client sends for it."""
    encoded = None if spec is None else wire.encode_spec(spec)
    return wire.Attach("d", "j", "c", spec=encoded, **options)


def test_all_policies_have_to_allow_it() -> None:
    """The refusal is of the first that doesn't; whoever has none may do anything."""
    narrow = Policy((evolve(GIT, argv=(Argument(Literal("status")),)),))
    asked = attach(command("git", "status", "--short"))
    assert judge_attach([POLICY], asked) is None
    assert judge_attach([], asked) is None
    refused = judge_attach([POLICY, narrow], asked)
    assert refused is not None
    assert refused.policy_hash == narrow.hash


def test_what_can_start_nothing_is_not_judged() -> None:
    """A job that is resumed, or attached to, is there: a policy that was narrowed since doesn't end it."""
    denied = command("rm")
    assert judge_attach([POLICY], attach(denied)) is not None
    assert judge_attach([POLICY], attach(denied, generation=1)) is None
    cursor = wire.Cursor(wire.Stream.OUTPUT, 100, 7)
    assert judge_attach([POLICY], attach(denied, cursors=(cursor,))) is None
    assert judge_attach([POLICY], attach(None)) is None


def test_what_cant_be_read_is_refused() -> None:
    """A daemon of a later release might know it, and do it."""
    refused = judge_attach([POLICY], wire.Attach("d", "j", "c", spec=b"\x81\xa4kind\xa3new"))
    assert refused is not None
    assert refused.code is RefusedCode.UNSUPPORTED
