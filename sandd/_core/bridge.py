"""Between threads and a trio loop in a thread of its own: the only place where the two meet.

    other threads                              the trio thread
    TrioThread.start() ----- thread ---------> opens the resource (a controller), and keeps it open
    TrioThread.run() ------- run_sync_soon --> a task in the nursery of calls
             ... waits <---- Promise --------- its result or its exception, as it is
    interrupted? ----------- run_sync_soon --> the task is cancelled, and cleans up by itself
    TrioThread.close() ----- run_sync_soon --> calls fail and are cancelled, the resource is closed

Waiting threads wait on C locks only. `threading.Event`, `Condition` and what is built of them are
Python: a KeyboardInterrupt in the wrong place leaves their inner lock held, and then the trio
thread would hang in `set`. For the same reason `Thread.join` waits only for a thread that has told
its end: interrupted earlier, CPython up to 3.12 takes a running thread for a finished one.

The thread is a daemon thread, so that it keeps no interpreter alive; but every thread that is still
open at exit is closed in good order, after all other threads have ended.
"""

from __future__ import annotations

import atexit
import contextvars
import math
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import trio

from sandd._core.logs import get_logger

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
_LONGEST_WAIT: Final = 0.1 if sys.platform == "win32" else 3600.0
"""Seconds at a stretch that a thread waits for a lock: on Windows it hears no Ctrl-C meanwhile."""


class Promise(Generic[T]):
    """A value or an exception to come, for any number of waiting threads.

    Neither side ever blocks the other, wherever a signal handler's exception strikes a waiter.
    """

    def __init__(self) -> None:
        self._waiters: deque[threading.Lock] = deque()
        self._value: T | None = None
        self._error: BaseException | None = None
        self.done = False

    def keep(self, value: T) -> bool:
        """Here is the value; False if the promise was done already, and nothing changes."""
        if self.done:
            return False
        self._value = value
        self._settle()
        return True

    def fail(self, error: BaseException) -> bool:
        """There will be no value; False if the promise was done already, and nothing changes."""
        if self.done:
            return False
        self._error = error
        self._settle()
        return True

    def _settle(self) -> None:
        self.done = True
        while self._waiters:
            self._waiters.popleft().release()

    def wait(self, seconds: float | None = None) -> bool:
        """Block this thread until the promise is done; False if that takes more than `seconds`."""
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        # Each waiter has a lock of its own, which only `_settle` releases. It is in the queue
        # before `done` is looked at, and `done` is set before the queue is emptied: none is
        # forgotten.
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        while not self.done:
            left = min(deadline - time.monotonic(), _LONGEST_WAIT)
            if left <= 0:
                return False
            waiter.acquire(timeout=left)
        return True

    def result(self) -> T:
        """The value, or the exception raised. For one caller: it takes the outcome away."""
        assert self.done
        value, error = self._value, self._error
        self._value = self._error = None
        if error is None:
            return value  # type: ignore[return-value]  # None only where T has it
        try:
            raise error
        finally:
            # The error's traceback has this frame, and this frame must not have the error.
            del error, self


class Call(Generic[T]):
    """One asynchronous function on its way through the trio thread; made by `TrioThread.call`."""

    def __init__(
        self,
        thread: TrioThread[Any],
        function: Callable[[], Awaitable[T]],
        on_done: Callable[[], object],
    ) -> None:
        self._thread = thread
        self._function = function
        self._on_done = on_done
        self._context = contextvars.copy_context()
        self._scope = trio.CancelScope()
        self.promise: Promise[T] = Promise()

    # -- any thread

    def start(self) -> None:
        """Send it on its way. Once only."""
        if not self._thread._soon(self._begin):
            self._fail(self._thread._why_closed())

    def cancel(self) -> None:
        """Cancel the function, or keep it from beginning, unless it has ended. Doesn't wait."""
        if not self.promise.done:
            self._thread._soon(self._scope.cancel)

    # -- the trio thread

    def _begin(self) -> None:
        nursery = self._thread._nursery
        if nursery is None:
            self._fail(self._thread._why_closed())
        elif self._scope.cancel_called:
            self._fail(_cancelled())
        else:
            self._thread._calls.add(self)
            self._context.run(nursery.start_soon, self._perform)

    async def _perform(self) -> None:
        try:
            with self._scope:
                value = await self._function()
            if self._scope.cancelled_caught:
                self._fail(_cancelled())
            elif self.promise.keep(value):
                self._on_done()
        except BaseException as error:
            # Whatever it is, it is the caller's, and is raised there as itself. A Cancelled can't
            # be of a scope of ours: that of the call has taken its own, and the nursery's is never
            # cancelled.
            self._fail(_cancelled() if isinstance(error, trio.Cancelled) else error)
        finally:
            self._thread._calls.discard(self)

    def _fail(self, error: BaseException) -> None:
        if self.promise.fail(error):
            self._on_done()

    def _give_up(self, error: BaseException) -> None:
        """The caller learns at once; what the function has to clean up it cleans up by itself."""
        self._fail(error)
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
        self._ended: Promise[None] = Promise()
        self._stop_requested = False
        self._interrupted = False
        """The user did not want to wait for the end."""
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
        return self._stop_requested or self._ended.done

    def start(self) -> Resource:
        """Start the thread, and wait until the resource is open; what prevents that is raised."""
        try:
            self._thread.start()
        except RuntimeError:  # no more threads can be had
            self._ended.keep(None)
            raise
        try:
            self._opened.wait()
            return self._opened.result()
        except BaseException:
            self.close()
            raise

    def run(self, async_fn: Callable[[Unpack[Arguments]], Awaitable[T]], *args: *Arguments) -> T:
        """Run ``await async_fn(*args)`` in the trio thread, and wait for it.

        An exception that interrupts the waiting (KeyboardInterrupt, or whatever else a signal
        handler raises) goes out at once; the function is cancelled, and cleans up in the
        background.

        Raises:
            trio.ClosedResourceError: `stop` or `close` was called, before this or meanwhile.
            RuntimeError: this is the trio thread itself; or the resource has failed.
        """
        self._check_thread()
        call = self.call(async_fn, *args)
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
        on_done: Callable[[], object] = lambda: None,
    ) -> Call[T]:
        """A call that its maker starts, and may cancel, without ever waiting.

        `on_done` is called when its promise is done, mostly in the trio thread; it must neither
        block nor raise. The function runs in a copy of the context (`contextvars`) of this moment.
        """
        return Call(self, lambda: async_fn(*args), on_done)

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
        self._check_thread()
        self.stop()
        try:
            ended = self._ended.wait(CLOSE_SECONDS)
        except BaseException:
            self._interrupted = True
            raise
        if not ended:
            raise RuntimeError(
                f"{self._name} did not end within {CLOSE_SECONDS:.0f} s: "
                "a function that was called in it does not let itself be cancelled"
            )
        self._thread.join()
        if self._failure is not None:
            raise self._why_closed()

    # -- inside

    def _check_thread(self) -> None:
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
        if self._failure is None:
            return trio.ClosedResourceError(f"{self._name} was closed")
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
            self._ended.keep(None)

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
            thread._ended.wait(ABANDONED_SECONDS if thread._interrupted else CLOSE_SECONDS)
    except KeyboardInterrupt:
        pass  # the user doesn't want to wait, and would only get a traceback more
