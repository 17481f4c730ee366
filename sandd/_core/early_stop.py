"""Signals that come before trio has them, or when it has them no more: SIGTERM, SIGINT, and SIGHUP where it reloads.

The standard library's lightest modules only: what is to be caught is the import of all others.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType


class EarlyStop:
    """Before `running`, a signal ends the program at once, with 0; from then on it is noted, for who asks."""

    def __init__(self) -> None:
        self.running = False
        self.requested = False
        self.reload_requested = False
        self._reload_signals: list[signal.Signals] = []

    def install(self, *, reloads: bool = False) -> None:
        """Take the signals; main thread only. With `reloads` SIGHUP, too, which is only noted."""
        if reloads:
            self._reload_signals = reload_signals()
        for number in self._reload_signals:
            signal.signal(number, self._note_reload)
        # Last: whoever sees that these are caught may send any of them.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def over(self) -> None:
        """From here to the end of the process there is nothing left to stop."""
        # Not a handler of ours: Python takes those back while it shuts down, and dies of the signal.
        for number in (signal.SIGTERM, signal.SIGINT, *self._reload_signals):
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self.running:
            # Nothing has been started yet, and an exception in mid-import is not worth its traceback.
            os._exit(0)

    def _note_reload(self, _number: int, _frame: FrameType | None) -> None:
        self.reload_requested = True


def reload_signals() -> list[signal.Signals]:
    """SIGHUP; not on Windows, where there is none.

    Also where whoever started us has it ignored (nohup): that is to live on, which it does, and still to reload.
    """
    if sys.platform == "win32":
        return []
    return [signal.SIGHUP]
