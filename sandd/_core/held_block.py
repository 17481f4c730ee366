"""An asynchronous context manager for code that doesn't use trio: a task in the trio thread holds it open."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from sandd._core.bridge import Promise

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from sandd._core.bridge import TrioThread

T = TypeVar("T")


class HeldBlock(Generic[T]):
    """A block that is entered and left from any thread; also a plain context manager, to be used once."""

    def __init__(
        self,
        thread: TrioThread[Any],
        open_block: Callable[[], AbstractAsyncContextManager[T, bool | None]],
    ) -> None:
        self._thread = thread
        self._opened: Promise[T] = Promise()
        self._leave = trio.Event()
        self._hold = thread.call(self._hold_open, open_block, on_done=self._is_over)

    def enter(self) -> T:
        """What the block gives, once it is entered; or what prevents that. Interrupted, it is left again."""
        try:
            self._hold.start()
            self._opened.wait()
            return self._opened.result()
        except BaseException:
            self._hold.cancel()
            raise

    def leave(self) -> None:
        """Leave it, and wait until that is done; idempotent. What goes wrong with that is not told here.

        Once the thread has been stopped there is nothing left to wait for.
        """
        with suppress(trio.ClosedResourceError):
            self._thread.run(self._let_go)
            self._hold.promise.wait()

    def __enter__(self) -> T:
        """Enter it."""
        return self.enter()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave it; raises what the block ended with by itself, unless the body has something to raise."""
        try:
            self.leave()
        except BaseException:
            self._hold.cancel()
            raise
        if kind is None and self._hold.promise.done:
            with suppress(trio.ClosedResourceError):
                self._hold.promise.result()

    async def _let_go(self) -> None:
        self._leave.set()

    async def _hold_open(
        self, open_block: Callable[[], AbstractAsyncContextManager[T, bool | None]]
    ) -> None:
        async with open_block() as value:
            self._opened.keep(value)
            await self._leave.wait()

    def _is_over(self) -> None:
        if not self._opened.done:
            try:
                self._hold.promise.result()
            except BaseException as error:
                self._opened.fail(error)
