"""A record as a line for a person, and as a row for a spreadsheet. No I/O."""

from __future__ import annotations

import json
import shlex
from typing import Any, Final

from sandd._core.audit.escaping import as_cell
from sandd._core.logs import printable

COLUMNS: Final = (
    *(
        "seq",
        "ts",
        "type",
        "outcome",
        "reason",
        "tenant",
        "actor",
        "remote",
        "daemon",
        "job",
        "kind",
    ),
    *("argv", "target", "cwd", "env", "policy", "limits", "result", "trace"),
)
"""Of the table, in order. `prev`, `mono` and the signatures are for programs, which read the lines themselves."""
MOST_OF_A_COMMAND: Final = 200
"""Characters, on a terminal; the log has all."""


def line_for_person(fields: dict[str, Any]) -> str:
    """One line, with nothing in it that a terminal would not simply show."""
    words = [str(fields.get("ts", "?")), str(fields.get("type", "?"))]
    words += [str(fields[name]) for name in ("kind", "outcome") if name in fields]
    place = "/".join(str(fields[name]) for name in ("daemon", "job") if name in fields)
    if place:
        words.append(place)
    words += [f"{name}={fields[name]}" for name in ("tenant", "actor", "remote") if name in fields]
    argv = fields.get("argv")
    if isinstance(argv, list):
        command = shlex.join(map(str, argv))
        words.append(f"command={command[:MOST_OF_A_COMMAND]}")
    words += [f"{name}={fields[name]}" for name in ("target", "cwd", "reason") if name in fields]
    result = fields.get("result")
    if isinstance(result, dict):
        words += [f"{name}={each}" for name, each in result.items() if each is not None]
    return printable(" ".join(words))


def row_for_table(fields: dict[str, Any]) -> list[str]:
    """The cells under `COLUMNS`."""
    return [_cell(fields.get(name)) for name in COLUMNS]


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return as_cell(printable(text))
