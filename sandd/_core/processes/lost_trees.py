"""What the daemon does about the jobs of a spawner that died: kill them all, and reap.

On Linux the daemon is a subreaper too, so everything that was below the spawner falls to it and
becomes its own child, ``setsid`` escapees included. They are told from other children of the
daemon's program by their session: each job was put into one of its own, and nobody ever gets into
the daemon's. Spared are children that were there before, and other spawners.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError("POSIX only")  # where mypy stops reading, too

import trio

from sandd._core.logs import get_logger
from sandd._core.processes import culling, process_table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sandd._core.processes.process_table import Process

CULL_SECONDS = 5.0
"""Bound of killing what a spawner left; who lives longer hangs in the kernel, SIGKILL pending."""
REAP_SECONDS = 2.0
"""How often process 1 looks for zombies that fell to it."""

log = get_logger("processes")

_spawners: set[int] = set()  # of all hosts in this process; they are nobody's orphans
_hosts = 0
_was_subreaper = False


@contextmanager
def adopting_orphans() -> Iterator[bool]:
    """While open, this process adopts the orphans below it; false if the system can't do that."""
    global _hosts, _was_subreaper  # one process has one such flag
    is_possible = sys.platform == "linux"
    if is_possible and _hosts == 0:
        try:
            _was_subreaper = process_table.set_subreaper(True)
        except OSError as error:
            log.warning("subreaper_refused", error=str(error))
            is_possible = False
    _hosts += is_possible
    try:
        yield is_possible
    finally:
        _hosts -= is_possible
        if is_possible and _hosts == 0:
            process_table.set_subreaper(_was_subreaper)


@contextmanager
def sparing(spawner: int) -> Iterator[None]:
    """While open, the child ``spawner`` is not taken for an orphan."""
    _spawners.add(spawner)
    try:
        yield
    finally:
        _spawners.discard(spawner)


def children_now() -> frozenset[tuple[int, int]]:
    """The children that are there now, for `cull_lost_trees` to spare."""
    if sys.platform != "linux":
        return frozenset()
    return frozenset((process.pid, process.began) for process in _children())


async def cull_lost_trees(
    *,
    leaders: Collection[int],
    markers: Collection[bytes],
    spared: Collection[tuple[int, int]],
    adopted: bool,
) -> list[int]:
    """Kill and reap everything a dead spawner left, in bounded time; who still lives then.

    Args:
        leaders: process ids of the jobs' direct children.
        markers: of those jobs.
        spared: what `children_now` said before the spawner was started.
        adopted: whether we are the subreaper that its processes fell to. If not, they are found by
            their sessions and markers.
    """
    if adopted:
        look, find = partial(_adopted, spared), partial(_below_adopted, spared)
    else:
        look = find = partial(_recognised, leaders, markers)
    end = time.monotonic() + CULL_SECONDS
    pauses = culling.pauses()
    patience = culling.Patience()
    powerless: list[Process] = []
    while True:
        # Twice: a look may miss one while another thread of ours reaps a child of its own.
        left = look() or look()
        if not left or time.monotonic() > end or patience.is_over(find(), powerless):
            return [process.pid for process in left]
        powerless = culling.cull(find)
        await trio.sleep(next(pauses))


async def reap_as_process_1(spared: Collection[tuple[int, int]]) -> None:
    """Reap the zombies that fall to process 1 of a container from elsewhere. Never returns.

    They come from ``docker exec``, for one. Only what was dead on two looks in a row is reaped: a
    child of the daemon's own is collected before that.
    """
    dead: set[tuple[int, int]] = set()
    # A session from outside the container reads 0, as those of whoever else comes from there: if ours
    # does, it tells nobody apart, and no child of the daemon's own may stay dead for long.
    look = _foreign_children if os.getsid(0) else _other_children
    while True:
        await trio.sleep(REAP_SECONDS)
        dead_before, dead = dead, set()
        for count, process in enumerate(look(spared)):
            if process.is_dead:
                key = (process.pid, process.began)
                if key not in dead_before or not process_table.reap(process.pid):
                    dead.add(key)
            if count % 256 == 255:
                await trio.lowlevel.checkpoint()  # there may be 10,000


def _adopted(spared: Collection[tuple[int, int]]) -> list[Process]:
    """Our living children that were the spawner's: when there are none, nothing is left.

    The dead ones are reaped; and whoever is may have left children behind the look's back.
    """
    while children := _foreign_children(spared):
        living = [
            process
            for process in children
            if not (process.is_dead and process_table.reap(process.pid))
        ]
        if living:
            return living
    return []


def _below_adopted(spared: Collection[tuple[int, int]]) -> list[Process]:
    return process_table.walk(process.pid for process in _adopted(spared))


def _foreign_children(spared: Collection[tuple[int, int]]) -> list[Process]:
    session = os.getsid(0)
    return [process for process in _other_children(spared) if process.session != session]


def _other_children(spared: Collection[tuple[int, int]]) -> list[Process]:
    return [
        process
        for process in _children()
        if process.pid not in _spawners and (process.pid, process.began) not in spared
    ]


def _children() -> list[Process]:
    entries = [process_table.read_process(pid) for pid in process_table.own_children()]
    return [process for process in entries if process is not None]


def _recognised(leaders: Collection[int], markers: Collection[bytes]) -> list[Process]:
    if sys.platform == "darwin":
        return _recognised_by_ps(leaders, markers)
    return [
        process
        for process in process_table.all_processes()
        if not process.is_dead
        and (process.session in leaders or process_table.read_marker(process.pid) in markers)
    ]


def _recognised_by_ps(leaders: Collection[int], markers: Collection[bytes]) -> list[Process]:
    try:
        rows = process_table.list_by_ps()
    except OSError as error:
        log.warning("process_list_failed", error=str(error))
        return []
    return [
        process
        for process, text in rows
        if not process.is_dead
        and (
            process.session in leaders
            or any(process_table.has_marker(text, marker) for marker in markers)
        )
    ]
