"""What tests of `sandd.aio` share: a worker in any event loop, and a look at what is left of the controller."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import anyio
from standing_daemon import LIMIT, StandingDaemon

import sandd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from anyio.abc import ByteReceiveStream

    from sandd import aio


@contextlib.asynccontextmanager
async def aio_worker(
    daemon: StandingDaemon, within: float = LIMIT, **options: Any
) -> AsyncIterator[aio.Daemon]:
    """The daemon as a fresh controller sees it, which is gone afterwards; `within` bounds all of the block."""
    with anyio.fail_after(within):
        async with sandd.aio.open_controller(port=daemon.port, **options) as controller:
            yield await controller.wait_for_daemon(daemon.process.id)
        assert aio_threads() == []


def aio_threads() -> list[threading.Thread]:
    """The trio threads of controllers."""
    return [each for each in threading.enumerate() if each.name == "sandd.aio"]


async def read_all(stream: ByteReceiveStream) -> bytes:
    """All of it, to its end."""
    return b"".join([chunk async for chunk in stream])


async def read_until(stream: ByteReceiveStream, text: bytes) -> bytes:
    """What comes up to that text, and perhaps more."""
    shown = b""
    while text not in shown:
        shown += await stream.receive()
    return shown


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something elsewhere is so; the test's own limit bounds it."""
    while not condition():
        await anyio.sleep(0.005)
