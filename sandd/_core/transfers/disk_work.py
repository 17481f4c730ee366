"""The disk's share of one transfer: in threads, one at a time, and given up if it never comes back.

A thread is not interrupted in a system call. Who is cancelled leaves at once, and `finish` waits a
while for the thread. If it doesn't come back, as on a network file system whose server is gone, what
was to be done at the end is done by another thread, which waits for it however long that takes:
nobody closes a descriptor that a thread uses, and nobody uses one that was closed.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

import trio

from sandd._core.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

log = get_logger("transfers")

THREADS: Final = 16
"""Of all transfers of a program that are in a system call at the same time: more make no disk faster."""
GIVE_UP_SECONDS: Final = 5.0
"""For the disk at the end of a transfer, cancelled or not: one that hangs must not keep its program."""

_limiters: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("transfer threads")


def _limiter() -> trio.CapacityLimiter:
    try:
        return _limiters.get()
    except LookupError:
        _limiters.set(trio.CapacityLimiter(THREADS))
        return _limiters.get()


class GivenUp(Exception):
    """Work stops here, as nobody waits for it."""


class DiskWork:
    """What one transfer, or one request, does on a disk; in threads of `limiter`, or of all transfers."""

    def __init__(self, limiter: trio.CapacityLimiter | None = None) -> None:
        self._limiter = limiter or _limiter()
        self._in_use = threading.Lock()
        self._is_given_up = False

    def check(self) -> None:
        """For work that takes long: raises when nobody waits for it any more."""
        if self._is_given_up:
            raise GivenUp

    async def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns, done in a thread. Cancelled, it may still be under way: see `finish`."""

        def alone() -> T:
            with self._in_use:
                self.check()
                return work(*args, **kwargs)

        try:
            return await trio.to_thread.run_sync(
                alone, limiter=self._limiter, abandon_on_cancel=True
            )
        except trio.Cancelled:
            self._is_given_up = True
            raise

    async def finish(self, work: Callable[[], None]) -> None:
        """Do `work` behind all else, in spite of a cancellation; after `GIVE_UP_SECONDS` don't wait for it.

        It raises nothing: whoever ends has said why already.
        """

        self._is_given_up = True

        def last() -> None:
            with self._in_use:
                try:
                    work()
                except OSError as error:
                    log.warning("transfer_cleanup_failed", reason=str(error))

        with trio.move_on_after(GIVE_UP_SECONDS, shield=True) as scope:
            # With a thread of its own: those of the others may all hang.
            await trio.to_thread.run_sync(
                last, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True
            )
        if scope.cancelled_caught:
            log.warning("transfer_disk_hangs", seconds=GIVE_UP_SECONDS)
