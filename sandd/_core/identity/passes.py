"""What everybody who is here was let in on, so that it can be withdrawn. No I/O."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Set

    from sandd import wire
    from sandd._core.identity.rights import Principal


@define(eq=False)
class Pass:
    """What one connection is let in on, from its Hello to its end."""

    uid: str = ""
    """Of a daemon that has joined."""
    token_id: str = ""
    """Of an operator's token."""
    expires_at: float = math.inf
    """Unix time: when that token is good no more."""
    name: str = ""
    """A daemon's full name."""
    labels: Mapping[str, str] = field(factory=dict)
    """Above those that a daemon says it has."""
    principal: Principal | None = None
    """An operator."""
    enrolment: wire.Enrolment | None = None
    """For the daemon's Welcome."""
    is_withdrawn: bool = False
    close: Callable[[str], None] = field(default=lambda _: None)
    """Ends the connection; set once it is live."""


class Passes:
    """Those of all connections of a controller."""

    def __init__(self) -> None:
        self._passes: dict[Pass, None] = {}  # an ordered set

    def __len__(self) -> int:
        return len(self._passes)

    def issue(self) -> Pass:
        """A pass for a connection that says who it is. It has to be returned, whatever happens."""
        given = Pass()
        self._passes[given] = None
        return given

    def take_back(self, given: Pass) -> None:
        """It is good for nothing any more."""
        del self._passes[given]

    @contextlib.contextmanager
    def issued(self) -> Iterator[Pass]:
        """One that is good for this block."""
        given = self.issue()
        try:
            yield given
        finally:
            self.take_back(given)

    def withdraw(self, *, token_ids: Set[str] = frozenset(), uids: Set[str] = frozenset()) -> None:
        """Whoever is here by one of these has to leave, and who is about to come in doesn't."""
        for given in list(self._passes):
            if (given.token_id in token_ids or given.uid in uids) and not given.is_withdrawn:
                given.is_withdrawn = True
                given.close("what it was let in on is good no more")

    def has_expired(self, now: float) -> bool:
        """Whether a token has come to its end by which somebody is here."""
        return any(given.expires_at <= now and not given.is_withdrawn for given in self._passes)
