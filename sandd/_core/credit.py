"""How much may come to wait in the controller for one link: it passes on less credit than receivers grant.

Sans-IO. Offsets, acks and credit run from client to daemon; the router forwards what a receiver grants, but no more at
a time than it could keep, should that receiver's connection not take it. Each stream that flows towards a link is a
`Flow`, and all flows of a link share a `CreditPool`::

    passed <= arrived <= granted <= wanted   (or <= what may be sent unasked: see `Flow.allow`)
       |         |          |          `- what the receiver grants
       |         |          `- what the sender was told
       |         `- what the sender has sent
       `- what the receiver's socket has taken

What may come to wait is ``granted - passed``, summed over the flows. `LEAST_BYTES` of it each flow has in any case,
so that every flow always moves; what is beyond that comes out of the pool, and a flow begins with little of it. It may
have more under way each time that it has used what it had. Credit can't be taken back, so a flow that had much and
falls silent keeps that: but when much has passed and hardly any of it there, what it holds is counted apart, as
*dormant*. It takes no room from the others then, nor a share, and has no more until it has shown that it needs it.

Whoever sends is held to it: each frame lies behind those before it, and within what was granted. So what waits is
within the bound whatever a peer does.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandd import wire
from sandd._core._errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

POOL_BYTES: Final = 16 * wire.MIB
"""May come to wait for one link, whatever runs over it: a quarter of a second at 64 MB/s."""
LEAST_BYTES: Final = 4 * wire.KIB
"""Each flow may have at least this much under way, also where the pool is used up."""
FIRST_BYTES: Final = 64 * wire.KIB
"""A flow begins with this much at most: what most commands print is less."""
FIRST_PART: Final = 32
"""Of what is free of half of the pool a flow begins with one part in so many: however many there are that never say
anything, the other half is for those that do."""
GREATEST_SHARE: Final = 4
"""One flow may have a fourth of the pool under way at most."""
DORMANT_POOLS: Final = 3
"""Dormant credit may come to so many times the pool's limit; beyond that it counts as any other."""
USED_PART: Final = 16
"""A flow is looked at when as much has passed over the link as the pool's limit is, and it has used enough of what it
holds if that was a sixteenth of its share: where all that share are busy, each has used the whole of it."""


class Standing(enum.Enum):
    """What a flow has shown so far of what it needs."""

    FRESH = enum.auto()  # it has not used what it began with
    BUSY = enum.auto()  # it has, and may have more each time
    DORMANT = enum.auto()  # it was busy, and holds more than it uses


