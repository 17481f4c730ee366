"""The records for a program that must not wait for a disk: one question at a time, none left half done."""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from sandd._core.identity.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from sandd._core.identity.database import IdentityDatabase


async def test_one_question_at_a_time(tmp_path: Path) -> None:
    """Each in a thread, so that the loop goes on."""
    inside: list[int] = []
    most = 0

    def ask(database: IdentityDatabase) -> None:
        nonlocal most
        assert threading.current_thread() is not threading.main_thread()
        inside.append(1)
        most = max(most, len(inside))
        database.tokens()
        inside.pop()

    async with open_store(tmp_path) as store, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(store.ask, ask)
    assert most == 1


async def test_a_question_that_was_asked_is_answered_though_it_is_cancelled(tmp_path: Path) -> None:
    """One that still waits for its turn is not asked; and the next finds a database in good order."""
    begun, go_on, asked = threading.Event(), threading.Event(), []

    def slow(database: IdentityDatabase) -> None:
        with database._changing():
            begun.set()
            assert go_on.wait(10)
            asked.append("slow")

    async with open_store(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.ask, slow)
            while not begun.is_set():
                await trio.sleep(0.001)
            nursery.start_soon(store.ask, lambda _: asked.append("waits"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            go_on.set()
        assert asked == ["slow"]
        assert await store.ask(lambda database: database.tokens()) == []


async def test_leaving_closes_the_file_whatever_is_cancelled(tmp_path: Path) -> None:
    """Nothing of it stays open."""
    with trio.CancelScope() as scope:
        async with open_store(tmp_path) as store:
            scope.cancel()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        await store.ask(lambda database: database.tokens())
