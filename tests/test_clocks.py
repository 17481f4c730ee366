"""Wall clocks are set back and forth, by people and by NTP; what waits for its time doesn't notice."""

from __future__ import annotations

import ast
import itertools
import time
from pathlib import Path

import pytest
import trio
from proxied_world import core_world

import sandd
from sandd import DaemonState

ROOT = Path(sandd.__file__).parent
WALL_CLOCKS = {
    "time",
    "time_ns",
    "ctime",
    "gmtime",
    "localtime",
    "strftime",
    "now",
    "utcnow",
    "today",
}
SHOWN = {
    "_core/logs.py": {"gmtime", "strftime"},  # of the time that a record was made
    "_core/acceptor.py": {"time"},  # `DaemonInfo.connected_at`
}
"""Where a wall clock is read: to be shown to people, and for nothing else."""
HOUR = 3600.0


def test_no_code_of_ours_counts_by_the_wall_clock() -> None:
    """It is read in two places, which show it; everything that expires counts by a monotonic clock."""
    read: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names: set[str] = set()
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in ("time", "datetime", "date"):
                    names = {node.attr} & WALL_CLOCKS
            elif isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
                names = {alias.name for alias in node.names} - {"monotonic"}
            if names:
                read.setdefault(path.relative_to(ROOT).as_posix(), set()).update(names)
    assert read == SHOWN


@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["forward", "back"])
async def test_a_wall_clock_that_jumps_an_hour_expires_nothing(
    jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a connection, nor a time-out, nor a lease; and what is due is due in spite of it."""
    jumps = itertools.count()
    read_clock = time.time
    for name, unit in (("time", 1), ("time_ns", 10**9)):
        # Another hour each time that somebody looks.
        monkeypatch.setattr(
            time, name, lambda unit=unit: unit * (read_clock() + jump * next(jumps))
        )
    async with core_world(heartbeat=0.2, dead_after=5.0) as it:
        connected_at, accepted = it.worker.info.connected_at, it.proxy.accepted
        async with it.worker.open_process(
            ["cat"], timeout=60, idle_timeout=60, lease=60
        ) as process:
            result = await it.worker.run("sleep 1", timeout=60, idle_timeout=60)
            assert result.success
            assert 0.9 < result.duration < 30
            await process.stdin.send_all(b"here")
            assert await process.stdout.receive_some() == b"here"
        with pytest.raises(sandd.CommandTimeout), trio.fail_after(30):
            await it.worker.run("sleep 60", timeout=0.1)
        assert (it.worker.state, it.proxy.accepted) == (DaemonState.ONLINE, accepted)
        assert it.worker.info.connected_at == connected_at
