"""Blocking work in threads, for tasks that may be cancelled while the system keeps a thread for ever.

A call to a disk that hangs can't be interrupted. So whoever waits for one leaves it there, and what it
holds - a descriptor, a temporary file - is let go of by the thread, when it comes back.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio

from sandd._core.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

T = TypeVar("T")

log = get_logger("threads")

CLOSE_SECONDS: Final = 5.0
"""How long the end of the work waits for its last step, and for the resources to be closed."""


class Closable(Protocol):
    """Something to be closed, in a thread."""

    def close(self) -> None:
        """Let go of what it holds."""
        ...


C = TypeVar("C", bound=Closable)


class ThreadWork:
    """Steps of one piece of work, each in a thread, one at a time; what they opened is closed behind the last."""

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._lock = threading.Lock()
        self._opened: list[Closable] = []
        self._is_in_step = False
        self._is_over = False
        self._left = trio.Event()
        """The step that was under way at the end has seen to it."""

    async def run(self, step: Callable[[], T]) -> T:
        """What `step` returns, called in a thread. Cancelling doesn't wait for it."""
        token = trio.lowlevel.current_trio_token()
        return await trio.to_thread.run_sync(
            self._do, step, token, limiter=self._limiter, abandon_on_cancel=True
        )

    def keep(self, thing: C) -> C:
        """Within a step: `thing` is to be closed at the end."""
        self._opened.append(thing)
        return thing

    async def aclose(self) -> None:
        """Close what was opened. If a step is still under way, it does that when it comes back."""
        with self._lock:
            self._is_over = True
            is_in_step = self._is_in_step
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            if is_in_step:
                await self._left.wait()
            elif self._opened:
                # Not of the limiter's threads, which may all be waiting for a disk that hangs.
                await trio.to_thread.run_sync(
                    self._close, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True
                )

    def _do(self, step: Callable[[], T], token: trio.lowlevel.TrioToken) -> T:
        with self._lock:
            if self._is_over:
                raise RuntimeError("nobody waits for this step any more")  # and nobody sees this
            self._is_in_step = True
        try:
            return step()
        finally:
            with self._lock:
                self._is_in_step = False
                is_over = self._is_over
            if is_over:
                self._close()
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(self._left.set)

    def _close(self) -> None:
        while self._opened:
            thing = self._opened.pop()
            try:
                thing.close()
            except Exception as error:  # it is only tidying, and nobody waits for it
                log.warning("not_closed", thing=type(thing).__name__, reason=str(error))


@contextlib.asynccontextmanager
async def open_thread_work(limiter: trio.CapacityLimiter) -> AsyncIterator[ThreadWork]:
    """Work in threads; at the end of the block all is closed, or will be by the thread that is still at it."""
    work = ThreadWork(limiter)
    try:
        yield work
    finally:
        await work.aclose()
