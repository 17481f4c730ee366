"""One command on many daemons at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers import contestants as who
from benchmarks.peers.figures import at_most, figure
from benchmarks.peers.works.turns import in_turns

if TYPE_CHECKING:
    from benchmarks.peers.figures import Figure

ABOUT = "`true` on many daemons at once, which are in two programs; ours also on some as bare as the stand-in"
DAEMONS, DAEMONS_QUICK = 200, 50
ROUNDS, ROUNDS_QUICK = 15, 3


def measure(quick: bool) -> list[Figure]:
    """The time and the controller's processor time.

    The target is held against our whole daemons, which take care of process trees, keep output, and make it good
    after a cut. Beside them are some that run commands by the same few lines as the stand-in: what then differs is
    the controller.
    """
    daemons, rounds = (DAEMONS_QUICK, ROUNDS_QUICK) if quick else (DAEMONS, ROUNDS)
    times: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    with who.open_crowds(daemons, who.OURS, who.OURS_BARE, who.ORIGINAL) as everybody:
        for each in everybody:
            each.ask("connect")
            each.ask("broadcast")
        for each in in_turns(everybody, rounds):
            answer = each.ask("broadcast")
            times.setdefault(each.name, []).append(answer.value * 1e3)
            cpu.setdefault(each.name, []).append(answer.cpu / daemons * 1e3)
    return [
        figure(f"broadcast to {daemons}", "ms", times, at_most(1.0, who.ORIGINAL)),
        figure("controller's CPU per command", "ms", cpu),
    ]
