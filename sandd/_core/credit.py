"""How much may come to wait in the controller for one link: it passes on less credit than receivers grant.

Sans-IO. Offsets, acks and credit run from client to daemon; the router forwards what a receiver grants, but no more at
a time than it could keep, should that receiver's connection not take it. Each stream that flows towards a link is a
`Flow`, and all flows of a link share a `CreditPool`::

    passed <= arrived <= granted <= wanted   (or <= what may be sent unasked: see `Flow.allow`)
       |         |          |          `- what the receiver grants
       |         |          `- what the sender was told
       |         `- what the sender has sent
       `- what the receiver's socket has taken

What may come to wait is ``granted - passed``, summed over the flows: at most the pool's limit, and `LEAST_BYTES` for
each flow, so that every flow always moves. A flow begins with little, and may have more under way each time that it has
used what it had: so one that is idle holds back no more than that little.

Whoever sends is held to it: each frame lies behind those before it, and within what was granted. So what waits is
within the bound whatever a peer does.
"""

from __future__ import annotations

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
"""A flow begins with this much: what most commands print is less."""
GREATEST_SHARE: Final = 4
"""One flow may have a fourth of the pool under way at most."""


class CreditPool:
    """What all flows towards one link may have under way together; shared by client, then by flow."""

    def __init__(
        self, limit: int = POOL_BYTES, *, least: int = LEAST_BYTES, first: int = FIRST_BYTES
    ) -> None:
        self.limit = limit
        self.least = least
        self.first = first
        self.promised = 0
        """Bytes that may come to wait."""
        self._flows: dict[Hashable, int] = {}
        """How many each client has."""

    @property
    def bound(self) -> int:
        """More may never come to wait."""
        return self.limit + self.least * sum(self._flows.values())

    def join(self, client: Hashable) -> None:
        """One more flow, of that client."""
        self._flows[client] = self._flows.get(client, 0) + 1

    def leave(self, client: Hashable) -> None:
        """One of its flows is over."""
        self._flows[client] -= 1
        if not self._flows[client]:
            del self._flows[client]

    def share(self, client: Hashable) -> int:
        """What one flow of the client may have under way, where all want much."""
        flows = len(self._flows) * self._flows[client]
        return self.limit // max(GREATEST_SHARE, flows)


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
    """What it may send unasked; no more is promised by that than by `granted`."""
    _arrived: int = 0
    _ended: bool = False
    """Its FIN has come."""
    _skipped: int = 0
    """Units of gaps that have arrived and not passed: they are no bytes."""
    _window: int = field(init=False)
    """How much it may have under way, if there is room."""
    _grown_at: int = 0
    """`passed` when the window grew."""
    _promised: int = 0
    """Its part of the pool's."""
    _closed: bool = False
    _bounded: bool = field(init=False)
    """It counts bytes. Messages are few: their window of 64 is bound enough, see `RouterLink.waiting`."""

    def __attrs_post_init__(self) -> None:
        self._bounded = self.stream not in wire.MESSAGE_STREAMS
        self._window = self.pool.first
        if self._bounded:
            self.pool.join(self.client)

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
        name, credit = self.stream.name, max(self.granted, self._allowed)
        if data.offset < self._arrived or self._ended:
            raise RemoteProtocolError(f"{name} goes back to {data.offset}, or on behind its end")
        if data.gap_end is not None:
            # Dropped, not sent: it needs credit for its first unit alone, and moves all that follows.
            end = data.offset + 1
        elif self._bounded:
            end = data.offset + len(data.body)
        else:
            end = data.offset + bool(len(data.body) or not data.final)
        if end == data.offset and not data.final:
            raise RemoteProtocolError(f"an empty frame of {name}")
        if end > credit:
            raise RemoteProtocolError(f"{name} exceeds its credit of {credit}")
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
        self.passed = max(self.passed, offset)
        self._skipped -= skipped
        if self.passed - self._grown_at >= self._window:
            self._grown_at = self.passed
            self._window *= 2
        self._grow()
        self._tell_if_due()

    def update(self) -> wire.StreamWindow:
        """What to tell the sender."""
        self.told = self.granted
        return wire.StreamWindow(self.stream, self.acked, self.granted)

    def close(self) -> None:
        """The channel is closed: nothing of it waits any more."""
        if not self._closed and self._bounded:
            self.pool.promised -= self._promised
            self.pool.leave(self.client)
        self._closed = True

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
        room = self.pool.limit - (self.pool.promised - self._promised)
        share = self.pool.share(self.client)
        self._window = min(self._window, self.pool.limit // GREATEST_SHARE)
        under_way = max(self.pool.least, min(self._window, share, room))
        self.granted = max(self.granted, min(self.wanted, self.passed + under_way))
        under_way = max(self.granted, self._allowed) - self.passed - self._skipped
        promised = max(0, under_way)  # a receiver may begin behind all it has granted
        self.pool.promised += promised - self._promised
        self._promised = promised
