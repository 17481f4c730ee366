"""What was measured: for each figure one value of everybody, and how ours compare. Pure but for `show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.report import Spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Unit = Literal["ms", "MB/s", "commands/s", "files/s", "KiB", "s", "%"]
Bound = Literal["at most", "at least"]


@frozen
class Target:
    """What our figure should be, in times that of another."""

    peer: str
    """ "" for our figure as it is."""
    bound: Bound
    limit: float


def at_most(limit: float, peer: str = "") -> Target:
    """Ours should not be more."""
    return Target(peer, "at most", limit)


def at_least(limit: float, peer: str = "") -> Target:
    """Ours should not be less."""
    return Target(peer, "at least", limit)


@frozen
class Verdict:
    """What became of a target."""

    target: Target
    got: Spread
    """Ours divided by the peer's in each round, or ours."""
    met: bool = field(init=False)

    @met.default
    def _judge(self) -> bool:
        if self.target.bound == "at most":
            return self.got.median <= self.target.limit
        return self.got.median >= self.target.limit


@frozen
class Figure:
    """One line of a table."""

    what: str
    unit: Unit
    values: Mapping[str, Spread]
    """By whose it is; each has the median of the rounds, the least and the most."""
    verdicts: Sequence[Verdict] = ()


@frozen
class Section:
    """What one work came to."""

    name: str
    about: str
    figures: Sequence[Figure]


def figure(
    what: str,
    unit: Unit,
    rounds: Mapping[str, Sequence[float]],
    *targets: Target,
    ours: str = "ours",
) -> Figure:
    """The figure for a value from each round, of everybody who took part.

    Args:
        targets: those of a peer that didn't are left out.
        ours: who it is that has targets.
    """
    verdicts = []
    for target in targets:
        if not target.peer:
            verdicts.append(Verdict(target, Spread.of(rounds[ours])))
        elif target.peer in rounds:
            pairs = zip(rounds[ours], rounds[target.peer], strict=True)
            verdicts.append(Verdict(target, Spread.of([our / their for our, their in pairs])))
    spreads = {name: Spread.of(values) for name, values in rounds.items() if values}
    return Figure(what, unit, spreads, verdicts)


def shown(value: float) -> str:
    """The value, for people, with three digits that say something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def told(verdict: Verdict) -> str:
    """What was wanted, and whether it came to that."""
    target, got = verdict.target, verdict.got
    times, of = (" x", f" {target.peer}") if target.peer else ("", "")
    word = "met" if verdict.met else "missed"
    return f"{target.bound} {target.limit:g}{times}{of}: {shown(got.median)}, {word}"


def columns(section: Section) -> list[str]:
    """Who is in the section's table, ours first."""
    return list(dict.fromkeys(name for each in section.figures for name in each.values))


def show(sections: Sequence[Section], notes: Sequence[str]) -> None:
    """Everything, on stdout."""
    console = Console(highlight=False, width=160, soft_wrap=True)
    for section in sections:
        table = Table(
            box=SIMPLE_HEAD, title=f"{section.name}: {section.about}", title_justify="left"
        )
        names = columns(section)
        for name in ("what", *names, "targets"):
            table.add_column(name, justify="left" if name in ("what", "targets") else "right")
        for each in section.figures:
            cells = [
                shown(each.values[name].median) if name in each.values else "" for name in names
            ]
            verdicts = "; ".join(map(told, each.verdicts))
            table.add_row(f"{each.what}, {each.unit}", *cells, verdicts)
        console.print(table)
    for note in notes:
        console.print(note)


def sections_of(document: dict[str, Any]) -> list[Section]:
    """Those of a document that `benchmarks.report.write_json` wrote."""
    return [
        Section(each["name"], each["about"], [_figure_of(one) for one in each["figures"]])
        for each in document["sections"]
    ]


def _figure_of(fields: dict[str, Any]) -> Figure:
    values = {name: Spread(**spread) for name, spread in fields["values"].items()}
    verdicts = [
        Verdict(Target(**verdict["target"]), Spread(**verdict["got"]))
        for verdict in fields["verdicts"]
    ]
    return Figure(fields["what"], fields["unit"], values, verdicts)
