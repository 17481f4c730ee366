"""How many strangers are heard at the same time, in all and of one network, and who makes way for whom.

A stranger has a place from the moment it is accepted until it has proven who it is, and no longer than a handshake may
take. Silence costs an attacker nothing, so silence must not keep places from those who have something to say:

- Whoever has been silent for a second makes way when all places are taken and another one comes.
- A network's share is SHARE places. When all are taken, and one comes whose network has less than that, whoever has
  been there longest of a network that has more makes way for it, at once.

While there are places left, a network may take as many as there are: behind one address there may be a whole fleet,
and a fleet that comes back is quick. What comes when all are taken waits, in order, in the system's queue.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHARE: Final = 16
"""Places of one network (an IPv4 address, a /64 of IPv6) that others can't take from it: 16 such networks fill 256."""

PATIENCE: Final = 1.0
"""Seconds that a peer may take for what it has to say while others wait for its place: so that those who connect
and say nothing, of whom a few hundred cost nobody anything, keep nobody out."""


@define(eq=False)
class Place:
    """Somebody is being heard. It is the holder's to leave, whatever happens."""

    _places: HandshakePlaces
    network: str
    since: float
    """When it was last found to have said something."""
    _dismiss: Callable[[], None] | None = None
    _held: bool = field(default=True, init=False)

    def hear(self, dismiss: Callable[[], None]) -> None:
        """Its holder is waited for from now on; `dismiss` ends that, if it has to make way."""
        self._dismiss = dismiss
        self.since = trio.current_time()
        self._places.silent.pop(self, None)
        if self._held:
            self._places.silent[self] = None

    def heard(self) -> None:
        """Its holder isn't waited for now, so it doesn't make way."""
        self._places.silent.pop(self, None)

    def leave(self) -> None:
        """It is free. To leave it twice is to leave it once."""
        self.heard()
        if self._held:
            self._held = False
            self._places.free(self)

    def make_way(self) -> None:
        """Somebody else has it from now on."""
        self.heard()
        self._held = False
        if self._dismiss is not None:
            self._dismiss()


class HandshakePlaces:
    """At most `most` places."""

    def __init__(self, most: int) -> None:
        self._free = trio.Semaphore(most, max_value=most)
        self._counts: dict[str, int] = {}
        """Places taken, by network; no zeros."""
        self.silent: dict[Place, None] = {}
        """Those that may have to make way; the longest silent first."""

    @property
    def taken(self) -> dict[str, int]:
        """How many places are taken, by network."""
        return dict(self._counts)

    async def take(self, network: str) -> Place:
        """A place; others make way for it, or it waits, in the order of asking. No checkpoint if one is free."""
        while True:
            with contextlib.suppress(trio.WouldBlock):
                self._free.acquire_nowait()
                break
            oldest, when = self._who_makes_way(network)
            if oldest is None or when > trio.current_time():
                with trio.move_on_at(when):
                    await self._free.acquire()
                    break
                continue  # who was the longest silent may not be it any more
            self._leave_count(oldest)
            oldest.make_way()
            break
        self._counts[network] = self._counts.get(network, 0) + 1
        return Place(self, network, trio.current_time())

    def free(self, place: Place) -> None:
        """For `Place.leave`."""
        self._leave_count(place)
        self._free.release()

    def _leave_count(self, place: Place) -> None:
        left = self._counts[place.network] - 1
        if left:
            self._counts[place.network] = left
        else:
            del self._counts[place.network]

    def _who_makes_way(self, network: str) -> tuple[Place | None, float]:
        """For a newcomer of that network: who has to, and when. Nobody, while nobody is silent."""
        if self._counts.get(network, 0) < SHARE:
            largest = max(self._counts.values(), default=0)
            if largest > SHARE:
                for place in self.silent:
                    if self._counts[place.network] == largest:
                        return place, place.since
        for place in self.silent:
            return place, place.since + PATIENCE
        # Whoever has a place does something of its own accord now, and bounded: look again after that.
        return None, trio.current_time() + PATIENCE


@define(eq=False)
class Hearing:
    """One stranger's place, from when it is accepted until nobody waits for a word of it any more."""

    places: HandshakePlaces
    place: Place | None

    @contextlib.contextmanager
    def listen(self) -> Iterator[trio.CancelScope]:
        """While this lasts it may have to make way; then the scope is cancelled."""
        with trio.CancelScope() as scope:
            if self.place is not None:
                self.place.hear(scope.cancel)
            try:
                yield scope
            finally:
                if self.place is not None:
                    self.place.heard()

    async def interrupt(self, seconds: float) -> None:
        """Sleep without a place, for who waits costs nothing, and others can be told at once; then take one again."""
        assert self.place is not None
        network = self.place.network
        self.end()
        await trio.sleep(seconds)
        self.place = await self.places.take(network)

    def end(self) -> None:
        """It has been heard, or is gone."""
        if self.place is not None:
            self.place.leave()
            self.place = None
