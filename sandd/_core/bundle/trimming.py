"""A module's text without what is for its readers: comments and docstrings. That is half of it. No I/O.

Every line stays where it is, so a traceback's line numbers are those of the original.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_OF_STATEMENTS: Final = frozenset({"body", "orelse", "finalbody", "handlers", "cases"})
EMPTY: Final = b'""'
"""In place of a docstring: who looks for one finds a text."""
_STRING_OR_COMMENT: Final = re.compile(
    rb"""(?sx)
    (?P<quotes>\"{3}|'{3}) (?: \\. | [^\\] )*? (?P=quotes)
    | " (?: \\. | [^"\\\n] )* "
    | ' (?: \\. | [^'\\\n] )* '
    | (?P<comment> [ \t]* \# [^\n]* )
    """
)
"""The module tokenize knows these, too, and takes a second for all that a daemon is made of."""


def without_words(source: bytes, tree: ast.Module) -> bytes:
    """The same module, in UTF-8, whose docstrings are empty, and which has no comments.

    A text that Python can't read, or not as UTF-8, is none that could be imported; it has raised SyntaxError by now.
    """
    lines = source.splitlines(keepends=True)
    for first, start, last, end in sorted(_texts_alone(tree), reverse=True):
        kept = lines[first - 1][:start] + EMPTY + b"\n" * (last - first) + lines[last - 1][end:]
        lines[first - 1 : last] = [kept, *[b""] * (last - first)]
    return _STRING_OR_COMMENT.sub(_without_comment, b"".join(lines))


def _without_comment(match: re.Match[bytes]) -> bytes:
    return b"" if match["comment"] else match[0]


def _texts_alone(tree: ast.Module) -> Iterator[tuple[int, int, int, int]]:
    """Where the docstrings are, and other strings that nobody takes: from line and byte to line and byte."""
    todo: list[ast.AST] = [tree]
    while todo:
        todo += (below := statements_in(todo.pop()))
        for each in below:
            match each:
                case ast.Expr(value=ast.Constant(value=str()) as text):
                    assert text.end_lineno is not None
                    assert text.end_col_offset is not None
                    yield text.lineno, text.col_offset, text.end_lineno, text.end_col_offset


def statements_in(node: ast.AST) -> list[ast.AST]:
    """The statements one level below: no expressions, which are most of a tree, and take most of the time."""
    found: list[ast.AST] = []
    for field in node._fields:
        if field in _OF_STATEMENTS:
            found += getattr(node, field)
    return found
