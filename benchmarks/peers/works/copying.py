"""One large file each way, without TLS and with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.files import make_large, open_directory
from benchmarks.peers import contestants as who
from benchmarks.peers.figures import at_least, figure
from benchmarks.peers.works.turns import in_turns

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.peers.contestants import Contestant
    from benchmarks.peers.figures import Figure, Target

ABOUT = "a file of 1 GiB, up and down; asyncssh has a quarter of it"
MB = 1_000_000
SIZE, SIZE_QUICK = 1 << 30, 1 << 24
ASYNCSSH_SHARE = 4
"""Its rate is the same, and all of it would take most of a minute in each round."""
ROUNDS, ROUNDS_QUICK = 3, 1
PLAIN = (who.OURS, who.ASYNCSSH, who.OPENSSH)
SECURE = (who.OURS_TLS, who.RAW_TLS)
NEVER_SLOWER = (at_least(2.5, who.OPENSSH), at_least(5, who.ASYNCSSH))


def measure(quick: bool) -> list[Figure]:
    """The rate each way."""
    size, rounds = (SIZE_QUICK, ROUNDS_QUICK) if quick else (SIZE, ROUNDS)
    figures = []
    with open_directory() as directory:
        make_large(directory / "source", size)
        make_large(directory / "part", size // ASYNCSSH_SHARE)
        for names, targets in ((PLAIN, NEVER_SLOWER), (SECURE, (at_least(0.7, who.RAW_TLS),))):
            with who.open_contestants(*names) as everybody:
                figures += _both_ways(everybody, directory, rounds, targets)
    return figures


def _both_ways(
    everybody: list[Contestant], directory: Path, rounds: int, targets: tuple[Target, ...]
) -> list[Figure]:
    figures = []
    for way in ("upload", "download"):
        rates: dict[str, list[float]] = {}
        for each in in_turns(everybody, rounds):
            source = directory / ("part" if each.name == who.ASYNCSSH else "source")
            target = directory / "target"
            seconds = each.ask(way, source=str(source), target=str(target)).value
            assert target.stat().st_size == source.stat().st_size
            rates.setdefault(each.name, []).append(source.stat().st_size / MB / seconds)
            target.unlink()
        ours = everybody[0].name
        label = f"{way}, TLS" if ours == who.OURS_TLS else way
        figures.append(figure(label, "MB/s", rates, *targets, ours=ours))
    return figures
