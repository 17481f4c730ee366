"""Which level a job gets, what is refused because of it, and what becomes of its request."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from isolation_world import isolated, needs
from process_tools import linux_only, root_only
from trusted_files import trusted_directory

if sys.platform == "win32":
    pytest.skip("POSIX only", allow_module_level=True)

from sandd import wire
from sandd._core._errors import ConfigurationError, SpawnFailed
from sandd._core.isolation import bubblewrap, probing
from sandd._core.isolation.confining import Isolation, open_isolation
from sandd._core.isolation.options import IsolationOptions
from sandd._core.isolation.workspaces import Workspaces
from sandd._core.policy.permits import Permit
from sandd._core.policy.rules import Policy, Rule
from sandd._core.processes import SpawnRequest, landlock
from sandd.wire import CommandSpec, IsolationLevel, RefusedCode

if TYPE_CHECKING:
    from pathlib import Path

NONE, USER, LANDLOCK, BWRAP = IsolationLevel
TRUE = CommandSpec((b"true",))
ALL: dict[IsolationLevel, str | None] = dict.fromkeys(IsolationLevel)
FILES = wire.StatSpec(b"x")


def isolation(
    directory: Path, level: IsolationLevel, *, missing: dict[IsolationLevel, str] | None = None
) -> Isolation:
    """One without users, and without what is `missing`."""
    options = IsolationOptions(level=level)
    return Isolation(options, Workspaces(directory / "w", None), {**ALL, **(missing or {})})


@pytest.mark.parametrize("least", IsolationLevel)
@pytest.mark.parametrize("asked", [None, *IsolationLevel])
def test_a_request_raises_the_level_only(
    tmp_path: Path, least: IsolationLevel, asked: IsolationLevel | None
) -> None:
    """The daemon's is the least."""
    order = list(IsolationLevel)
    expected = max(least, asked or NONE, key=order.index)
    some = isolation(tmp_path, least)
    assert some.level_of(evolve(TRUE, isolation=asked)) is expected
    assert some.level_of(TRUE, asked or NONE) is expected
    assert some.level_of(FILES, asked or NONE) is least


def test_a_level_that_is_missing_is_refused(tmp_path: Path) -> None:
    """With its reason; nothing runs at a lower one. What needs none is done."""
    some = isolation(tmp_path, NONE, missing={BWRAP: "it is not installed"})
    refused = some.judge(evolve(TRUE, isolation=BWRAP))
    assert refused is not None
    assert refused.code is RefusedCode.UNSUPPORTED
    assert refused.message == (
        "isolation 'bwrap' is not to be had on this daemon: it is not installed"
    )
    assert some.judge(TRUE) is some.judge(FILES) is None


def test_without_its_least_level_a_daemon_does_nothing(tmp_path: Path) -> None:
    """Neither programs nor files nor ports; only what is about jobs, of which there are none."""
    some = isolation(tmp_path, USER, missing={USER: "it takes root"})
    for spec in (TRUE, wire.SessionSpec(), FILES, wire.ConnectSpec("localhost", 1)):
        assert some.judge(spec) is not None
    assert some.judge(wire.JobsSpec()) is None


def request(**options: Any) -> SpawnRequest:
    """What would be started."""
    return SpawnRequest(
        argv=(b"true",), env={b"A": b"1"}, marker=b"m", base={b"B": b"2"}, **options
    )


def test_at_none_nothing_changes(tmp_path: Path) -> None:
    """It is the very request."""
    given = request()
    with Permit() as permit:
        assert isolation(tmp_path, NONE).confine("a", NONE, TRUE, given, permit) is given


