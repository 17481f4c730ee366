"""What commands have changed, on its way from the records into the audit log: each once, whatever the disk takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from relay_world import ModelLog

from sandd._core.audit.changes import token_changed
from sandd._core.audit.escaping import canonical
from sandd._core.identity.journal import Journal
from sandd._core.identity.store import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sandd._core.identity.database import IdentityDatabase

LIMIT = 20.0
SECONDS = 0.01


async def change(store: Store, said: Iterable[Any]) -> None:
    """A command has changed something, and tells each of these."""

    def tell(database: IdentityDatabase) -> None:
        for each in said:
            with database.journaled(each, 0.0):
                pass

    await store.ask(tell)


def token(name: str) -> dict[str, Any]:
    """A token of that name was made."""
    return token_changed("created", name, "join", None).fields


async def come(log: ModelLog) -> None:
    """Return when somebody waits for the log."""
    while not log.waiting:
        await trio.sleep(SECONDS)


async def test_what_is_safe_is_told_once_though_the_rest_is_not(tmp_path: Path) -> None:
    """A disk that is full behind some of them: it goes on with the first that it did not take."""
    log = ModelLog()
    with trio.fail_after(LIMIT):
        async with open_store(tmp_path) as store, trio.open_nursery() as nursery:
            await change(store, map(token, "abcd"))
            nursery.start_soon(Journal(store, log).keep, SECONDS)
            await come(log)
            log.write(2)
            log.write(refusal="the disk is full")
            await come(log)
            log.write()
            while await store.ask(lambda database: database.changes(0)):
                await trio.sleep(SECONDS)
            nursery.cancel_scope.cancel()
    told = [record.result["token"] for record in log.durable if record.result is not None]
    assert told == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "said",
    [
        pytest.param({"result": {"n": float("nan")}}, id="no-number"),
        pytest.param({"target": float("inf")}, id="endless"),
        pytest.param({"secrets": "x"}, id="not-its-to-say"),
        pytest.param({"result": 1}, id="no-table"),
    ],
)
async def test_what_makes_no_line_is_told_as_that(tmp_path: Path, said: dict[str, Any]) -> None:
    """The owner of the file may write anything there: it must not cost what others have to tell."""
    log = ModelLog()
    with trio.fail_after(LIMIT):
        async with open_store(tmp_path) as store, trio.open_nursery() as nursery:
            await change(store, [token("a") | said])
            nursery.start_soon(Journal(store, log).keep, SECONDS)
            await come(log)
            log.write()
            nursery.cancel_scope.cancel()
    (record,) = log.durable
    assert record.secrets == ()
    assert canonical(record.fields)
