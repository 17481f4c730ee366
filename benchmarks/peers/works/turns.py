"""Turns: within each round everybody comes once, and not always behind the same one."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.peers.contestants import Contestant


def in_turns(contestants: Sequence[Contestant], rounds: int) -> Iterator[Contestant]:
    """Each of them in each round: who was first comes last in the next."""
    for number in range(rounds):
        gc.collect()
        first = number % len(contestants)
        yield from [*contestants[first:], *contestants[:first]]
