"""An asynchronous context manager in the trio thread, entered and left from any event loop."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
import anyio.lowlevel
import trio

from sandd._core.aio.calls import arrival, as_anyios, attend, outcome, teller
from sandd._core.bridge import TrioThread
from sandd._core.held_block import Hold

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

Y = TypeVar("Y")
Z = TypeVar("Z")


class HeldOpen(AbstractAsyncContextManager[Z, "bool | None"], Generic[Y, Z]):
    """A block there, whose value is wrapped here; to be used once.

    Leaving by an exception leaves the block there by one, and waits until it has cleaned up. Cancelled before
    anybody had the value, that is taken back.
    """

    def __init__(
        self,
        thread: TrioThread[Any],
        open_block: Callable[[], AbstractAsyncContextManager[Y, bool | None]],
        wrap: Callable[[TrioThread[Any], Y], Z],
        *,
        take_back: Callable[[Y], Awaitable[object]] | None = None,
        may_fail: bool = False,
    ) -> None:
        """With `may_fail` the body is cancelled when the block fails by itself, as trio's would be."""
        self._thread = thread
        self._wrap = wrap
        self._hold = Hold(thread, open_block, take_back=take_back)
        self._body = anyio.CancelScope() if may_fail else None

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Z:
        """Enter it."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._hold.call.start()
        await attend(self._hold.call, self._hold.opened)
        value = outcome(self._hold.opened)
        if self._body is not None:
            self._body.__enter__()
            self._hold.call.promise.when_done(teller(self, HeldOpen._cancel_body))
        return self._wrap(self._thread, value)

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Leave it."""
        if self._body is not None and self._body.__exit__(kind, error, traceback):
            error = None  # it was the scope's own, which the end of the block has cancelled
        self._hold.let_go(by_error=error is not None)
        if isinstance(error, GeneratorExit):
            return None  # nothing can be awaited any more
        if error is None:
            await attend(self._hold.call, self._hold.call.promise)
        else:  # it cleans up already; who is cancelled once more meanwhile doesn't wait for that
            with anyio.CancelScope(shield=True):
                await arrival(self._hold.call.promise)
        try:
            self._hold.call.promise.result()
        except BaseException as failure:
            # Of a thread that was stopped there is nothing to tell: the controller is closed, and so is this.
            if not self._thread.stopped:
                if error is None:
                    raise as_anyios(failure) from failure.__cause__
                error.add_note(f"beside it, this failed: {failure!r}")
        return error is None

    def _cancel_body(self) -> None:
        if self._body is not None and not self._thread.stopped:
            self._body.cancel()


class OpenThread(AbstractAsyncContextManager[Z, None], Generic[Y, Z]):
    """A trio thread with a resource open in it, for as long as the block lasts; to be used once."""

    def __init__(
        self,
        open_resource: Callable[[], AbstractAsyncContextManager[Y, bool | None]],
        wrap: Callable[[TrioThread[Any], Y], Z],
        hurry: Callable[[Y], object],
        *,
        name: str,
    ) -> None:
        """`hurry` makes closing not wait for anybody: called there for who is cancelled once more meanwhile."""
        self._thread: TrioThread[Y] = TrioThread(open_resource, name=name)
        self._wrap = wrap
        self._hurry = hurry

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Z:
        """Start it, and wait until the resource is open."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        opened = self._thread.launch()
        try:
            await arrival(opened)
            self._resource = outcome(opened)
        except GeneratorExit:
            self._thread.stop()
            raise
        except BaseException:
            self._thread.stop()
            with anyio.CancelScope(shield=True):
                await arrival(self._thread.ended)
            self._thread.finish()
            raise
        return self._wrap(self._thread, self._resource)

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the resource, and wait until that is done, and the thread gone; its end is bounded by itself."""
        self._thread.stop()
        if isinstance(error, GeneratorExit):
            return
        with anyio.CancelScope(shield=True):
            try:
                await arrival(self._thread.ended)
            except BaseException:  # asyncio's cancellation of this task alone, or trio's Ctrl-C
                self._thread._soon(lambda: self._hurry(self._resource))
                await arrival(self._thread.ended)
                self._thread.finish()
                raise
        try:
            self._thread.finish()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"beside it, this failed: {failure!r}")
