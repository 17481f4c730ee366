"""A policy's hash stands for what it means, and for nothing else."""

from __future__ import annotations

from attrs import evolve

from sandd._core.policy.reading import read_policy
from sandd._core.policy.rules import Argument, Beneath, ExecLock, Literal, Policy, Regex, Rule

ONE = Rule("one", "/bin/one", (Argument(Literal("x")),), env={"A": "1", "B": "2"})
TWO = Rule("two", "/bin/two")


def test_the_hash_is_the_same_for_every_way_to_write_it() -> None:
    """Comments, the order of keys and defaults don't count; nor does the process that computes it."""
    short = b"version = 1\n[[rule]]\nname = 'a'\nexe = '/bin/a'\nargv = []"
    long = b"# so\nversion = 1\ndefault = 'deny'\n[[rule]]\nargv = []\nexe = '//bin/./a/'\nname = 'a'\npty = false"
    assert read_policy(short, name="s").hash == read_policy(long, name="l").hash == "29f07da7b89e"


def test_whatever_differs_changes_the_hash() -> None:
    """Also where two matchers look the same, and the order of the rules, of which the first that fits applies."""
    policies = [
        Policy(),
        Policy((ONE, TWO)),
        Policy((TWO, ONE)),
        Policy((evolve(ONE, env={"A": "1"}), TWO)),
        Policy((evolve(ONE, argv=(Argument(Regex("x")),)), TWO)),
        Policy((evolve(ONE, argv=(Argument(Beneath("x")),)), TWO)),
        Policy((evolve(ONE, argv=(Argument(Literal("x"), 0),)), TWO)),
        Policy(exec_lock=ExecLock.OFF),
        Policy(files_read=("/a",)),
        Policy(files_write=("/a",)),
    ]
    hashes = [policy.hash for policy in policies]
    assert len({*hashes}) == len(policies)
    assert all(len(each) == 12 for each in hashes)
    assert Policy((evolve(ONE, env={"B": "2", "A": "1"}), TWO)).hash == hashes[1]


def test_programs_are_on_the_path_and_beside_those_that_rules_name() -> None:
    """There nobody may write who isn't told so."""
    policy = Policy((evolve(ONE, may_start=("/opt/a/b",)),), path="/usr/bin:/bin")
    assert policy.executable_directories == ("/usr/bin", "/bin", "/opt/a")
