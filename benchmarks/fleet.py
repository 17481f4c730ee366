"""A controller, and real daemons that have dialled in to it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from attrs import frozen

import sandd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

GROUP = 5
"""Daemons that start at the same time: more would only wait for each other's CPU."""
START_SECONDS = 30.0
"""For a group to start and register; a second is usual."""
STOP_SECONDS = 20.0
"""For the keeper to end them all; it gives them `keeper.STOP_SECONDS`."""
WARM_UP = 20
"""Commands that each daemon runs before anything is measured."""


@frozen
class Fleet:
    """What a benchmark works with. Nothing runs on it yet, and every daemon has run a few commands."""

    controller: sandd.Controller
    daemons: Sequence[sandd.Daemon]
    pids: Sequence[int]
    """Of the daemons' processes, in the same order."""


class Stopped(Exception):
    """SIGINT or SIGTERM came; the fleet was put away in good order."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


@asynccontextmanager
async def open_fleet(count: int, **settings: Any) -> AsyncIterator[Fleet]:
    """That many daemons; they are gone when the block is left.

    Args:
        settings: of the controller, further ones.

    Raises:
        Stopped: a signal ended the block.
    """
    # The controller is outside of what a signal cancels: it takes the daemons' leave.
    async with (
        sandd.open_controller(port=0, **settings) as controller,
        open_keeper(controller.url) as keeper,
        until_signal(),
    ):
        daemons: list[sandd.Daemon] = []
        pids: list[int] = []
        for first in range(0, count, GROUP):
            names = [f"bench-{number}" for number in range(first, min(first + GROUP, count))]
            started = [await keeper.start(name) for name in names]
            pids += [pid for pid, _ in started]
            for name, (_, log) in zip(names, started, strict=True):
                daemons.append(await wait_online(controller, name, log))
        async with trio.open_nursery() as nursery:
            for daemon in daemons:
                nursery.start_soon(warm_up, daemon)
        yield Fleet(controller, daemons, pids)


@asynccontextmanager
async def until_signal() -> AsyncIterator[None]:
    """Cancel the block when SIGINT or SIGTERM comes, and raise Stopped."""
    stopped_by: int | None = None

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

        async def cancel_at_signal(scope: trio.CancelScope) -> None:
            nonlocal stopped_by
            async for number in signals:
                stopped_by = number
                scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_at_signal, nursery.cancel_scope)
            yield
            nursery.cancel_scope.cancel()
    if stopped_by is not None:
        raise Stopped(stopped_by)


@frozen
class Keeper:
    """Starts daemons, which end with it; see `benchmarks.keeper`."""

    _process: trio.Process

    async def start(self, name: str) -> tuple[int, Path]:
        """Pid and log file of a daemon that was just started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        await self._process.stdin.send_all(f"{name}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            data = await self._process.stdout.receive_some()
            if not data:
                raise RuntimeError("the daemons' keeper has ended")
            answer += data
        fields = json.loads(answer)
        return fields["pid"], Path(fields["log"])


@asynccontextmanager
async def open_keeper(
    url: str, *options: str, program: str = "sandd.daemon"
) -> AsyncIterator[Keeper]:
    """A keeper of daemons that dial `url` and have these options; `program` is the module that is one."""
    if sys.platform == "win32":
        raise NotImplementedError("the benchmarks need a POSIX system")
    keeper = await trio.lowlevel.open_process(
        [sys.executable, "-m", "benchmarks.keeper", program, url, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for us; it ends when we let go of its stdin
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        yield Keeper(keeper)
    finally:
        # The controller goes on meanwhile, to take the daemons' leave.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_SECONDS):
            await keeper.stdin.aclose()
            await keeper.wait()
        await trio.aclose_forcefully(keeper.stdout)
        if keeper.returncode is None:
            print(f"the daemons' keeper, {keeper.pid}, has not ended yet", file=sys.stderr)


async def wait_online(controller: sandd.Controller, name: str, log: Path) -> sandd.Daemon:
    """The daemon; RuntimeError with the end of its log if it doesn't come."""
    with trio.move_on_after(START_SECONDS):
        return await controller.wait_for_daemon(name)
    written = await trio.Path(log).read_text()
    raise RuntimeError(f"daemon {name!r} did not come online; its log:\n{written[-2000:]}")


async def warm_up(daemon: sandd.Daemon) -> None:
    """Run a few commands, so that nothing is measured that happens only once."""
    for _ in range(WARM_UP):
        await daemon.run("true", check=True)
