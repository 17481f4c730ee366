"""Ends that are to be said, or said again, to daemons: the latest, bounded, and shared by who said them.

Sans-IO. No message confirms an End; but who answers what was said behind it has heard it. Saying one twice is
harmless. Beyond the bound the oldest goes of whoever has most, so nobody can push out another's by saying many; the
job's lease ends what was forgotten here.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sandd import wire

Key: TypeAlias = tuple[str, str, str, str]


@define
class KeptEnds:
    """At most so many; one for each job and client."""

    limit: int
    version: int = 0
    """Rises whenever they change."""
    _by_sender: dict[Hashable, OrderedDict[Key, wire.End]] = field(factory=dict)
    """The oldest of each is its first."""
    _senders: OrderedDict[Key, tuple[Hashable, int]] = field(factory=OrderedDict)
    """Of each its sender and place, the oldest first."""

    def __len__(self) -> int:
        return len(self._senders)

    def all(self) -> list[tuple[wire.End, Hashable]]:
        """Each with who said it, the oldest first."""
        return [(self._by_sender[by][key], by) for key, (by, _) in self._senders.items()]

    def keep(self, end: wire.End, sender: Hashable, *, place: int = 0) -> None:
        """One more, or one that is said again.

        Args:
            place: in all that is said to its daemon; no lower than that of any before it. See `heard`.
        """
        key = (end.daemon_id, end.tenant, end.job_id, end.client)
        if key in self._senders:
            ends = self._by_sender[self._senders[key][0]]
            if ends[key] == end:
                return
            self._drop(key)
        self._senders[key] = sender, place
        ends_of_sender = self._by_sender.get(sender)
        if ends_of_sender is None:
            ends_of_sender = self._by_sender[sender] = OrderedDict()
        ends_of_sender[key] = end
        self.version += 1
        if len(self._senders) > self.limit:
            most = max(self._by_sender.values(), key=len)
            self._drop(next(iter(most)))

    def heard(self, place: int) -> None:
        """What was said at this place has arrived: forget those with a lower one."""
        while self._senders:
            key, (_, its_place) = next(iter(self._senders.items()))
            if its_place >= place:
                break
            self._drop(key)

    def take(self, daemon_id: str) -> list[tuple[wire.End, Hashable]]:
        """Those for this daemon, which are kept no more."""
        return [self._drop(key) for key in [key for key in self._senders if key[0] == daemon_id]]

    def drop(self, tenant: str, job_id: str) -> None:
        """Forget those for a job."""
        for key in [key for key in self._senders if (key[1], key[2]) == (tenant, job_id)]:
            self._drop(key)

    def _drop(self, key: Key) -> tuple[wire.End, Hashable]:
        sender, _ = self._senders.pop(key)
        ends = self._by_sender[sender]
        end = ends.pop(key)
        if not ends:
            del self._by_sender[sender]
        self.version += 1
        return end, sender