class CreditPool:
    """What all flows towards one link may have under way together; shared by client, then by flow."""

    def __init__(
        self,
        limit: int = POOL_BYTES,
        *,
        least: int = LEAST_BYTES,
        first: int = FIRST_BYTES,
        first_part: int = FIRST_PART,
    ) -> None:
        self.limit = limit
        self.least = least
        self.first = first
        self.first_part = first_part
        self.held = dict.fromkeys(Standing, 0)
        """Bytes that may come to wait, beyond the least, by what their flows are."""
        self.flows = 0
        self._clock = 0
        """Bytes that have passed over the link."""
        self._busy: dict[Flow, None] = {}
        """Flows that have had more than they began with, as an ordered set: whose look is due first is the first."""
        self._busy_of: dict[Hashable, int] = {}
        """How many of these each client has."""

    @property
    def promised(self) -> int:
        """What counts against the limit."""
        return self.held[Standing.FRESH] + self.held[Standing.BUSY]

    @property
    def bound(self) -> int:
        """More may never come to wait."""
        return (1 + DORMANT_POOLS) * self.limit + self.least * self.flows

    @property
    def first_window(self) -> int:
        """What a flow may begin with now."""
        free = min(self.limit // 2 - self.held[Standing.FRESH], self.limit - self.promised)
        return min(self.first, self.least + max(0, free) // self.first_part)

    def share(self, client: Hashable) -> int:
        """What one busy flow of the client may have under way."""
        flows = len(self._busy_of) * self._busy_of.get(client, 0)
        return self.limit // max(GREATEST_SHARE, flows)

    def rouse(self, flow: Flow) -> None:
        """The flow has used what it had: it counts among the busy ones."""
        if flow not in self._busy:
            self._busy_of[flow.client] = self._busy_of.get(flow.client, 0) + 1
            self._look_later(flow)

    def passed(self, size: int) -> None:
        """So many bytes have passed over the link. Flows that have had next to no part in that are busy no more."""
        self._clock += size
        while self._busy:
            flow = next(iter(self._busy))
            if self._clock - flow.looked_at < self.limit:
                return
            del self._busy[flow]
            used = flow.passed - flow.passed_then
            if used * USED_PART >= self.share(flow.client) or not flow.fall_asleep():
                self._look_later(flow)
            else:
                self._count_less(flow)

    def leave(self, flow: Flow) -> None:
        """It is over."""
        self.flows -= 1
        if flow in self._busy:
            del self._busy[flow]
            self._count_less(flow)

    def _look_later(self, flow: Flow) -> None:
        flow.looked_at, flow.passed_then = self._clock, flow.passed
        self._busy[flow] = None

    def _count_less(self, flow: Flow) -> None:
        self._busy_of[flow.client] -= 1
        if not self._busy_of[flow.client]:
            del self._busy_of[flow.client]


@define(eq=False)
class Flow:
    """One stream of one channel, on its way through the router towards a link."""

    stream: wire.Stream
    pool: CreditPool
    client: Hashable
    on_due: Callable[[Flow], None]
    """Called when the sender is to be told of more credit: see `update`."""
    wanted: int = 0
    granted: int = 0
    passed: int = 0
    acked: int = 0
    told: int = 0
    """What the sender knows of `granted`."""
    _allowed: int = 0
    """What it may send unasked. That is not promised: what comes of it beyond `granted` is its sender's own
    affair (`MeteredQueue`), as most jobs have nothing to say on INPUT."""
    _arrived: int = 0
    _ended: bool = False
    """Its FIN has come."""
    _skipped: int = 0
    """Units of gaps that have arrived and not passed: they are no bytes."""
    looked_at: int = 0
    """The pool's clock when it was looked at whether it uses what it has, ..."""
    passed_then: int = 0
    """... and `passed` at that time."""
    _window: int = field(init=False)
    """How much it may have under way, if there is room."""
    _grown_at: int = 0
    """`passed` when the window grew."""
    _promised: int = 0
    """Its part of what the pool holds."""
    _standing: Standing = Standing.FRESH
    _closed: bool = False
    _bounded: bool = field(init=False)
    """It counts bytes. Messages are few: what bounds their bytes is the room of their sender."""

    def __attrs_post_init__(self) -> None:
        self._bounded = self.stream not in wire.MESSAGE_STREAMS
        self._window = 0  # none so far: how much it begins with shows when it begins
        if self._bounded:
            self.pool.flows += 1

    def want(self, max_offset: int, ack: int = 0) -> int:
        """The receiver grants this much, and has taken so much; what of it the sender may be told."""
        self.wanted = max(self.wanted, max_offset)
        self.acked = max(self.acked, ack)
        self._grow()
        self.told = self.granted
        return self.granted

    def allow(self, max_offset: int) -> None:
        """The sender may send so much unasked, before it knows what the receiver grants: it may be less."""
        self._allowed = max_offset
        self._grow()

    def place(self, offset: int, *, by_sender: bool = False) -> None:
        """It begins here, for this channel: nothing below will come; a sender that says so is held to it."""
        if by_sender:
            self._arrived = max(self._arrived, offset)
        self.passed = self._grown_at = max(self.passed, offset)
        self._grow()
        self._tell_if_due()

    def arrived(self, data: wire.Data) -> int:
        """A frame came; where the stream stands behind it.

        RemoteProtocolError where it goes back, adds nothing, or is more than was granted: else what waits would have
        no bound.
        """
        credit = max(self.granted, self._allowed)
        if data.offset < self._arrived or self._ended:
            raise RemoteProtocolError(
                f"{self.stream.name} goes back to {data.offset}, or on behind its end"
            )
        if data.gap_end is not None:
            # Dropped, not sent: it needs credit for its first unit alone, and moves all that follows.
            end = data.offset + 1
        elif self._bounded:
            end = data.offset + len(data.body)
        else:
            end = data.offset + bool(len(data.body) or not data.final)
        if end == data.offset and not data.final:
            raise RemoteProtocolError(f"an empty frame of {self.stream.name}")
        if end > credit:
            raise RemoteProtocolError(f"{self.stream.name} exceeds its credit of {credit}")
        if data.gap_end is not None:
            self._skipped += data.gap_end - data.offset
            self.wanted = max(self.wanted, data.gap_end)
            self.granted = max(self.granted, data.gap_end)
            end = data.gap_end
        self._arrived = end
        self._ended = data.final
        return end

    def pass_on(self, offset: int, skipped: int = 0) -> None:
        """The receiver's socket has taken all below, of which so much was a gap, the latest that came."""
        before, self.passed = self.passed, max(self.passed, offset)
        self._skipped -= skipped
        if self._bounded:
            if self.passed - self._grown_at >= self._window > 0:
                self._grown_at = self.passed
                self._window *= 2
                self._become(Standing.BUSY)
                self.pool.rouse(self)
            self.pool.passed(max(0, self.passed - before - skipped))
        self._grow()
        self._tell_if_due()

    def update(self) -> wire.StreamWindow:
        """What to tell the sender."""
        self.told = self.granted
        return wire.StreamWindow(self.stream, self.acked, self.granted)

    def close(self) -> None:
        """The channel is closed: nothing of it waits any more."""
        if not self._closed and self._bounded:
            self._promise(0)
            self.pool.leave(self)
        self._closed = True

    def stop(self) -> None:
        """Its sender is gone: what has arrived still passes, and nothing is granted any more."""
        self.wanted = self.granted = self.told = self._arrived
        self._allowed = 0
        if self._bounded and not self._closed:
            self._count()

    def fall_asleep(self) -> bool:
        """It has used next to nothing of what it has: that is dormant from now on. False: there is no room for it."""
        pool = self.pool
        if pool.held[Standing.DORMANT] + self._promised > DORMANT_POOLS * pool.limit:
            return False
        self._become(Standing.DORMANT)
        self._window = min(self._window, pool.first)
        self._grown_at = self.passed
        return True

    def _tell_if_due(self) -> None:
        # A sender that has half of its window left needs no telling; one that has none waits for it.
        news = self.granted - self.told
        if news > 0 and 2 * news >= self.granted - self.passed and not self._closed:
            self.on_due(self)

    def _grow(self) -> None:
        if not self._bounded:
            self.granted = self.wanted
            return
        if self._closed:
            return
        pool = self.pool
        if not self._window:
            if self.wanted <= self.passed:
                self.granted = max(self.granted, self.wanted)
                return
            self._window = pool.first_window
        self._window = min(self._window, max(pool.least, pool.limit // GREATEST_SHARE))
        others = pool.promised - (0 if self._standing is Standing.DORMANT else self._promised)
        room = pool.least + pool.limit - others
        window = max(pool.least, min(self._window, pool.share(self.client), room))
        self.granted = max(self.granted, min(self.wanted, self.passed + window))
        self._count()

    def _count(self) -> None:
        # A receiver may begin behind all that it has granted, and then nothing is under way.
        self._promise(max(0, self.granted - self.passed - self._skipped - self.pool.least))

    def _promise(self, size: int) -> None:
        self.pool.held[self._standing] += size - self._promised
        self._promised = size

    def _become(self, standing: Standing) -> None:
        promised = self._promised
        self._promise(0)
        self._standing = standing
        self._promise(promised)
