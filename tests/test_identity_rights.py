"""What each thing needs that can be asked for, and who has it; whose daemons somebody sees, and by which names."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from sandd import wire
from sandd._core.identity.rights import (
    EVERYTHING,
    NEEDED_BY_MESSAGE,
    NEEDED_BY_SPEC,
    VERBS,
    Principal,
    Role,
    Verb,
    check_tenant,
    full_name,
    split_name,
)
from sandd.wire import Role as AttachRole

CLIENT = "0123456789abcdef"
OWN = f"{CLIENT}.7"
VIEWER = Principal("v", role=Role.VIEWER)
RUNNER = Principal("r", role=Role.RUNNER)
SPECS: dict[str, wire.Spec] = {
    "command": wire.CommandSpec((b"x",)),
    "session": wire.SessionSpec(),
    "jobs": wire.JobsSpec(),
    "statistics": wire.StatisticsSpec(),
    "kill": wire.KillSpec("j"),
    "forget": wire.ForgetSpec("j"),
    "stat": wire.StatSpec(b"/"),
    "list": wire.ListSpec(b"/"),
    "glob": wire.GlobSpec(b"/", b"*"),
    "mkdir": wire.MakeDirectorySpec(b"/x"),
    "remove": wire.RemoveSpec(b"/x", wire.Removal.TREE),
    "rename": wire.RenameSpec(b"/x", b"/y"),
    "symlink": wire.LinkSpec(b"/x", b"/y"),
    "touch": wire.TouchSpec(b"/x"),
    "change": wire.ChangeSpec(b"/x"),
    "read": wire.ReadSpec(b"/x"),
    "write": wire.WriteSpec(b"/x"),
    "watch": wire.WatchSpec(b"/x"),
    "upload": wire.UploadSpec(b"/x"),
    "download": wire.DownloadSpec(b"/x"),
    "connect": wire.ConnectSpec("h", 1),
    "listen": wire.ListenSpec("h", 1),
}


def attach(job_id: str = OWN, **changes: Any) -> wire.Attach:
    """A client's."""
    return wire.Attach("d", job_id, CLIENT, **changes)


def may(principal: Principal, message: wire.Attach) -> bool:
    """Whether it is let do that."""
    refusal = principal.refusal(message, CLIENT)
    assert refusal is None or refusal.code is wire.RefusedCode.DENIED
    return refusal is None


def test_every_message_is_in_the_table() -> None:
    """A new one has been thought about."""
    assert NEEDED_BY_MESSAGE.keys() == wire.CONTROL_TAGS.keys()


def test_every_kind_of_job_is_in_the_table() -> None:
    """A new one has been thought about; so has a new right, and what the test below tries."""
    assert NEEDED_BY_SPEC.keys() == wire.SPEC_KINDS.keys() == SPECS.keys()
    assert {*NEEDED_BY_SPEC.values()} == {*Verb} - {Verb.LIST, Verb.READ, Verb.ADMINISTER}


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("verb", Verb)
def test_a_job_takes_the_right_that_the_table_says(kind: str, verb: Verb) -> None:
    """And no other does instead."""
    message = attach(spec=wire.encode_spec(SPECS[kind]), instance="i")
    narrow = Principal("n", verbs=frozenset({Verb.LIST, verb}))
    assert may(narrow, message) is (verb is NEEDED_BY_SPEC[kind])
    assert may(VIEWER, message) is (kind in {"jobs", "statistics"})
    assert may(RUNNER, message)
    assert may(EVERYTHING, message)


@pytest.mark.parametrize(
    "spec", [b"", b"\x80", b"nonsense", b"\x81\xa4kind\xa3new", b"\x81\xa4kind\x01", b"\xc1"]
)
def test_what_nobody_knows_takes_every_right_there_is(spec: bytes) -> None:
    """A kind of job that is newer than the controller, or no spec at all."""
    message = attach(spec=spec, instance="i")
    assert not may(VIEWER, message)
    assert not may(Principal("n", verbs=frozenset(Verb) - {Verb.PORTS}), message)
    assert may(RUNNER, message)


