"""Regexes that a client's text can't make run for ever.

Python's `re` backtracks, so what a pattern may cost is settled before it is used: the ways in which its repeats
and alternatives can be combined are counted, and the text has a bound. Possessive repeats (``a++``) and atomic
groups never give back what they took, and count once.
"""

from __future__ import annotations

import functools
import re
from re import _parser  # type: ignore[attr-defined]  # Python's own reader of regexes: the only one that agrees with it
from typing import Any, Final

MAX_CHARACTERS: Final = 512
"""In a pattern: what somebody can still read."""
MAX_SUBJECT: Final = 1024
"""Characters of an argument that a regex is tried on; a longer one doesn't match."""
MAX_WAYS: Final = 4 * MAX_SUBJECT
"""To combine repeats: one that is unlimited and a few optional parts. A text then takes 5 ms at the very worst."""
MAX_SUBJECTS: Final = 128 * 1024
"""Characters of all arguments of a command that regexes are tried on: half a second at the very worst."""

_MANY: Final = MAX_SUBJECT
_TOKENS: Final = re.compile(r"\\.|\[\^?\]?|--|&&|~~|\|\||.", re.DOTALL)
_OPERATORS: Final = frozenset({"[", "[^", "[]", "[^]", "--", "&&", "~~", "||"})
_REFUSED: Final = {
    "GROUPREF": "a reference to a group",
    "GROUPREF_IGNORE": "a reference to a group",
    "GROUPREF_UNI_IGNORE": "a reference to a group",
    "GROUPREF_EXISTS": "a condition on a group",
}


class UnsafePatternError(ValueError):
    """It is no regex, or one that might take too long; the text says which."""


def check(pattern: str) -> None:
    """Nothing, for a regex that may be used; UnsafePatternError for any other."""
    if len(pattern) > MAX_CHARACTERS:
        raise UnsafePatternError(f"it has more than {MAX_CHARACTERS} characters")
    _check_sets(pattern)
    try:
        tree = _parser.parse(pattern, re.ASCII)
        re.compile(pattern, re.ASCII)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise UnsafePatternError(f"it is no regex: {error}") from error
    if (
        tree.state.flags & (re.DOTALL | re.VERBOSE | re.MULTILINE)
        or not tree.state.flags & re.ASCII
    ):
        raise UnsafePatternError("the only flag that it may set is (?i)")
    _ways(tree)


def _check_sets(pattern: str) -> None:
    """What would be a set within a set, or an operation of sets, in a Python to come: such as [[a] and [a--b]."""
    inside = False
    for each in _TOKENS.findall(pattern):
        if inside and each in _OPERATORS:
            raise UnsafePatternError(
                f"{each} within a set may mean something else to another Python; write a backslash before it"
            )
        if each[0] == "[":
            inside = True
        elif each == "]":
            inside = False


def matches(pattern: str, text: str) -> bool:
    """Whether all of the text is what the pattern describes. A dot is no newline; classes are those of ASCII."""
    return len(text) <= MAX_SUBJECT and _compiled(pattern).fullmatch(text) is not None


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)


def _ways(nodes: Any) -> int:
    """In how many ways these can match the same text, at most."""
    ways = 1
    for code, argument in nodes:
        ways *= _ways_of(str(code), argument)
        if ways > MAX_WAYS:
            raise UnsafePatternError(
                "its repeats could be combined in too many ways; make them possessive (a++ for a+), "
                "or write two rules"
            )
    return ways


def _ways_of(code: str, argument: Any) -> int:
    if code in _REFUSED:
        raise UnsafePatternError(f"{_REFUSED[code]} is not supported in a policy")
    match code:
        case "MAX_REPEAT" | "MIN_REPEAT":
            least, most, item = argument
            most = min(int(most), _MANY)
            inner = _ways(item)
            if inner > 1 and most > 1:
                raise UnsafePatternError(
                    "a repeat within a repeat could take for ever; make the inner one possessive (a++ for a+)"
                )
            return max(1, most - int(least) + 1) * inner
        case "POSSESSIVE_REPEAT":
            _ways(argument[2])
            return 1
        case "ATOMIC_GROUP":
            _ways(argument)
            return 1
        case "SUBPATTERN":
            return _ways(argument[-1])
        case "BRANCH":
            return sum(_ways(each) for each in argument[1])
        case "ASSERT" | "ASSERT_NOT":
            return _ways(argument[1])
    return 1
