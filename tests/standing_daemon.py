"""A daemon that outlives a test, so that each costs a reconnect and not a start.

In a test module::

    @pytest.fixture(scope="module")
    def daemon(_own_temporary_directory: None) -> Iterator[StandingDaemon]:
        with standing_daemon() as daemon:
            yield daemon

    async def test_something(daemon: StandingDaemon) -> None:
        async with daemon.worker() as worker:
            ...

Every test has a controller of its own, always on the same port: the daemon finds each new one
within a tenth of a second. That it does, with nothing left of the last test, is a test in itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from attrs import define
from daemons import DaemonProcess, running_daemon

import sandd
from sandd._core import acceptor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

LIMIT: Final = 25.0
"""Seconds for a test that says nothing else: most need less than one, but the machine may be busy."""


@define(eq=False)
class StandingDaemon:
    """A daemon process, and the port at which it looks for a controller."""

    process: DaemonProcess
    port: int

    @contextlib.asynccontextmanager
    async def worker(self, within: float = LIMIT, **options: Any) -> AsyncIterator[sandd.Daemon]:
        """The daemon as a fresh controller sees it; `within` bounds all of the block."""
        async with self.controller(within, **options) as controller:
            yield await controller.wait_for_daemon(self.process.id)

    @contextlib.asynccontextmanager
    async def controller(
        self, within: float = LIMIT, **options: Any
    ) -> AsyncIterator[sandd.Controller]:
        """A fresh controller on the daemon's port; `within` bounds all of the block."""
        with trio.fail_after(within):
            async with sandd.open_controller(port=self.port, **options) as controller:
                yield controller

    @property
    def descriptors(self) -> int:
        """How many the daemon has open; Linux only."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.contextmanager
def standing_daemon(
    daemon_id: str = "worker-1",
    *,
    labels: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
) -> Iterator[StandingDaemon]:
    """A daemon that runs, and has been online once, so that all its processes are up."""
    arguments = ("--reconnect-max", "0.05", *arguments)
    with pytest.MonkeyPatch.context() as patch, reserved_port() as port:
        # A controller that closes asks its daemons to wait that long: too long between two tests.
        patch.setattr(acceptor, "DRAIN_RETRY_SECONDS", 0.01)
        url = f"ws://127.0.0.1:{port}/ws"
        with running_daemon(url, daemon_id, labels=labels, env=env, arguments=arguments) as process:
            with sandd.Server(port=port) as server:
                assert server.wait_for_daemon(daemon_id, timeout=30.0), process.log
                server.exec(daemon_id, "true")
            yield StandingDaemon(process, port)


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that only those who ask for it by number can have."""
    with socket.socket() as holder:
        if sys.platform != "win32":
            # Lets a listener have it, too, as long as nobody else listens.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        if sys.platform == "win32":
            holder.close()
        yield port