def test_a_confined_request_is_of_its_workspace(tmp_path: Path) -> None:
    """Its directory, and little of the daemon's environment; what the client says goes before."""
    spec = evolve(TRUE, env={b"HOME": b"/elsewhere"})
    with Permit() as permit:
        some = isolation(tmp_path, USER)
        made = some.confine("a", USER, spec, request(), permit)
        home = some.workspaces.open("a").path
        assert made.cwd == bytes(home)
        assert (made.env[b"A"], made.env[b"TMPDIR"]) == (b"1", bytes(home / "tmp"))
        assert b"HOME" not in made.env or made.env[b"HOME"] != bytes(home)
        assert dict(made.base) == {}
        assert some.confine("a", USER, spec, request(cwd=b"d"), permit).cwd == bytes(home / "d")
        assert some.confine("a", USER, spec, request(cwd=b"/d"), permit).cwd == b"/d"


def test_a_tenant_without_a_workspace_runs_nothing(tmp_path: Path) -> None:
    """Whatever the reason: its name, the disk, no user left."""
    some = isolation(tmp_path, USER)
    with Permit() as permit, pytest.raises(SpawnFailed, match="no tenant's name"):
        some.confine("..", USER, TRUE, request(), permit)
    (tmp_path / "w").write_text("in the way")
    with Permit() as permit, pytest.raises(SpawnFailed, match="can't be made"):
        some.confine("a", USER, TRUE, request(), permit)


@needs(USER)
def test_nobody_but_the_tenants_user_can_be_asked_for() -> None:
    """Not even root, and by no policy; the tenant's own number is no other user."""
    with isolated(USER) as some, Permit() as permit:
        uid = some.workspaces.open("a").uid
        for user in ("root", "0", str((uid or 0) + 1)):
            with pytest.raises(SpawnFailed, match="its tenant's own user"):
                some.confine("a", USER, TRUE, request(user=user), permit)
        made = some.confine("a", USER, TRUE, request(user=str(uid)), permit)
        assert made.confinement is not None
        assert made.confinement.identity == (uid, uid, ())
        assert made.user is None


@needs(LANDLOCK)
def test_what_nobody_waits_for_opens_nothing() -> None:
    """A job that was given up while its thread made it ready leaves no descriptor: the leak check looks."""
    with isolated(LANDLOCK) as some:
        permit = Permit()
        permit.close()
        for level in (LANDLOCK, BWRAP):
            with pytest.raises(SpawnFailed, match="nobody waits"):
                some.confine("a", level, TRUE, request(), permit)


