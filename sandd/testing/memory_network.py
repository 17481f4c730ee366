"""A network in memory for state machines that do no I/O: connections that break, stall and linger.

A cable is one WebSocket connection: it carries messages, whole and in order, between two ends. It can be
cut behind any byte of what is under way (of a message that is cut in its middle nothing arrives, as its
receiver's WebSocket would see to), be held in one direction as by a black hole, be slow, and live on
beside the one that was made in its place. Nobody is told of a cut: to learn of it is each end's own
affair, as it is on a real network, and may take as long.

::

    with MemoryNetwork() as network:
        cable = network.connect(
            near=CoreEnd(router_link.scheduler, on_frame=...),
            far=CoreEnd(daemon_link.scheduler, on_frame=...),
        )
        network.pump()                          # everything that can travel does
        cable.up.hold()                         # towards the near end nothing arrives any more
        network.shake(100)                      # some of it travels, in any order over the cables
        cable.cut(up_bytes=17, down_bytes=0)    # of what is under way, so much still arrives
        network.advance(5)                      # seconds on network.clock; slow cables deliver in time

What is random depends on `MemoryNetwork.seed` alone. An exception that leaves the ``with`` block names it,
and the variable SANDD_TEST_SEED sets it.
"""

from __future__ import annotations

import os
import random
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, field

from sandd import wire
from sandd._core.scheduler import BATCH_BYTES
from sandd.testing.virtual_clock import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from sandd._core.scheduler import Scheduler

SEED_VARIABLE: Final = "SANDD_TEST_SEED"
"""The environment variable that repeats a network's choices."""
MOST_ROUNDS: Final = 1000
"""In which a network comes to rest, or never does."""


class End(Protocol):
    """Whoever holds one end of a cable; `CoreEnd` is one for a state machine with a scheduler."""

    is_open: bool
    """It still holds the connection, for all it knows. What arrives at an end that doesn't is lost."""

    def next_message(self, max_bytes: int) -> bytes | None:
        """What it sends next, of about `max_bytes`; None when there is nothing."""

    def receive(self, message: bytes) -> None:
        """A message has arrived."""

    def peer_closed(self) -> None:
        """The other end has closed the connection; nothing follows."""


@define(eq=False)
class CoreEnd:
    """The end of a state machine: sends what its scheduler holds, and is handed frames."""

    scheduler: Scheduler
    on_frame: Callable[[wire.Frame], None]
    on_close: Callable[[], None] = lambda: None
    is_open: bool = True

    def next_message(self, max_bytes: int) -> bytes | None:
        """See `End`."""
        frames = self.scheduler.next_frames(max_bytes)
        return (
            b"".join([part for frame in frames for part in wire.encoded(frame)]) if frames else None
        )

    def receive(self, message: bytes) -> None:
        """See `End`. The frames behind one at which the end is closed are lost, as with a real one."""
        for frame in wire.decode_frames(message):
            if not self.is_open:
                return
            self.on_frame(frame)

    def peer_closed(self) -> None:
        """See `End`."""
        self.on_close()


@define(eq=False)
class Way:
    """One direction of a cable."""

    source: End
    sink: End
    clock: VirtualClock
    delay: float = 0.0
    """Seconds that a message sent from now on takes; none overtakes an earlier one."""
    is_held: bool = False
    """Nothing arrives: it is a black hole. What was sent is not lost; TCP would send it again."""
    is_cut: bool = False
    """What is sent from now on is lost."""
    flying: deque[tuple[float, bytes | None]] = field(factory=deque)
    """What is under way: when it arrives, and the message; None is the word that the source closed."""
    sent_bytes: int = 0
    """All that was ever handed to it."""

    @property
    def flying_bytes(self) -> int:
        """Size of what is under way."""
        return sum(len(message) for _, message in self.flying if message is not None)

    @property
    def next_arrival(self) -> float | None:
        """When the next message can be delivered; None when none is under way, or the way is held."""
        return self.flying[0][0] if self.flying and not self.is_held else None

    def send(self, max_bytes: int = BATCH_BYTES) -> bool:
        """The source hands its next message to its socket; returns whether it had one."""
        message = self.source.next_message(max_bytes) if self.source.is_open else None
        if message is None:
            return False
        assert len(message) <= wire.MAX_MESSAGE_BYTES, "a message larger than the limit"
        self.sent_bytes += len(message)
        self._put(message)
        return True

    def deliver(self) -> bool:
        """The oldest message arrives, if it is due; returns whether one did."""
        if self.is_held or not self.flying or self.flying[0][0] > self.clock.now:
            return False
        _, message = self.flying.popleft()
        if not self.sink.is_open:
            return True
        if message is None:
            self.sink.peer_closed()
        else:
            self.sink.receive(message)
        return True

    def close(self) -> None:
        """The source closes the connection; the sink hears of it behind what is under way."""
        self.source.is_open = False
        self._put(None)

    def hold(self) -> None:
        """Nothing arrives any more, until `release`."""
        self.is_held = True

    def release(self) -> None:
        """What was held arrives."""
        self.is_held = False

    def _put(self, message: bytes | None) -> None:
        if not self.is_cut:
            arrival = self.clock.now + self.delay
            if self.flying:
                arrival = max(arrival, self.flying[-1][0])
            self.flying.append((arrival, message))

    def _cut(self, arriving: int) -> None:
        kept: deque[tuple[float, bytes | None]] = deque()
        for when, message in self.flying:
            if message is None or len(message) > arriving:
                break
            arriving -= len(message)
            kept.append((when, message))
        self.flying = kept
        self.is_cut = True


