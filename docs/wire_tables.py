"""A Sphinx extension: the tables of protocol.rst, read from sandd/wire.py, so that they can't differ.

What a message's field is for stands in the comment beside it, in the source; all else is taken from
the classes themselves. ``.. wire-tables:: WHAT``, with one of the words in `CONTENTS` for WHAT.
"""

from __future__ import annotations

import ast
import enum
import inspect
import io
import itertools
import tokenize
from typing import TYPE_CHECKING

import attrs

from sandd import wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from docutils import nodes
    from sphinx.application import Sphinx

SOURCE = inspect.getsource(wire)
BODY = ast.parse(SOURCE).body
CLASSES = {node.name: node for node in BODY if isinstance(node, ast.ClassDef)}
COMMENTS = {
    token.start[0]: token.string.removeprefix("#").strip()
    for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline)
    if token.type == tokenize.COMMENT
}
SPEC_TAGS = {cls: kind for kind, cls in wire.SPEC_KINDS.items()}
TAGS = (
    wire.CONTROL_TAGS
    | wire.EVENT_TAGS
    | wire.OP_TAGS
    | wire.ANSWER_TAGS
    | wire.RECORD_TAGS
    | SPEC_TAGS
)
NOT_STRUCTURES = {wire.Unknown, *TAGS}


def messages(tags: Mapping[type, str]) -> Iterator[str]:
    """A heading and a table for each class."""
    for cls, tag in tags.items():
        yield from heading(tag, cls)
        comments = beside(cls)
        yield from table(
            {"key": 14, "type": 22, "default": 12, "allowed": 14, "meaning": 38},
            [
                [
                    code(each.name),
                    code(each.type),
                    default(each),
                    allowed(each),
                    comments[each.name],
                ]
                for each in attrs.fields(cls)
            ],
        )


def structures() -> Iterator[str]:
    """What messages are made of: every class that is none of the messages."""
    ours = [getattr(wire, name) for name in CLASSES]
    yield from messages({c: c.__name__ for c in ours if attrs.has(c) and c not in NOT_STRUCTURES})


def enumerations() -> Iterator[str]:
    """A heading and a table for each enumeration."""
    for cls in wire.ENUMERATIONS:
        yield from heading(cls.__name__, cls)
        comments = beside(cls)
        rows = [[code(each.value), each.name, comments[each.name]] for each in cls]
        yield from table({"value": 20, "name": 20, "meaning": 60}, rows)


def limits() -> Iterator[str]:
    """A table of the constants that a docstring follows."""
    rows = []
    for node, behind in itertools.pairwise(BODY):
        if isinstance(node, ast.AnnAssign) and isinstance(behind, ast.Expr):
            name, value = ast.unparse(node.target), ast.literal_eval(behind.value)
            if isinstance(getattr(wire, name), int | float):
                meaning = " ".join(value.split())  # a cell is one line
                rows.append([code(name), number(getattr(wire, name)), meaning])
    yield from table({"name": 24, "value": 22, "meaning and reason": 54}, rows)


CONTENTS = {
    "control": lambda: messages(wire.CONTROL_TAGS),
    "events": lambda: messages(wire.EVENT_TAGS),
    "ops": lambda: messages(wire.OP_TAGS),
    "specs": lambda: messages(SPEC_TAGS),
    "answers": lambda: messages(wire.ANSWER_TAGS),
    "records": lambda: messages(wire.RECORD_TAGS),
    "structures": structures,
    "enumerations": enumerations,
    "limits": limits,
}


def beside(cls: type) -> dict[str, str]:
    """Each name that the class' body assigns, with the comment on its lines."""
    found = {}
    for node in CLASSES[cls.__name__].body:
        if isinstance(node, ast.AnnAssign | ast.Assign):
            name = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            found[name] = " ".join(COMMENTS[line] for line in lines if line in COMMENTS)
    return found


def default(field: attrs.Attribute) -> str:
    """What an absent key stands for."""
    if field.default is attrs.NOTHING:
        return "*needed*"
    factory = getattr(field.default, "factory", None)
    value = field.default if factory is None else factory()
    return code(repr(value.value if isinstance(value, enum.Enum) else value))


def allowed(field: attrs.Attribute) -> str:
    """What the validator lets through, beyond the type."""
    return "" if field.validator is None else bounds_of(field.validator)


def bounds_of(validator: object) -> str:
    """What one of wire's validators lets through."""
    if hasattr(validator, "_validators"):  # several, as a list
        return ", ".join(map(bounds_of, validator._validators))
    if hasattr(validator, "member_validator"):  # within `deep_iterable`
        return f"each {bounds_of(validator.member_validator)}"
    if validator is wire._trace:
        return "a traceparent, or nothing"
    if validator is wire._limit_name:
        return "a key of ``Limits``, or nothing"
    bounds = inspect.getclosurevars(validator).nonlocals  # those of wire._within or wire._at_most
    if "check_given" in bounds:  # within wire._optional
        return bounds_of(bounds["check_given"])
    if "length" in bounds:
        return f"at most {bounds['length']} long"
    return f"{number(bounds['low'])} to {number(bounds['high'])}"


def number(value: float) -> str:
    """The number, for people."""
    powers = {wire.MAX_OFFSET: "2\\ :sup:`63` - 1", 2**64 - 1: "2\\ :sup:`64` - 1"}
    if -value in powers:
        return f"-({powers[-value]})"
    return powers.get(value, f"{value:,.10g}")


def code(text: object) -> str:
    """The text in type of fixed width."""
    return f"``{text}``"


def heading(title: str, cls: type) -> Iterator[str]:
    """A heading of the page's third level, and what the class says of itself."""
    yield from (code(title), "~" * 40, "", inspect.getdoc(cls) or "", "")


def table(columns: Mapping[str, int], rows: Iterable[list[str]]) -> Iterator[str]:
    """A table; `columns` has each one's title and relative width."""
    if rows:
        yield from (".. list-table::", "   :header-rows: 1")
        yield from (f"   :widths: {' '.join(map(str, columns.values()))}", "")
        for row in (list(columns), *rows):
            yield from (f"   {' ' if index else '*'} - {cell}" for index, cell in enumerate(row))
        yield ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx, which nothing else here needs: the tables are made in tests, too."""
    from sphinx.util.docutils import SphinxDirective

    class WireTables(SphinxDirective):
        """The directive."""

        required_arguments = 1

        def run(self) -> list[nodes.Node]:
            """What takes its place on the page."""
            self.env.note_dependency(wire.__file__)
            text = "\n".join(CONTENTS[self.arguments[0]]())
            return self.parse_text_to_nodes(text, allow_section_headings=True)

    app.add_directive("wire-tables", WireTables)
    return {"parallel_read_safe": True}
