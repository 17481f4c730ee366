"""Ctrl-C in an agent: where KeyboardInterrupt may strike, and where it has to wait.

Python raises KeyboardInterrupt in whatever the main thread is doing at that moment. In our code that
would tear a link down before the Ends of its jobs were sent, or lose a frame on its way from one
queue to the next; and the trees on the other side would live on until their leases are over. So we
use trio's protection: while a protected function is on the stack the signal is noted, and raised
in the program's main task, where that waits next. From there it unwinds the program like any other
exception, and every job is ended on the way.

The rule, which ``tests/test_interrupts.py`` checks by looking at every call in a busy agent:

- whoever starts a task of ours marks its function with ``trio.lowlevel.enable_ki_protection``, as
  tasks don't inherit it;
- so are the functions marked that an agent calls and that change what tasks share;
- context managers are made by `protected_context`.

The agent's own code, in the bodies of our context managers too, is interrupted at once as ever.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar, final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

P = ParamSpec("P")
T = TypeVar("T")


def protected_context(
    function: Callable[P, AsyncIterator[T]],
) -> Callable[P, AbstractAsyncContextManager[T, bool | None]]:
    """As `contextlib.asynccontextmanager`, but no Ctrl-C strikes on the way in or out.

    It could even between ``__aexit__`` and the function, which then would never clean up.
    """
    open_context = asynccontextmanager(function)

    @wraps(function)
    def opened(*args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T, bool | None]:
        return _ProtectedContext(open_context(*args, **kwargs))

    return opened


@final
class _ProtectedContext(AbstractAsyncContextManager[T, "bool | None"]):
    """A context manager whose two ends are out of Ctrl-C's reach; the body between them is not."""

    def __init__(self, context: AbstractAsyncContextManager[T, bool | None]) -> None:
        self._context = context

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> T:
        if not trio.lowlevel.in_trio_task():  # else trio fails by an attribute of its own
            raise RuntimeError(
                "this is sandd's API for trio, and it is not trio that runs this: on asyncio use the same "
                "names of sandd.aio; in plain code and threads sandd.Server and sandd.connect"
            )
        return await self._context.__aenter__()

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._context.__aexit__(kind, value, traceback)
