"""What an idle daemon costs its controller: bytes and calls, counted, with room for a quarter more."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from daemons import daemon_environment
from forked_python import copies
from process_tools import link_writers, living_tasks, resting_connections, until

import sandd
from sandd._core.acceptor import Acceptor
from sandd.testing import open_daemon_cores, open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import FrameType

ROOT = Path(__file__).parent.parent
TOKEN = "of-all-the-daemons"
HEARTBEAT = 0.5
"""Seconds, so that there are enough of them to be counted."""
DEAD_AFTER = 45.0
"""The default, which says how often links are looked at."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="select doesn't take stdin there")


@asynccontextmanager
async def open_idle(
    controller: sandd.Controller, count: int, prefix: str = "d"
) -> AsyncIterator[None]:
    """So many idle daemons, in another process."""
    command = [sys.executable, "-m", "benchmarks.bare_daemons", controller.url, TOKEN, str(count)]
    with copies():
        daemons = await trio.lowlevel.open_process(
            [*command, prefix],
            cwd=ROOT,
            env=daemon_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    assert daemons.stdin is not None
    assert daemons.stdout is not None
    try:
        for word in (b"ready\n", b"live\n"):
            said = await daemons.stdout.receive_some()
            assert said == word
            await daemons.stdin.send_all(b"\n" if word == b"ready\n" else b"")
        yield
    finally:
        with trio.CancelScope(shield=True):
            await daemons.stdin.aclose()
            await daemons.wait()
            await daemons.stdout.aclose()


async def test_an_idle_connection_takes_little_memory() -> None:
    """Of 5,000 daemons each may take 20 KiB of a controller; what Python allocates is most of that."""
    async with sandd.open_controller(
        port=0,
        token=TOKEN,
        max_handshakes_per_second=1e5,
        heartbeat=HEARTBEAT,
        dead_after=DEAD_AFTER,
    ) as controller:
        async with open_idle(controller, 10, "early"):
            await trio.lowlevel.checkpoint()  # whatever is made once is there now
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            async with open_idle(controller, 300):
                await trio.sleep(2 * HEARTBEAT)
                gc.collect()
                each = (tracemalloc.get_traced_memory()[0] - before) / 300
        finally:
            tracemalloc.stop()
    assert each < 18 * 1024


async def test_a_heartbeat_takes_few_calls() -> None:
    """A ping, its answer, and the looks meanwhile: what 5,000 idle daemons cost, 250 times a second."""
    calls = pings = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls, pings
        if event == "call":
            calls += 1
            pings += frame.f_code.co_name == "_take_message"

    async with (
        sandd.open_controller(
            port=0,
            token=TOKEN,
            max_handshakes_per_second=1e5,
            heartbeat=HEARTBEAT,
            dead_after=DEAD_AFTER,
        ) as controller,
        open_idle(controller, 100),
    ):
        await trio.sleep(2 * HEARTBEAT)
        sys.setprofile(count)
        try:
            await trio.sleep(4 * HEARTBEAT)
        finally:
            sys.setprofile(None)
    assert pings > 100
    assert calls / pings < (55 if sys.platform == "linux" else 100)


@pytest.mark.skipif(sys.platform != "linux", reason="nobody rests elsewhere")
async def test_daemons_that_rest_are_heard_at_once_when_they_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What they say of their own accord waits here for an hour; what a command or a session says does not."""
    monkeypatch.setattr(Acceptor, "rest_seconds", 3600.0)
    async with (
        sandd.open_controller(port=0, heartbeat=0.05, dead_after=DEAD_AFTER) as controller,
        open_daemon_cores(controller.url, 3) as cores,
    ):
        await cores.wait_live()
        workers = [await controller.wait_for_daemon(f"core-{number}") for number in range(3)]
        await until(lambda: resting_connections() == 3)
        for worker in workers:
            assert (await worker.run("true")).success
            # (Those that were asked before it may rest again, where this takes long.)
            assert resting_connections() < 3
        async with workers[0].open_process("cat") as process:
            await until(lambda: resting_connections() == 2)
            for word in (b"one", b"two"):
                await process.stdin.send_all(word)
                assert await process.stdout.receive_some() == word
            await trio.sleep(0.2)
            assert resting_connections() == 2, (
                "while it has a job, it says things of its own accord"
            )


async def test_no_writer_outlives_what_there_was_to_send() -> None:
    """Of links that were busy, were cut and came back: no task is left at either end but those there were before."""
    count = 10
    async with (
        sandd.open_controller(port=0, heartbeat=0.5, dead_after=5.0) as controller,
        open_fault_proxy(controller.address) as proxy,
        open_daemon_cores(proxy.url, count, reconnect_max=0.05) as cores,
    ):
        await cores.wait_live()
        workers = [await controller.wait_for_daemon(f"core-{number}") for number in range(count)]
        await until(lambda: not link_writers())
        before, most = living_tasks(), 0
        for is_cut in (False, True, False):
            if is_cut:
                proxy.cut()
            async with trio.open_nursery() as nursery:
                for worker in workers:
                    for _ in range(5):
                        nursery.start_soon(worker.run, "true")
            most = max(most, link_writers())
        assert 0 < most <= 2 * count
        await until(lambda: not link_writers())
        await until(lambda: living_tasks() == before)