class Cable:
    """One connection: the near end took it, the far end had dialled."""

    def __init__(self, near: End, far: End, clock: VirtualClock) -> None:
        self.near = near
        self.far = far
        self.up = Way(far, near, clock)
        """From the far end to the near end."""
        self.down = Way(near, far, clock)
        """From the near end to the far end."""
        self.ways = (self.up, self.down)

    def __repr__(self) -> str:
        ends = "".join(" open" if end.is_open else " closed" for end in (self.near, self.far))
        flying = f"{self.up.flying_bytes} bytes up, {self.down.flying_bytes} down"
        return f"<Cable{ends}{', cut' if self.is_cut else ''}: {flying}>"

    @property
    def is_cut(self) -> bool:
        """Nothing that is sent arrives any more, in neither direction."""
        return self.up.is_cut and self.down.is_cut

    @property
    def is_held_open(self) -> bool:
        """One of its ends, or both, has not closed it."""
        return self.near.is_open or self.far.is_open

    def pump(self) -> bool:
        """Everything that is due travels to its end; returns whether there was anything."""
        moved = False
        for way in self.ways:
            while way.deliver() or way.send():
                moved = True
        return moved

    def cut(self, *, up_bytes: int = 0, down_bytes: int = 0) -> None:
        """Of what is under way these many bytes arrive; the rest, and all that follows, is lost."""
        self.up._cut(up_bytes)
        self.down._cut(down_bytes)


class MemoryNetwork:
    """All cables, the clock they share, and one seed for everything random."""

    def __init__(self, seed: int | None = None, *, clock: VirtualClock | None = None) -> None:
        if seed is None:
            named = os.environ.get(SEED_VARIABLE)
            seed = random.SystemRandom().getrandbits(32) if named is None else int(named)
        self.seed = seed
        self.random = random.Random(seed)
        self.clock = VirtualClock() if clock is None else clock
        self._cables: list[Cable] = []

    def __enter__(self) -> MemoryNetwork:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            error.add_note(f"the network's seed was {self.seed}: {SEED_VARIABLE}={self.seed}")

    @property
    def cables(self) -> list[Cable]:
        """Every connection that somebody still holds open, in the order in which they were made."""
        self._cables = [cable for cable in self._cables if cable.is_held_open]
        return self._cables

    def connect(self, near: End, far: End) -> Cable:
        """A new connection; others between the same two stay as they are."""
        cable = Cable(near, far, self.clock)
        self._cables.append(cable)
        return cable

    def pump(self) -> None:
        """Everything that can travel now does, to the last message.

        Raises:
            AssertionError: there is no end to it.
        """
        for _ in range(MOST_ROUNDS):
            moved = [cable.pump() for cable in self.cables]
            if not any(moved):
                return
        raise AssertionError("the network never comes to rest")

    def shake(self, moves: int, *, seed: int | None = None, max_bytes: int = BATCH_BYTES) -> None:
        """Some messages are sent, some arrive: so many random moves, with `seed` the same ones each time."""
        choose = (self.random if seed is None else random.Random(seed)).random
        cables = self.cables
        for _ in range(moves if cables else 0):
            cable = cables[int(choose() * len(cables))]
            way = cable.ways[choose() < 0.5]
            if choose() < 0.5:
                way.send(max_bytes)
            else:
                way.deliver()

    def advance(self, seconds: float) -> None:
        """Let time pass: timers fire and messages arrive, each at its own time, and all they lead to travels."""
        end = self.clock.now + seconds
        self.pump()
        while (soonest := self._next_event()) is not None and soonest <= end:
            self.clock.advance_to(soonest)
            self.pump()
        self.clock.advance_to(end)

    def _next_event(self) -> float | None:
        arrivals = [way.next_arrival for cable in self.cables for way in cable.ways]
        times = [each for each in (self.clock.next_at, *arrivals) if each is not None]
        return min(times, default=None)
