"""What comes from outside, as text that can do no harm in a line, on a terminal or in a table."""

from __future__ import annotations

import json
from typing import Any, Final

_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=True,
    allow_nan=False,
    sort_keys=True,
    separators=(",", ":"),
    check_circular=False,  # nothing that a record is made of can hold itself, and to look takes a fifth of the time
)
_AS_IT_IS: Final = frozenset({int, float, bool, type(None)})
"""Types whose JSON holds nothing from outside."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of something to calculate."""


def as_text(value: bytes | str) -> str:
    """The value as text that any program can read; bytes that are no characters, and surrogates, as escapes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def as_json(value: Any) -> Any:
    """The same of all that a record may hold."""
    if type(value) in _AS_IT_IS:
        return value
    if isinstance(value, (str, bytes)):
        return as_text(value)
    if isinstance(value, (tuple, list)):
        return [as_json(each) for each in value]
    if isinstance(value, dict):
        return {name: as_json(each) for name, each in value.items()}
    return value


def canonical(fields: dict[str, Any]) -> bytes:
    """The one line, without its end, that these fields come to: JSON in visible ASCII, keys in order.

    So no newline, escape sequence or bidirectional control is ever in the file, whatever it is looked at with.
    """
    # JSON escapes all that could harm except DEL, which can only stand within a string.
    return _ENCODER.encode(fields).replace("\x7f", "\\u007f").encode("ascii")


def as_cell(text: str) -> str:
    """The text for a table that a spreadsheet may open: a value there, and never a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
