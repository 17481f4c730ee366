"""Wall clocks are set back and forth, by people and by NTP; what waits for its time doesn't notice."""

from __future__ import annotations

import ast
import itertools
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from another_agent import another_agent
from process_tools import until
from proxied_world import core_world

import sandd
from sandd import DaemonState, Outcome
from sandd._core.jobs import LONGEST_TICK
from sandd._core.runner import TICK_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
    "_core/directory.py": {"time"},  # `DaemonInfo.connected_at`
    "fleet/top.py": {"time"},  # how old a link is, and when a line of figures was read
    "fleet/tables.py": {"localtime", "strftime"},  # since when a daemon is connected
    "_core/recorder.py": {"time"},  # a recording's header: when it was made
    # What is left of a transfer is removed when its file is a day old, and files know only this clock. Should it
    # jump, the transfer begins anew.
    "_core/transfers/partials.py": {"time"},
    # Certificates, and tokens on the disk, are valid until a time that outlives this program, and this machine.
    "_core/tls/renewal.py": {"time"},
    "_core/identity/administration.py": {"time"},
    "_core/identity/gate.py": {"time"},
    "_core/identity/store.py": {"time"},
    "certificates/commands.py": {"UTC", "datetime", "time"},
    "enrolling/commands.py": {"time"},
    "enrolling/tables.py": {"localtime", "strftime"},
    # An audit log says when something was, by both clocks.
    "_core/audit/segments.py": {"gmtime", "strftime", "time"},
    "_core/audit/writer.py": {"time"},
    "command_line/journaling.py": {"time"},
    "auditing/selecting.py": {"UTC", "datetime", "now", "timedelta"},
}
"""Where a wall clock is read: to be shown to people, or because what is on a disk has no other time."""
HOUR = 3600.0


def test_no_code_of_ours_counts_by_the_wall_clock() -> None:
    """It is read in few places, which show it; everything that expires counts by a monotonic clock."""
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


@pytest.fixture(params=[HOUR, -HOUR], ids=["forward", "back"])
def jumping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock of this process jumps an hour each time that somebody looks."""
    jumps, read_clock = itertools.count(), time.time

    def jumped() -> float:
        return read_clock() + request.param * next(jumps)

    monkeypatch.setattr(time, "time", jumped)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumped() * 1e9))


@pytest.mark.usefixtures("jumping")
async def test_a_wall_clock_that_jumps_an_hour_expires_nothing() -> None:
    """Neither a connection, nor a time-out, nor a lease."""
    async with core_world(heartbeat=0.2, dead_after=5.0) as it:
        connected_at, accepted = it.worker.info.connected_at, it.proxy.accepted
        options: dict[str, Any] = {"timeout": 60, "idle_timeout": 60}
        async with it.worker.open_process(["cat"], **options) as process:
            async with orphaned(it.controller, it.worker.id, lease=2 * LONGEST_TICK - 1) as job_id:
                result = await it.worker.run(f"sleep {2.2 * TICK_SECONDS}", **options)
                assert result.success
                assert 2 < result.duration < 30
                assert await ended(it.worker, job_id) is None
            await process.stdin.send_all(b"here")
            assert await process.stdout.receive_some() == b"here"
        assert (it.worker.state, it.proxy.accepted) == (DaemonState.ONLINE, accepted)
        assert it.worker.info.connected_at == connected_at


@pytest.mark.usefixtures("jumping")
async def test_what_is_due_is_due_whatever_the_wall_clock_says() -> None:
    """Time-outs and leases run out, and a connection that is dead is given up."""
    async with core_world(heartbeat=0.1, dead_after=0.5) as it:
        for options in ({"timeout": 0.1}, {"idle_timeout": 0.1}):
            with pytest.raises(sandd.CommandTimeout):
                await it.worker.run("sleep 60", **options)
        async with orphaned(it.controller, it.worker.id, lease=0.5) as job_id:
            while (await ended(it.worker, job_id)) is not Outcome.LEASE_EXPIRED:
                await trio.sleep(0.05)
        it.proxy.blackhole()
        await until(lambda: it.worker.state is not DaemonState.ONLINE, within=20)


@asynccontextmanager
async def orphaned(
    controller: sandd.Controller, daemon_id: str, *, lease: float
) -> AsyncIterator[str]:
    """The id of a job that nobody holds; forgotten at the end."""
    async with AsyncExitStack() as left_behind:
        async with another_agent(controller) as agent:
            opened = agent.daemon(daemon_id).open_process("sleep 60", lease=lease)
            job_id = (await left_behind.enter_async_context(opened)).job_id
    yield job_id
    await controller.daemon(daemon_id).forget(job_id)


async def ended(worker: sandd.Daemon, job_id: str) -> Outcome | None:
    """How the job did, if it has."""
    (outcome,) = [job.outcome for job in await worker.jobs() if job.job_id == job_id]
    return outcome
