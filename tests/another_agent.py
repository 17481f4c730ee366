"""A second agent on a controller, as a remote operator will be: a client of its own over a link of its own.

::

    async with daemon.controller() as controller:
        async with another_agent(controller) as other:
            worker = other.daemon("worker-1")

It lives in the same process, and shares nothing else with the first but router and registry. Leaving
the block is its death: its link is gone, and whatever it held has no owner any more. What it had
opened may be left after that, without any effect.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import sandd
from sandd._core.local_link import LocalLink
from sandd._core.nurseries import open_unwrapping_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def controller_of(worker: sandd.Daemon) -> sandd.Controller:
    """The controller that this is a handle of."""
    controller: sandd.Controller = worker._link._wake.__self__  # type: ignore[attr-defined]
    return controller


@contextlib.asynccontextmanager
async def another_agent(
    controller: sandd.Controller, *, tenant: str = "default"
) -> AsyncIterator[sandd.Controller]:
    """The controller as another agent sees it, which may be another tenant's."""
    other: sandd.Controller = object.__new__(sandd.Controller)
    other._router, other._registry = controller._router, controller._registry
    other._acceptor, other._listening = controller._acceptor, controller._listening
    other._loop_lag = 0.0
    other._local = LocalLink(controller._router, controller._wake, controller._blame)
    other._local._link.tenant = tenant
    alone = controller._acceptor.after_message

    def flush_both() -> None:
        alone()
        other._local.flush()

    def use(after_message: object) -> None:
        controller._acceptor.after_message = after_message  # type: ignore[assignment]
        for record in controller._registry:
            if record.pump is not None:
                record.pump._after_message = after_message  # type: ignore[assignment]

    use(flush_both)
    other._local.flush()  # who is there
    async with open_unwrapping_nursery() as nursery:
        nursery.start_soon(other._local.run)
        try:
            yield other
        finally:
            use(alone)
            other._router.remove_client(other._local._link)
            other._local.abandon()
            controller._local.flush()
            nursery.cancel_scope.cancel()
