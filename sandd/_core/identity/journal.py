"""What commands have changed in the records is told to the audit log of the controller whose records they are.

A controller holds the lock of its log, so nobody else can write to it. A command puts what it does into the records, in
the transaction that does it; the controller looks there, and drops what is safe in its log. One that is
killed in between tells it once more.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio
from attrs import define

from sandd._core.audit.escaping import canonical
from sandd._core.audit.records import Record, RecordType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandd._core.audit.sinks import AuditSink
    from sandd._core.identity.database import Change
    from sandd._core.identity.store import Store

_NAMES: Final = frozenset(each.name for each in attrs.fields(Record)) - {"secrets"}


@define(eq=False)
class Journal:
    """Moves what commands have done from the records into a log that is kept."""

    _store: Store
    _audit: AuditSink
    _told: int = 0
    """Number of the latest that is safe there: records that can't be written must not have it told again and again."""
    _dropped: int = 0
    """And of the latest that was dropped from the records."""

    async def keep(self, seconds: float) -> None:
        """Do so every so many seconds, for ever. What can't be read or written at present is tried again."""
        while True:
            with contextlib.suppress(sqlite3.Error):  # the gate, which reads the same file, says so
                await self._tell()
            await trio.sleep(seconds)

    async def _tell(self) -> None:
        while changes := await self._store.ask(lambda database: database.changes(self._told)):
            safe = await self._commit([_record_of(each) for each in changes])
            if safe:
                self._told = changes[safe - 1].seq
            if safe < len(changes):
                break
        if self._told > self._dropped:
            await self._store.ask(lambda database: database.drop_changes(self._told))
            self._dropped = self._told

    async def _commit(self, records: Sequence[Record]) -> int:
        """How many of them are safe, from the first on: a disk may be full behind some."""
        answers: list[str | None] = []
        heard = trio.Event()

        def hear(refusal: str | None) -> None:
            answers.append(refusal)
            if len(answers) == len(records):
                heard.set()

        for each in records:
            self._audit.commit(each, hear)
        await heard.wait()
        return next((at for at, refusal in enumerate(answers) if refusal), len(answers))


def _record_of(change: Change) -> Record:
    try:
        found = json.loads(change.said)
        said: dict[str, Any] = {name: found[name] for name in _NAMES & found.keys()}
        said["type"] = RecordType(said["type"])
        said["result"] = {**said.get("result", {}), "done_at": round(change.at, 3)}
        record = Record(**said)
        canonical(record.fields)  # what makes no line would make none of all that is to be written
        return record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # The owner of the file may have written anything there; that something was is worth a line.
        reason = f"what a command has told can't be read: {error!r:.200}"
        return Record(type=RecordType.TOKEN, outcome="changed", reason=reason)
