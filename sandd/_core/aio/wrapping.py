"""A method of the trio API becomes one of ours, with its signature, and its docstring as far as that is true here."""

from __future__ import annotations

import re
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from sandd._core.aio.blocks import HeldOpen
from sandd._core.aio.calls import call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from sandd._core.bridge import TrioThread

P = ParamSpec("P")
X = TypeVar("X")
X_co = TypeVar("X_co", covariant=True)
Y = TypeVar("Y")
Z = TypeVar("Z")


class Wraps(Protocol[X_co]):
    """Stands for an object of the trio API."""

    @property
    def _thread(self) -> TrioThread[Any]: ...

    @property
    def _inner(self) -> X_co: ...


class Wrapper(Generic[X]):
    """Stands for an object of the trio API, which lives in a trio thread."""

    def __init__(self, thread: TrioThread[Any], inner: X) -> None:
        self._thread = thread
        self._inner = inner

    def __repr__(self) -> str:
        return repr(self._inner).replace("<sandd.", "<sandd.aio.", 1)


def calls(
    method: Callable[Concatenate[X, P], Awaitable[Y]],
) -> Callable[Concatenate[Wraps[X], P], Coroutine[Any, Any, Y]]:
    """A method that calls this one, and gives what it gives."""

    @wraps(method)
    async def called(self: Wraps[X], /, *args: P.args, **options: P.kwargs) -> Y:
        return await call(self._thread, partial(method, self._inner, *args, **options))

    return documented(called)


def gives(
    method: Callable[Concatenate[X, P], Awaitable[Y]],
    wrap: Callable[[TrioThread[Any], Y], Z],
    *,
    unwanted: Callable[[Y], object] | None = None,
) -> Callable[Concatenate[Wraps[X], P], Coroutine[Any, Any, Z]]:
    """A method that calls this one, and wraps what it gives."""

    @wraps(method)
    async def called(self: Wraps[X], /, *args: P.args, **options: P.kwargs) -> Z:
        function = partial(method, self._inner, *args, **options)
        return wrap(self._thread, await call(self._thread, function, unwanted=unwanted))

    return documented(called)


def holds(
    method: Callable[Concatenate[X, P], AbstractAsyncContextManager[Y, bool | None]],
    wrap: Callable[[TrioThread[Any], Y], Z],
    *,
    take_back: Callable[[Y], Awaitable[object]] | None = None,
    may_fail: bool = False,
) -> Callable[Concatenate[Wraps[X], P], AbstractAsyncContextManager[Z, bool | None]]:
    """A method that gives the block that this one gives, with what is in it wrapped; see `HeldOpen`."""

    @wraps(method)
    def opened(
        self: Wraps[X], /, *args: P.args, **options: P.kwargs
    ) -> AbstractAsyncContextManager[Z, bool | None]:
        open_block = partial(method, self._inner, *args, **options)
        return HeldOpen(self._thread, open_block, wrap, take_back=take_back, may_fail=may_fail)

    return documented(opened)


def plain(_thread: TrioThread[Any], value: Y) -> Y:
    """What needs no wrapper: a value, that is."""
    return value


F = TypeVar("F", bound="Callable[..., object]")


def documented_as(method: Callable[..., object]) -> Callable[[F], F]:
    """Whoever is decorated says of itself what this one says."""

    def document(function: F) -> F:
        function.__doc__ = method.__doc__
        return documented(function)

    return document


def documented(function: F) -> F:
    # What is said of trio there is true of anyio here, name by name: its errors, fail_after, Path.
    function.__doc__ = re.sub(r"\btrio\.", "anyio.", function.__doc__ or "")
    return function
