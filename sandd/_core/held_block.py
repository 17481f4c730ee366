"""An asynchronous context manager for code that doesn't use trio: a task in the trio thread holds it open.

`Hold` is that task, which never waits for anybody; `HeldBlock` is a plain context manager made of it,
and ``sandd/_core/aio/blocks.py`` one for event loops.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from sandd._core.promise import Promise

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from sandd._core.bridge import TrioThread

T = TypeVar("T")


class Hold(Generic[T]):
    """A block that is entered by `call.start`, and left by `let_go`, or by itself if it fails."""

    def __init__(
        self,
        thread: TrioThread[Any],
        open_block: Callable[[], AbstractAsyncContextManager[T, bool | None]],
        *,
        take_back: Callable[[T], Awaitable[object]] | None = None,
    ) -> None:
        """With `take_back`, called for a value if `call` is cancelled before anybody had it."""
        self._thread = thread
        self._open_block = open_block
        self._take_back = take_back
        self._leave = trio.Event()
        self._by_error = False
        self.opened: Promise[T] = Promise()
        """What the block gives, once it is entered; or what prevents that."""
        self.call = thread.call(self._hold_open)
        """Done when the block has been left; with what it raised, unless that was ours."""
        self.call.promise.when_done(self._is_over)

    def let_go(self, *, by_error: bool = False) -> None:
        """Leave the block, as if its body had ended, or had raised an error; idempotent. Doesn't wait."""
        self._by_error = self._by_error or by_error
        self._thread._soon(self._leave.set)

    async def _hold_open(self) -> None:
        with suppress(_BodyFailedError):
            async with self._open_block() as value:
                self.opened.keep(value)
                try:
                    await self._leave.wait()
                    if self._by_error:
                        raise _BodyFailedError
                finally:
                    if self.call.cancelled and not self._leave.is_set() and self._take_back:
                        await self._take_back(value)

    def _is_over(self) -> None:
        if not self.opened.done:
            try:
                self.call.promise.result()
            except BaseException as error:
                self.opened.fail(error)


class _BodyFailedError(Exception):
    """What the body raised, in another thread, as far as the block is concerned."""


class HeldBlock(Generic[T]):
    """A block that is entered and left from any thread; also a plain context manager, to be used once."""

    def __init__(
        self,
        thread: TrioThread[Any],
        open_block: Callable[[], AbstractAsyncContextManager[T, bool | None]],
        *,
        take_back: Callable[[T], Awaitable[object]] | None = None,
    ) -> None:
        self._thread = thread
        self._hold = Hold(thread, open_block, take_back=take_back)

    def enter(self) -> T:
        """What the block gives, once it is entered; or what prevents that. Interrupted, it is left again."""
        self._thread.check_thread()
        try:
            self._hold.call.start()
            self._hold.opened.wait()
            return self._hold.opened.result()
        except BaseException:
            self._hold.call.cancel()
            raise

    def leave(self, *, by_error: bool = False) -> None:
        """Leave it, and wait until that is done; idempotent. What goes wrong with that is not told here.

        Once the thread has been stopped there is nothing left to wait for.
        """
        self._thread.check_thread()
        self._hold.let_go(by_error=by_error)
        self._hold.call.promise.wait()

    def __enter__(self) -> T:
        """Enter it."""
        return self.enter()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave it; raises what the block ended with by itself, unless the body has something to raise."""
        try:
            self.leave(by_error=kind is not None)
        except BaseException:
            self._hold.call.cancel()
            raise
        if kind is None:
            with suppress(trio.ClosedResourceError):
                self._hold.call.promise.result()
