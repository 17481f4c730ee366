"""Abuse of a daemon's machine by its jobs: each ends with its own outcome, and nobody else is disturbed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import trio
from daemons import running_daemon
from proc_files import contents, process_ids
from process_tools import PYTHON, linux_only
from standing_daemon import StandingDaemon, standing_daemon

if sys.platform == "win32":
    pytest.skip("limits are held by POSIX there", allow_module_level=True)

import sandd
from sandd import Limits, Outcome
from sandd._core.processes.control_groups import CHOICE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = linux_only

MIB = 1 << 20
ALLOWED = ("--limit", "memory=256M", "--limit", "processes=60", "--limit", "output=2M")
BOMB = [
    PYTHON,
    "-S",
    "-c",
    "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
]
HOG = ["bash", "-c", f"{PYTHON} -S -c 'x = b\"x\" * 200_000_000; input()' < /dev/zero; exit 0"]
BURNER = "while :; do :; done"
FLOOD = ["yes"]
KINDS = {
    "bomb": (BOMB, Limits(processes=20), Outcome.LIMIT_EXCEEDED, "processes"),
    "hog": (HOG, Limits(memory_bytes=64 * MIB), Outcome.OUT_OF_MEMORY, "memory_bytes"),
    "burner": (BURNER, Limits(cpu_seconds=0.3), Outcome.LIMIT_EXCEEDED, "cpu_seconds"),
    "flood": (FLOOD, Limits(output_bytes=MIB), Outcome.LIMIT_EXCEEDED, "output_bytes"),
    "sleeper": ("sleep 100", Limits(wall=0.3), Outcome.LIMIT_EXCEEDED, "wall"),
}


@pytest.fixture(scope="module", params=["", "off"], ids=["groups", "watchdog"])
def daemon(
    request: pytest.FixtureRequest, _own_temporary_directory: None
) -> Iterator[StandingDaemon]:
    """A daemon that allows its jobs so much, and by what it holds them to that."""
    with standing_daemon(arguments=ALLOWED, env={CHOICE_VARIABLE: request.param}) as daemon:
        yield daemon


def processes_of(job_id: str) -> list[int]:
    """Who was started with that job's marker."""
    end = f"/{job_id}\0".encode()
    return [pid for pid in process_ids() if end in contents(pid, "environ")]


@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_of_abuse_ends_by_its_own_limit(kind: str, daemon: StandingDaemon) -> None:
    """While it goes on another command is answered; and nothing of it is left."""
    command, limits, outcome, limit = KINDS[kind]
    async with daemon.worker(within=60) as worker, trio.open_nursery() as nursery:
        results = []

        @nursery.start_soon
        async def abuse() -> None:
            results.append(await worker.run(command, limits=limits))

        for _ in range(3):
            assert (await worker.run("echo here")).stdout == "here\n"
    (result,) = results
    assert (result.outcome, result.limit) == (outcome, limit)
    assert getattr(result.limits, limit) == getattr(limits, limit)
    assert not result.success
    assert processes_of(result.job_id) == []


async def test_what_is_within_a_bound_of_output_is_delivered(daemon: StandingDaemon) -> None:
    """To the byte, of both outputs together; and a job that writes just as much has done nothing wrong."""
    async with daemon.worker() as worker:
        limits = Limits(output_bytes=100_000)
        result = await worker.run("yes | head -c 60000; yes >&2", limits=limits)
        assert result.stdout_total + result.stderr_total == 100_000
        assert result.limit == "output_bytes"
        result = await worker.run("head -c 100000 /dev/zero", limits=limits)
        assert (result.outcome, result.stdout_total) == (Outcome.EXITED, 100_000)
        result = await worker.run(["head", "-c", "100001", "/dev/zero"], limits=limits)
        assert (result.limit, result.stdout_total) == ("output_bytes", 100_000)


async def test_who_opens_too_many_files_gets_an_error(daemon: StandingDaemon) -> None:
    """It is the program's to deal with, and ends as that does."""
    text = "import os\ntry:\n    while True: os.open('/', 0)\nexcept OSError as e: print(e.errno)"
    async with daemon.worker() as worker:
        result = await worker.run([PYTHON, "-S", "-c", text], limits=Limits(open_files=20))
        assert (result.stdout, result.outcome) == ("24\n", Outcome.EXITED)
        assert result.limits.open_files == 20


async def test_a_request_never_raises_what_is_allowed(daemon: StandingDaemon) -> None:
    """It gets the least of both, is told so, and is ended by it; what it may narrow is narrowed."""
    wish = Limits(memory_bytes=1 << 40, processes=10, output_bytes=1 << 40, open_files=100)
    async with daemon.worker(within=60) as worker:
        result = await worker.run("yes", limits=wish)
        assert result.limits == Limits(
            memory_bytes=256 * MIB, processes=10, output_bytes=2 * MIB, open_files=100
        )
        assert (result.limit, result.stdout_total) == ("output_bytes", 2 * MIB)
        assert (await worker.run("true")).limits.processes == 60


async def test_a_limit_that_is_no_limit_is_refused_here(daemon: StandingDaemon) -> None:
    """Before anything is sent."""
    async with daemon.worker() as worker:
        with pytest.raises(TypeError, match="limits is"):
            await worker.run("true", limits={"processes": 3})  # type: ignore[arg-type]


async def test_a_session_and_a_process_are_held_as_well(daemon: StandingDaemon) -> None:
    """Their ends tell the limit."""
    async with daemon.worker(within=60) as worker:
        async with worker.open_session(["yes"], limits=Limits(output_bytes=5000)) as session:
            while await session.receive_some():
                pass
            status = await session.wait()
            assert (status.outcome, status.limit) == (Outcome.LIMIT_EXCEEDED, "output_bytes")
        async with worker.open_process("sleep 100", limits=Limits(wall=0.2)) as process:
            status = await process.wait()
            assert (status.outcome, status.limit) == (Outcome.LIMIT_EXCEEDED, "wall")


async def test_a_time_out_is_one_though_there_is_a_limit(daemon: StandingDaemon) -> None:
    """Whichever comes first."""
    async with daemon.worker() as worker:
        with pytest.raises(sandd.CommandTimeout):
            await worker.run("sleep 100", timeout=0.2, limits=Limits(wall=50.0))
        result = await worker.run("sleep 100", timeout=50.0, limits=Limits(wall=0.2))
        assert result.limit == "wall"


async def test_what_must_be_held_and_can_not_is_not_started(daemon: StandingDaemon) -> None:
    """A share of processors only groups can hold; without the demand the result has it not."""
    async with daemon.worker() as worker:
        limits = Limits(cpus=0.5)
        result = await worker.run("true", limits=limits)
        if result.limits.cpus is None:
            with pytest.raises(sandd.SpawnFailed, match="can't be held to cpus"):
                await worker.run("true", limits=limits, require_limits=True)
        else:
            assert (await worker.run("true", limits=limits, require_limits=True)).success


def test_a_daemon_that_can_not_hold_its_limits_says_so() -> None:
    """And doesn't start, where it has to."""
    env = {CHOICE_VARIABLE: "off"}
    arguments = ("--limit-total", "memory=1G", "--require-limits")
    with running_daemon("ws://127.0.0.1:1/ws", env=env, arguments=arguments) as daemon:
        assert daemon.wait_sync(60.0) == 2
        assert "--limit-total: this machine can't hold memory_bytes" in daemon.log
