"""No regex that a policy may have takes long, whatever text a client finds for it."""

from __future__ import annotations

import time

import pytest

from sandd._core.policy.patterns import (
    MAX_CHARACTERS,
    MAX_SUBJECT,
    UnsafePatternError,
    check,
    matches,
)


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "a", "[a-z]+", "--?[a-z]++", ".*+", "(?:a|bc)?d", "a{3}b{2,9}", "(?i)abc", "(a|b)+"),
        *("[a-z]++(?:/[a-z]++)*+", "(?!-)[a-z]+", "(?>a+)+b", "v[0-9]++(?:[.][0-9]++){0,3}"),
    ],
)
def test_usual_patterns_are_taken(pattern: str) -> None:
    """With possessive repeats where there are several."""
    check(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        *("(a+)+", "(a*)*b", "(a|ab)+", "(?:a?){20}", "(.*)(.*)", "a*a*", "([a-z]+)*=", "(?>(a+)+)"),
        *("(?:(?=.*x)a)*", "a" * (MAX_CHARACTERS + 1), "(", "(a)\\1", "(a)?(?(1)b)", "(?s)."),
        *("(?x) a", "(?m)^a$", "(?:a?){13}", "(?P<x>a)(?P=x)", "(?u)a"),
    ],
)  # fmt: skip
def test_patterns_that_may_run_away_are_refused(pattern: str) -> None:
    """Whether they do depends on the text, and that is the client's."""
    with pytest.raises(UnsafePatternError):
        check(pattern)


@pytest.mark.parametrize("pattern", ["[[a]", "[a--b]", "[a&&b]", "[a||b]", "[a~~b]"])
def test_patterns_whose_meaning_may_change_are_refused(pattern: str) -> None:
    """Each time that they are looked at, and without a warning: a policy is to mean tomorrow what it does today."""
    for _ in range(2):
        with pytest.raises(UnsafePatternError, match="another Python"):
            check(pattern)


@pytest.mark.parametrize("pattern", [".*x", "(?:.*)?y", "[ab]*+c", "(?>a*)b", "a*(?=b)c"])
def test_the_worst_text_takes_milliseconds(pattern: str) -> None:
    """With the longest that is looked at, and no match in the end."""
    check(pattern)
    began = time.process_time()
    assert not matches(pattern, "a" * MAX_SUBJECT)
    assert time.process_time() - began < 0.5


def test_all_of_the_text_has_to_fit() -> None:
    """A newline, and what follows it, are part of it; and what is too long fits nothing."""
    assert matches("[a-z]+", "abc")
    assert not matches("[a-z]+", "abc\n")
    assert not matches(".*", "abc\ndef")
    assert not matches("a$", "a\n")
    assert not matches("\\w", "é")
    assert not matches("a*", "a" * (MAX_SUBJECT + 1))
