"""What may wait for one link without credit for its bytes: control frames and messages, shared by their senders.

Sans-IO. Credit bounds the bytes of streams. An Attach, an End or a message on OPS and EVENTS has none that counts
bytes, so a sender that says more of them than a slow line takes would fill the link of whoever is at its other end. So
each sender may have as much waiting as is left free: alone it has half, two have a third each, and whatever they
do there is room for one more. Who goes beyond that is refused, and the link and all others stand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandd import wire

if TYPE_CHECKING:
    from collections.abc import Hashable

BACKLOG_BYTES: Final = 48 * wire.MIB
"""All senders together. The link is given up at `scheduler.MAX_CONTROL_BACKLOG`: what is between the two is for what
the controller itself has to say, of daemons that come and go."""


@define(eq=False)
class Backlog:
    """Bytes that wait for one link, by whom they are from."""

    limit: int = BACKLOG_BYTES
    waiting: int = 0
    """Of all senders."""
    by_sender: dict[Hashable, int] = field(factory=dict)
    """Of each that has anything waiting."""

    def share(self, sender: Hashable) -> Share:
        """That sender's."""
        return Share(self, sender)

    def of(self, sender: Hashable) -> int:
        """Bytes of that sender that wait."""
        return self.by_sender.get(sender, 0)


@define(eq=False)
class Share:
    """One sender's part of a link's backlog."""

    backlog: Backlog
    sender: Hashable

    def has_room(self, size: int) -> bool:
        """Whether the sender may have so many more bytes waiting."""
        backlog = self.backlog
        own = backlog.by_sender.get(self.sender, 0)
        return own + size <= backlog.limit - backlog.waiting - size

    def add(self, size: int) -> None:
        """So many more wait, one or more, whether there is room or not."""
        backlog, sender = self.backlog, self.sender
        backlog.waiting += size
        backlog.by_sender[sender] = backlog.by_sender.get(sender, 0) + size

    def remove(self, size: int) -> None:
        """So many have gone, or none."""
        backlog, sender = self.backlog, self.sender
        backlog.waiting -= size
        left = backlog.by_sender.get(sender, 0) - size
        if left:
            backlog.by_sender[sender] = left
        else:  # who has nothing waiting costs nothing
            backlog.by_sender.pop(sender, None)
