"""Tokens and enrolled daemons as rows of a table, and as objects for JSON. No I/O."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from sandd._core.identity.tokens import TokenKind
from sandd._core.logs import printable

if TYPE_CHECKING:
    from sandd._core.identity.records import EnrolledDaemon, TokenInfo

TOKEN_HEADER: Final = ("TOKEN", "KIND", "STATE", "NAME", "TENANT", "DAEMONS", "EXPIRES", "FOR")
DAEMON_HEADER: Final = ("DAEMON", "STATE", "JOINED", "SEEN", "KEY", "LABELS")


def token_row(info: TokenInfo, now: float) -> tuple[str, ...]:
    """Of the table of tokens; times are local ones."""
    if info.kind is TokenKind.JOIN:
        what = f"{info.uses_left} of {info.uses} uses"
    else:
        verbs = "" if info.verbs is None else f" ({', '.join(sorted(info.verbs)) or 'nothing'})"
        what = f"{info.role.value}{verbs}"
    cells = (
        *(info.id, info.kind.name.lower(), info.state(now), info.name, info.tenant, info.daemons),
        "never" if info.expires_at is None else _time(info.expires_at),
        what,
    )
    return tuple(map(printable, cells))


def token_object(info: TokenInfo, now: float) -> dict[str, object]:
    """For JSON; times are Unix times."""
    common: dict[str, object] = {
        "id": info.id,
        "kind": info.kind.name.lower(),
        "state": info.state(now),
        "name": info.name,
        "tenant": info.tenant,
        "daemons": info.daemons,
        "created_at": info.created_at,
        "expires_at": info.expires_at,
        "revoked_at": info.revoked_at,
    }
    if info.kind is TokenKind.JOIN:
        return common | {
            "labels": dict(info.labels),
            "uses": info.uses,
            "uses_left": info.uses_left,
        }
    verbs = None if info.verbs is None else sorted(info.verbs)
    return common | {"role": info.role.value, "verbs": verbs}


def daemon_row(daemon: EnrolledDaemon) -> tuple[str, ...]:
    """Of the table of daemons; times are local ones."""
    labels = ",".join(f"{key}={value}" for key, value in sorted(daemon.labels.items()))
    cells = (
        *(daemon.name, daemon.state.value, _time(daemon.joined_at), _time(daemon.seen_at)),
        *(str(daemon.generation), labels),
    )
    return tuple(map(printable, cells))


def daemon_object(daemon: EnrolledDaemon) -> dict[str, object]:
    """For JSON; times are Unix times."""
    return {
        "name": daemon.name,
        "id": daemon.id,
        "tenant": daemon.tenant,
        "uid": daemon.uid,
        "state": daemon.state.value,
        "labels": dict(daemon.labels),
        "generation": daemon.generation,
        "token": daemon.token_id,
        "joined_at": daemon.joined_at,
        "seen_at": daemon.seen_at,
    }


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
