"""What a controller with a state directory offers: `Controller.tokens` and `Controller.enrolled`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import field, frozen

from sandd._core._errors import DaemonNotFound, TokenNotFound
from sandd._core.audit.changes import daemon_changed, token_changed
from sandd._core.identity.records import (
    JOIN_SECONDS,
    EnrolledDaemon,
    TokenInfo,
    new_join_token,
    new_operator_token,
)
from sandd._core.identity.rights import DEFAULT_TENANT, Role, Verb, split_name
from sandd._core.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sandd._core.identity.database import IdentityDatabase
    from sandd._core.identity.gate import Gate
    from sandd._core.identity.store import Store
    from sandd._core.identity.tokens import Token

log = get_logger("identity")


@frozen
class NewToken:
    """A token that was just made: the only time that its secret is to be had."""

    text: str = field(repr=False)
    """All of it: give it to whom it is for, in a file."""
    info: TokenInfo


class Tokens:
    """Tokens by which daemons join, and operators come in; what `Controller.tokens` is."""

    def __init__(self, store: Store, gate: Gate) -> None:
        self._store = store
        self._gate = gate

    def __repr__(self) -> str:
        return f"<sandd.Tokens of controller {self._store.controller_id}>"

    async def create_join(
        self,
        *,
        name: str = "",
        tenant: str = DEFAULT_TENANT,
        daemons: str = "*",
        labels: Mapping[str, str] | None = None,
        uses: int = 1,
        expires_in: float | None = JOIN_SECONDS,
    ) -> NewToken:
        """A token by which daemons join: each gets a key of its own then, and needs it no more.

        Args:
            name: what it is for, in lists.
            tenant: whose the daemons are.
            daemons: glob that their ids have to match.
            labels: theirs, above those that they say they have.
            uses: how many may join by it, 1 to 1,000,000.
            expires_in: seconds; None: it is valid until it is used up or revoked.

        Raises:
            ConfigurationError: an argument makes no sense. There is no token.
        """
        token, info = new_join_token(
            time.time(),
            name=name,
            tenant=tenant,
            daemons=daemons,
            labels=labels,
            uses=uses,
            expires_in=expires_in,
        )
        return await self._add(token, info)

    async def create_operator(
        self,
        name: str,
        *,
        role: Role | str = Role.VIEWER,
        tenant: str = DEFAULT_TENANT,
        daemons: str = "*",
        verbs: Iterable[Verb | str] | None = None,
        expires_in: float | None = None,
    ) -> NewToken:
        """A token for somebody who runs things from another process, or looks on: see `connect_controller`.

        Args:
            name: whose it is; goes with all that is done by it.
            role: "viewer" (sees daemons, jobs and their output), "runner" (does all that can be done on daemons) or
                "admin" (tokens as well).
            tenant: whose daemons it is for; "*": everybody's.
            daemons: glob over ids, of those it is for.
            verbs: of the role's rights only these: "list", "jobs", "read", "run", "end", "files", "write", "ports",
                "administer". Without "list" no daemon is seen.
            expires_in: seconds; None: it is valid until it is revoked.

        Raises:
            ConfigurationError: an argument makes no sense. There is no token.
        """
        token, info = new_operator_token(
            time.time(),
            name,
            role=role,
            tenant=tenant,
            daemons=daemons,
            verbs=verbs,
            expires_in=expires_in,
        )
        return await self._add(token, info)

    async def _add(self, token: Token, info: TokenInfo) -> NewToken:
        await self._store.ask(lambda database: database.add_token(info))
        log.info("token_created", token=info.id, kind=info.kind.name, tenant=info.tenant)
        self._gate.audit.note(
            token_changed("created", info.id, info.kind.name.lower(), info.tenant, name=info.name)
        )
        return NewToken(token.text, info)

    async def list(self) -> list[TokenInfo]:
        """All tokens, oldest first; those that were over for a month are left out."""
        return await self._store.ask(lambda database: database.tokens())

    async def revoke(self, token_id: str) -> None:
        """Nobody comes in by it from now on, and operators who are here by it have to leave at once.

        Daemons that have joined by it stay: they have keys of their own.

        Raises:
            TokenNotFound: there is none of that id.
        """
        if not await self._store.ask(lambda database: database.revoke(token_id, time.time())):
            raise TokenNotFound(f"no token has the id {token_id!r}")
        log.info("token_revoked", token=token_id)
        self._gate.audit.note(token_changed("revoked", token_id, "token", None))
        await self._gate.look()


class Enrolled:
    """Daemons that have joined, and have keys of their own; what `Controller.enrolled` is.

    A daemon is meant by its full name: its id, or ``TENANT/ID`` where its tenant isn't "default".
    """

    def __init__(self, store: Store, gate: Gate) -> None:
        self._store = store
        self._gate = gate

    def __repr__(self) -> str:
        return f"<sandd.Enrolled at controller {self._store.controller_id}>"

    async def list(self) -> list[EnrolledDaemon]:
        """All of them, whether they are here or not, by tenant and id."""
        return await self._store.ask(lambda database: database.daemons())

    async def lock(self, name: str) -> None:
        """Close its connection, and let it in no more until it is unlocked; its jobs go on there, by their leases.

        Raises:
            DaemonNotFound: none of that name has joined.
        """
        await self._change(name, lambda database, uid: database.lock(uid), "locked")

    async def unlock(self, name: str) -> None:
        """Let it in again: whoever comes first with a key of it. If that was copied, forget it instead.

        Raises:
            DaemonNotFound: none of that name has joined.
        """
        await self._change(name, lambda database, uid: database.unlock(uid), "unlocked")

    async def forget(self, name: str) -> None:
        """Close its connection; its keys are good for nothing any more, and its id is free for another.

        Raises:
            DaemonNotFound: none of that name has joined.
        """
        await self._change(name, lambda database, uid: database.forget(uid), "forgotten")

    async def _change(
        self, name: str, change: Callable[[IdentityDatabase, str], None], outcome: str
    ) -> None:
        def change_it(database: IdentityDatabase) -> None:
            change(database, named(database, name).uid)

        await self._store.ask(change_it)
        log.info("daemon_changed", daemon_id=name, outcome=outcome)
        self._gate.audit.note(daemon_changed(outcome, name, split_name(name)[0]))
        await self._gate.look()


def named(database: IdentityDatabase, name: str) -> EnrolledDaemon:
    """The daemon of that full name; DaemonNotFound if none has joined."""
    daemon = database.named(*split_name(name))
    if daemon is None:
        raise DaemonNotFound(f"no daemon {name!r} has joined this controller")
    return daemon
