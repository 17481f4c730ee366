"""One call into the controller's trio thread, awaited in any event loop that anyio knows.

    the caller's loop                          the trio thread
    call(): Call.start() --- run_sync_soon --> a task
      await the event
            event.set() <--- call_soon_... --- its promise is done
    cancelled? Call.cancel() --------------->  the task is cancelled, and cleans up
      await the event, shielded  <-----------  its promise is done
      the cancellation goes on

No loop is ever blocked, and no call has a thread. A cancellation goes on once the function has cleaned up,
as it would in trio. asyncio can cancel a task once more while it waits for that, and trio has Ctrl-C: these stop
the waiting, and the cleaning goes on without it; the controller's end waits for the rest.

What the loop has to be told is told to an event that nobody but the waiting task refers to. So a task whose loop
was closed under it is garbage, and once it is collected its call is cancelled, as by `coroutine.close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandd._core.bridge import Call, TrioThread
    from sandd._core.promise import Promise

T = TypeVar("T")


@trio.lowlevel.enable_ki_protection
async def call(
    thread: TrioThread[Any],
    function: Callable[[], Awaitable[T]],
    *,
    unwanted: Callable[[T], object] | None = None,
    although_cancelled: bool = False,
) -> T:
    """What ``await function()`` gives in the trio thread; errors come out as they are, trio's as anyio's.

    Args:
        thread: where the function runs.
        function: what is awaited there.
        unwanted: called there with a value that came too late for a caller who was cancelled.
        although_cancelled: begin even if the caller is cancelled already: what closes something must.
    """
    if not although_cancelled:
        await anyio.lowlevel.checkpoint_if_cancelled()
    its_call = thread.call(function, unwanted=unwanted)
    its_call.start()
    await attend(its_call, its_call.promise)
    return outcome(its_call.promise)


async def attend(its_call: Call[Any], promise: Promise[Any]) -> None:
    """Wait until the promise is done; cancelled meanwhile, cancel the call, and wait until that is done."""
    try:
        await arrival(promise)
    except GeneratorExit:  # nothing can be awaited any more
        its_call.cancel()
        raise
    except BaseException:
        its_call.cancel()
        with anyio.CancelScope(shield=True):
            await arrival(its_call.promise)
        raise


async def arrival(promise: Promise[Any]) -> None:
    """Wait until the promise is done."""
    event = anyio.Event()
    wake = teller(event, lambda event: event.set())
    promise.when_done(wake)
    await event.wait()


def teller(owner: T, function: Callable[[T], object]) -> Callable[[], None]:
    """What has ``function(owner)`` called in this event loop, from any thread, as long as there are both."""
    reference = weakref.ref(owner)
    if trio.lowlevel.in_trio_run():
        soon: Callable[[Callable[[], object]], object] = (
            trio.lowlevel.current_trio_token().run_sync_soon
        )
    else:
        soon = asyncio.get_running_loop().call_soon_threadsafe

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # that loop is closed; trio.RunFinishedError is one
            soon(call_here)

    def call_here() -> None:
        there = reference()
        if there is not None:
            function(there)

    return tell


def outcome(promise: Promise[T]) -> T:
    """The result of a promise that is done, or its error, as anyio has it."""
    try:
        return promise.result()
    except BaseException as error:
        ours = as_anyios(error)
        if ours is error:
            raise
        cause = error.__cause__
    raise ours from cause


def as_anyios(error: BaseException) -> BaseException:
    """An error of trio's streams as anyio calls it; any other is itself."""
    ours: BaseException
    match error:
        case trio.ClosedResourceError():
            ours = anyio.ClosedResourceError(*error.args)
        case trio.BrokenResourceError():
            ours = anyio.BrokenResourceError(*error.args)
        case trio.BusyResourceError():
            ours = anyio.BusyResourceError("using")
            ours.args = error.args
        case _:
            return error
    return ours
