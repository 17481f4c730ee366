"""A nursery whose single errors come out as themselves, not wrapped in a group."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@asynccontextmanager
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
    errors = list(_leaves(group))
    others = [error for error in errors if error is not body_error]
    if body_error is not None and len(others) < len(errors):
        for error in others:
            if not isinstance(error, trio.Cancelled):
                body_error.add_note(f"beside it, this failed: {error!r}")
        return body_error
    return errors[0] if len(errors) == 1 else group


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
