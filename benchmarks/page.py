"""``python -m benchmarks.page``: writes the tables of docs/performance.rst anew, from the figures in docs/figures/.

Those are what ``--json`` wrote: ``python -m benchmarks --json docs/figures/own.json``, ``python -m benchmarks.peers
--json docs/figures/peers.json`` and ``python -m benchmarks.profile --json docs/figures/profile.json``.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers import figures as peers
from benchmarks.report import Machine, rows_of, told

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "performance.rst"
FIGURES = DOCS / "figures"
_MARKED = re.compile(r"^(\.\. begin of figures: (\w+)\n\n).*?^(\.\. end of figures$)", re.M | re.S)


def main() -> int:
    """Write the page."""
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
    return 0


def filled(page: str) -> str:
    """The page with what the figures come to between its marks."""
    contents = {"own": own, "peers": beside_peers, "profile": profile}

    def fill(match: re.Match[str]) -> str:
        lines = contents[match[2]](json.loads((FIGURES / f"{match[2]}.json").read_text("utf-8")))
        return match[1] + "\n".join(lines) + "\n" + match[3]

    return _MARKED.sub(fill, page)


def beside_peers(document: dict[str, Any]) -> Iterator[str]:
    """A table for each work."""
    for section in peers.sections_of(document):
        names = peers.columns(section)
        yield from (f"**{section.name}**: {section.about}", "")
        rows = [
            [
                f"{each.what}, {each.unit}",
                *(
                    peers.shown(each.values[name].median) if name in each.values else ""
                    for name in names
                ),
                "; ".join(map(peers.told, each.verdicts)),
            ]
            for each in section.figures
        ]
        yield from table(["", *names, "targets"], rows)
    yield from _taken(document)


def own(document: dict[str, Any]) -> Iterator[str]:
    """A table for each benchmark."""
    for section in document["sections"]:
        yield from (
            f"**{section['name']}**: {section['about']}; the floor is {section['floor']}.",
            "",
        )
        yield from table(["", "ours", "floor", "ratio", "target"], map(told, rows_of(section)))
    yield from _taken(document)


def profile(document: dict[str, Any]) -> Iterator[str]:
    """A table for each process."""
    yield from (f"One command took {document['p50_ms']:.2f} ms (p50).", "")
    for name, process in document["processes"].items():
        line = f"**{name}**: {process['cpu_ms']:.2f} ms of processor time"
        if process["turns"] is not None:
            line += (
                f", {process['turns']} turns of trio's loop, {process['steps']} steps of its tasks, "
                f"{process['calls']:,} calls"
            )
        yield from (line, "")
        rows = [
            [part, f"{calls:,.0f}", f"{milliseconds:.3f}"]
            for part, (calls, milliseconds) in process["parts"].items()
        ]
        yield from table(["part", "calls", "ms"], rows)
    yield from (f"Taken on {Machine(**document['machine']).describe()}.", "")


def _taken(document: dict[str, Any]) -> Iterator[str]:
    yield from (f"Taken on {Machine(**document['machine']).describe()}.", "")
    for note in document["notes"]:
        if note.startswith("Other programs"):
            yield from (note, "")


def table(columns: Sequence[str], rows: Any) -> Iterator[str]:
    """As reStructuredText; nothing where there are no rows."""
    rows = list(rows)
    if not rows:
        return
    yield from (".. list-table::", "   :header-rows: 1", "")
    for row in (columns, *rows):
        yield from (
            f"   {' ' if number else '*'} - {cell}".rstrip() for number, cell in enumerate(row)
        )
    yield ""


if __name__ == "__main__":
    sys.exit(main())
