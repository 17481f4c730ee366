"""Commands: one at a time, eight at once, and sixty-four."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.peers import contestants as who
from benchmarks.peers.figures import at_least, at_most, figure
from benchmarks.peers.works.turns import in_turns
from benchmarks.report import percentile

if TYPE_CHECKING:
    from benchmarks.peers.contestants import Contestant
    from benchmarks.peers.figures import Figure

ABOUT = "`true` through a shell on one daemon"
ROUNDS, ROUNDS_QUICK = 5, 2
TURNS, TURNS_QUICK = 10, 2
"""Of everybody, in each round, with one command at a time."""
TURN = 20
"""Commands in a row: short, so that a disturbance hits everybody."""
COMMANDS = {8: 240, 64: 384}
"""In each round, by how many are in flight."""
PEERS = (who.OURS, who.OURS_BARE, who.ORIGINAL, who.ORIGINAL_AT_ONCE, who.ASYNCSSH)


def measure(quick: bool) -> list[Figure]:
    """Latency, rate and the controller's processor time."""
    rounds = ROUNDS_QUICK if quick else ROUNDS
    with who.open_contestants(*PEERS, who.FLOOR) as everybody:
        alone = _one_at_a_time(everybody, rounds, TURNS_QUICK if quick else TURNS)
        drivers = [each for each in everybody if each.name != who.FLOOR]
        return [
            *alone,
            *_at_once(everybody, drivers, 8, rounds, quick),
            *_at_once(everybody, drivers, 64, rounds, quick),
        ]


def _one_at_a_time(everybody: list[Contestant], rounds: int, turns: int) -> list[Figure]:
    latencies: dict[int, dict[str, list[float]]] = {50: {}, 99: {}}
    cpu: dict[str, list[float]] = {}
    for _ in range(rounds):
        samples: dict[str, list[float]] = {each.name: [] for each in everybody}
        spent = dict.fromkeys(samples, 0.0)
        for each in in_turns(everybody, turns):
            answer = each.ask("exec", count=TURN)
            samples[each.name] += answer.value
            spent[each.name] += answer.cpu
        for name, seconds in samples.items():
            for percent, figures in latencies.items():
                figures.setdefault(name, []).append(percentile(seconds, percent) * 1e3)
            if name != who.FLOOR:
                cpu.setdefault(name, []).append(spent[name] / len(seconds) * 1e3)
    return [
        figure("one at a time, p50", "ms", latencies[50], at_most(1.25, who.ORIGINAL)),
        figure("one at a time, p99", "ms", latencies[99], at_most(1.3, who.ORIGINAL)),
        figure("one at a time, controller's CPU per command", "ms", cpu),
    ]


def _at_once(
    everybody: list[Contestant], drivers: list[Contestant], in_flight: int, rounds: int, quick: bool
) -> list[Figure]:
    commands = COMMANDS[in_flight] // (4 if quick else 1)
    rates: dict[str, list[float]] = {each.name: [] for each in everybody}
    cpu: dict[str, list[float]] = {each.name: [] for each in drivers}
    for each in in_turns(everybody, rounds):
        answer = each.ask("many", count=commands, in_flight=in_flight)
        rates[each.name].append(commands / answer.value)
        if each.name in cpu:
            cpu[each.name].append(answer.cpu / commands * 1e3)
    label = f"{in_flight} at once"
    targets = [at_most(0.3, who.ORIGINAL)] if in_flight == 64 else []
    return [
        figure(label, "commands/s", rates, at_least(1.6, who.ORIGINAL)),
        figure(f"{label}, controller's CPU per command", "ms", cpu, *targets),
    ]
