"""How a whole process tree is killed: rounds of freeze-then-kill, until nothing is left.

Killing one by one loses against a tree that forks: a child born between the look and the kill
escapes it. So a round first stops everything it finds, and looks again, until it finds nobody new;
what is stopped can't fork. Only then it kills. Whoever slipped through all the same is met in the
next round; the caller goes on until the tree is *known* to be empty (see `job_trees`). A round
never waits, so other jobs' work goes on between rounds.

A control group that can be frozen (v1) or killed (v2) in one step would take the place of `cull`.

Standard library only.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

from sandd._core.processes.process_table import send_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sandd._core.processes.process_table import Process

FREEZE_SECONDS = 0.05
"""How long a round looks for new processes before it kills those it has. Other jobs wait for it."""
FIRST_PAUSE_SECONDS = 0.001
LONGEST_PAUSE_SECONDS = 0.1
"""Pauses between rounds double from the first to the longest: the second round mostly finds nobody,
while a process in uninterruptible sleep may take minutes to notice that it is dead."""
POWERLESS_SECONDS = 2.0
"""How long a tree is culled in which only processes are left that we may not kill (they have become
another user's, by a setuid program)."""


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


def ask_to_end(leader: int, members: Iterable[Process]) -> None:
    """SIGTERM for the whole tree: for the leader's group at a stroke, then whoever has left it.

    SIGCONT follows, as from systemd, because a stopped process would not see the request.

    Args:
        leader: id of the group; must not be reaped yet, or the number could be somebody else's.
        members: the tree, as far as it is known.
    """
    elsewhere = [member for member in members if member.group != leader]
    for number in (signal.SIGTERM, signal.SIGCONT):
        signal_group(leader, number)
        for member in elsewhere:
            _signal_if_allowed(member, number)


def signal_group(leader: int, number: int) -> None:
    """Send a signal to the group ``leader``; no error if nobody hears it.

    The leader must not be reaped yet, or the number could be somebody else's.
    """
    # EPERM: nobody in it is ours to signal; macOS also says so when only zombies are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def cull(find: Callable[[], list[Process]]) -> list[Process]:
    """One round: stop everything that ``find`` finds until it finds nobody new, then kill it all.

    Returns:
        Those that we have no power over.
    """
    met: dict[tuple[int, int], Process] = {}
    powerless: list[Process] = []
    deadline = time.monotonic() + FREEZE_SECONDS
    while True:
        new = [process for process in find() if (process.pid, process.began) not in met]
        for process in new:
            met[process.pid, process.began] = process
            if not _signal_if_allowed(process, signal.SIGSTOP):
                powerless.append(process)
        if not new or time.monotonic() > deadline:
            break
    for process in met.values():
        _signal_if_allowed(process, signal.SIGKILL)
    return powerless


def _signal_if_allowed(process: Process, number: int) -> bool:
    try:
        send_signal(process, number)
    except PermissionError:
        return False
    return True
