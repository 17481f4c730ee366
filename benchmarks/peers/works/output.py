"""Output: as text in one piece, and read as it comes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers import contestants as who
from benchmarks.peers.figures import at_least, figure
from benchmarks.peers.works.turns import in_turns

if TYPE_CHECKING:
    from benchmarks.peers.contestants import Contestant
    from benchmarks.peers.figures import Figure

ABOUT = "what a command writes"
MB = 1_000_000
WHOLE, STREAM = 16 * MB, 100 * MB
"""The original's server breaks the connection where an answer has more than 16 MiB."""
ROUNDS, ROUNDS_QUICK = 7, 2
LETTERS = b"abcdefghijklmnop" * (MB // 16)
"""No byte that JSON would have to escape."""


def measure(quick: bool) -> list[Figure]:
    """The rate of either."""
    rounds = ROUNDS_QUICK if quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="sandd-bench-") as name:
        letters = Path(name) / "letters"
        letters.write_bytes(LETTERS * (WHOLE // MB))
        with who.open_contestants(who.OURS, who.ORIGINAL, who.ASYNCSSH, who.FLOOR) as everybody:
            whole = _rates(everybody, "output", f"cat {letters}", WHOLE, rounds)
    with who.open_contestants(who.OURS, who.FLOOR) as everybody:
        stream = _rates(everybody, "stream", f"head -c {STREAM} /dev/zero", STREAM, rounds)
    return [
        figure("16 MB, as text in one piece", "MB/s", whole, at_least(3, who.ORIGINAL)),
        figure("100 MB, read as it comes", "MB/s", stream, at_least(0.6, who.FLOOR)),
    ]


def _rates(
    everybody: list[Contestant], work: str, command: str, size: int, rounds: int
) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {}
    for each in in_turns(everybody, rounds):
        seconds = each.ask(work, command=command, size=size).value
        rates.setdefault(each.name, []).append(size / MB / seconds)
    return rates
