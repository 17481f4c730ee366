"""Whatever a policy and a command look like: nothing is allowed that no rule names."""

from __future__ import annotations

import posixpath
import re

from hypothesis import given
from hypothesis import strategies as st

from sandd import wire
from sandd._core.policy.environment import NEVER, is_barred
from sandd._core.policy.judging import Allowed, judge
from sandd._core.policy.patterns import UnsafePatternError, check
from sandd._core.policy.rules import Argument, Beneath, Literal, Policy, Regex, Rule, canonical

WORDS = st.sampled_from(
    ["a", "b", "-x", "", "/w", "/w/a", "/w/../e", "a/../../e", "/wx", "a\nb", "é"]
)
MATCHERS = st.one_of(
    WORDS.map(Literal),
    st.sampled_from(["[ab]", "[a-z]*+", "-.", ".*+"]).map(Regex),
    st.builds(Beneath, st.sampled_from(["/w", "/w/a"]), st.sampled_from(["", "-"])),
)
ARGUMENTS = st.builds(
    lambda matcher, least, more: Argument(matcher, least, max(1, least + more)),
    MATCHERS,
    st.integers(0, 2),
    st.integers(0, 3),
)
PROGRAMS = ["/bin/p", "/usr/bin/p", "/opt/q"]
RULES = st.builds(
    Rule,
    name=st.uuids().map(str),
    exe=st.sampled_from(PROGRAMS),
    argv=st.lists(ARGUMENTS, max_size=3).map(tuple),
    cwd_beneath=st.sampled_from([(), ("/w",)]),
    env_allow=st.sampled_from([(), ("A",), ("*",)]),
    shell=st.just(False),
    pty=st.booleans(),
    user=st.sampled_from([None, "u"]),
)
POLICIES = st.lists(RULES, max_size=4).map(lambda rules: Policy(tuple(rules)))
COMMANDS = st.builds(
    wire.CommandSpec,
    argv=st.tuples(
        st.sampled_from([*PROGRAMS, "p", "q", "../p", "/bin/../bin/p"]), st.lists(WORDS)
    ).map(lambda each: tuple(text.encode() for text in (each[0], *each[1]))),
    shell=st.booleans(),
    cwd=st.sampled_from([None, b"/w", b"/w/../e", b"/", b"w"]),
    env=st.sampled_from([{}, {b"A": b"1"}, {b"LD_PRELOAD": b"x"}, {b"PATH": b"/"}]),
    user=st.sampled_from([None, "u", "root"]),
)


def fits_slowly(argument: Argument, text: str, cwd: str | None) -> bool:
    """One description and one argument, as the guide says it; by other means than the judge's."""
    match argument.matcher:
        case Literal(literal):
            return text == literal
        case Regex(pattern):
            return re.fullmatch(pattern, text, re.ASCII) is not None
        case Beneath(directory, prefix):
            path = text.removeprefix(prefix)
            if not text.startswith(prefix) or not path or path[0] == "-" or ".." in path.split("/"):
                return False
            if path[0] != "/" and cwd is None:
                return False
            whole = posixpath.normpath(posixpath.join(cwd or "/", path))
            return whole == directory or whole.startswith(f"{directory}/")


def share_out(descriptions: tuple[Argument, ...], texts: list[str], cwd: str | None) -> bool:
    """Whether the descriptions fit all of the texts: by trying each way to share them out."""
    if not descriptions:
        return not texts
    first, *rest = descriptions
    for count in range(first.at_least, min(first.at_most, len(texts)) + 1):
        if not all(fits_slowly(first, text, cwd) for text in texts[:count]):
            return False
        if share_out(tuple(rest), texts[count:], cwd):
            return True
    return False


@given(POLICIES, COMMANDS)
def test_a_command_is_allowed_by_a_rule_that_names_it(
    policy: Policy, spec: wire.CommandSpec
) -> None:
    """And denied without one: the judge agrees with one that is slow and says it another way."""
    program, *texts = [each.decode() for each in spec.argv]
    cwd = None if spec.cwd is None else spec.cwd.decode()

    def is_named(rule: Rule) -> bool:
        found = [f"{each}/{program}" for each in policy.path.split(":") if "/" not in program]
        return (
            not spec.shell
            and rule.exe in (program, *found)
            and spec.user in (None, rule.user)
            and (cwd is None or (bool(rule.cwd_beneath) and cwd == "/w"))
            and all(name == b"A" and rule.env_allow for name in spec.env)
            and share_out(rule.argv, texts, cwd)
        )

    verdict = judge(policy, spec)
    named = [rule for rule in policy.rules if is_named(rule)]
    assert isinstance(verdict, Allowed) is bool(named)
    if isinstance(verdict, Allowed):
        assert verdict.rule == named[0]


@given(st.binary(max_size=60), st.lists(st.binary(max_size=40), max_size=4))
def test_nothing_is_allowed_by_an_empty_policy(program: bytes, arguments: list[bytes]) -> None:
    """Whatever bytes a command consists of."""
    spec = wire.CommandSpec((program, *arguments))
    assert not isinstance(judge(Policy(), spec), Allowed)


@given(POLICIES, POLICIES)
def test_the_hash_is_that_of_the_meaning(one: Policy, other: Policy) -> None:
    """Equal policies have equal hashes, others don't."""
    assert (one == other) is (canonical(one) == canonical(other))
    assert (one == other) is (one.hash == other.hash)


@given(st.text(st.sampled_from("ab().*+?|[]{}2,\\1^$<>!=:#i"), max_size=20))
def test_no_pattern_breaks_the_check(pattern: str) -> None:
    """It is taken or refused, by the one exception."""
    try:
        check(pattern)
    except UnsafePatternError:
        return
    re.compile(pattern, re.ASCII)


@given(st.sampled_from(NEVER), st.text("ABCXYZ_", max_size=5))
def test_no_case_and_no_ending_gets_a_variable_past(pattern: str, filling: str) -> None:
    """Systems differ in whether they tell apart what is written so."""
    name = pattern.replace("*", filling)
    assert is_barred(name)
    assert is_barred(name.lower())
