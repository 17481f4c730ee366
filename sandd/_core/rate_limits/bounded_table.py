"""A value for each of many keys, in bounded memory, whoever invents keys; and a `Rate` for each.

Nobody who is being held back is forgotten for somebody new: else a flood of fresh names would lift the limit on
an old one. So when the table is full, a newcomer takes the place of who was longest not heard of and is *not* held
back; and where there is none, the newcomer is not kept track of. It is let pass then, which gives nothing away:
whoever has so many names to fill the table with could use a new one each time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from sandd._core.rate_limits.rates import UNUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sandd._core.rate_limits.rates import Rate

LOOKS: Final = 16
"""Of how many that were longest not heard of a place is looked for: so a full table costs no more than this."""

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class BoundedTable(Generic[K, V]):
    """At most `most` keys with their values.

    Args:
        most: keys.
        is_held_back: of a value and the time: this key must not be forgotten yet.
    """

    def __init__(self, most: int, is_held_back: Callable[[V, float], bool]) -> None:
        self._most = most
        self._is_held_back = is_held_back
        self._values: OrderedDict[K, V] = OrderedDict()
        """Who was longest not heard of comes first."""

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """Its value, if it is kept track of."""
        return self._values.get(key)

    def put(self, key: K, value: V, now: float) -> None:
        """Keep this, unless the key is a new one and there is no room: see above."""
        if key in self._values or len(self._values) < self._most or self._make_room(now):
            self._values[key] = value
            self._values.move_to_end(key)

    def _make_room(self, now: float) -> bool:
        for _ in range(min(LOOKS, len(self._values))):
            oldest = next(iter(self._values))
            if not self._is_held_back(self._values[oldest], now):
                del self._values[oldest]
                return True
            self._values.move_to_end(oldest)  # the next search begins behind it
        return False


class KeyedRate(Generic[K]):
    """One `Rate`, for each key by itself."""

    def __init__(self, rate: Rate, most_keys: int) -> None:
        self.rate = rate
        self._whole_at: BoundedTable[K, float] = BoundedTable(
            most_keys, lambda whole_at, now: rate.wait(whole_at, now) > 0.0
        )

    def __len__(self) -> int:
        return len(self._whole_at)

    def wait(self, key: K, now: float) -> float:
        """Seconds until one more of this key may come; 0.0: now."""
        whole_at = self._whole_at.get(key)
        return 0.0 if whole_at is None else self.rate.wait(whole_at, now)

    def count(self, key: K, now: float) -> None:
        """One more of this key has come."""
        whole_at = self._whole_at.get(key)
        self._whole_at.put(
            key, self.rate.after_one(UNUSED if whole_at is None else whole_at, now), now
        )
