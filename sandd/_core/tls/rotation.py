"""From one certificate authority to the next, so that nobody who is there meanwhile is lost. No I/O, no clock.

    STEADY       one CA: it signs, it is trusted
       | begin   a new CA is made
    TRUST_BOTH   the old one signs, both are trusted: peers learn of the new one, from whom the old one vouches for
       | go_on
    ISSUE_NEW    the new one signs, both are trusted: certificates of the old one that peers hold are replaced
       | go_on
    STEADY       the new one alone; the old one's key is gone

Each step but the first has to wait until peers have had the time for what the step before it is for.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

if TYPE_CHECKING:
    from sandd._core.tls.key_pair import KeyPair

SETTLE_SECONDS: Final = 24 * 3600.0
"""Between two steps: a daemon may be away for so long, and comes back the same. Those that are there take an hour."""


class Phase(enum.Enum):
    """How far a rotation is."""

    STEADY = "steady"
    TRUST_BOTH = "trust-both"
    ISSUE_NEW = "issue-new"


class TooEarly(Exception):
    """Peers may not have seen the step before; `seconds` are left."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"{seconds:.0f} s are left")
        self.seconds = seconds


@frozen
class Rotation:
    """Which CAs there are, and what each of them is for."""

    phase: Phase
    since: float
    """When this phase began; seconds of Unix time."""
    old: KeyPair
    """In STEADY, the only one."""
    new: KeyPair | None = None
    """None in STEADY only."""

    def __attrs_post_init__(self) -> None:
        if (self.new is None) != (self.phase is Phase.STEADY):
            raise ValueError(f"a second CA in {self.phase.value}, or none")

    @property
    def issuer(self) -> KeyPair:
        """The one that signs, and whose pin newcomers need."""
        if self.phase is Phase.ISSUE_NEW:
            assert self.new is not None  # as __attrs_post_init__ has seen to
            return self.new
        return self.old

    @property
    def client_issuer(self) -> KeyPair:
        """The one for certificates of those who dial in, which are to last: the newest, as both are believed."""
        return self.old if self.new is None else self.new

    @property
    def trusted(self) -> tuple[KeyPair, ...]:
        """Those whose certificates are to be believed, the issuer first."""
        others = [self.old] if self.new is None else [self.old, self.new]
        return (self.issuer, *(each for each in others if each is not self.issuer))

    def begin(self, new: KeyPair, now: float) -> Rotation:
        """The first step. ValueError if a rotation is under way."""
        if self.phase is not Phase.STEADY:
            raise ValueError(f"a rotation is under way: {self.phase.value}")
        return Rotation(Phase.TRUST_BOTH, now, self.old, new)

    def go_on(self, now: float, *, patient: bool = True) -> Rotation:
        """The next step. ValueError if no rotation is under way.

        Raises:
            TooEarly: with `patient`, before SETTLE_SECONDS have passed.
        """
        if self.new is None:
            raise ValueError("no rotation is under way")
        # A clock that was set back is no reason to wait for longer than that.
        left = min(self.since + SETTLE_SECONDS - now, SETTLE_SECONDS)
        if patient and left > 0:
            raise TooEarly(left)
        if self.phase is Phase.TRUST_BOTH:
            return evolve(self, phase=Phase.ISSUE_NEW, since=now)
        return Rotation(Phase.STEADY, now, self.new)
