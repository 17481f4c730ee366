"""Who came to the controller, who was turned away, and who went, as records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sandd._core.audit.records import Record, RecordType

if TYPE_CHECKING:
    from sandd import wire

DAEMON: Final = "daemon"
OPERATOR: Final = "operator"


def let_in(kind: str, remote: str, **who: Any) -> Record:
    """Somebody has proven who it is."""
    return Record(type=RecordType.CONNECTION, outcome="admitted", kind=kind, remote=remote, **who)


def turned_away(kind: str, remote: str, reject: wire.Reject, **who: Any) -> Record:
    """Somebody was not let in; `who` is what it said of itself, which may be anybody's name."""
    return Record(
        type=RecordType.REFUSAL,
        outcome=reject.code.value,
        reason=reject.message,
        kind=kind,
        remote=remote,
        **who,
    )


def misbehaved(remote: str, reason: str) -> Record:
    """Somebody broke the protocol before anything was known of it."""
    return Record(type=RecordType.REFUSAL, outcome="protocol", reason=reason, remote=remote)


def gone(kind: str, remote: str, **who: Any) -> Record:
    """The connection of somebody who was let in has ended."""
    return Record(type=RecordType.DISCONNECTION, outcome="ended", kind=kind, remote=remote, **who)
