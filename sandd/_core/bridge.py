"""Between threads and a trio loop in a thread of its own: the only place where the two meet.

    other threads                              the trio thread
    TrioThread.start() ----- thread ---------> opens the resource (a controller), and keeps it open
    TrioThread.run() ------- run_sync_soon --> a task in the nursery of calls
             ... waits <---- Promise --------- its result or its exception, as it is
    interrupted? ----------- run_sync_soon --> the task is cancelled, and cleans up by itself
    TrioThread.close() ----- run_sync_soon --> calls fail and are cancelled, the resource is closed

`run` blocks its thread. Who mustn't block one, as an event loop mustn't, starts a `Call` and is told
by its promise (`Promise.when_done`): ``sandd/_core/aio/calls.py``.

`Thread.join` waits only for a thread that has told its end: interrupted earlier, CPython up to 3.12
takes a running thread for a finished one.

The thread is a daemon thread, so that it keeps no interpreter alive; but every thread that is still
open at exit is closed in good order, after all other threads have ended. A fork doesn't take it
along: in the child it is closed.
"""

from __future__ import annotations

import atexit
import contextvars
import copy
import os
import threading
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import trio

from sandd._core._errors import SanddError
from sandd._core.logs import get_logger
from sandd._core.promise import Promise

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from typing import TypeVarTuple, Unpack

    Arguments = TypeVarTuple("Arguments")

T = TypeVar("T")
Resource = TypeVar("Resource")

log = get_logger("bridge")

CLOSE_SECONDS: Final = 30.0
"""How long closing may take: a controller bounds its own end by about eleven seconds."""
ABANDONED_SECONDS: Final = 1.0
"""How long the interpreter's exit waits where the user has already interrupted a `close`."""


class Call(Generic[T]):
    """One asynchronous function on its way through the trio thread; made by `TrioThread.call`."""

    def __init__(
        self,
        thread: TrioThread[Any],
        function: Callable[[], Awaitable[T]],
        unwanted: Callable[[T], object] | None,
    ) -> None:
        self._thread = thread
        self._function = function
        self._unwanted = unwanted
        self._context = contextvars.copy_context()
        self._scope = trio.CancelScope()
        self.promise: Promise[T] = Promise()
        # Of the trio thread alone:
        self.cancelled = False
        """By whoever made it; not because the thread is stopped."""
        self._given: list[T] = []
        """The value, where somebody has to have it, as long as it may come out that nobody has."""

    # -- any thread

    def start(self) -> None:
        """Send it on its way. Once only."""
        if not self._thread._soon(self._begin):
            self.promise.fail(self._thread._why_closed())

    def cancel(self) -> None:
        """Cancel the function, or keep it from beginning, unless it has ended. Doesn't wait.

        Whoever calls this has no use for a value any more; one that came all the same is `unwanted`.
        """
        if not self.promise.done or self._unwanted is not None:
            self._thread._soon(self._cancel)

    # -- the trio thread

    def _begin(self) -> None:
        nursery = self._thread._nursery
        if nursery is None:
            self.promise.fail(self._thread._why_closed())
        elif self._scope.cancel_called:
            self.promise.fail(_cancelled())
        else:
            self._thread._calls.add(self)
            self._context.run(nursery.start_soon, self._perform)

    async def _perform(self) -> None:
        try:
            with self._scope:
                value = await self._function()
            if self._scope.cancelled_caught:
                self.promise.fail(_cancelled())
            else:
                self._give(value)
        except BaseException as error:
            # Whatever it is, it is the caller's, and is raised there as itself. A Cancelled can't
            # be of a scope of ours: that of the call has taken its own, and the nursery's is never
            # cancelled.
            self.promise.fail(_cancelled() if isinstance(error, trio.Cancelled) else error)
        finally:
            self._thread._calls.discard(self)

    def _give(self, value: T) -> None:
        if self._unwanted is not None:
            self._given.append(value)
        if self.cancelled or not self.promise.keep(value):
            self._take_back()
            self.promise.fail(_cancelled())

    def _cancel(self) -> None:
        self.cancelled = True
        self._scope.cancel()
        self._take_back()

    def _take_back(self) -> None:
        while self._given and self._unwanted is not None:
            self._unwanted(self._given.pop())

    def _give_up(self, error: BaseException) -> None:
        """The caller learns at once; what the function has to clean up it cleans up by itself."""
        self.promise.fail(error)
        self._scope.cancel()


