"""How a whole process tree is killed: rounds of freeze-then-kill, until nothing is left.

Killing one by one loses against a tree that forks: a child born between the look and the kill
escapes it. So a round first stops everything it finds, and looks again, until it finds nobody new;
what is stopped can't fork. Only then it kills. Whoever slipped through all the same is met in the
next round; the caller goes on until the tree is *known* to be empty (see `job_trees`). A round
never waits, so other jobs' work goes on between rounds.

A tree that forks faster than that is recognised by what each round finds anew (`Race`). Where there is a
control group to stop everybody in one step, the next round is `cull_frozen`.

Standard library only.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes.process_table import read_process, send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from sandd._core.processes.process_table import Process

FREEZE_SECONDS = 0.05
"""How long a round looks for new processes before it kills those it has. Other jobs wait for it."""
FROZEN_SECONDS = 2.0
"""Bound of a round against the frozen, of whom there may be 30,000. Every other job is frozen as well."""
FIRST_PAUSE_SECONDS = 0.001
LONGEST_PAUSE_SECONDS = 0.1
"""Pauses between rounds double from the first to the longest: the second round mostly finds nobody,
while a process in uninterruptible sleep may take minutes to notice that it is dead."""
POWERLESS_SECONDS = 2.0
"""How long a tree is culled in which only processes are left that we may not kill (they have become
another user's, by a setuid program)."""


LOSING_ROUNDS = 2
"""Rounds in a row, after the first, that find processes born since: one may be a matter of luck."""


class Race:
    """Tells when a tree forks faster than it is killed."""

    def __init__(self) -> None:
        self._met: set[tuple[int, int]] = set()
        self._lost_rounds = -1  # the first finds everybody anew

    def note_round(self, found: Iterable[tuple[int, int]]) -> None:
        """A round has met these: pid and time of birth."""
        now = set(found)
        self._lost_rounds = self._lost_rounds + 1 if now - self._met else 0
        self._met = now

    @property
    def is_being_lost(self) -> bool:
        """Whether round after round has met somebody new."""
        return self._lost_rounds >= LOSING_ROUNDS


class Patience:
    """Tells when culling one tree has become pointless."""

    def __init__(self) -> None:
        self._powerless_since = float("inf")

    def is_over(self, left: Iterable[Process], powerless: Iterable[Process]) -> bool:
        """Whether nobody but those we have no power over has been left for some time."""
        now = time.monotonic()
        strangers = {process.pid for process in powerless}
        if not strangers or any(process.pid not in strangers for process in left):
            self._powerless_since = now
        else:
            self._powerless_since = min(self._powerless_since, now)
        return now - self._powerless_since > POWERLESS_SECONDS


def pauses() -> Iterator[float]:
    """Seconds to wait after each round."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def ask_to_end(leader: int, members: Iterable[Process], number: int = signal.SIGTERM) -> None:
    """A signal for the whole tree: for the leader's group at a stroke, then whoever has left it.

    SIGCONT follows, as from systemd, because a stopped process would not see the request.

    Args:
        leader: id of the group; must not be reaped yet, or the number could be somebody else's.
        members: the tree, as far as it is known.
    """
    elsewhere = [member for member in members if member.group != leader]
    for each in (number, signal.SIGCONT):
        signal_group(leader, each)
        for member in elsewhere:
            _signal_if_allowed(member, each)


def signal_group(leader: int, number: int) -> None:
    """Send a signal to the group ``leader``; no error if nobody hears it.

    The leader must not be reaped yet, or the number could be somebody else's.
    """
    # EPERM: nobody in it is ours to signal; macOS also says so when only zombies are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def cull(
    find: Callable[[], list[Process]], leaders: Collection[int] = (), race: Race | None = None
) -> list[Process]:
    """One round: stop everything that ``find`` finds until it finds nobody new, then kill it all.

    A process group is stopped, and killed, at a stroke: kill(2) lets nobody be born into it meanwhile. So
    a fork bomb that stays in its group is over before anybody has looked, and one that doesn't loses
    whole families.

    Args:
        leaders: of groups that belong to the tree as a whole; none of them must be reaped yet, or the
            number could be somebody else's.

    Returns:
        Those that we have no power over.
    """
    met: dict[tuple[int, int], Process] = {}
    powerless: list[Process] = []
    struck = set(leaders)
    for leader in struck:
        signal_group(leader, signal.SIGSTOP)
    deadline = time.monotonic() + FREEZE_SECONDS
    while True:
        new = [process for process in find() if (process.pid, process.began) not in met]
        for process in new:
            met[process.pid, process.began] = process
            if not _signal_if_allowed(process, signal.SIGSTOP):
                powerless.append(process)
            elif process.group not in struck:
                struck.add(process.group)
                _stop_group_of(process)
        if not new or time.monotonic() > deadline:
            break
    for leader in leaders:
        signal_group(leader, signal.SIGKILL)
    for process in met.values():
        _signal_if_allowed(process, signal.SIGKILL)
    if race is not None:
        race.note_round(met)
    return powerless


def cull_frozen(find: Callable[[], list[Process]]) -> None:
    """One round against those that can't fork, as somebody else has stopped them: nobody slips through."""
    met: set[tuple[int, int]] = set()
    deadline = time.monotonic() + FROZEN_SECONDS
    while time.monotonic() < deadline:
        new = [process for process in find() if (process.pid, process.began) not in met]
        if not new:
            break
        for process in new:
            met.add((process.pid, process.began))
            _signal_if_allowed(process, signal.SIGKILL)


def _stop_group_of(process: Process) -> None:
    # Groups lie within sessions, and a job's sessions are its own, so all of it is of the tree. Its
    # number can't have gone to another: `process` is stopped, and so still there, and in it.
    now = read_process(process.pid)
    if now is not None and now.began == process.began and now.group > 1:
        signal_group(now.group, signal.SIGSTOP)


def _signal_if_allowed(process: Process, number: int) -> bool:
    try:
        send_signal(process, number)
    except PermissionError:
        return False
    return True
