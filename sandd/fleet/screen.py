"""A live view on a terminal: one thing that is drawn anew in its place."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

import trio

from sandd.wire import DaemonState

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType
    from rich.live import Live

LINES_BESIDE: Final = 4
"""Of a screen, beside the rows of a table: the header, what is below it, and the count."""
COLOURS: Final = {DaemonState.ONLINE: "green", DaemonState.AWAY: "yellow"}


class Screen:
    """The terminal's other screen, with one thing on it; afterwards the terminal is as it was."""

    def __init__(self) -> None:
        from rich.live import Live  # late: for who has a terminal

        # Nothing refreshes by itself: who has seen a change draws.
        self._live: Live = Live(
            screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._drawing = trio.Lock()

    async def show(self, make: Callable[[int], RenderableType]) -> None:
        """Draw what `make` makes of so many lines, in a thread: a terminal may have been stopped (Ctrl-S)."""
        # Not abandoned when cancelled, or it would draw once the screen is left.
        async with self._drawing:
            await trio.to_thread.run_sync(self._draw, make)

    def leave(self) -> None:
        """Back to the screen there was."""
        self._live.stop()

    async def heed_signals(self, look: Callable[[], None]) -> None:
        """Ctrl-Z leaves the screen before it stops us, and a window of another size is drawn anew; for ever."""
        if sys.platform == "win32":
            return  # it has neither
        with trio.open_signal_receiver(signal.SIGTSTP, signal.SIGWINCH) as signals:
            async for number in signals:
                if number == signal.SIGTSTP:
                    async with self._drawing:
                        self.leave()
                        os.kill(os.getpid(), signal.SIGSTOP)
                look()

    def _draw(self, make: Callable[[int], RenderableType]) -> None:
        # Rich believes COLUMNS and LINES first, which were true when this was started.
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(sys.stdout.fileno())
            if size.columns and size.lines:  # as of no terminal that nobody has told its size
                self._live.console.size = size
        if not self._live.is_started:
            self._live.start()
        self._live.update(make(self._live.console.height), refresh=True)
