"""A program that is told to stop before it runs: SIGTERM and SIGINT while trio doesn't have them.

The standard library's lightest modules only: what is to be caught is the import of all others.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType


class EarlyStop:
    """Before `running`, a signal ends the program at once, with 0; from then on it is noted, for who asks."""

    def __init__(self, *, harmless: tuple[int, ...] = ()) -> None:
        """`harmless` signals mean something only while the program runs: before and after they do nothing."""
        self.running = False
        self.requested = False
        self._harmless = harmless

    def install(self) -> None:
        """Take the signals; main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        for number in self._harmless:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) has it
                signal.signal(number, lambda *_: None)

    def over(self) -> None:
        """From here to the end of the process there is nothing left to stop."""
        # Not a handler of ours: Python takes those back while it shuts down, and dies of the signal.
        for number in (signal.SIGTERM, signal.SIGINT, *self._harmless):
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self.running:
            # Nothing has been started yet, and an exception in mid-import is not worth its traceback.
            os._exit(0)
