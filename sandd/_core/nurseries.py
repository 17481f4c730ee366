"""A nursery whose single errors come out as themselves, not wrapped in a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sandd._core.interrupts import protected_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@protected_context
async def open_unwrapping_nursery() -> AsyncIterator[trio.Nursery]:
    """As ``trio.open_nursery``, but the body's exception leaves as itself, and so does a lone child's.

    What failed beside the body's exception becomes a note on it. Several failures of children without
    one of the body's stay a group: none of them is the cause of the others.
    """
    body_error: BaseException | None = None
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                body_error = error
                raise
    except BaseExceptionGroup as group:
        failure = _unwrap(group, body_error)
    if failure is not None:
        # Outside the except block, so that the group doesn't become the error's context.
        raise failure


def _unwrap(
    group: BaseExceptionGroup[BaseException], body_error: BaseException | None
) -> BaseException:
    left = {id(error): error for error in _leaves(group)}
    failures = {n: error for n, error in left.items() if not isinstance(error, trio.Cancelled)}
    own = set() if body_error is None else {id(error) for error in _leaves(body_error)}
    if body_error is None or own.isdisjoint(failures or left):
        return next(iter(failures.values())) if len(failures) == 1 else group
    if not own <= left.keys():
        # A group of the body's, of which the cancellations that ended here are gone.
        assert isinstance(body_error, BaseExceptionGroup)
        body_error = body_error.subgroup(lambda error: id(error) in left)
        assert body_error is not None
    for number, error in failures.items():
        if number not in own:
            body_error.add_note(f"beside it, this failed: {error!r}")
    return body_error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    # Of a group only these keep their identity: trio takes groups apart and makes new ones.
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
