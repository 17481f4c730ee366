"""Where credentials fail again and again, nobody is heard for a while: by network, never by a claimed name.

What a stranger says of itself it can say of anybody. Were failures counted against the id that was claimed, whoever
names a victim would keep it out. So they count against where they come from, and there only among those who want the
same thing (`door`): a person with a stale token keeps no daemon out.

Behind one address there may be a whole fleet (NAT), or everybody (a proxy on this machine). So a network where somebody
has proven itself within a day is never barred, for one failing neighbour would lock the others out; and loopback
never is. There, secrets protect themselves: those that we make have 256 bits, which no number of guesses exhausts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from sandd._core.rate_limits.bounded_table import BoundedTable, KeyedRate
from sandd._core.rate_limits.networks import network_of
from sandd._core.rate_limits.rates import Rate

if TYPE_CHECKING:
    from typing import TypeAlias

    Place: TypeAlias = tuple[str, str]
    """A network, and the door at which its people knock."""

FAILURES: Final = Rate(5 / 60, burst=5)
"""Of one network at one door; the sixth within a minute bars it."""
FIRST_BAR: Final = 60.0
"""Seconds. After it, all the failures of a minute are forgiven: who has mended its token needs only one."""
LONGEST_BAR: Final = 600.0
"""Seconds. Each bar is twice as long as the one before, up to this (OpenSSH's PerSourcePenalties end there, too)."""
BAR_MEMORY: Final = 600.0
"""Seconds without another bar after which the first is a short one again."""
PROOF_MEMORY: Final = 86_400.0
"""Seconds that a network counts as somebody's home after the latest proof: for so long an absent daemon keeps jobs."""
MOST_NETWORKS: Final = 16_384
"""Kept track of, at some 300 bytes each: a /50 of IPv6 has as many, and addresses beyond cost an attacker nothing
anyway. Networks that are barred are never pushed out by new ones."""


@frozen
class Bar:
    """One network is not heard at one door."""

    until: float
    length: float


class FailedCredentials:
    """Counts failed proofs by where they come from, and says who is not to be heard."""

    def __init__(self, most_networks: int = MOST_NETWORKS) -> None:
        self._failures: KeyedRate[Place] = KeyedRate(FAILURES, most_networks)
        self._bars: BoundedTable[Place, Bar] = BoundedTable(
            most_networks, lambda bar, now: now < bar.until
        )
        self._proven: BoundedTable[Place, float] = BoundedTable(
            most_networks, lambda _since, _now: False
        )

    def __len__(self) -> int:
        return len(self._failures) + len(self._bars) + len(self._proven)

    def barred_for(self, host: str, door: str, now: float) -> float:
        """Seconds for which whoever comes from there isn't heard; 0.0: come in."""
        place = (network_of(host), door)
        bar = self._bars.get(place)
        if bar is None or now >= bar.until or self._is_home(place, now):
            return 0.0
        return bar.until - now

    def failed(self, host: str, door: str, now: float) -> float:
        """A peer could not prove who it is; seconds for which its network is barred by this, or 0.0."""
        place = (network_of(host), door)
        bar = self._bars.get(place)
        if bar is not None and now < bar.until:
            return 0.0  # it was in when the door was shut
        if self._failures.wait(place, now) == 0.0:
            self._failures.count(place, now)
            return 0.0
        if self._is_home(place, now):
            return 0.0
        recent = bar is not None and now < bar.until + BAR_MEMORY
        length = min(2 * bar.length, LONGEST_BAR) if bar is not None and recent else FIRST_BAR
        self._bars.put(place, Bar(now + length, length), now)
        return length

    def proven(self, host: str, door: str, now: float) -> None:
        """A peer has proven who it is, or a link of one that had has ended: somebody is at home there."""
        self._proven.put((network_of(host), door), now, now)

    def _is_home(self, place: Place, now: float) -> bool:
        since = self._proven.get(place)
        return since is not None and now < since + PROOF_MEMORY
