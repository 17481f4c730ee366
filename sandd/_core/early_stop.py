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

    def __init__(self) -> None:
        self.running = False
        self.requested = False

    def install(self) -> None:
        """Take the signals; main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def over(self) -> None:
        """From here to the end of the process there is nothing left to stop."""
        # Not a handler of ours: Python takes those back while it shuts down, and dies of the signal.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self.running:
            # Nothing has been started yet, and an exception in mid-import is not worth its traceback.
            os._exit(0)
