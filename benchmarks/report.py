"""What was measured: one row for each figure, as a table and as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs
from attrs import field, frozen
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

import sandd

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

Unit = Literal["ms", "s", "%", "KiB", "MB/s", "commands/s", "files/s"]
_FORMATS: dict[Unit, str] = {
    "ms": "{:,.2f} ms",
    "s": "{:,.2f} s",
    "%": "{:,.2f} %",
    "KiB": "{:,.1f} KiB",
    "MB/s": "{:,.0f} MB/s",
    "commands/s": "{:,.0f}/s",
    "files/s": "{:,.0f}/s",
}

METHOD = """\
ratio: how many times the floor's time ours takes (for rates: the floor's by ours), the median of the rounds
  and, in parentheses, the least and the most. Ours and the floor take turns within each round.
ours, floor: the median of the rounds; a round's p50 and p99 are of its own samples. 1 MB is 1,000,000 bytes.
  Each daemon has run 20 commands before anything is measured.
CPU: of the controller's process, and of the daemon's with its spawner, user and system time together; what
  the commands themselves use is not in it.
Controller, daemons and commands share this machine and its cores; the connection is loopback, and but for tls without
TLS. What else runs here shows in the figures; trust the ratios before the absolute numbers."""


@frozen
class Spread:
    """How much a figure differs between rounds."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one value for each round."""
        return cls(min(values), statistics.median(values), max(values))


@frozen
class Target:
    """What a figure should be at most."""

    limit: float
    of: Literal["ours", "ratio"]


@frozen(kw_only=True)
class Row:
    """One figure."""

    what: str
    unit: Unit
    ours: float | None = None
    """None: the row shows a floor only."""
    floor: float | None = None
    ratio: Spread | None = None
    target: Target | None = None
    met: bool | None = field(init=False)
    """Whether the target was met; None where there is none."""

    @met.default
    def _judge(self) -> bool | None:
        if self.target is None:
            return None
        if self.target.of == "ours":
            return self.ours is not None and self.ours <= self.target.limit
        return self.ratio is not None and self.ratio.median <= self.target.limit


@frozen
class Section:
    """The rows of one benchmark."""

    name: str
    about: str
    floor: str
    """What the floor is."""
    rows: Sequence[Row]


def compare(
    what: str,
    unit: Unit,
    *,
    ours: Sequence[float],
    floor: Sequence[float],
    target: Target | None = None,
) -> Row:
    """The row for one value of each kind from each round."""
    pairs = zip(ours, floor, strict=True)
    return Row(
        what=what,
        unit=unit,
        ours=statistics.median(ours),
        floor=statistics.median(floor),
        ratio=Spread.of([a / b if unit == "ms" else b / a for a, b in pairs]),
        target=target,
    )


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all do not exceed."""
    return sorted(samples)[math.ceil(len(samples) * percent / 100) - 1]


@frozen
class Machine:
    """Where and when the figures were taken."""

    system: str = field(factory=platform.platform)
    cores: int = field(factory=lambda: _usable_cores())
    load_at_start: tuple[float, ...] = field(factory=lambda: _load_average())
    """Over one, five and fifteen minutes."""
    python: str = field(factory=platform.python_version)
    versions: dict[str, str] = field(
        factory=lambda: {"sandd": sandd.__version__, "trio": version("trio")}
    )

    def describe(self) -> str:
        """One line."""
        load = " ".join(f"{each:.2f}" for each in self.load_at_start) or "not known"
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.system}, {self.cores} cores, Python {self.python}, {versions}; "
            f"load average at the start: {load}"
        )


def _usable_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))  # a container may have fewer than the machine
    return os.cpu_count() or 1


def _load_average() -> tuple[float, ...]:
    if sys.platform == "win32":
        return ()
    return os.getloadavg()


def print_table(sections: Sequence[Section], notes: Sequence[str]) -> None:
    """Everything, on stdout: plain where that is no terminal."""
    # What isn't a terminal has no width: lines may be as long as they need.
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else 120)
    table = Table(box=SIMPLE_HEAD if terminal else None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("what")
    table.add_column("ours", justify="right", no_wrap=True)
    table.add_column("floor", justify="right", no_wrap=True)
    table.add_column("ratio", no_wrap=True)
    table.add_column("target", no_wrap=True)
    for section in sections:
        if table.row_count:
            table.add_row()
        table.add_row(Text.assemble((section.name, "bold"), f": {section.about}"))
        for row in section.rows:
            table.add_row(*_cells(row))
    console.print(table)
    console.print()
    for section in sections:
        console.print(f"floor of {section.name}: {section.floor}.", soft_wrap=True)
    for note in (METHOD, *notes):
        console.print(note, soft_wrap=True)


def _cells(row: Row) -> tuple[str | Text, ...]:
    what, *figures, target = told(row)
    style = {None: "", True: "green", False: "bold red"}[row.met]
    verdict = Text(target)
    verdict.highlight_regex(r"\w+$", style)
    return (f"  {what}", *figures, verdict)


def told(row: Row) -> list[str]:
    """What it is, ours, the floor, their ratio, and the target with whether it was met; as text."""
    ratio = target = ""
    if row.ratio is not None:
        ratio = f"{row.ratio.median:.2f}x ({row.ratio.least:.2f}-{row.ratio.most:.2f})"
    if row.target is not None:
        unit = "x" if row.target.of == "ratio" else f" {row.unit}"
        target = f"<= {row.target.limit:g}{unit}: {'ok' if row.met else 'missed'}"
    return [row.what, _figure(row.ours, row.unit), _figure(row.floor, row.unit), ratio, target]


def _figure(value: float | None, unit: Unit) -> str:
    return "" if value is None else _FORMATS[unit].format(value)


class Named(attrs.AttrsInstance, Protocol):
    """A section, of whatever rows."""

    @property
    def name(self) -> str:
        """What it is asked for by."""


def write_json(
    file: Path,
    sections: Sequence[Named],
    machine: Machine,
    notes: Sequence[str],
    order: Sequence[str],
) -> None:
    """The same for programs: the attributes of `Machine` and of each section, by their names.

    What the file has of other sections stays. `order` has the names of all that there can be.
    """
    everything = _kept(file, {section.name for section in sections})
    everything += [attrs.asdict(section) for section in sections]
    document = {
        "machine": attrs.asdict(machine),
        "notes": [*notes],
        "sections": sorted(everything, key=lambda section: order.index(section["name"])),
    }
    file.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _kept(file: Path, measured: Collection[str]) -> list[dict[str, Any]]:
    """The sections that are in the file already, but for those that were measured again."""
    if not file.exists():
        return []
    sections = json.loads(file.read_text("utf-8"))["sections"]
    return [section for section in sections if section["name"] not in measured]


def rows_of(section: Mapping[str, Any]) -> list[Row]:
    """Those of a section that was read from JSON."""
    return [
        Row(
            what=fields["what"],
            unit=fields["unit"],
            ours=fields["ours"],
            floor=fields["floor"],
            ratio=fields["ratio"] and Spread(**fields["ratio"]),
            target=fields["target"] and Target(**fields["target"]),
        )
        for fields in section["rows"]
    ]
