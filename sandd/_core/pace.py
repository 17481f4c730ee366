"""How much to say at a time on a line of unknown speed.

Sans-IO. What is handed to the socket stands before everything that becomes urgent later: on a line of
64 kbit/s a message of 256 KiB takes half a minute, in which a keystroke waits, no pong arrives, and the
peer, which sees whole messages only, may think that we are dead.
"""

from __future__ import annotations

from typing import Final

from attrs import define

from sandd import wire

LEAST_BYTES: Final = 4 * wire.KIB
"""Half a second at 64 kbit/s; less would be mostly headers and system calls on any faster line."""
FIRST_BYTES: Final = 8 * wire.KIB
"""Nothing is known of the line yet; five quick steps lead to the most."""
LARGE_BYTES: Final = 256 * wire.KIB
"""From here on what is gained is turns of the peers' loops, and a line has to be a fast one for that to count."""
MOST_BYTES: Final = wire.MAX_DATA_BYTES
"""1 ms of the work of each process that it passes: a keystroke waits no longer for it."""
SLOW_SECONDS: Final = 0.25
"""A message that the socket took this long for was too large. More than what a loop that is busy makes of
it, so that a busy program doesn't send in crumbs."""
QUICK_SECONDS: Final = 0.1
"""One that it took faster could have been larger."""
LARGE_SLOW_SECONDS: Final = 0.05
LARGE_QUICK_SECONDS: Final = 0.01
"""The same of messages beyond `LARGE_BYTES`: more than 25 MB/s, and less than 10."""


@define
class Pace:
    """Learns from each message how large the next may be: doubles while they go quickly, halves when not."""

    batch_bytes: int = FIRST_BYTES
    _was_quick: bool = False
    """So was the latest of this size. One says nothing: it went where nothing had been waiting yet."""

    def sent(self, size: int, seconds: float) -> bool:
        """The socket took so many bytes in this time; True: `batch_bytes` is another now."""
        before = self.batch_bytes
        slow = LARGE_SLOW_SECONDS if before > LARGE_BYTES else SLOW_SECONDS
        if seconds > slow:
            self.batch_bytes = max(LEAST_BYTES, before // 2)
            self._was_quick = False
        elif size >= before:
            quick = LARGE_QUICK_SECONDS if before >= LARGE_BYTES else QUICK_SECONDS
            is_quick = seconds < quick
            if is_quick and self._was_quick:
                self.batch_bytes = min(MOST_BYTES, before * 2)
            self._was_quick = is_quick and not self._was_quick
        return self.batch_bytes != before
