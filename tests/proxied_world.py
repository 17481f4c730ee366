"""A controller, a daemon, and a fault proxy between them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from attrs import define
from daemons import DaemonProcess, open_daemon
from patience import fail_after_calm
from process_tools import until

import sandd
from sandd import DaemonState
from sandd.testing import DaemonCore, FaultProxy, open_daemon_cores, open_fault_proxy
from sandd.testing.fake_processes import Program, play_well_known

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from standing_daemon import StandingDaemon

LIMIT: Final = 40.0
"""Seconds of calm for all that happens in one world, unless told otherwise."""


@define
class World:
    """A controller, a daemon, and the proxy between them."""

    controller: sandd.Controller
    proxy: FaultProxy
    process: DaemonProcess
    worker: sandd.Daemon

    async def away(self) -> None:
        """Return when the controller has noticed a cut."""
        await until(lambda: self.worker.state is not DaemonState.ONLINE)

    async def back(self) -> None:
        """Return when the daemon is online again."""
        await self.controller.wait_for_daemon(self.worker.id)

    async def disconnect(self) -> None:
        """Cut, keep it cut, and return when the controller has noticed."""
        self.proxy.refuse()
        await self.away()


@contextlib.asynccontextmanager
async def world(
    daemon: StandingDaemon | None = None,
    within: float = LIMIT,
    *,
    faults: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[World]:
    """A fresh controller and proxy, with these `faults`, and a fresh daemon unless one is given."""
    with fail_after_calm(within):
        async with (
            sandd.open_controller(port=0, **options) as controller,
            open_fault_proxy(
                controller.address, port=0 if daemon is None else daemon.port, **(faults or {})
            ) as proxy,
        ):
            if daemon is not None:
                worker = await controller.wait_for_daemon("worker-1")
                yield World(controller, proxy, daemon.process, worker)
                return
            arguments = ["--reconnect-max", "0.05"]
            async with open_daemon(proxy.url, arguments=arguments) as process:
                worker = await controller.wait_for_daemon("worker-1")
                yield World(controller, proxy, process, worker)


@define
class CoreWorld:
    """A controller, a daemon without processes in this very program, and the proxy between them."""

    controller: sandd.Controller
    proxy: FaultProxy
    core: DaemonCore
    worker: sandd.Daemon


@contextlib.asynccontextmanager
async def core_world(
    within: float = LIMIT,
    *,
    faults: Mapping[str, Any] | None = None,
    program: Program = play_well_known,
    **options: Any,
) -> AsyncIterator[CoreWorld]:
    """All of it fresh; `program` plays the jobs."""
    with fail_after_calm(within):
        async with (
            sandd.open_controller(port=0, **options) as controller,
            open_fault_proxy(controller.address, **(faults or {})) as proxy,
            open_daemon_cores(proxy.url, 1, program=program, reconnect_max=0.05) as cores,
        ):
            worker = await controller.wait_for_daemon("core-0")
            await cores.wait_live()
            yield CoreWorld(controller, proxy, cores[0], worker)
