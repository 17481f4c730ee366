"""How many may come in per second, in which order, and when the others shall ask again.

Sans-IO. A controller that is restarted under thousands of daemons is dialled by all of them at once.
They get places in time, `rate` of them a second, in the order in which they ask: who is near waits,
who is not is told a time, each a different one. So the work that newcomers make never keeps from
their turn those who are in.
"""

from __future__ import annotations

import math
from typing import Final

from attrs import define, frozen

BURST_SECONDS: Final = 0.25
"""After a quiet time, as many may come at once as otherwise in so many seconds: a few daemons never wait."""
LONGEST_WAIT: Final = 5.0
"""Seconds until the last place that is given out: half of what a daemon gives a whole handshake."""
LONGEST_RETRY: Final = 60.0
"""Seconds after which anybody may ask again; so nobody can keep others out by asking in their stead."""


@frozen
class Place:
    """The handshake may go on in `wait` seconds."""

    wait: float


@frozen
class ComeBack:
    """There is no place now; ask again after `retry_after` seconds."""

    retry_after: float


@define
class Admission:
    """A token bucket that gives out its tokens in advance: a place for everybody, up to LONGEST_WAIT ahead.

    In any span of T seconds, at most ``rate * T + burst`` places come up. At most
    ``rate * LONGEST_WAIT + burst`` are waiting for theirs.
    """

    rate: float
    """Places per second."""
    _full_at: float = -math.inf
    """When the bucket will be full, if nobody asks any more (GCRA: the theoretical arrival time)."""
    _invited_until: float = -math.inf
    """For when the last of those who found no place was told to come back."""

    @property
    def burst(self) -> float:
        """Places that may be had at once; at least one."""
        return max(1.0, self.rate * BURST_SECONDS)

    def ask(self, now: float) -> Place | ComeBack:
        """A place, or when to ask for one again. Clock readings never go down."""
        full_at = max(self._full_at, now)
        wait = max(0.0, full_at - now - (self.burst - 1.0) / self.rate)
        if wait <= LONGEST_WAIT:
            self._full_at = full_at + 1.0 / self.rate
            return Place(wait)
        # At the pace at which places come up, from the time on when half of those given out are used.
        soonest = max(self._invited_until + 1.0 / self.rate, now + LONGEST_WAIT / 2)
        self._invited_until = min(soonest, now + LONGEST_RETRY)
        # Clipped again, as a sum of floats less one of its parts may exceed the other.
        return ComeBack(min(self._invited_until - now, LONGEST_RETRY))
