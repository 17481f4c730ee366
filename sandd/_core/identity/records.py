"""What a controller keeps of tokens and of daemons that have joined. No I/O."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from attrs import Factory, field, frozen

from sandd._core._errors import ConfigurationError
from sandd._core.identity.rights import (
    DEFAULT_TENANT,
    EVERY_TENANT,
    Principal,
    Role,
    Verb,
    check_tenant,
    full_name,
)
from sandd._core.identity.tokens import Token, TokenKind
from sandd._core.link import check_labels
from sandd.wire import MAX_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_USES = 1_000_000
"""Of one join token: more daemons than a controller knows."""
JOIN_SECONDS = 900.0
"""How long a join token is valid if nobody says otherwise: long enough to bring it to a machine."""
MAX_NAME = 96
"""Characters in an operator's name: it goes with each of its jobs, and into each line of a log."""


@frozen
class TokenInfo:
    """What is known of a token; its secret isn't."""

    id: str
    """Its key id: the part of its text that is no secret."""
    kind: TokenKind
    name: str = ""
    """What it is called: an operator's goes with what is done by it."""
    tenant: str = DEFAULT_TENANT
    """Where daemons join, or whose an operator sees; "*": all."""
    daemons: str = "*"
    """Glob over plain ids: daemons that may join by it, or that its operator sees."""
    labels: Mapping[str, str] = Factory(dict)
    """Given to the daemons that join by it, above what they say of themselves."""
    uses: int = 1
    """Daemons that may join by it, in all."""
    uses_left: int = 1
    role: Role = Role.VIEWER
    """An operator's."""
    verbs: frozenset[Verb] | None = None
    """An operator's rights, as far as its role has them; None: all of those."""
    created_at: float = 0.0
    """Unix time, as are the others."""
    expires_at: float | None = None
    """None: never."""
    revoked_at: float | None = None
    digest: bytes = field(default=b"", repr=False)
    """SHA-256 of its secret."""

    def is_valid(self, now: float) -> bool:
        """Whether it lets anybody in, as far as time and revoking go."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def state(self, now: float) -> str:
        """In a word: "valid", "used up", "expired" or "revoked"."""
        if self.revoked_at is not None:
            return "revoked"
        if not self.is_valid(now):
            return "expired"
        return "used up" if self.kind is TokenKind.JOIN and self.uses_left <= 0 else "valid"

    @property
    def principal(self) -> Principal:
        """Whoever has this token, an operator's."""
        return Principal(self.name or self.id, self.tenant, self.role, self.daemons, self.verbs)


class EnrolmentState(enum.StrEnum):
    """Where a daemon's record stands."""

    ACTIVE = "active"
    LOCKED = "locked"  # nobody is let in by its key until it is unlocked
    FORGOTTEN = "forgotten"  # nor ever again; another may have its id


@frozen
class EnrolledDaemon:
    """A daemon that has joined, and has a key of its own."""

    uid: str
    """Its own for good: no other daemon ever has it."""
    id: str
    tenant: str = DEFAULT_TENANT
    labels: Mapping[str, str] = Factory(dict)
    """Those of the token that it joined by."""
    state: EnrolmentState = EnrolmentState.ACTIVE
    generation: int = 0
    """Of its key: an earlier one than this is a copy's. Rises with its starts."""
    highest: int = 1
    """The latest generation that was ever given out."""
    offered: int = 1
    """That which its latest instance was given."""
    instance: str = ""
    """The start of the daemon that was here last."""
    token_id: str = ""
    """The token that it joined by."""
    joined_at: float = 0.0
    """Unix time, as is the other."""
    seen_at: float = 0.0
    """When its latest instance came."""

    @property
    def name(self) -> str:
        """Its full name: ``TENANT/ID``, or the id alone in the tenant "default"."""
        return full_name(self.tenant, self.id)

    @property
    def is_confirmed(self) -> bool:
        """Its key has been used: it has it."""
        return self.generation > 0


def check_join_token(info: TokenInfo) -> str | None:
    """What is wrong with a join token that is asked for, for people; None when nothing is."""
    if not 1 <= info.uses <= MAX_USES:
        return f"a join token has 1 to {MAX_USES:,} uses, and not {info.uses}"
    return check_tenant(info.tenant) or check_labels(info.labels) or _check_texts(info)


def check_operator_token(info: TokenInfo) -> str | None:
    """What is wrong with an operator's token that is asked for, for people; None when nothing is."""
    if not info.name:
        return "an operator's token needs a name: whose it is"
    if info.tenant != EVERY_TENANT and (problem := check_tenant(info.tenant)):
        return problem
    return _check_texts(info)


def _check_texts(info: TokenInfo) -> str | None:
    if len(info.name) > MAX_NAME or not (info.name + info.daemons).isprintable():
        return f"a name is printable, of at most {MAX_NAME} characters, and so is a glob"
    if not 1 <= len(info.daemons) <= 128:
        return "a glob for daemons has 1 to 128 characters"
    return None


def new_join_token(
    now: float,
    *,
    name: str = "",
    tenant: str = DEFAULT_TENANT,
    daemons: str = "*",
    labels: Mapping[str, str] | None = None,
    uses: int = 1,
    expires_in: float | None = JOIN_SECONDS,
) -> tuple[Token, TokenInfo]:
    """A join token, and what is to be kept of it; ConfigurationError for what makes no sense."""
    token = Token.new(TokenKind.JOIN)
    info = TokenInfo(
        token.key_id,
        token.kind,
        name=name,
        tenant=tenant,
        daemons=daemons,
        labels=dict(labels or {}),
        uses=uses,
        uses_left=uses,
        created_at=now,
        expires_at=_end(now, expires_in),
        digest=token.digest,
    )
    _raise_if(check_join_token(info))
    return token, info


def new_operator_token(
    now: float,
    name: str,
    *,
    role: Role | str = Role.VIEWER,
    tenant: str = DEFAULT_TENANT,
    daemons: str = "*",
    verbs: Iterable[Verb | str] | None = None,
    expires_in: float | None = None,
) -> tuple[Token, TokenInfo]:
    """An operator's token, and what is to be kept of it; ConfigurationError for what makes no sense."""
    token = Token.new(TokenKind.OPERATOR)
    try:
        chosen = Role(role)
        narrowed = None if verbs is None else frozenset(map(Verb, verbs))
    except ValueError as error:
        raise ConfigurationError(
            f"{error}: roles are {', '.join(Role)}, and rights are {', '.join(Verb)}"
        ) from error
    info = TokenInfo(
        token.key_id,
        token.kind,
        name=name,
        tenant=tenant,
        daemons=daemons,
        role=chosen,
        verbs=narrowed,
        created_at=now,
        expires_at=_end(now, expires_in),
        digest=token.digest,
    )
    _raise_if(check_operator_token(info))
    return token, info


def _end(now: float, seconds: float | None) -> float | None:
    if seconds is None:
        return None
    if not 0 < seconds <= MAX_SECONDS:
        raise ConfigurationError(f"a token can't be valid for {seconds} seconds")
    return now + seconds


def _raise_if(problem: str | None) -> None:
    if problem is not None:
        raise ConfigurationError(problem)
