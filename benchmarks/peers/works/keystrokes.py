"""A keystroke to a program in a session, and its echo: with nothing else on the link, and beside bulk output."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers import contestants as who
from benchmarks.peers.figures import at_most, figure
from benchmarks.peers.works.output import LETTERS
from benchmarks.peers.works.turns import in_turns
from benchmarks.report import percentile

if TYPE_CHECKING:
    from benchmarks.peers.contestants import Contestant
    from benchmarks.peers.figures import Figure

ABOUT = "a keystroke to a program in a session, and back"
ROUNDS, ROUNDS_QUICK = 5, 1
TURNS, TURNS_QUICK = 5, 1
TURN = 20
"""Keystrokes in a row: short, so that a disturbance hits everybody."""
LOADED, LOADED_QUICK = 50, 20
"""Keystrokes in each round beside the bulk transfer, where one may take a tenth of a second."""
LOAD_MB = 15
"""Of output again and again, beside; what the original's server can still take."""
LOAD_SECONDS = 0.3
"""Until it runs."""
PEERS = (who.OURS, who.ORIGINAL, who.ASYNCSSH, who.OPENSSH)


def measure(quick: bool) -> list[Figure]:
    """Percentiles of the round trip."""
    rounds, turns = (ROUNDS_QUICK, TURNS_QUICK) if quick else (ROUNDS, TURNS)
    keystrokes = LOADED_QUICK if quick else LOADED
    with tempfile.TemporaryDirectory(prefix="sandd-bench-") as name:
        file = Path(name) / "letters"
        file.write_bytes(LETTERS * LOAD_MB)
        with who.open_contestants(*PEERS, who.FLOOR) as everybody:
            for each in everybody:
                each.ask("type", count=TURN)
            idle = [_idle(everybody, turns) for _ in range(rounds)]
            peers = [each for each in everybody if each.name != who.FLOOR]
            loaded = [_loaded(peers, keystrokes, f"cat {file}") for _ in range(rounds)]
    beside = "beside a running bulk transfer"
    return [
        figure("p50", "ms", _percentiles(idle, 50), at_most(1.1, who.ORIGINAL)),
        figure("p99", "ms", _percentiles(idle, 99), at_most(0.7, who.ORIGINAL)),
        figure(f"{beside}, p50", "ms", _percentiles(loaded, 50), at_most(2, who.OPENSSH)),
        figure(f"{beside}, p99", "ms", _percentiles(loaded, 99), at_most(2, who.OPENSSH)),
    ]


def _idle(everybody: list[Contestant], turns: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {each.name: [] for each in everybody}
    for each in in_turns(everybody, turns):
        samples[each.name] += each.ask("type", count=TURN).value
    return samples


def _loaded(everybody: list[Contestant], count: int, command: str) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {}
    for each in everybody:
        each.ask("load", command=command)
        time.sleep(LOAD_SECONDS)
        samples[each.name] = each.ask("type", count=count).value
        each.ask("load", command=None)
    return samples


def _percentiles(rounds: list[dict[str, list[float]]], percent: float) -> dict[str, list[float]]:
    return {
        name: [percentile(samples[name], percent) * 1e3 for samples in rounds] for name in rounds[0]
    }
