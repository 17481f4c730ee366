"""The records of tokens and daemons, for a program that must not wait for a disk: asked in threads, one at a time."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, TypeVar

import trio

from sandd._core.identity.database import open_database
from sandd._core.interrupts import protected_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sandd._core.identity.database import IdentityDatabase

T = TypeVar("T")


class Store:
    """An `IdentityDatabase`, asked in threads."""

    def __init__(self, database: IdentityDatabase) -> None:
        self._database = database
        self._one_at_a_time = trio.CapacityLimiter(1)
        self.controller_id = database.controller_id
        self.master_key = database.master_key

    async def ask(self, question: Callable[[IdentityDatabase], T]) -> T:
        """What the function says that is called with the database.

        Cancelled while it waits for others, it isn't called; later it is waited for: nothing is left half done.
        """
        return await trio.to_thread.run_sync(question, self._database, limiter=self._one_at_a_time)

    async def aclose(self) -> None:
        """Close the database, when the last question is answered."""
        with trio.CancelScope(
            shield=True
        ):  # bounded: each question takes milliseconds, or BUSY_SECONDS
            await self.ask(lambda database: database.close())


@protected_context
async def open_store(directory: Path) -> AsyncIterator[Store]:
    """The records in a state directory, for as long as the block lasts; ConfigurationError if they can't be used."""
    store = Store(await trio.to_thread.run_sync(open_database, directory))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.aclose)
        await store.ask(lambda database: database.tidy(time.time()))
        yield store