@root_only
@linux_only
def test_a_daemon_that_requires_its_level_does_not_start_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it starts, says so, and refuses; with what is to be had nothing is said."""
    monkeypatch.setattr(bubblewrap, "find", lambda: None)
    with trusted_directory() as state:
        options = IsolationOptions(level=BWRAP, is_required=True)
        with pytest.raises(
            ConfigurationError, match="'bwrap' is not to be had here: bubblewrap is"
        ):
            open_isolation(options, state)
        some = open_isolation(evolve(options, is_required=False), state)
        assert BWRAP not in some.available
        assert some.judge(TRUE) is not None


@needs(USER)
def test_a_policy_may_ask_for_more() -> None:
    """Its level is the least, too. Its rules name no users then, and bubblewrap is not for it."""
    with trusted_directory() as state:
        policy = Policy(isolation=USER)
        some = open_isolation(IsolationOptions(), state, policy=policy)
        assert some.level is USER
        assert "policy" in (some.missing[BWRAP] or "")
        policy = Policy((Rule("r", "/bin/true", user="nobody"),), isolation=USER)
        with pytest.raises(ConfigurationError, match="rule 'r' of the policy runs as nobody"):
            open_isolation(IsolationOptions(), state, policy=policy)


@needs(LANDLOCK)
@pytest.mark.parametrize("readable", ["/var", "/var/lib", "beneath"])
def test_what_all_may_read_is_nobodys_workspace(readable: str) -> None:
    """Then a daemon has no Landlock, and no bubblewrap, rather than one that hides nothing."""
    with trusted_directory() as state:
        path = state / "w" / "x" if readable == "beneath" else type(state)(readable)
        options = IsolationOptions(readable=(path,), workspaces=state / "w")
        some = open_isolation(options, state)
        assert some.available == (NONE, USER)
        assert "jobs may read" in (some.missing[LANDLOCK] or "")


# ---- probing -------------------------------------------------------------------------------------


def test_who_is_not_root_has_no_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes a newer Landlock, which keeps signals apart."""
    monkeypatch.setattr(probing, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(probing.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(bubblewrap, "find", lambda: None)
    monkeypatch.setattr(landlock, "version", lambda: 5)
    missing = probing.probe(IsolationOptions())
    assert "takes root" in (missing[USER] or "")
    assert "it takes 6 where tenants are not users" in (missing[LANDLOCK] or "")
    assert missing[BWRAP] == missing[LANDLOCK]
    monkeypatch.setattr(landlock, "version", lambda: 6)
    missing = probing.probe(IsolationOptions())
    assert missing[LANDLOCK] is None
    assert "not installed" in (missing[BWRAP] or "")


def test_elsewhere_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another system, and on a kernel without Landlock."""
    monkeypatch.setattr(probing, "sys", SimpleNamespace(platform="darwin"))
    assert all(
        "darwin" in (why or "") for why in list(probing.probe(IsolationOptions()).values())[1:]
    )
    monkeypatch.setattr(probing, "sys", SimpleNamespace(platform="linux"))

    def missing() -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(landlock, "version", missing)
    assert "no Landlock" in (probing.probe(IsolationOptions())[LANDLOCK] or "")


@root_only
@linux_only
def test_a_root_without_rights_has_no_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's, which took capabilities away or maps few users."""
    monkeypatch.setattr(bubblewrap, "find", lambda: None)
    monkeypatch.setattr(probing, "_are_mapped", lambda first, last: False)
    assert "not all to be had" in (probing.probe(IsolationOptions())[USER] or "")
    monkeypatch.setattr(probing, "_capabilities", lambda: 0)
    assert "root has no CAP_CHOWN" in (probing.probe(IsolationOptions())[USER] or "")


@linux_only
def test_a_root_without_users_confines_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs would stay root, whom neither Landlock nor bubblewrap keeps from making devices."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(probing, "_capabilities", lambda: 0)
    monkeypatch.setattr(landlock, "version", lambda: 6)
    found = probing.probe(IsolationOptions())
    for level in (LANDLOCK, BWRAP):
        assert "would be root's: root has no CAP_CHOWN" in (found[level] or "")


@linux_only
def test_a_bubblewrap_that_fails_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried: there are kernels that give no namespaces, and an env(1) that can't hand signals on."""
    monkeypatch.setattr(bubblewrap, "find", lambda: "/bin/false")
    assert "it ended with 1" in (probing._no_bwrap(IsolationOptions(), with_users=False) or "")
    monkeypatch.setattr(bubblewrap, "find", lambda: "/no/such/file")
    assert "can't be run" in (probing._no_bwrap(IsolationOptions(), with_users=False) or "")


def test_bubblewrap_keeps_the_network_unless_told(tmp_path: Path) -> None:
    """It sees the workspace where it is, what may be read besides, and the network by default."""
    workspace = Workspaces(tmp_path / "w", None).open("a")
    path = bytes(workspace.path)
    line = bubblewrap.command_line("b", "e", workspace, cwd=b"/x", readable=["/srv"])
    assert b"--unshare-net" not in line
    assert line[-4:] == (b"/x", b"--", b"e", b"--default-signal")
    at = line.index(b"--bind", line.index(b"--bind") + 1)
    assert line[at + 1 : at + 3] == (path, path)
    # Not in the workspace, where its tenant could put a link in its place.
    assert not workspace.shown_as_tmp.is_relative_to(workspace.path)
    assert b"/srv" in line
    assert b"--unshare-net" in bubblewrap.command_line("b", "e", None, has_network=False)
    assert bubblewrap.sees(path + b"/d", workspace)
    assert bubblewrap.sees(b"/usr/lib", workspace)
    assert not bubblewrap.sees(b"/usr/../home", workspace)
