"""A second agent on a controller: a client of its own over a link of its own.

::

    async with daemon.controller() as controller:
        async with another_agent(controller) as other:
            worker = other.daemon("worker-1")

It lives in the same process, and shares nothing else with the first but the router. Leaving
the block is its death: its link is gone, and whatever it held has no owner any more. What it had
opened may be left after that, without any effect.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from standing_daemon import HOSTS

import sandd
from sandd._core.directory import Directory
from sandd._core.identity.rights import EVERYTHING, Principal
from sandd._core.local_link import LocalLink
from sandd._core.nurseries import open_unwrapping_nursery
from sandd._core.services import Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trio

    from sandd._core.router import Router


class Guest(Service):
    """What stands behind the other's `Controller`; also what wakes its link."""

    def __init__(self, router: Router, principal: Principal) -> None:
        super().__init__()
        self.directory = Directory()
        self.link = self._local = LocalLink(router, self.directory, principal)
        self._local._link.carrier = self
        self.link.flush()  # who is there

    address = "in memory"
    url = "in memory"
    ca_pin = None
    traffic = (0, 0)

    def wake(self) -> None:
        """Take what the router has for it."""
        self.link.flush()

    def close(self, reason: str = "") -> None:  # type: ignore[override]
        """There is nothing to close."""

    async def _serve(self, opened: trio.TaskStatus[None]) -> None:
        raise NotImplementedError

    async def _leave(self) -> None:
        raise NotImplementedError


def router_of(of: sandd.Controller | sandd.Daemon) -> Router:
    """The router behind a controller, or a handle of it."""
    link = of._link if isinstance(of, sandd.Daemon) else of._service.link
    if link in HOSTS:
        return router_of(HOSTS[link])
    assert isinstance(link, LocalLink)
    return link._router


@contextlib.asynccontextmanager
async def another_agent(
    of: sandd.Controller | sandd.Daemon, *, principal: Principal = EVERYTHING
) -> AsyncIterator[sandd.Controller]:
    """The controller as another agent sees it, who may be allowed less."""
    router = router_of(of)
    guest = Guest(router, principal)
    async with open_unwrapping_nursery() as nursery:
        nursery.start_soon(guest.link.run)
        try:
            yield sandd.Controller._create(guest)
        finally:
            guest.link.abandon()
            router.wake_carriers()
            nursery.cancel_scope.cancel()