def _cancelled() -> BaseException:
    return RuntimeError("the call was cancelled")


class TrioThread(Generic[Resource]):
    """A trio loop in a thread of its own, with one resource open in it as long as it lasts.

    All methods may be called from any number of threads at once. Those that wait (`start`, `run`
    and `close`) may not be called by functions that run in the trio thread itself.
    """

    def __init__(
        self, open_resource: Callable[[], AbstractAsyncContextManager[Resource]], *, name: str
    ) -> None:
        self._open_resource = open_resource
        self._name = name
        """What errors call it; the thread has the same name."""
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._token: trio.lowlevel.TrioToken | None = None
        self._opened: Promise[Resource] = Promise()
        self.ended: Promise[None] = Promise()
        """Nothing of it runs any more; but for its last breath, see `finish`."""
        self._stop_requested = False
        self._interrupted = False
        """The user did not want to wait for the end."""
        self._forked = False
        """This is a child of the process that it runs in."""
        self._failure: BaseException | None = None
        """What ended the resource, once it was open, without having been asked to."""
        # Of the trio thread alone:
        self._stop: trio.Event | None = None
        self._nursery: trio.Nursery | None = None
        """Where calls run; None while none may begin."""
        self._calls: set[Call[Any]] = set()

    @property
    def stopped(self) -> bool:
        """It was told to stop, or has ended."""
        return self._stop_requested or self.ended.done

    def start(self) -> Resource:
        """Start the thread, and wait until the resource is open; what prevents that is raised."""
        opened = self.launch()
        try:
            opened.wait()
            return opened.result()
        except BaseException:
            self.close()
            raise

    def launch(self) -> Promise[Resource]:
        """Start the thread, which is then to be stopped; the resource, once that is open. Doesn't wait."""
        try:
            self._thread.start()
        except RuntimeError:  # no more threads can be had
            self.ended.keep(None)
            raise
        return self._opened

    def run(
        self,
        async_fn: Callable[[Unpack[Arguments]], Awaitable[T]],
        *args: *Arguments,
        unwanted: Callable[[T], object] | None = None,
    ) -> T:
        """Run ``await async_fn(*args)`` in the trio thread, and wait for it.

        An exception that interrupts the waiting (KeyboardInterrupt, or whatever else a signal
        handler raises) goes out at once; the function is cancelled, and cleans up in the
        background. A value that it gives all the same goes to `unwanted`.

        Raises:
            trio.ClosedResourceError: `stop` or `close` was called, before this or meanwhile.
            RuntimeError: this is the trio thread itself; or the resource has failed.
        """
        self.check_thread()
        call = self.call(async_fn, *args, unwanted=unwanted)
        try:
            call.start()
            call.promise.wait()
            return call.promise.result()
        except BaseException:
            call.cancel()
            raise

    def call(
        self,
        async_fn: Callable[[Unpack[Arguments]], Awaitable[T]],
        *args: *Arguments,
        unwanted: Callable[[T], object] | None = None,
    ) -> Call[T]:
        """A call that its maker starts, and may cancel, without ever waiting.

        The function runs in a copy of the context (`contextvars`) of this moment. If the call was cancelled
        too late, and there is a value that nobody will have, that goes to `unwanted`, in the trio thread.
        """
        return Call(self, lambda: async_fn(*args), unwanted)

    def stop(self) -> None:
        """Fail and cancel all calls, and close the resource. Doesn't wait; may be repeated."""
        # Set before the token is looked at; `_live` does the two in the other order.
        self._stop_requested = True
        self._soon(self._stop_now)

    def close(self) -> None:
        """`stop`, and wait until the thread has ended.

        Raises:
            RuntimeError: this is the trio thread itself; or the resource had failed; or a function
                in there doesn't let itself be cancelled, and the thread is left behind.
        """
        self.check_thread()
        self.stop()
        try:
            ended = self.ended.wait(CLOSE_SECONDS)
        except BaseException:
            self._interrupted = True
            raise
        if not ended:
            raise RuntimeError(
                f"{self._name} did not end within {CLOSE_SECONDS:.0f} s: "
                "a function that was called in it does not let itself be cancelled"
            )
        self.finish()

    def finish(self) -> None:
        """See the last of a thread that has `ended`; RuntimeError if the resource had failed."""
        self._thread.join()
        if self._failure is not None:
            raise self._why_closed()

    # -- inside

    def check_thread(self) -> None:
        """RuntimeError if this is the trio thread itself, which can't wait for what it does."""
        # Not by its ident, which another thread may have once it has ended.
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                f"this waits for the trio thread of {self._name}, and was called in that thread; "
                "in there, await the asynchronous functions themselves"
            )

    def _soon(self, function: Callable[[], object]) -> bool:
        """Have the trio thread call `function`; False if it doesn't run."""
        if self._token is None:
            return False
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            return False
        return True

    def _why_closed(self) -> BaseException:
        """Why no call can go on: a fresh exception for each caller."""
        if self._forked:
            return trio.ClosedResourceError(f"{self._name} is another process', which was forked")
        if self._failure is None:
            return trio.ClosedResourceError(f"{self._name} was closed")
        if isinstance(self._failure, SanddError):
            return copy.copy(
                self._failure
            )  # it is meant for callers, as the token that isn't taken any more
        error = RuntimeError(f"{self._name} has failed: {self._failure!r}")
        error.__cause__ = self._failure
        return error

    # -- the trio thread

    def _main(self) -> None:
        _not_ended.add(self)
        try:
            trio.run(self._live)
        except BaseException as error:
            self._failed(error)
        finally:
            _not_ended.discard(self)
            self.ended.keep(None)

    def _failed(self, error: BaseException) -> None:
        if not self._opened.fail(error):
            self._failure = error
            log.error("controller_failed", thread=self._name, exc_info=error)

    async def _live(self) -> None:
        self._stop = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        if self._stop_requested:
            self._stop.set()
        # Around the resource, as closing it must not wait for the calls: its end bounds what they
        # may still do to clean up, not the other way round.
        async with trio.open_nursery() as nursery:
            try:
                async with self._open_resource() as resource:
                    self._nursery = nursery
                    self._opened.keep(resource)
                    await self._stop.wait()
                    self._give_up_calls()
            except BaseException as error:
                self._failed(error)
                self._give_up_calls()

    def _stop_now(self) -> None:
        if self._stop is not None:
            self._stop.set()

    def _give_up_calls(self) -> None:
        self._nursery = None
        for call in list(self._calls):
            call._give_up(self._why_closed())


_not_ended: set[TrioThread[Any]] = set()


@atexit.register
def _close_all() -> None:
    """End in good order what nobody has closed. All but daemon threads have ended by now."""
    try:
        for thread in list(_not_ended):
            thread.stop()
        for thread in list(_not_ended):
            thread.ended.wait(ABANDONED_SECONDS if thread._interrupted else CLOSE_SECONDS)
    except KeyboardInterrupt:
        pass  # the user doesn't want to wait, and would only get a traceback more


def _leave_all_to_the_parent() -> None:
    for thread in list(_not_ended):
        thread._forked = thread._stop_requested = True
        thread._token = None  # it would wake the parent's
        thread.ended.keep(None)
    _not_ended.clear()


if hasattr(os, "register_at_fork"):  # where there is fork
    os.register_at_fork(after_in_child=_leave_all_to_the_parent)
