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

Where `CONTROLLERS` says "remote" (see conftest.py), the test's controller is one that it has connected to, as if that
were in another process: the interface is the same, and so are the tests.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import pytest
from attrs import define
from daemons import DaemonProcess, running_daemon
from patience import fail_after_calm

import sandd
from sandd._core import reception

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from sandd._core.job_link import JobLink

CONTROLLERS: Final = ContextVar("CONTROLLERS", default="local")
"""What kind of controller tests get: "local", or "remote"."""
HOSTS: Final[WeakKeyDictionary[JobLink, sandd.Controller]] = WeakKeyDictionary()
"""Of a remote client's link: the controller at its other end."""
TOKEN: Final = "an operator's"
LIMIT: Final = 25.0
"""Seconds of calm for a test that says nothing else: most need less than one."""


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
        with fail_after_calm(within):
            async with contextlib.AsyncExitStack() as stack:
                if CONTROLLERS.get() == "remote":
                    options = {"operator_token": TOKEN, **options}
                opening = sandd.open_controller(port=self.port, **options)
                controller = await stack.enter_async_context(opening)
                if CONTROLLERS.get() == "remote":
                    host = controller
                    connecting = sandd.connect_controller(controller.url, token=TOKEN)
                    controller = await stack.enter_async_context(connecting)
                    HOSTS[controller._service.link] = host
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
        patch.setattr(reception, "DRAIN_RETRY_SECONDS", 0.01)
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
