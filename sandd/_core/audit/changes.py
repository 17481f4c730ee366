"""Changes of who may do what, as records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandd._core.audit.records import Record, RecordType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def policies_in_force(hashes: Mapping[str, str]) -> Record:
    """These policies apply from now on, by tenant; ``*`` is everybody's."""
    return Record(type=RecordType.POLICY, outcome="in_force", result=dict(hashes))


def policies_refused(reason: str) -> Record:
    """Others were to apply, and can't be used; those that did still do."""
    return Record(type=RecordType.POLICY, outcome="refused", reason=reason)


def certificate_in_force(*, certificate: str, authorities: Sequence[str]) -> Record:
    """New connections are served by this certificate from now on; peers are told to trust these CAs, all by hash."""
    return Record(
        type=RecordType.CERTIFICATE,
        outcome="in_force",
        result={"certificate": certificate, "authorities": list(authorities)},
    )


def certificate_refused(reason: str) -> Record:
    """Another one was to be served by, and can't be used; that which was still is."""
    return Record(type=RecordType.CERTIFICATE, outcome="refused", reason=reason)


def authority_rotated(step: str, authorities: Sequence[str]) -> Record:
    """The CA's rotation has come to this step; these are trusted from now on, by hash."""
    return Record(
        type=RecordType.CERTIFICATE,
        outcome="rotated",
        result={"step": step, "authorities": list(authorities)},
    )


def certificate_issued(name: str, serial: str, not_after: float) -> Record:
    """A client certificate was made, for the URI `name`."""
    return Record(
        type=RecordType.CERTIFICATE,
        outcome="issued",
        result={"name": name, "serial": serial, "not_after": not_after},
    )


def tokens_set(*, daemons: bool, operators: bool) -> Record:
    """Daemons and operators have to know other secrets from now on, or none is taken."""
    return Record(
        type=RecordType.TOKEN,
        outcome="set",
        result={"daemons_need_one": daemons, "operators_may_come": operators},
    )


def token_changed(
    outcome: str, token_id: str, kind: str, tenant: str | None, **about: Any
) -> Record:
    """A token was made ("created") or ended ("revoked"), or a daemon has "joined" by it."""
    return Record(
        type=RecordType.TOKEN,
        outcome=outcome,
        kind=kind,
        tenant=tenant,
        result={"token": token_id, **about},
    )


def daemon_changed(outcome: str, name: str, tenant: str, reason: str | None = None) -> Record:
    """A daemon that has joined was "locked", "unlocked" or "forgotten"."""
    return Record(
        type=RecordType.TOKEN,
        outcome=outcome,
        kind="daemon",
        tenant=tenant,
        daemon=name,
        reason=reason,
    )
