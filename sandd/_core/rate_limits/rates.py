"""So many a second, and so many at once: the generic cell rate algorithm, on one number.

That number is when the allowance will be whole again if nothing more happens, the "theoretical arrival time" of
the ATM Forum's Traffic Management 4.1, s. 4.4.2. Each event moves it on by one interval; one that would move it
further ahead than the burst reaches has to wait, and for how long is known exactly. No timer, no counter to reset.
"""

from __future__ import annotations

import math
from typing import Final

from attrs import field, frozen

from sandd._core._errors import ConfigurationError

UNUSED: Final = -math.inf
"""`whole_at` of an allowance that nothing was ever taken of."""
ROUNDING: Final = 1e-6
"""Seconds by which somebody may come early: sums of clock readings are not exact, and who comes at the very time
that it was told is not to be sent away again."""
LEAST_PER_SECOND: Final = 1e-4
"""One in some three hours: what is rarer is not limited but forbidden."""
MOST_PER_SECOND: Final = 1e6
"""Far beyond what one processor can do: a bound on arithmetic only. So it is for a burst."""


@frozen
class Rate:
    """So many `per_second` in the long run, and a `burst` of so many at once after a quiet time.

    In any span of T seconds at most ``burst + per_second * T`` come about.
    """

    per_second: float
    """Above 0; 0.5 is one in two seconds."""
    burst: int = field()
    """At least 1; a second's worth where it isn't given."""

    @burst.default
    def _a_seconds_worth(self) -> int:
        usable = LEAST_PER_SECOND <= self.per_second <= MOST_PER_SECOND  # else told below
        return max(1, math.ceil(self.per_second)) if usable else 1

    def __attrs_post_init__(self) -> None:
        if not LEAST_PER_SECOND <= self.per_second <= MOST_PER_SECOND:
            raise ConfigurationError(
                f"a rate of {self.per_second!r} per second can't be kept: it must be {LEAST_PER_SECOND:g} "
                f"to {MOST_PER_SECOND:g}"
            )
        if self.burst != int(self.burst) or not 1 <= self.burst <= MOST_PER_SECOND:
            raise ConfigurationError(
                f"a burst of {self.burst!r} makes no sense: it is a whole number from 1 to {MOST_PER_SECOND:g}"
            )

    def wait(self, whole_at: float, now: float) -> float:
        """Seconds until one more may come; 0.0: now."""
        ahead = max(whole_at, now) - now - (self.burst - 1) / self.per_second
        return ahead if ahead > ROUNDING else 0.0

    def after_one(self, whole_at: float, now: float) -> float:
        """When the allowance will be whole again, now that one more has come."""
        return max(whole_at, now) + 1.0 / self.per_second