def test_a_spec_is_of_one_kind() -> None:
    """One that says two could mean another to the daemon than to us."""
    twice = b"\x82\xa4kind\xa7command\xa4kind\xa4jobs"
    assert wire.kind_of_spec(twice) is None
    assert not may(VIEWER, attach(spec=twice, instance="i"))


def test_a_viewer_looks_on_and_does_nothing() -> None:
    """It reads along at any job, and holds none but what it has started itself: a list of jobs."""
    assert may(VIEWER, attach("chosen", role=AttachRole.VIEWER))
    assert not may(VIEWER, attach("chosen"))
    assert not may(VIEWER, attach("chosen", takeover=True))
    assert may(VIEWER, attach(OWN))
    spec = wire.encode_spec(wire.JobsSpec())
    assert may(VIEWER, attach(OWN, spec=spec))
    # Under an id that somebody may choose it would be in his way, now and later.
    assert not may(VIEWER, attach("chosen", spec=spec))
    assert not may(VIEWER, attach("fedcba9876543210.1", spec=spec))
    assert VIEWER.may_end(OWN, CLIENT)
    assert not VIEWER.may_end("chosen", CLIENT)
    assert not VIEWER.may_end("fedcba9876543210.1", CLIENT)
    assert RUNNER.may_end("chosen", CLIENT)


def test_roles_are_stages() -> None:
    """Each has all that the one before has; verbs narrow, and never widen."""
    assert VERBS[Role.VIEWER] < VERBS[Role.RUNNER] < VERBS[Role.ADMIN] == frozenset(Verb)
    greedy = Principal("g", role=Role.VIEWER, verbs=frozenset(Verb))
    assert not greedy.may(Verb.RUN)
    assert Principal("n", verbs=frozenset()).sees("d") is False


def test_a_tenant_knows_plain_ids_of_its_own_alone() -> None:
    """Of all others it neither sees a name nor can say one, its own full names included."""
    acme = Principal("a", "acme")
    assert acme.full_name("d") == "acme/d"
    assert acme.shown("acme/d") == "d"
    for hidden in ("d", "other/d", "acme2/d"):
        assert acme.shown(hidden) is None
    for said in ("acme/d", "other/d", "/d", "default/d"):
        assert acme.full_name(said) is None
    default = Principal("d")
    assert (default.full_name("d"), default.shown("d")) == ("d", "d")
    assert (default.full_name("acme/d"), default.shown("acme/d")) == (None, None)


def test_who_sees_all_tenants_says_full_names() -> None:
    """The id alone is one of the tenant "default"."""
    for name in ("d", "acme/d"):
        assert (EVERYTHING.full_name(name), EVERYTHING.shown(name)) == (name, name)
        assert full_name(*split_name(name)) == name
    assert split_name("acme/d") == ("acme", "d")
    assert split_name("d") == ("default", "d")


def test_a_glob_hides_daemons_too() -> None:
    """What doesn't match is not there; it is about plain ids, whatever the tenant."""
    some = Principal("s", "*", daemons="ci-*")
    assert some.shown("acme/ci-1") == "acme/ci-1"
    assert some.shown("acme/prod") is None
    assert some.full_name("prod") is None
    assert not some.is_unlimited
    assert EVERYTHING.is_unlimited
    for less in ({"tenant": "a"}, {"role": Role.RUNNER}, {"daemons": "x"}, {"verbs": frozenset()}):
        assert not attrs.evolve(EVERYTHING, **less).is_unlimited  # type: ignore[arg-type]


@pytest.mark.parametrize("tenant", ["", "a/b", "*", "-a", "a" * 64, "a\n", "é", ".."])
def test_tenants_are_plain_names(tenant: str) -> None:
    """They go into file names and metric labels."""
    problem = check_tenant(tenant)
    assert problem is not None
    assert problem.isprintable()
    assert check_tenant("Acme-2.x_y") is None
