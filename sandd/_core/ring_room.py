"""What the rings of busy streams may have besides what each begins with: all of a daemon together.

It is the same for what a client's downloads may have under way towards it.

Sans-IO. A ring bounds what is under way from a process to its reader. Where three processes pass it on they want some
messages each, or two of them wait for the third; but a ring of that size for each of many commands whose readers are
slow would be most of a small machine's memory.
"""

from __future__ import annotations

from typing import Final

from attrs import define

from sandd import wire

RING_ROOM_BYTES: Final = 32 * wire.MIB
"""So some sixty streams are as wide as they may be; those that come later stay as they begin."""


@define(eq=False)
class RingRoom:
    """How much of it is left."""

    left: int = RING_ROOM_BYTES

    def take(self, size: int) -> int:
        """So much, or what there is."""
        taken = min(size, self.left)
        self.left -= taken
        return taken

    def give_back(self, size: int) -> None:
        """So much is not needed any more."""
        self.left += size
