"""Where those who have something to tell leave it: the audit log's interface, and the absence of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandd._core.audit.records import Record
    from sandd._core.audit.redaction import Redactor


class AuditSink(Protocol):
    """Takes records, in order."""

    @property
    def is_on(self) -> bool:
        """Somebody keeps them; else they needn't be made."""

    @property
    def redactor(self) -> Redactor | None:
        """What is known to be secret, for those who write something else."""

    def note(
        self, record: Record, *, from_stranger: bool = False, is_bounded: bool = False
    ) -> None:
        """It is written soon; nobody waits for it.

        Args:
            record: what happened.
            from_stranger: somebody who wasn't let in caused it, and so may not fill the disk with it.
            is_bounded: its actor can cause any number of these, as he can be refused whatever he asks for, and may
                not fill the disk with them either.
        """

    def commit(self, record: Record, done: Callable[[str | None], None]) -> None:
        """It is written, and then `done` is called, later: with None, or with why it can't be, for people.

        Calls come back in the order of the records.
        """


class NoAudit:
    """Nothing is kept."""

    is_on: ClassVar[bool] = False
    redactor: ClassVar[None] = None

    def note(
        self, record: Record, *, from_stranger: bool = False, is_bounded: bool = False
    ) -> None:
        """See `AuditSink`."""

    def commit(self, record: Record, done: Callable[[str | None], None]) -> None:
        """See `AuditSink`."""
        raise AssertionError("nothing is committed where nothing is kept")


NO_AUDIT: Final = NoAudit()
